"""GGUF; that llama.cpp runs what is written here, and reads the same weights, was seen by hand."""

import struct
import sys
import tracemalloc
from dataclasses import replace
from functools import partial

import gguf as library
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import FormatError, RunError, UserError
from formats import llama2_c
from formats.gguf import MAX_HEADER_BYTES, TENSORS, read, write
from formats.tokenizer_files import load_tokenizer
from formats.weights import FLOATS, Parts, Weights
from models.gpt2 import GPT2Config
from models.llama2 import Llama2Config
from tokenizer import BYTE_PIECES, SPECIAL_PIECES, BytePairTokenizer, LlamaTokenizer, train_bpe

Type = library.GGMLQuantizationType

TEXT = "it's a naïve 😀 test,  it's 12 tests\n"
BYTES = load_tokenizer("bytes")
TRAINED = train_bpe(TEXT * 2, 9)
TEXTS = [" ", "a", "b", " a", "ab", " ab", "é", "  "]
PIECES = [*SPECIAL_PIECES, *BYTE_PIECES, *map(str.encode, TEXTS)]
LLAMA = LlamaTokenizer(PIECES, [0.0] * 259 + [-1.5 * place for place in range(len(TEXTS))])
TOKENIZERS = pytest.mark.parametrize(
    "tokenizer", [BYTES, TRAINED, LLAMA], ids=["bytes", "trained", "llama"]
)

# No two of the numbers are equal, so that none can stand in another's place unnoticed.
GPT2 = {"seq_len": 7, "vocab_size": 257, "num_layers": 2, "num_heads": 3, "channels": 12}
LLAMA2 = {
    "dim": 32,
    "hidden_dim": 64,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "vocab_size": 267,
    "seq_len": 9,
    "norm_eps": 1e-6,
    "rope_theta": 500000.0,
    "tied": False,
}


def gpt2(tokenizer=BYTES):
    config = GPT2 | {"vocab_size": tokenizer.vocab_size}
    shapes = GPT2Config(**config).param_shapes() | {"wte": (tokenizer.vocab_size, 12)}
    return weights_of("gpt2", config, shapes, tokenizer)


def llama(tokenizer=LLAMA, **changes):
    config = LLAMA2 | {"vocab_size": tokenizer.vocab_size} | changes
    shapes = Llama2Config(**config).param_shapes()
    return weights_of("llama2", config, shapes, tokenizer)


def weights_of(kind, config, shapes, tokenizer):
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    parts = {name: Parts.of(name, tensor) for name, tensor in tensors.items()}
    return Weights("", kind, config, parts, tokenizer)


