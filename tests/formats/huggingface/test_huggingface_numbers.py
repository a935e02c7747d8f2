"""The numbers of a config: read as transformers reads them, or refused by name."""

import json

import pytest
from folders import (
    EVERY_MODEL,
    MODELS,
    assert_same,
    change_config,
    config_of,
    made,
    model,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import FormatError
from formats.huggingface import read, write
from formats.weights import Weights


def test_what_an_old_llama_config_lacks_is_as_in_transformers(folder):
    weights, _ = model("untied")
    config = weights.config | {"num_kv_heads": 6}
    tensors = {**weights.tensors, "wk": weights.tensors["wq"], "wv": weights.tensors["wq"]}
    write(folder, Weights("", "llama2", config, tensors))
    numbers = config_of(folder)
    for name in ("num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings"):
        del numbers[name]
    (folder / "config.json").write_text(json.dumps(numbers), "utf-8")
    defaults = {"num_kv_heads": 6, "norm_eps": 1e-6, "rope_theta": 10000.0}
    assert made(read(folder)) == made(weights, **defaults)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt2", {"activation_function": "gelu_pytorch_tanh", "n_inner": 48, "n_ctx": 7}),
        ("gpt2", {"n_inner": None, "tie_word_embeddings": False, "reorder_and_upcast_attn": True}),
        ("tied", {"head_dim": 6, "attention_bias": False, "mlp_bias": False, "pretraining_tp": 2}),
        ("untied", {"head_dim": None, "sliding_window": None, "attention_dropout": 0.1}),
    ],
)
def test_what_changes_nothing_is_read(folder, name, changes):
    weights, tensors = model(name)
    write(folder, weights)
    change_config(folder, **changes)
    result = read(folder)
    assert made(result) == made(weights)
    assert_same(result, tensors)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("gpt2", "activation_function", "gelu"),
        ("gpt2", "activation_function", "relu"),
        ("gpt2", "layer_norm_epsilon", 1e-6),
        ("gpt2", "n_inner", 36),
        ("gpt2", "scale_attn_weights", False),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "add_cross_attention", True),
        ("gpt2", "quantization_config", {"bits": 4}),
        ("tied", "hidden_act", "gelu"),
        ("tied", "attention_bias", True),
        ("tied", "mlp_bias", True),
        ("tied", "sliding_window", 4096),
        ("tied", "partial_rotary_factor", 0.5),
        ("tied", "tie_word_embeddings", "yes"),
        ("tied", "quantization_config", {"bits": 4}),
    ],
)
def test_what_would_compute_something_else_is_refused_by_name(folder, name, key, value):
    write(folder, model(name)[0])
    change_config(folder, **{key: value})
    with pytest.raises(FormatError, match=rf"config\.json: {key} is .* models here have .* only"):
        read(folder)


@pytest.mark.parametrize("kind", ["gemma2", "smollm3", None, ["gpt2"], 10**100])
def test_other_models_are_refused(folder, kind):
    write(folder, model("tied")[0])
    change_config(folder, model_type=kind)
    with pytest.raises(FormatError, match=r"config\.json is of a model of the type .* only gpt2"):
        read(folder)


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", True, [1], {}, 10**30, 2**63])
@EVERY_MODEL
def test_absurd_numbers_are_refused(folder, name, value):
    write(folder, model(name)[0])
    original = config_of(folder)
    gpt2 = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
    llama = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size")
    for key in gpt2 if name == "gpt2" else llama:
        change_config(folder, **original | {key: value})
        # Whether a large number fits the tensors is for load.py to say, but for the layers' and
        # the heads', which are needed to find and to cut them.
        if type(value) is int and value > 0 and key not in ("num_hidden_layers", "n_layer"):
            continue
        with pytest.raises(FormatError, match=r"model"):
            read(folder)


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [0, -1.0, "1", True, [], float("nan"), float("inf"), 10**400])
def test_what_is_no_positive_number_is_refused(folder, key, value):
    write(folder, model("tied")[0])
    change_config(folder, **{key: value})
    with pytest.raises(FormatError, match=rf"config\.json: {key} must be a number above 0, not "):
        read(folder)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "gemma3"])  # has defaults
