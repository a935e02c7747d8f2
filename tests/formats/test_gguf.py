"""GGUF; that llama.cpp runs what is written here, and reads the same weights, was seen by hand."""

import re
import struct
import sys
import tracemalloc
from dataclasses import asdict, replace

import gguf as library
import numpy as np
import pytest
from gguf_files import (
    ALL_MODELS,
    BYTES,
    FLOATING,
    LLAMA,
    LLAMA2,
    PIECES,
    READ_AS,
    TOKENIZERS,
    TRAINED,
    Type,
    assert_same,
    fields_of,
    forge,
    gpt2,
    llama,
    quantised,
)

from errors import FormatError, RunError, UserError
from formats.gguf import read, write
from formats.tokenizer_files import load_tokenizer
from formats.weights import Parts
from load import open_model
from models.llama2 import Llama2Config
from tokenizer import BytePairTokenizer, LlamaTokenizer


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


# What is written


@ALL_MODELS
@TOKENIZERS
def test_what_is_written_comes_back_bit_by_bit(path, model, tokenizer):
    weights = model(tokenizer)
    write(path, weights)
    again = read(path)
    assert_same(again, weights)
    kind = READ_AS.get(weights.kind, weights.kind)
    assert (again.format, again.kind) == ("GGUF, version 3", kind)
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
            np.testing.assert_array_equal(part, original.astype(parts.dtype))


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
    assert scores == [*LLAMA.scores]
    assert types == [2, 3, 3] + [6] * 256 + [1] * 8  # unknown, control, byte, normal


def test_real_models(starter, path):
    source = open_model(starter / "stories260K.bin")
    weights = replace(source.weights, tokenizer=load_tokenizer(starter / "tok512.bin"))
    write(path, weights)
    again = read(path)
    assert_same(again, weights)
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
    # Which may refuse them, too.
    monkeypatch.setattr("formats.byte_level.merges", lambda ranks: [])
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


# What is read: files that the library alone has written


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
    assert read(path).config == asdict(Llama2Config(**LLAMA2 | {"num_layers": 2} | changes))


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
        ("rope.scaling.attn_factor", 1.5),
        ("rope.dimension_count", 4),
        ("attention.value_length", 4),
        ("attention.causal", False),
    ],
)
def test_what_our_models_do_not_compute_is_refused_by_name(path, key, value):
    forge(path, {f"llama.{key}": value})
    sentence = rf"model\.gguf: llama\.{key} is {re.escape(repr(value))}, and models here have"
    with pytest.raises(FormatError, match=sentence):
        read(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("logit_scale", 0.5),
        ("attention.scale", 0.5),
        ("attention.clamp_kqv", 8.0),
        ("rope.freq_base_swa", 1e4),
        ("rope.scaling.yarn_ext_factor", 1.0),
        ("attention.sliding_window_pattern", [True, False]),
        ("final_logit_softcapping", 30.0),
        ("new_key", 0),
    ],
)
def test_keys_that_nobody_knows_are_refused(path, key, value):
    forge(path, {f"llama.{key}": value})
    sentence = rf"model\.gguf has llama\.{key} = {re.escape(str(value))}, which is not what"
    with pytest.raises(FormatError, match=sentence):
        read(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("attention.layer_norm_epsilon", 1e-6), ("feed_forward_length", 40)],
)
def test_a_gpt2_that_ours_is_not_is_refused_by_name(path, key, value):
    forge(path, {f"gpt2.{key}": value}, architecture="gpt2")
    with pytest.raises(FormatError, match=rf"model\.gguf: gpt2\.{key} is {value}, and models here"):
        read(path)


COUNT = "must be a whole number from 1 to 16777216, not"


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"llama.block_count": None}, rf"llama\.block_count {COUNT} None;"),
        ({"llama.block_count": 2**32 - 1}, rf"llama\.block_count {COUNT} 4294967295;"),
        ({"llama.block_count": 99}, "99 layers, but only 21 tensors;"),
        ({"llama.block_count": 3}, r"no tensor blk\.2\.attn_norm\.weight;"),
        ({"llama.block_count": 1}, r"a tensor blk\.1\.attn_norm\.weight, which the models here"),
        ({"llama.attention.head_count": 0}, rf"llama\.attention\.head_count {COUNT} 0;"),
        ({"llama.attention.head_count": [4, 4]}, rf"attention\.head_count {COUNT} \[4, 4\];"),
        (
            {"llama.embedding_length": library.GGUFValue(-32, library.GGUFValueType.INT32)},
            rf"llama\.embedding_length {COUNT} -32;",
        ),
        ({"llama.context_length": "9"}, rf"llama\.context_length {COUNT} '9';"),
        ({"llama.context_length": True}, rf"llama\.context_length {COUNT} True;"),
        (
            {"llama.rope.freq_base": "x"},
            r"rope\.freq_base must be a number above 0, not 'x'",
        ),
        ({"llama.attention.sliding_window": 0}, rf"llama\.attention\.sliding_window {COUNT} 0;"),
        ({"general.alignment": 0}, r"an alignment of 0;"),
        ({"general.alignment": [32]}, r"a general\.alignment of \[32\];"),
        ({"general.architecture": [1, 2]}, r"a general\.architecture of \[1 2\];"),
        (
            {"general.architecture": "qwen3moe"},
            "of the architecture qwen3moe, and only gpt2, llama, qwen2, qwen3, phi3 and gemma3 are",
        ),
        ({"split.count": 3}, "llama-gguf-split --merge"),
        ({"split.count": [1, 1]}, r"a split\.count of \[1 1\];"),
    ],
)
def test_other_keys_are_refused(path, keys, sentence):
    forge(path, keys)
    with pytest.raises(FormatError, match=rf"model\.gguf.*{sentence}"):
        read(path)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"blk.1.ffn_up.weight": None}, r"no tensor blk\.1\.ffn_up\.weight;"),
        ({"token_embd.weight": None}, r"no tensor token_embd\.weight;"),
        ({"rope_freqs.weight": (FLOATING[0], Type.F32)}, r"32 factors in rope_freqs\.weight, and"),
        (
            {"rope_freqs.weight": (FLOATING, Type.F32)},
            r"freqs\.weight of the shape \(32, 32\)",
        ),
        ({"blk.0.attn_q.bias": (FLOATING[0], Type.F32)}, r"no tensor blk\.1\.attn_q\.bias;"),
        ({"blk.0.attn_k.bias": (FLOATING[0], Type.F32)}, r"a tensor blk\.0\.attn_k\.bias, which"),
        ({"blk.1.attn_q_norm.weight": (FLOATING[0], Type.F32)}, r"attn_q_norm\.weight, which"),
        ({"blk.0.attn_output.bias": (FLOATING[0], Type.F32)}, r"attn_output\.bias, which"),
        ({"blk.1.attn_q.weight": (FLOATING[:, :16], Type.F32)}, r"wq is not \(32, 32\) as in"),
        ({"blk.1.attn_q.weight": (FLOATING.astype(np.float64), Type.F64)}, "type 28, which the"),
        ({"blk.1.attn_q.weight": (FLOATING.astype(np.int32), Type.I32)}, "type 26, which the"),
        ({"blk.1.attn_q.weight": (FLOATING, Type.Q8_K)}, "type 15, which the"),
        ({"output.weight": (FLOATING, Type.Q4_K)}, "rows of 32 in output.* of 256;"),
    ],
)
def test_other_tensors_are_refused(path, tensors, sentence):
    forge(path, tensors=tensors)
    with pytest.raises(FormatError, match=rf"model\.gguf.*{sentence}"):
        read(path)


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