ALL_MODELS = pytest.mark.parametrize(
    "model",
    [gpt2, llama, partial(llama, tied=True)],
    ids=["gpt2", "llama", "tied"],
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


def assert_same(weights, expected):
    assert weights.config == expected.config
    assert weights.tensors.keys() == expected.tensors.keys()
    for name, parts in weights.tensors.items():
        assert parts.shape == expected.tensors[name].shape
        for part, other in zip(parts, expected.tensors[name], strict=True):
            assert part.dtype == parts.dtype
            np.testing.assert_array_equal(part, other)


# What is written


@ALL_MODELS
@TOKENIZERS
def test_what_is_written_comes_back_bit_by_bit(path, model, tokenizer):
    weights = model(tokenizer)
    write(path, weights)
    again = read(path)
    assert_same(again, weights)
    assert (again.format, again.kind) == ("GGUF, version 3", weights.kind)
    assert type(again.tokenizer) is type(tokenizer)
    assert again.tokenizer.to_bytes() == tokenizer.to_bytes()


@ALL_MODELS
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_matrices_are_in_the_type_asked_for_and_all_else_in_float32(path, model, dtype):
    weights = model()
    write(path, weights, dtype)
    short = {"float16": "F16", "bfloat16": "BF16"}[dtype]
    for tensor in library.GGUFReader(path).tensors:
        matrix = len(tensor.shape) == 2 and tensor.name != "position_embd.weight"
        assert tensor.tensor_type.name == (short if matrix else "F32")
    for name, parts in read(path).tensors.items():
        matrix = name in ("wte", "wcls") or len(parts.shape) == 3
        assert parts.stored == parts.dtype.name == (dtype if matrix else "float32")
        for part, original in zip(parts, weights.tensors[name], strict=True):
            assert isinstance(part, np.memmap)
            np.testing.assert_array_equal(part, original.astype(parts.dtype))


def fields_of(path):
    """What the library finds in a file, but for how many keys and tensors there are."""
    fields = library.GGUFReader(path).fields
    return {key: fields[key].contents() for key in fields if not key.startswith("GGUF.")}


def test_keys_of_a_gpt2(path):
    write(path, gpt2(TRAINED))
    fields = fields_of(path)
    tokens, merges, types = (
        fields.pop(f"tokenizer.ggml.{name}") for name in ("tokens", "merges", "token_type")
    )
    assert fields == {
        "general.architecture": "gpt2",
        "gpt2.context_length": 7,
        "gpt2.block_count": 2,
        "gpt2.attention.head_count": 3,
        "gpt2.attention.head_count_kv": 3,
        "gpt2.embedding_length": 12,
        "gpt2.feed_forward_length": 48,
        "gpt2.attention.layer_norm_epsilon": np.float32(1e-5),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 265,
        "tokenizer.ggml.eos_token_id": 265,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert tokens[ord("A")] == "A"
    assert tokens[ord(" ")] == "Ġ"
    assert tokens[265:] == ["<|endoftext|>"]
    assert [merge.replace(" ", "") for merge in merges] == tokens[256:265]
    assert all(merge.count(" ") == 1 for merge in merges)
    assert types == [library.TokenType.NORMAL] * 265 + [library.TokenType.CONTROL]


def test_tokens_are_written_in_order_of_rank(path):
    write(path, gpt2(BytePairTokenizer(dict(reversed(TRAINED.ranks.items())))))
    assert read(path).tokenizer.ranks == TRAINED.ranks


def test_without_merges_there_is_an_empty_one(path):
    """llama.cpp does not load a model that has no list of them."""
    write(path, gpt2(BYTES))
    assert fields_of(path)["tokenizer.ggml.merges"] == [""]


def test_keys_of_a_llama(path):
    write(path, llama())
    fields = fields_of(path)
    tokens, scores, types = (
        fields.pop(f"tokenizer.ggml.{name}") for name in ("tokens", "scores", "token_type")
    )
    assert fields == {
        "general.architecture": "llama",
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 64,
        "llama.block_count": 3,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 8,
        "llama.attention.value_length": 8,
        "llama.rope.dimension_count": 8,
        "llama.context_length": 9,
        "llama.attention.layer_norm_rms_epsilon": np.float32(1e-6),
        "llama.rope.freq_base": 500000.0,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": True,
    }
    assert tokens[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert tokens[258:] == ["<0xFF>", "▁", "a", "b", "▁a", "ab", "▁ab", "é", "▁▁"]
    assert scores == LLAMA.scores
    assert types == [2, 3, 3] + [6] * 256 + [1] * 8  # unknown, control, byte, normal


@ALL_MODELS
def test_the_library_finds_every_tensor_under_llama_cpps_name(path, model):
    weights = model()
    write(path, weights)
    found = {tensor.name: tensor.data for tensor in library.GGUFReader(path).tensors}
    templates = TENSORS["gpt2" if weights.kind == "gpt2" else "llama"]
    for name, parts in weights.tensors.items():
        for layer, part in enumerate(parts):
            np.testing.assert_array_equal(found.pop(templates[name].format(layer)), part)
    assert not found


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_names_are_the_librarys(architecture):
    tensors = library.MODEL_TENSORS[library.MODEL_ARCH[architecture.upper()]]
    known = {library.TENSOR_NAMES[tensor] for tensor in tensors}
    for template in TENSORS[architecture].values():
        assert template.replace("{}", "{bid}").rpartition(".")[0] in known


def test_real_models(starter, path):
    weights = llama2_c.read(starter / "stories260K.bin")
    weights = replace(weights, tokenizer=load_tokenizer(starter / "tok512.bin"))
    write(path, weights)
    again = read(path)
    assert weights.config.items() <= again.config.items()
    assert_same(again, replace(weights, config=again.config))
    assert again.tokenizer.to_bytes() == (starter / "tok512.bin").read_bytes()

    vocabulary = load_tokenizer("gpt2")
    write(path, gpt2(vocabulary))
    assert read(path).tokenizer.ranks == vocabulary.ranks


def test_parts_are_written_one_by_one(path):
    matrix = np.ones((512, 512), np.float32)  # 1 MiB
    weights = llama(dim=512, hidden_dim=512, num_kv_heads=4, num_layers=8)
    shapes = {name: parts.shape for name, parts in weights.tensors.items()}
    matrices = {
        name: Parts(shape, np.float32, [lambda: matrix + 1] * 8)
        for name, shape in shapes.items()
        if len(shape) == 3
    }
    weights = replace(weights, tensors=weights.tensors | matrices)
    write(path, weights)  # imports are not to be counted
    tracemalloc.start()
    write(path, weights, "bfloat16")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * matrix.nbytes


def test_a_model_without_its_tokenizer_is_not_written(path):
    with pytest.raises(UserError, match=r"model\.gguf without the model's tokenizer"):
        write(path, replace(gpt2(), tokenizer=None))
    with pytest.raises(UserError, match=r"model\.gguf: the tokenizer has 266 tokens, .* 257;"):
        write(path, replace(gpt2(), tokenizer=TRAINED))
    assert not path.exists()


@pytest.mark.parametrize(
    "tokenizer",
    [
        BytePairTokenizer(BYTES.ranks | {b"<|": 256, b"<|endoftext|>": 257}),
        LlamaTokenizer([*PIECES, "a▁b".encode(), b"a b"], [*LLAMA.scores, 0.0, 0.0]),
        LlamaTokenizer([*PIECES, b"</s>"], [*LLAMA.scores, 0.0]),
    ],
)
def test_tokens_that_look_the_same_are_not_written(path, tokenizer, monkeypatch):
    monkeypatch.setattr("formats.gguf.merges", lambda ranks: [])  # which may refuse them, too
    with pytest.raises(UserError, match=r"model\.gguf: two tokens"):
        write(path, llama(tokenizer))


def test_a_failed_write_leaves_what_was_there(path, monkeypatch):
    write(path, llama())
    before = path.read_bytes()
    weights = llama()
    weights.tensors["w2"][1][0, 0] = 1e30
    with pytest.raises(
        UserError, match=r"model\.gguf: a weight of 1e\+30 is too large for float16"
    ):
        write(path, weights, "float16")

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(RunError, match=r"model\.gguf: No space left"):
        write(path, weights)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["model.gguf"]


# What is read: files that the library alone has written

FLOATING = np.ones((32, 32), np.float32)


def forge(path, keys=None, tensors=None, architecture="llama"):
    """A llama's file with other keys or tensors, as (array, type); None leaves one out."""
    model = llama(num_layers=2)
    stored = {
        TENSORS["llama"][name].format(layer): (part, Type.F32)
        for name, parts in model.tensors.items()
        for layer, part in enumerate(parts)
    } | (tensors or {})
    numbers = {
        "general.architecture": architecture,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 64,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.context_length": 9,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.rope.freq_base": 500000.0,
    }
    writer = library.GGUFWriter(path, architecture)
    writer.kv_data[0].clear()
    for key, value in (numbers | (keys or {})).items():
        if isinstance(value, library.GGUFValue):
            writer.add_key_value(key, *vars(value).values())
        elif value is not None:
            kind = library.GGUFValueType.get_type(value)
            number = kind == library.GGUFValueType.INT32
            writer.add_key_value(key, value, library.GGUFValueType.UINT32 if number else kind)
    for name, value in stored.items():
        if value is not None:
            array, kind = value
            writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.mark.parametrize("version", [2, 3])
def test_a_file_that_the_library_wrote(path, version):
    model = forge(path)
    with path.open("r+b") as file:
        file.seek(4)
        file.write(struct.pack("<I", version))
    weights = read(path)
    assert weights.format == f"GGUF, version {version}"
    assert_same(weights, model)
    assert weights.tokenizer is None
    assert weights.kind == "llama2"


def test_numbers_that_need_not_be_there(path):
    left_out = ("attention.head_count_kv", "attention.layer_norm_rms_epsilon", "rope.freq_base")
    wide = {f"blk.{i}.attn_{each}.weight": (FLOATING, Type.F32) for i in (0, 1) for each in "kv"}
    forge(path, {f"llama.{key}": None for key in left_out}, wide | {"output.weight": None})
    changes = {"num_kv_heads": 4, "norm_eps": 1e-5, "rope_theta": 10000.0, "tied": True}
    assert read(path).config == LLAMA2 | {"num_layers": 2} | changes


def test_values_of_every_type(path):
    types = [kind for kind in library.GGUFValueType if kind.name not in ("STRING", "ARRAY")]
    keys = {f"some.{kind.name}": library.GGUFValue(1, kind) for kind in types}
    keys |= {
        f"{key}s": library.GGUFValue([1, 0], library.GGUFValueType.ARRAY, value.type)
        for key, value in keys.items()
    }
    model = forge(path, keys | {"llama.context_length": library.GGUFValue(9, types[-2])})
    assert_same(read(path), model)


def test_keys_that_change_nothing(path):
    harmless = {
        "vocab_size": 32000,
        "tensor_data_layout": "Meta AI original pth",
        "expert_count": 0,
        "expert_used_count": 0,
        "rope.dimension_count": 8,
        "rope.scaling.type": "none",
        "rope.scaling.factor": 1.0,
        "attention.key_length": 8,
    }
    others = {"general.name": "Ünï", "tokenizer.chat_template": "{{ x }}", "llamas.count": 3}
    model = forge(path, {f"llama.{key}": value for key, value in harmless.items()} | others)
    assert_same(read(path), model)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_count", 8),
        ("expert_count", [0, 0]),
        ("rope.scaling.type", "yarn"),
        ("rope.scaling.factor", 4.0),
        ("rope.scale_linear", 2.0),
        ("rope.dimension_count", 4),
        ("rope.dimension_count", 8.0),
        ("attention.key_length", 16),
        ("attention.value_length", 4),
        ("attention.sliding_window", 4096),
        ("logit_scale", 0.5),
    ],
)
def test_what_our_models_do_not_compute_is_refused_by_name(path, key, value):
    forge(path, {f"llama.{key}": value})
    shown = str(value).replace("[0, 0]", "[0 0]").replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(FormatError, match=rf"model\.gguf has llama\.{key} = {shown}, which is not"):
        read(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("attention.layer_norm_epsilon", 1e-6), ("feed_forward_length", 40)],
)
def test_a_gpt2_that_ours_is_not_is_refused_by_name(path, key, value):
    keys = {f"gpt2.{name}": GPT2[each] for each, name in GPT2_KEYS.items()}
    forge(path, keys | {f"gpt2.{key}": value}, architecture="gpt2")
    with pytest.raises(FormatError, match=rf"model\.gguf has gpt2\.{key} = {value}, which is not"):
        read(path)