def test_a_number_that_is_missing_is_named(folder, name):
    write(folder, model(name)[0])
    numbers = config_of(folder)
    for key in ("vocab_size", "n_head" if name == "gpt2" else "num_attention_heads"):
        (folder / "config.json").write_text(json.dumps(numbers | {key: None}), "utf-8")
        with pytest.raises(FormatError, match=rf"config\.json: {key} must be .*, not None"):
            read(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"3",
        b"null",
        b"{",
        b'{"a": "\xff"}',
        b'{"a": 1' + b"0" * 5000 + b"}",
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_what_is_not_an_object_is_refused(folder, file, content):
    write(folder, model("tied")[0], largest_file=1)
    (folder / file).write_bytes(content)
    with pytest.raises(FormatError, match=rf"{file} is (not )?JSON"):
        read(folder)


def test_a_forged_size_is_refused_before_it_is_read(folder):
    write(folder, model("tied")[0])
    with (folder / "config.json").open("r+b") as file:
        file.truncate(10**10)  # of which no byte is on the disk
    with pytest.raises(FormatError, match=r"config\.json has more than 10000000 bytes"):
        read(folder)


# Mutations

VALUES = [
    0,
    -1,
    1,
    2,
    3,
    10**9,
    10**40,
    1.5,
    1e-300,
    True,
    False,
    None,
    "",
    "gpt2",
    "llama",
    "qwen3",
    "phi3",
    [],
    {},
    ["full_attention", "sliding_attention", "full_attention"],
    {"rope_type": "llama3", "factor": 2.0},
    {"type": "longrope", "short_factor": [1.0], "long_factor": 3},
    {"rope_theta": 1e5},
]
KEYS = ["n_layer", "n_head", "n_embd", "n_positions", "model_type", "num_attention_heads"]
KEYS += ["hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size", "rope_theta"]
KEYS += ["rms_norm_eps", "tie_word_embeddings", "rope_scaling", "head_dim", "n_inner"]
KEYS += ["sliding_window", "use_sliding_window", "max_window_layers", "layer_types"]
KEYS += ["rope_parameters", "original_max_position_embeddings", "intermediate_size"]
WORDS = [b"0", b"9", b"-1", b"99", b"null", b'"', b"]", b"}", b",", b"F16", b"I8", b"\xff"]
CHANGES = st.tuples(st.floats(0, 1), st.integers(0, 4), st.sampled_from(WORDS))


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp("fuzz") / name for name in MODELS}
    for name, folder in folders.items():
        write(folder, model(name)[0])
    return {
        folder: {file.name: file.read_bytes() for file in folder.iterdir()}
        for folder in folders.values()
    }


def assert_read_or_refused(folder):
    try:
        weights = read(folder)
    except FormatError:
        return
    for parts in weights.tensors.values():
        for part in parts:
            assert part.shape in (parts.shape, parts.shape[1:])


@settings(max_examples=300)
@given(
    which=st.integers(0, len(MODELS) - 1),
    changes=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES)),
)
def test_a_config_with_other_values_is_read_or_refused(originals, which, changes):
    folder = list(originals)[which]
    for file, content in originals[folder].items():
        (folder / file).write_bytes(content)
    change_config(folder, **changes)
    assert_read_or_refused(folder)


@settings(max_examples=500)
@given(
    which=st.integers(0, len(MODELS) - 1),
    file=st.sampled_from(["config.json", "model.safetensors"]),
    changes=st.lists(CHANGES, min_size=1, max_size=3),
)
def test_a_mutated_folder_is_read_or_refused(originals, which, file, changes):
    folder = list(originals)[which]
    for name, content in originals[folder].items():
        (folder / name).write_bytes(content)
    content = bytearray(originals[folder][file])
    end = content.index(b"}}") if file == "model.safetensors" else len(content)
    for place, count, new in changes:
        start = round(place * end)
        content[start : start + count] = new
    (folder / file).write_bytes(content)
    assert_read_or_refused(folder)
