"""GGUF's architectures: what each has of a model's numbers, and how it lays out its tensors."""

from dataclasses import replace

import gguf as library
import numpy as np
import pytest
from gguf_files import (
    ALL_MODELS,
    CONFIGS,
    FORGED,
    LINEAR,
    LLAMA3,
    LONGROPE,
    ORIGINAL,
    Type,
    assert_same,
    fields_of,
    forge,
    model_of,
)

from errors import FormatError, UserError
from formats import gguf_tensors
from formats.gguf import ARCHITECTURES, read, write
from load import open_model
from models.rotations import llama3_factors

ARCHITECTURE = {kind: kind for kind in CONFIGS} | dict.fromkeys(
    ("llama2", "llama3", "mistral"), "llama"
)
PATTERN = "attention.sliding_window_pattern"
FOUR, SIX = ((np.ones(count, np.float32), Type.F32) for count in (4, 6))
LOW = np.float32([1, -2, np.nan, np.inf]), Type.F32
FLAT_QKV = {f"blk.{i}.attn_qkv.weight": (np.ones(64, np.float32), Type.F32) for i in (0, 1)}
ODD = np.ones((63, 32), np.float32), Type.F32
ODD_UP, ODD_QKV = (
    {f"blk.{i}.{name}.weight": ODD for i in (0, 1)} for name in ("ffn_up", "attn_qkv")
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


# What is written


def halved(tensor, size):
    """Rows as ours, in whose heads the two of a pair are neighbours, as most have them in GGUF."""
    heads = tensor.reshape(-1, size, *tensor.shape[1:])
    return np.concatenate([heads[:, 0::2], heads[:, 1::2]], axis=1).reshape(tensor.shape)


ONCE = {
    "token_embd.weight": "wte",
    "position_embd.weight": "wpe",
    "output_norm.weight": "rmsfw",
    "output.weight": "wcls",
}
EACH = {
    "attn_norm.weight": "rms1w",
    "attn_q.weight": "wq",
    "attn_k.weight": "wk",
    "attn_v.weight": "wv",
    "attn_q.bias": "bq",
    "attn_k.bias": "bk",
    "attn_v.bias": "bv",
    "attn_q_norm.weight": "qnormw",
    "attn_k_norm.weight": "knormw",
    "attn_output.weight": "wo",
    "post_attention_norm.weight": "postrms1w",
    "ffn_norm.weight": "rms2w",
    "ffn_gate.weight": "w1",
    "ffn_down.weight": "w2",
    "ffn_up.weight": "w3",
    "post_ffw_norm.weight": "postrms2w",
}
FUSED = {"attn_qkv.weight": ("wq", "wk", "wv"), "ffn_up.weight": ("w1", "w3")}
TURNED = ("wq", "wk", "bq", "bk", "qnormw", "knormw")


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "gpt2"])
def test_tensors_are_laid_out_as_llama_cpps(path, kind):
    weights = model_of(kind)
    write(path, weights)
    found = {tensor.name: tensor.data for tensor in library.GGUFReader(path).tensors}

    def theirs(ours, layer):
        part = weights.tensors[ours][layer]
        # For llama alone, its converter makes neighbours of halves.
        turned = ours in TURNED and ARCHITECTURE[kind] != "llama"
        return halved(part, weights.config["head_size"]) if turned else part

    expected = {name: theirs(ours, 0) for name, ours in ONCE.items() if ours in weights.tensors}
    for layer in range(weights.config["num_layers"]):
        names = {name: (ours,) for name, ours in EACH.items()}
        if kind == "phi3":
            fused = {ours for each in FUSED.values() for ours in each}
            names = {name: each for name, each in names.items() if each[0] not in fused} | FUSED
        for name, ours in names.items():
            if ours[0] in weights.tensors:
                parts = [theirs(each, layer) for each in ours]
                expected[f"blk.{layer}.{name}"] = np.concatenate(parts)
    factors = {name: found.pop(name) for name in [*found] if name.startswith("rope_")}
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    assert set(factors) == {
        "llama3": {"rope_freqs.weight"},
        "phi3": {"rope_factors_long.weight", "rope_factors_short.weight"},
    }.get(kind, set())