GPT2_KEYS = {
    "seq_len": "context_length",
    "num_layers": "block_count",
    "num_heads": "attention.head_count",
    "channels": "embedding_length",
}


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"llama.block_count": None}, r"a llama\.block_count of 0;"),
        ({"llama.block_count": 2**32 - 1}, "4294967295 layers, but only 21 tensors;"),
        ({"llama.block_count": 3}, r"no tensor blk\.2\.attn_norm\.weight;"),
        ({"llama.block_count": 1}, r"a tensor blk\.1\.attn_norm\.weight, which the models here"),
        ({"llama.attention.head_count": 0}, r"a llama\.attention\.head_count of 0;"),
        ({"llama.attention.head_count": [4, 4]}, r"a llama\.attention\.head_count of \[4 4\];"),
        ({"llama.context_length": "9"}, r"a llama\.context_length of 9;"),
        ({"llama.context_length": True}, r"a llama\.context_length of True;"),
        ({"llama.rope.freq_base": 10000}, r"a llama\.rope\.freq_base of 10000;"),
        ({"general.alignment": 0}, r"an alignment of 0;"),
        ({"general.alignment": [32]}, r"a general\.alignment of \[32\];"),
        ({"general.architecture": [1, 2]}, r"a general\.architecture of \[1 2\];"),
        ({"general.architecture": "qwen2"}, "of the architecture qwen2, and only gpt2 and llama"),
        ({"split.count": 3}, "llama-gguf-split --merge"),
        ({"split.count": [1, 1]}, r"a split\.count of \[1 1\];"),
    ],
)
def test_other_keys_are_refused(path, keys, sentence):
    forge(path, keys)
    with pytest.raises(FormatError, match=rf"model\.gguf .*{sentence}"):
        read(path)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"blk.1.ffn_up.weight": None}, r"no tensor blk\.1\.ffn_up\.weight;"),
        ({"token_embd.weight": None}, r"no tensor token_embd\.weight;"),
        ({"rope_freqs.weight": (FLOATING[0], Type.F32)}, r"a tensor rope_freqs\.weight, which"),
        ({"blk.1.attn_q.weight": (FLOATING[:, :16], Type.F32)}, r"wq is not \(32, 32\) as in"),
        ({"blk.1.attn_q.weight": (FLOATING.astype(np.float64), Type.F64)}, "type 28, which the"),
        ({"blk.1.attn_q.weight": (FLOATING.astype(np.int32), Type.I32)}, "type 26, which the"),
        ({"blk.1.attn_q.weight": (FLOATING, Type.Q8_K)}, "type 15, which the"),
        ({"output.weight": (FLOATING, Type.Q4_K)}, "rows of 32 in output.* of 256;"),
    ],
)
def test_other_tensors_are_refused(path, tensors, sentence):
    forge(path, tensors=tensors)
    with pytest.raises(FormatError, match=rf"model\.gguf.* {sentence}"):
        read(path)


