"""What each of Llama's kin calls its own: tensors, heads, windows; and which of them is written."""

import json

import numpy as np
import pytest
from folders import (
    KINDS,
    MODELS,
    arrays,
    assert_same,
    change_config,
    change_tensors,
    config_of,
    made,
    model,
)
from safetensors.numpy import load_file

from errors import FormatError, UserError
from formats.huggingface import read, write
from formats.weights import Parts, Weights
from load import open_model
from models.llama2 import Llama2Config

QWENS = pytest.mark.parametrize("name", ["qwen2", "qwen3"])


def without(folder, *names):
    """Take numbers out of a folder's config.json."""
    numbers = {name: value for name, value in config_of(folder).items() if name not in names}
    (folder / "config.json").write_text(json.dumps(numbers), "utf-8")


def weights_of(kind, **numbers):
    """Weights of a Llama or its kin, of these numbers."""
    config = Llama2Config(**{**vars(MODELS["tied"]), "head_size": None, **numbers})
    rng = np.random.default_rng(0)
    tensors = {
        name: Parts.of(name, rng.standard_normal(shape, np.float32))
        for name, shape in config.param_shapes().items()
    }
    return Weights("", kind, dict(vars(config)), tensors)


# Tensors


def halves(tensor, size):
    """Heads of `size` rows with the first rows of all pairs first: slowly, but plainly."""
    rows = [*range(0, size, 2), *range(1, size, 2)]
    return np.concatenate([tensor[start:][rows] for start in range(0, len(tensor), size)])


def test_qwen2_has_biases_whose_halves_are_apart_where_they_are_rotated(folder):
    weights, tensors = model("qwen2")
    write(folder, weights)
    theirs = load_file(folder / "model.safetensors")
    for ours, name in [("bq", "q_proj"), ("bk", "k_proj"), ("bv", "v_proj")]:
        bias, expected = theirs[f"model.layers.1.self_attn.{name}.bias"], tensors[ours][1]
        np.testing.assert_array_equal(bias, expected if ours == "bv" else halves(expected, 6))


def test_qwen3_has_norms_whose_halves_are_apart(folder):
    weights, tensors = model("qwen3")
    write(folder, weights)
    theirs = load_file(folder / "model.safetensors")
    for ours, name in [("qnormw", "q_norm"), ("knormw", "k_norm")]:
        norm = theirs[f"model.layers.2.self_attn.{name}.weight"]
        np.testing.assert_array_equal(norm, halves(tensors[ours][2], 14))


def test_phi3_has_matrices_one_below_the_other(folder):
    weights, tensors = model("phi3")
    write(folder, weights)
    theirs = load_file(folder / "model.safetensors")
    assert len(theirs) == 3 + 3 * 6
    q, k = (halves(tensors[name][1], 6) for name in ("wq", "wk"))
    fused = theirs["model.layers.1.self_attn.qkv_proj.weight"]
    np.testing.assert_array_equal(fused, np.concatenate([q, k, tensors["wv"][1]]))
    fused = theirs["model.layers.1.mlp.gate_up_proj.weight"]
    np.testing.assert_array_equal(fused, np.concatenate([tensors["w1"][1], tensors["w3"][1]]))


@pytest.mark.parametrize("matrix", ["self_attn.qkv_proj", "mlp.gate_up_proj"])
@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: t[:0], np.ravel, lambda t: t[0, 0]])
def test_matrices_that_cannot_be_parted_are_refused(folder, matrix, change):
    write(folder, model("phi3")[0])
    change_tensors(
        folder, lambda ts: {n: np.array(change(t)) if matrix in n else t for n, t in ts.items()}
    )
    with pytest.raises(FormatError, match=rf"{matrix}\.weight is .*cannot be|must be"):
        open_model(folder)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("qwen2", "model.layers.1.self_attn.k_proj.bias"),
        ("qwen3", "model.layers.0.self_attn.q_norm.weight"),
        ("phi3", "model.layers.2.self_attn.qkv_proj.weight"),
    ],
)
def test_a_missing_tensor_is_named(folder, name, missing):
    write(folder, model(name)[0])
    change_tensors(folder, lambda ts: {n: t for n, t in ts.items() if n != missing})
    with pytest.raises(FormatError, match=f"model has no tensor {missing};"):
        read(folder)