def test_a_gpt2s_tensors_are_as_ours(path):
    weights = model_of("gpt2")
    write(path, weights)
    found = {tensor.name: tensor.data for tensor in library.GGUFReader(path).tensors}
    for ours, theirs in ARCHITECTURES["gpt2"].naming.names.items():
        for layer, part in enumerate(weights.tensors.get(ours, [])):
            np.testing.assert_array_equal(found.pop(theirs.format(layer)), part)
    assert not found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_names_are_the_librarys(architecture):
    tensors = library.MODEL_TENSORS[library.MODEL_ARCH[architecture.upper()]]
    known = {library.TENSOR_NAMES[tensor] for tensor in tensors}
    for theirs in ARCHITECTURES[architecture].naming.names.values():
        assert theirs.replace("{}", "{bid}").rpartition(".")[0] in known


@ALL_MODELS
def test_keys_are_the_librarys(path, model):
    weights = model()
    write(path, weights)
    fields = fields_of(path)
    name = fields["general.architecture"]
    groups = library.Keys.LLM, library.Keys.Attention, library.Keys.Rope
    keys = {key for group in groups for key in vars(group).values() if isinstance(key, str)}
    known = {key.replace("{arch}", name) for key in keys}
    written = {key for key in fields if key.startswith(f"{name}.")}
    assert len(written) >= 7
    assert written <= known


@pytest.mark.parametrize(
    ("kind", "changes", "architecture"),
    [
        *((kind, {}, architecture) for kind, architecture in ARCHITECTURE.items()),
        ("llama2", {"qkv_bias": True}, "llama"),
        ("llama2", {"qk_norm": True}, "qwen3"),
        ("llama3", {"qk_norm": True, "rope_scaling": None}, "qwen3"),
        ("mistral", {"qkv_bias": True}, "llama"),
        ("qwen2", {"qkv_bias": False}, "llama"),
        ("qwen2", {"rope_scaling": LLAMA3 | {ORIGINAL: 64}}, "llama"),
        ("qwen2", {"head_size": 6}, "llama"),
        ("qwen3", {"qk_norm": False}, "llama"),
        ("qwen3", {"qkv_bias": True}, "qwen3"),
        ("phi3", {"rope_scaling": None}, "phi3"),
        ("phi3", {"qkv_bias": True}, "llama"),
        ("llama2", {"rope_scaling": LONGROPE}, "llama"),
    ],
)
def test_what_its_own_architecture_cannot_say_another_does(path, kind, changes, architecture):
    weights = model_of(kind, **changes)
    write(path, weights)
    assert fields_of(path)["general.architecture"] == architecture
    assert_same(read(path), weights)


TEN = {name: [1.0] * 10 for name in ("short_factor", "long_factor")}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen3", {"rope_scaling": LLAMA3 | {ORIGINAL: 64}}),
        ("qwen3", {"rope_scaling": LONGROPE | TEN}),
        ("gemma3", {"rope_scaling": LONGROPE | TEN}),
        ("gemma3", {"query_scalar": 24}),
        ("gemma3", {"query_scalar": 20, "num_layers": 62}),
    ],
)
def test_what_no_architecture_can_say_is_refused(path, kind, changes):
    names = {"qwen3": "llama, qwen2, qwen3, phi3", "gemma3": "gemma3"}[kind]
    with pytest.raises(UserError, match=rf"cannot write .*model\.gguf: none of {names} has all"):
        write(path, model_of(kind, **changes))
    assert not path.exists()


# What is read: files that the library alone has written, with the keys that llama.cpp's converter
# writes


@pytest.mark.parametrize("architecture", FORGED)
def test_a_file_that_the_library_wrote(path, architecture):
    model = forge(path, architecture=architecture)
    weights = read(path)
    assert weights.kind == ARCHITECTURES[architecture].kinds[0]
    assert_same(weights, model)


def test_a_llama_of_today(path):
    """Llama 3.2's numbers, in a head of 8, as its converter writes them."""
    scaling = LLAMA3 | {ORIGINAL: 8192}
    factors = np.float32(llama3_factors(scaling, 8, 500000.0))
    assert 1 < len({*factors.tolist()}) < 4
    forge(path, tensors={"rope_freqs.weight": (factors, Type.F32)})
    assert read(path).config["rope_scaling"] == scaling


def test_factors_that_are_not_llamas_are_taken_as_they_are(path):
    factors = [1.0, 1.125, 3.3, 8.0]
    forge(path, tensors={"rope_freqs.weight": (np.float32(factors), Type.F32)})
    weights = read(path)
    assert weights.config["rope_scaling"] == {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        ORIGINAL: 9,
        "attention_factor": 1.0,
    }
    other = path.with_name("other.gguf")
    write(other, replace(weights, tokenizer=model_of("llama2").tokenizer))
    assert "rope_freqs.weight" in {tensor.name for tensor in library.GGUFReader(other).tensors}
    assert_same(read(other), weights)