# Quantised tensors


def quantised(kind, rows, columns=256):
    """Random blocks of a type, (rows, bytes)."""
    block, size = library.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (rows, columns // block * size), np.uint8)


@pytest.mark.parametrize(
    "kind",
    ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"],
)
def test_every_quantised_type_becomes_float32(path, kind):
    data = quantised(Type[kind], 32)
    forge(
        path, tensors={f"blk.{i}.ffn_down.weight": (data[:: -i or 1], Type[kind]) for i in (0, 1)}
    )
    parts = read(path).tensors["w2"]
    assert (parts.shape, parts.dtype, parts.stored) == ((2, 32, 256), np.float32, kind)
    with np.errstate(all="ignore"):  # random scales
        expected = library.dequantize(data, Type[kind])
    assert np.isfinite(expected).mean() > 0.5
    for part, other in zip(parts, (expected, expected[::-1]), strict=True):
        assert part.dtype == np.float32
        np.testing.assert_array_equal(part, other)


def test_blocks_number_by_number(path):
    """As ggml-quants.h describes them: a scale in float16, then 32 integers."""
    eights, fours = (library.quantize(FLOATING * 7, each) for each in (Type.Q8_0, Type.Q4_0))
    eights[3] = [*struct.pack("<e", 0.5), *range(32)]
    fours[3] = [*struct.pack("<e", -2), *[0x90 + j for j in range(16)]]
    forge(
        path,
        tensors={
            "blk.0.attn_q.weight": (eights, Type.Q8_0),
            "blk.1.attn_q.weight": (fours, Type.Q4_0),
        },
    )
    parts = read(path).tensors["wq"]
    assert parts.stored == "Q4_0 Q8_0"
    np.testing.assert_array_equal(parts[0][3], [0.5 * j for j in range(32)])
    np.testing.assert_array_equal(parts[1][3], [*(-2 * (j - 8) for j in range(16)), *[-2] * 16])
    np.testing.assert_allclose(parts[0][4], 7, rtol=1e-3)


@pytest.mark.parametrize(
    ("first", "second"), [("F16", "F32"), ("BF16", "F16"), ("F32", "Q8_0"), ("Q8_0", "BF16")]
)
def test_layers_of_several_types_become_float32(path, first, second):
    original = {"F32": FLOATING, "F16": FLOATING.astype(np.float16)}
    original["BF16"] = FLOATING.astype(FLOATS["bfloat16"]).view(np.uint8)
    original["Q8_0"] = library.quantize(FLOATING, Type.Q8_0)
    types = {
        f"blk.{i}.attn_q.weight": (original[n], Type[n]) for i, n in enumerate((first, second))
    }
    forge(path, tensors=types)
    parts = read(path).tensors["wq"]
    assert parts.dtype == np.float32
    for part in parts:
        assert part.dtype == np.float32
        np.testing.assert_allclose(part, FLOATING, rtol=1e-3)


def test_reading_maps_and_does_not_copy(path):
    write(path, llama())
    weights = read(path)
    place = path.read_bytes().index(weights.tensors["w3"][1].tobytes())
    with path.open("r+b") as file:
        file.seek(place)
        file.write(struct.pack("<f", 7.5))
    assert weights.tensors["w3"][1][0, 0] == 7.5
    with pytest.raises(ValueError, match="read-only"):
        weights.tensors["w3"][1][0, 0] = 1


def test_quantised_parts_are_made_when_they_are_looked_up(path, monkeypatch):
    forge(path, tensors={"output.weight": (quantised(Type.Q4_K, 32), Type.Q4_K)})
    made = []
    original = library.dequantize
    monkeypatch.setattr(library, "dequantize", lambda *args: made.append(1) or original(*args))
    parts = read(path).tensors["wcls"]
    made.clear()  # it has been tried on a block of zeros
    parts[0]
    assert len(made) == 1


def test_without_the_library_only_floats_are_read(path, monkeypatch):
    model = forge(path)
    forge(
        path.with_name("q.gguf"), tensors={"output.weight": (quantised(Type.Q4_K, 32), Type.Q4_K)}
    )
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert_same(read(path), model)
    with pytest.raises(UserError, match=r"q\.gguf needs the library gguf.* -e \"\.\[gguf\]\""):
        read(path.with_name("q.gguf"))
    with pytest.raises(UserError, match=r"model\.gguf needs the library gguf"):
        write(path, model)


# Tokenizers of other systems


def forge_tokenizer(path, tokenizer, **changes):
    """A file with a tokenizer that is changed here and there; None leaves something out."""
    write(path, llama(tokenizer))
    keys = {key: value for key, value in fields_of(path).items() if key.startswith("tokenizer")}
    keys |= {f"tokenizer.ggml.{name}": change for name, change in changes.items()}
    embedding = np.zeros((tokenizer.vocab_size, 32), np.float32), Type.F32
    forge(path, keys, {"token_embd.weight": embedding})


@pytest.mark.parametrize(
    "left_out", ["pre", "token_type", "bos_token_id", "eos_token_id", "add_space_prefix", "merges"]
)
def test_a_llamas_tokenizer_needs_only_its_tokens_and_scores(path, left_out):
    forge_tokenizer(path, LLAMA, **{left_out: None})
    assert read(path).tokenizer.to_bytes() == LLAMA.to_bytes()


SPELLED = ["<unk>", "<s>", "</s>", *map(bytes.decode, BYTE_PIECES), *TEXTS]


@pytest.mark.parametrize(
    ("tokenizer", "changes"),
    [
        (LLAMA, {"model": None}),
        (LLAMA, {"model": "t5"}),
        (LLAMA, {"bos_token_id": 2}),
        (LLAMA, {"eos_token_id": 266}),
        (LLAMA, {"tokens": [*SPELLED[:3], *TEXTS, *SPELLED[3:259]]}),
        (TRAINED, {"model": "bert"}),
        (TRAINED, {"pre": "llama-bpe"}),
        (TRAINED, {"pre": None}),
        (TRAINED, {"merges": None}),
    ],
)
def test_a_tokenizer_unlike_ours_is_none(path, tokenizer, changes):
    forge_tokenizer(path, tokenizer, **changes)
    assert read(path).tokenizer is None


def test_byte_pairs_are_ours_only_in_the_order_of_merges(path):
    write(path, llama(TRAINED))
    tokens, merges = (fields_of(path)[f"tokenizer.ggml.{each}"] for each in ("tokens", "merges"))
    forge_tokenizer(path, TRAINED, tokens=tokens, merges=merges)
    assert read(path).tokenizer.ranks == TRAINED.ranks
    for changes in (
        {"merges": merges[::-1]},
        {"merges": merges[:-1]},
        {"tokens": [*tokens[:-1], "<|end|>"]},
        {"tokens": [tokens[-1], *tokens[:-1]]},
        {"tokens": ["A", *tokens[1:]]},  # a byte twice, another not at all
        {"tokens": [" ", *tokens[1:]]},  # no character that stands for a byte
        {"tokens": [b"\xff", *tokens[1:]]},
        {"tokens": ["", *tokens[1:]]},
    ):
        forge_tokenizer(path, TRAINED, **changes)
        assert read(path).tokenizer is None


@pytest.mark.parametrize(
    ("tokenizer", "changes", "sentence"),
    [
        (LLAMA, {"tokens": None}, "0 tokens, but embeddings of 267;"),
        (LLAMA, {"tokens": SPELLED[:-1]}, "266 tokens, but embeddings of 267;"),
        (LLAMA, {"tokens": [1, 2, 3]}, r"a tokenizer\.ggml\.tokens of \[1 2 3\];"),
        (LLAMA, {"scores": None}, "0 scores of 267 tokens;"),
        (LLAMA, {"scores": [0.0] * 266}, "266 scores of 267 tokens;"),
        (LLAMA, {"scores": SPELLED}, r"a tokenizer\.ggml\.scores of \[b'<unk>', "),
        (LLAMA, {"tokens": [*SPELLED[:-1], "x" * 257]}, "a token of more than 256 bytes;"),
        (LLAMA, {"bos_token_id": "1"}, r"a tokenizer\.ggml\.bos_token_id of 1;"),
        (TRAINED, {"tokens": ["A"]}, "1 tokens, but embeddings of 266;"),
        (TRAINED, {"merges": "a b"}, r"a tokenizer\.ggml\.merges of a b;"),
    ],
)
def test_a_damaged_tokenizer_is_refused(path, tokenizer, changes, sentence):
    forge_tokenizer(path, tokenizer, **changes)
    with pytest.raises(FormatError, match=rf"model\.gguf has {sentence}"):
        read(path)


# Hostile files


def header(tensors=0, values=0, magic=b"GGUF", version=3):
    return magic + struct.pack("<IQQ", version, tensors, values)


def string(text):
    return struct.pack("<Q", len(text)) + text


KEY = string(b"general.name")
HUGE = 2**64 - 1


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "no end of its header in the first 0 bytes"),
        (header()[:-1], "no end of its header in the first 23 bytes"),
        (header(magic=b"GGML"), "not the first four bytes of a GGUF file"),
        (header(version=1), "version 1 or a big-endian one"),
        (header(version=4), "version 4 or a big-endian one"),
        (header(version=3 << 24), "version 50331648 or a big-endian one"),
        (header(values=HUGE), f"0 tensors and {HUGE} keys"),
        (header(tensors=HUGE), f"{HUGE} tensors and 0 keys"),
        (header(values=65536), "no end of its header"),
        (header(tensors=65536), "no end of its header"),
        (header(values=1) + struct.pack("<Q", HUGE), "no end of its header"),
        (header(values=1) + string(b"k" * 257), "a name of 257 bytes"),
        (header(values=1) + KEY + struct.pack("<IQ", 8, HUGE), "no end of its header"),
        (header(values=1) + KEY + struct.pack("<I", 13), "a value of the unknown type 13"),
        (header(values=1) + KEY + struct.pack("<IIQ", 9, 0, HUGE), "no end of its header"),
        (header(values=1) + KEY + struct.pack("<IIQ", 9, 12, 2**61), "no end of its header"),
        (header(values=1) + KEY + struct.pack("<IIQ", 9, 8, HUGE), "no end of its header"),
        (header(values=1) + KEY + struct.pack("<IIQ", 9, 9, 1), "a value of the unknown type 9"),
        (header(values=1) + KEY + struct.pack("<IIQ", 9, 13, 0), "a value of the unknown type 13"),
        (header(values=2) + (KEY + struct.pack("<I?", 7, True)) * 2, "a key or a tensor twice"),
        (header(1) + string(b"x") + struct.pack("<I", 0), "a tensor x of 0 dimensions"),
        (header(1) + string(b"x") + struct.pack("<I", 2**32 - 1), "x of 4294967295 dimensions"),
        (header(1) + string(b"x") + struct.pack("<IQ", 1, 0) + bytes(12), r"of the shape \(0,\)"),
        (header(2) + (string(b"x") + struct.pack("<IQ", 1, 1) + bytes(12)) * 2, "a tensor twice"),
    ],
)
def test_lies_in_a_header_are_refused(path, data, sentence):
    path.write_bytes(data)
    with pytest.raises(FormatError, match=rf"model\.gguf .*{sentence}"):
        read(path)