@pytest.mark.parametrize("name", ["tied", "mistral", "qwen3", "phi3"])
def test_biases_that_a_kind_has_not_are_named(folder, name):
    write(folder, model(name)[0])
    bias = "layers.0.self_attn.q_proj.bias"
    change_tensors(folder, lambda tensors: tensors.update({bias: np.ones(36, np.float32)}))
    with pytest.raises(FormatError, match=f"model has a tensor {bias}, for which"):
        read(folder)


# Heads


@pytest.mark.parametrize(
    ("name", "heads"), [("tied", 6), ("mistral", 8), ("qwen2", 32), ("qwen3", 32), ("phi3", 6)]
)
def test_how_many_heads_keys_have_if_it_is_not_said(folder, name, heads):
    """As in transformers; whether the tensors agree is for load.py to see."""
    write(folder, model(name)[0])
    without(folder, "num_key_value_heads")
    if name == "phi3":  # where the matrix of all three tells already
        with pytest.raises(FormatError, match=r"qkv_proj\.weight is .* cannot be"):
            read(folder)
    else:
        assert read(folder).config["num_kv_heads"] == heads


@pytest.mark.parametrize("name", ["tied", "mistral", "qwen2", "phi3"])
@pytest.mark.parametrize("size", ["not said", None])
def test_heads_share_the_width_if_their_size_is_not_said(folder, name, size):
    weights, tensors = model(name)
    write(folder, weights)
    without(folder, "head_dim") if size else change_config(folder, head_dim=size)
    result = read(folder)
    assert made(result) == made(weights)
    assert_same(result, tensors)


def test_qwen3_has_heads_of_128_if_their_size_is_not_said_whatever_the_width(folder):
    weights = weights_of("qwen3", qk_norm=True, head_size=128)
    write(folder, weights)
    without(folder, "head_dim")
    source = open_model(folder)
    assert source.config.head_size == 128 != source.config.dim // source.config.num_heads
    assert_same(
        source.weights,
        arrays(weights),
    )


# Windows


@pytest.mark.parametrize(
    ("name", "said", "window"),
    [
        ("mistral", {}, 4096),
        ("mistral", {"sliding_window": None}, None),
        ("mistral", {"sliding_window": 3}, 3),
        ("phi3", {}, None),
        ("phi3", {"sliding_window": None}, None),
        ("phi3", {"sliding_window": 3}, 3),
        ("qwen2", {}, None),
        ("qwen2", {"sliding_window": 3, "max_window_layers": 0}, None),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, 4096),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": -1, "sliding_window": 3}, 3),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 3, "sliding_window": 3}, None),
        ("qwen2", {"use_sliding_window": True}, None),  # from the 28th layer on
        ("qwen2", {"use_sliding_window": True, "sliding_window": None}, None),
        ("qwen3", {"layer_types": ["full_attention"] * 3, "use_sliding_window": True}, None),
        (
            "qwen3",
            {"layer_types": ["sliding_attention"] * 3, "use_sliding_window": True}
            | {"sliding_window": 3, "max_window_layers": 2},
            3,
        ),
    ],
)
def test_windows_are_read_as_in_transformers(folder, name, said, window):
    write(folder, model(name)[0])
    without(folder, "sliding_window", "use_sliding_window", "max_window_layers")
    change_config(folder, **said)
    assert read(folder).config["window"] == window