@pytest.mark.parametrize(
    "keys",
    [
        {"scaling.type": "linear", "scaling.factor": 8.0},
        {"scaling.factor": 8.0},
        {"scale_linear": 8.0},
    ],
)
def test_linear_scaling(path, keys):
    forge(path, {f"llama.rope.{key}": value for key, value in keys.items()})
    assert read(path).config["rope_scaling"] == LINEAR


@pytest.mark.parametrize(
    "keys",
    [
        {"scaling.type": "none", "scaling.factor": 8.0},
        {"scaling.type": "linear"},
        {"scaling.factor": 1.0, "scaling.original_context_length": 4, "scaling.finetuned": True},
    ],
)
def test_no_scaling(path, keys):
    forge(path, {f"llama.rope.{key}": value for key, value in keys.items()})
    assert read(path).config["rope_scaling"] is None


def test_a_phi3_without_long_rotations(path):
    """The window of Phi-4 is written as 0, which is none."""
    keys = {f"phi3.{key}": None for key in FORGED["phi3"] if "scaling" in key}
    keys |= {"phi3.attention.sliding_window": 0, "phi3.rope.scaling.original_context_length": 9}
    names = ("rope_factors_long.weight", "rope_factors_short.weight")
    forge(path, keys, dict.fromkeys(names), architecture="phi3")
    config = read(path).config
    assert (config["window"], config["rope_scaling"]) == (None, None)


def neighbours(tensor, size):
    """The way back from `halved`."""
    heads = tensor.reshape(-1, 2, size // 2, *tensor.shape[1:])
    return heads.swapaxes(1, 2).reshape(tensor.shape)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "BF16", "F32"])
@pytest.mark.parametrize("block", [1, 700, 1 << 18])
def test_rows_are_turned_and_parted_whatever_their_type(path, monkeypatch, kind, block):
    monkeypatch.setattr(gguf_tensors, "BLOCK", block)
    rng = np.random.default_rng(0)
    shapes = {"attn_qkv": (32 + 16 + 16, 32), "ffn_up": (64 + 64, 32)}
    made = {
        f"blk.{layer}.{name}.weight": library.quantize(rng.random(shape, np.float32), Type[kind])
        for name, shape in shapes.items()
        for layer in range(2)
    }
    forge(path, tensors={n: (a, Type[kind]) for n, a in made.items()}, architecture="phi3")
    tensors = read(path).tensors
    for layer in range(2):
        qkv, up = (library.dequantize(made[f"blk.{layer}.{n}.weight"], Type[kind]) for n in shapes)
        expected = {
            "wq": neighbours(qkv[:32], 8),
            "wk": neighbours(qkv[32:48], 8),
            "wv": qkv[48:],
            "w1": up[:64],
            "w3": up[64:],
        }
        for ours, array in expected.items():
            np.testing.assert_array_equal(tensors[ours][layer], array)
            np.testing.assert_array_equal(np.concatenate([*tensors[ours].blocks(layer)]), array)


def test_the_largest_gemma3_divides_its_scores_by_another_number(path):
    weights = model_of("gemma3", num_layers=62, query_scalar=8)
    write(path, weights)
    assert_same(read(path), weights)


@pytest.mark.parametrize(
    ("layers", "pattern"),
    [([True, False], 2), ([False, False], 1), ([True, True], 3), ([1, 0], 2)],
)
def test_a_window_for_each_layer(path, layers, pattern):
    forge(path, {f"gemma3.{PATTERN}": layers}, architecture="gemma3")
    assert read(path).config["window_pattern"] == pattern


def test_gemma3_without_what_need_not_be_said(path):
    keys = ("attention.sliding_window_pattern", "rope.freq_base_swa")
    forge(path, {f"gemma3.{key}": None for key in keys}, architecture="gemma3")
    config = read(path).config
    assert (config["window_pattern"], config["rope_local_theta"]) == (6, 1e4)

    forge(path, {"gemma3.attention.sliding_window": None}, architecture="gemma3")
    weights = read(path)
    assert weights.config["window_pattern"] == 1
    other = path.with_name("other.gguf")
    write(other, replace(weights, tokenizer=model_of("gemma3").tokenizer))
    assert "gemma3.attention.sliding_window" not in fields_of(other)
    assert_same(read(other), weights)


def test_a_classifier_of_gemma3s_must_be_the_table(path):
    table = model_of("gemma3", num_layers=2).tensors["wte"][0]
    forge(path, tensors={"output.weight": (table, Type.F32)}, architecture="gemma3")
    assert "wcls" not in read(path).tensors
    forge(path, tensors={"output.weight": (table + 1, Type.F32)}, architecture="gemma3")
    with pytest.raises(FormatError, match=r"a classifier output\.weight that is not the embedding"):
        read(path)