def patched(data, name, place, number):
    """Bytes of a file in which a tensor's dimension, type or offset is another."""
    start = data.index(string(name)) + 8 + len(name) + place
    size = 4 if place == 20 else 8
    return data[:start] + number.to_bytes(size, "little") + data[start + size :]


@pytest.mark.parametrize("number", [2**63, HUGE, 2**40, 1 << 20])
@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        (4, r"bytes, but its tensor output\.weight ends at \d{7,};"),  # columns
        (12, r"bytes, but its tensor output\.weight ends at \d{7,};"),  # rows
        (24, r"bytes, but its tensor output\.weight ends at \d{7,};"),  # offset
    ],
)
def test_a_tensor_behind_the_end_of_the_file_is_refused(path, place, number, sentence):
    write(path, llama())
    path.write_bytes(patched(path.read_bytes(), b"output.weight", place, number))
    with pytest.raises(FormatError, match=sentence):
        read(path)


def test_a_tensor_of_an_unknown_type_is_refused(path):
    write(path, llama())
    data = path.read_bytes()
    for kind in (4, 999, 2**32 - 1):
        path.write_bytes(patched(data, b"output.weight", 20, kind))
        with pytest.raises(FormatError, match=rf"output\.weight is of the type {kind}, which"):
            read(path)