@QWENS
@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"max_window_layers": 1}, r"give 2 of 3 layers a sliding_window, of 4"),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "give 1 of 3"),
        ({"layer_types": ["sliding_attention"] * 3, "use_sliding_window": False}, "of None"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types must have a type for each of 3"),
        ({"layer_types": "sliding_attention"}, "layer_types must have a type for each of 3"),
        ({"layer_types": ["chunked_attention"] * 3}, "layer_types is 'chunked_attention', and mod"),
        ({"layer_types": [None] * 3}, "layer_types is None, and models here have 'full_attention'"),
        ({"max_window_layers": None}, "max_window_layers must be a whole number, not None"),
        ({"use_sliding_window": "yes"}, "use_sliding_window is 'yes', and models here have False"),
    ],
)
def test_layers_that_are_not_alike_are_refused_by_name(folder, name, said, sentence):
    write(folder, model(name)[0])
    change_config(folder, use_sliding_window=True, sliding_window=4)
    change_config(folder, **said)
    with pytest.raises(FormatError, match=rf"config\.json: .*{sentence}"):
        read(folder)


@pytest.mark.parametrize("name", ["mistral", "phi3", "qwen2", "qwen3"])
@pytest.mark.parametrize("window", [0, -1, 2.5, "4", True, [4]])
def test_windows_that_cannot_be_are_refused(folder, name, window):
    write(folder, model(name)[0])
    change_config(folder, sliding_window=window, use_sliding_window=True)
    with pytest.raises(FormatError, match=r"config\.json: sliding_window must be a whole number"):
        read(folder)


@pytest.mark.parametrize("name", ["mistral", "phi3"])
def test_kinds_whose_layers_are_alike_have_no_layer_types(folder, name):
    write(folder, model(name)[0])
    change_config(folder, layer_types=["full_attention"] * 3)
    with pytest.raises(FormatError, match=r"config\.json: layer_types is .* have None only"):
        read(folder)


# Which kind is written


@pytest.mark.parametrize(
    ("kind", "numbers", "expected"),
    [
        ("llama2", {}, "llama"),
        ("llama3", {}, "llama"),
        ("llama3", {"window": 3}, "mistral"),
        ("llama2", {"qkv_bias": True, "window": 3}, "qwen2"),
        ("mistral", {"qk_norm": True}, "qwen3"),
        ("qwen2", {}, "llama"),
        ("qwen3", {"qkv_bias": True}, "qwen2"),
        ("phi3", {"window": 3}, "phi3"),
        ("phi3", {"qk_norm": True, "window": 3}, "qwen3"),
        ("phi3", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "llama"),
        ("llama2", {"dim": 37, "head_size": 6}, "mistral"),  # transformers wants a multiple
    ],
)
def test_a_model_that_its_own_kind_cannot_be_is_written_as_the_first_that_can(
    folder, kind, numbers, expected
):
    weights = weights_of(kind, **numbers)
    write(folder, weights)
    assert config_of(folder)["model_type"] == expected
    result = read(folder)
    assert made(result) == made(weights)
    assert_same(result, arrays(weights))


def test_a_model_that_no_kind_can_be_is_refused(folder):
    weights = weights_of("qwen3", qkv_bias=True, qk_norm=True)
    with pytest.raises(UserError, match="none of llama, mistral, qwen2, qwen3, phi3 has all that"):
        write(folder, weights)
    assert not folder.exists()


@pytest.mark.parametrize("name", [name for name in MODELS if name != "gpt2"])
def test_the_kind_is_read_from_the_type(folder, name):
    write(folder, model(name)[0])
    assert read(folder).kind == KINDS.get(name, name)


@pytest.mark.parametrize("name", ["quantization_config", "per_layer_config"])
def test_what_would_change_any_model_is_refused_by_name(folder, name):
    write(folder, model("mistral")[0])
    change_config(folder, **{name: {"0": {"sliding_window": 3}}})
    with pytest.raises(
        FormatError, match=rf"config\.json: {name} is .* models here have None only"
    ):
        read(folder)