@pytest.mark.parametrize(
    ("architecture", "keys", "tensors", "sentence"),
    [
        ("qwen2", {}, {"blk.1.attn_k.bias": None}, r" has no tensor blk\.1\.attn_k\.bias"),
        ("qwen2", {}, {"rope_freqs.weight": FOUR}, r" has a tensor rope_freqs\.weight, which"),
        ("qwen2", {"rope.scaling.type": "longrope"}, {}, r" no tensor rope_factors_long\.weight"),
        ("qwen2", {"attention.key_length": 12}, {}, "attn_q.weight of the .*, unlike its heads"),
        ("qwen3", {}, {"blk.0.attn_q_norm.weight": None}, r" no tensor blk\.0\.attn_q_norm"),
        ("qwen3", {"attention.value_length": 8}, {}, r"qwen3\.attention\.value_length is 8, and"),
        ("qwen3", {"attention.key_length": 7, "attention.value_length": 7}, {}, "unlike its heads"),
        ("qwen3", {"rope.scaling.attn_factor": 1.5}, {}, "attn_factor is 1.5, and models here"),
        ("phi3", {}, {"rope_factors_short.weight": None}, r" no tensor rope_factors_short\.weight"),
        ("phi3", {}, {"rope_factors_long.weight": None}, r" no tensor rope_factors_long\.weight"),
        ("phi3", {}, {"rope_factors_long.weight": SIX}, r"6 factors in rope_factors_long\.weight"),
        ("phi3", {"rope.dimension_count": 4}, {}, r"phi3\.rope\.dimension_count is 4, and models"),
        ("phi3", {"rope.scaling.type": "linear"}, {}, r"'linear', and models here have 'longrope'"),
        ("phi3", {"rope.scaling.type": "yarn"}, {}, r"type is 'yarn', and models here have"),
        ("phi3", {"rope.scaling.factor": 2.0}, {}, r"factor is 2.0, and models here have 1.0"),
        ("phi3", {}, ODD_UP, r"ffn_up\.weight of the shape \(63, 32\)"),
        ("phi3", {}, FLAT_QKV, r"attn_qkv\.weight of the shape \(64,\)"),
        ("phi3", {}, ODD_QKV, r"attn_qkv\.weight of the shape \(63, 32\)"),
        ("phi3", {}, {"blk.0.attn_q.weight": ODD}, r" has a tensor blk\.0\.attn_q\.weight, which"),
        ("phi3", {"attention.head_count": 0}, {}, r"phi3\.attention\.head_count must be a whole"),
        ("phi3", {}, {"rope_factors_long.weight": LOW}, "long_factor must be a number above 0"),
        ("gemma3", {}, {"blk.1.post_ffw_norm.weight": None}, r" no tensor blk\.1\.post_ffw_norm"),
        ("gemma3", {"attention.sliding_window": 0}, {}, r"sliding_window must be a whole number"),
        ("gemma3", {PATTERN: 0}, {}, r"_pattern must be a whole number"),
        ("gemma3", {PATTERN: [True]}, {}, "the length of .* is 1, and"),
        (
            "gemma3",
            {PATTERN: [False, True]},
            {},
            "is .False, True., and",
        ),
        ("gemma3", {"attn_logit_softcapping": 50.0}, {}, r"attn_logit_softcapping is 50.0, and"),
        ("gemma3", {"final_logit_softcapping": 30.0}, {}, r"final_logit_softcapping is 30.0, and"),
        ("gemma3", {"rope.freq_base": None}, {}, r"gemma3\.rope\.freq_base must be a number"),
        ("gemma3", {}, {"blk.0.attn_q.bias": FOUR}, r" has a tensor blk\.0\.attn_q\.bias, which"),
        ("llama", {}, {"rope_freqs.weight": LOW}, "factor must be a number above 0"),
        ("llama", {"rope.scaling.factor": 2.0}, {"rope_freqs.weight": FOUR}, "factor is 2.0, and"),
        ("llama", {"rope.scaling.type": "longrope"}, {}, r" no tensor rope_factors_long\.weight"),
    ],
)
def test_what_does_not_fit_is_refused(path, architecture, keys, tensors, sentence):
    forge(path, {f"{architecture}.{key}": v for key, v in keys.items()}, tensors, architecture)
    with pytest.raises(FormatError, match=rf"model\.gguf.*{sentence}"):
        open_model(path)