@ALL_MODELS
def test_a_file_that_was_cut_short_is_refused(path, model):
    write(path, model())
    data = path.read_bytes()
    last = len(model().tensors["lnfb" if model is gpt2 else "rmsfw"][0]) * 4
    end = len(data.rstrip(b"\0")) if last else 0
    for length in [*range(0, 6000, 97), *range(6000, end - 40, 3001), end - 4]:
        path.write_bytes(data[:length])
        with pytest.raises(FormatError, match=r"model\.gguf has"):
            read(path)


def test_a_string_as_long_as_the_file_is_not_taken_into_memory(path):
    length = 3 * MAX_HEADER_BYTES
    with path.open("wb") as file:
        file.write(header(values=1) + KEY + struct.pack("<IQ", 8, length))
        file.truncate(length + 1000)
    tracemalloc.start()
    with pytest.raises(FormatError, match=f"no end of its header .* {MAX_HEADER_BYTES} bytes"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * MAX_HEADER_BYTES


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Small files and where their headers end: a GPT-2, a Llama, and one that is quantised."""
    folder = tmp_path_factory.mktemp("sources")
    write(folder / "gpt2.gguf", gpt2(TRAINED))
    write(folder / "llama.gguf", llama(), "float16")
    types = {"attn_k": "Q4_0", "attn_v": "Q8_0", "ffn_gate": "Q6_K"}
    blocks = {
        f"blk.{i}.{name}.weight": (quantised(Type[kind], 8), Type[kind])
        for name, kind in types.items()
        for i in (0, 1)
    }
    forge(folder / "quantised.gguf", tensors=blocks)
    return [
        (path.read_bytes(), library.GGUFReader(path).data_offset)
        for path in sorted(folder.iterdir())
    ]


def mutated(data, end, edits):
    """Bytes with damage in front of `end`, four of `edits` for each: where, what and how."""
    data = bytearray(data)
    for high, low, value, how in zip(*[iter(edits)] * 4, strict=False):
        start = (high * 256 + low) * end >> 16
        count = (1, 1, 4, 8)[how % 4]
        kept = start if how & 4 else start + count  # something is put in, or replaced
        data[start:kept] = bytes([0 if how & 8 else value] * count)
        if how > 240:
            del data[start:]
    return bytes(data)


@pytest.mark.parametrize("number", range(3), ids=["gpt2", "llama", "quantised"])
@settings(max_examples=1000)
@given(edits=st.binary(min_size=4, max_size=12))
def test_a_mutated_file_is_read_or_refused(sources, tmp_path_factory, number, edits):
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.unlink(missing_ok=True)  # a new file is written five times faster than an old one
    path.write_bytes(mutated(*sources[number], edits))
    try:
        weights = read(path)
    except FormatError as error:
        assert "mutated.gguf" in str(error)
        return
    tokens = weights.tokenizer.encode(TEXT) if weights.tokenizer else []
    assert all(0 <= token < weights.config["vocab_size"] for token in tokens)
    for parts in weights.tensors.values():
        for part in parts:
            assert part.dtype == parts.dtype
            assert part.shape == parts.shape[len(parts.shape) - part.ndim :]
