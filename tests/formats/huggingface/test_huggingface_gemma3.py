"""What is Gemma 3's alone: weights of 1 + w, two bases of rotations, windows in some layers."""

import json

import ml_dtypes
import numpy as np
import pytest
from folders import (
    MODELS,
    assert_same,
    change_tensors,
    config_of,
    made,
    model,
)
from safetensors.numpy import load_file

from errors import FormatError, UserError
from formats.huggingface import read, write

FULL, SLIDING = "full_attention", "sliding_attention"
LINEAR = {"rope_type": "linear", "factor": 8.0}


def numbers_of(folder, *without, **changes):
    """The config that is read of a folder with other numbers in its config.json."""
    write(folder, model("gemma3")[0])
    numbers = {name: value for name, value in config_of(folder).items() if name not in without}
    (folder / "config.json").write_text(json.dumps(numbers | changes), "utf-8")
    return made(read(folder))


# Norms


def test_norms_have_1_taken_off(folder):
    weights, tensors = model("gemma3")
    write(folder, weights)
    theirs = load_file(folder / "model.safetensors")
    names = [name for name in theirs if "norm" in name]
    assert len(names) == 1 + 3 * 6
    for ours, name in [
        ("rms1w", "input_layernorm"),
        ("postrms1w", "post_attention_layernorm"),
        ("rms2w", "pre_feedforward_layernorm"),
        ("postrms2w", "post_feedforward_layernorm"),
    ]:
        norm = theirs[f"model.layers.1.{name}.weight"]
        np.testing.assert_array_equal(norm, tensors[ours][1] - 1)
    norm = theirs["model.layers.1.self_attn.k_norm.weight"]
    np.testing.assert_array_equal(
        norm, tensors["knormw"][1][[*range(0, 14, 2), *range(1, 14, 2)]] - 1
    )
    np.testing.assert_array_equal(theirs["model.norm.weight"], tensors["rmsfw"] - 1)


def test_1_is_added_in_float32_where_few_digits_would_lose_what_it_is_added_to(folder):
    """As transformers does it, whatever type it computes in otherwise."""
    write(folder, model("gemma3")[0], "bfloat16")
    little = np.full(36, 2**-12, ml_dtypes.bfloat16)
    name = "model.layers.1.input_layernorm.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: little}))
    norms = read(folder).tensors["rms1w"]
    assert (norms.dtype, norms.stored) == (np.float32, "bfloat16")
    np.testing.assert_array_equal(norms[1], np.float32(1 + 2**-12))


@pytest.mark.parametrize("name", ["self_attn.q_norm", "post_feedforward_layernorm"])
def test_a_missing_norm_is_named(folder, name):
    write(folder, model("gemma3")[0])
    missing = f"model.layers.1.{name}.weight"
    change_tensors(folder, lambda ts: {n: t for n, t in ts.items() if n != missing})
    with pytest.raises(FormatError, match=f"model has no tensor {missing};"):
        read(folder)


# Rotations


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, (1e6, 1e4, None)),
        ({"rope_theta": 7.0, "rope_local_base_freq": 5.0}, (7.0, 5.0, None)),
        ({"rope_theta": 7.0, "rope_scaling": LINEAR}, (7.0, 1e4, LINEAR)),
        (
            {"rope_parameters": {FULL: LINEAR | {"rope_theta": 9.0}, SLIDING: {"rope_theta": 8.0}}},
            (9.0, 8.0, LINEAR),
        ),
        (
            {"rope_parameters": {FULL: {"rope_theta": 9.0}, SLIDING: None}, "rope_scaling": LINEAR}
            | {"rope_theta": 7.0, "rope_local_base_freq": 5.0},
            (9.0, 5.0, LINEAR),
        ),
    ],
)
def test_both_rotations_are_read_in_old_and_new_places(folder, said, expected):
    config = numbers_of(folder, "rope_theta", "rope_local_base_freq", "rope_scaling", **said)
    assert (config.rope_theta, config.rope_local_theta, config.rope_scaling) == expected


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"rope_parameters": LINEAR}, r"layer type of rope_parameters is 'rope_type', and models"),
        ({"rope_parameters": {SLIDING: LINEAR}}, r"rope_type is 'linear', and models here have 'd"),
        ({"rope_parameters": {FULL: [LINEAR]}}, r"full_attention is not names and values"),
        ({"rope_scaling": {"type": "linear", "factor": 8.0}}, r"type is 'linear', and models here"),
        ({"rope_scaling": {"rope_type": "yarn"}}, r"rope_type is 'yarn', and models here have"),
        ({"rope_local_base_freq": 0}, r"rope_local_base_freq must be a number above 0, not 0"),
        ({"rope_theta": "1e6"}, r"rope_theta must be a number above 0, not '1e6'"),
    ],
)
def test_other_rotations_are_refused_by_name(folder, said, sentence):
    with pytest.raises(FormatError, match=rf"config\.json: .*{sentence}"):
        numbers_of(folder, **said)


def test_a_scaling_is_written_if_transformers_reads_it(folder):
    weights, _ = model("gemma3")
    weights.config["rope_scaling"] = LINEAR
    write(folder, weights)
    assert made(read(folder)).rope_scaling == LINEAR
    lists = dict.fromkeys(("short_factor", "long_factor"), [2.0] * 7)
    longrope = {"rope_type": "longrope", "original_max_position_embeddings": 3, **lists}
    weights.config["rope_scaling"] = longrope  # which it overlooks by the name that is written
    with pytest.raises(UserError, match="none of gemma3_text, gemma3 has all that this model has"):
        write(folder.with_name("other"), weights)


# Windows


@pytest.mark.parametrize(
    ("said", "pattern"),
    [
        ({}, 6),
        ({"sliding_window_pattern": 3}, 3),
        ({"layer_types": [SLIDING, FULL, SLIDING]}, 2),
        ({"layer_types": [SLIDING, SLIDING, FULL], "sliding_window_pattern": 2}, 3),
        ({"layer_types": [FULL] * 3}, 1),
        ({"layer_types": [SLIDING] * 3}, 6),
        ({"layer_types": [SLIDING] * 3, "sliding_window_pattern": 5}, 5),
        ({"layer_types": [SLIDING] * 3, "sliding_window_pattern": 2}, 4),
    ],
)
def test_every_spelling_of_which_layers_see_all_is_read(folder, said, pattern):
    config = numbers_of(folder, "sliding_window_pattern", "layer_types", **said)
    assert config.window_pattern == pattern


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"layer_types": [FULL, SLIDING, FULL]}, "layer_types gives a window to other layers than"),
        ({"layer_types": [SLIDING, FULL, FULL]}, "layer_types gives a window to other layers than"),
        ({"layer_types": [SLIDING, FULL]}, "layer_types must have a type for each of 3 layers"),
        ({"layer_types": [SLIDING, "global", FULL]}, "layer_types is 'global', and models here"),
        ({"layer_types": [SLIDING, [], FULL]}, r"layer_types is \[\], and models here have"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern must be a whole number from 1"),
        ({"sliding_window": 0}, "sliding_window must be a whole number from 1"),
        ({"num_hidden_layers": 10**7}, "layer_types must have a type for each of 10000000 layers"),
    ],
)
def test_other_windows_are_refused_by_name(folder, said, sentence):
    with pytest.raises(FormatError, match=rf"config\.json: {sentence}"):
        numbers_of(folder, **said)


# Other numbers


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_activation", "gelu"),
        ("attention_bias", True),
        ("final_logit_softcapping", 30.0),
        ("use_bidirectional_attention", True),
        ("quantization_config", {"bits": 4}),
    ],
)
def test_what_would_compute_something_else_is_refused_by_name(folder, key, value):
    with pytest.raises(FormatError, match=rf"config\.json: {key} is .* models here have .* only"):
        numbers_of(folder, **{key: value})


def test_a_cap_of_scores_that_transformers_does_not_apply_changes_nothing(folder):
    assert numbers_of(folder, attn_logit_softcapping=50.0) == MODELS["gemma3"]


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_text_alone_of_what_sees_pictures_too_is_read(folder, prefix):
    weights, tensors = model("gemma3")
    write(folder, weights)
    numbers = config_of(folder)
    outer = {"model_type": "gemma3", "text_config": numbers, "vision_config": {}, "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(outer), "utf-8")
    change_tensors(
        folder, lambda ts: {n.replace("model.", prefix, 1): tensor for n, tensor in ts.items()}
    )
    result = read(folder)
    assert (result.kind, made(result)) == ("gemma3", MODELS["gemma3"])
    assert_same(result, tensors)
    picture = "vision_tower.vision_model.post_layernorm.weight"
    change_tensors(folder, lambda tensors: tensors.update({picture: np.ones(3, np.float32)}))
    with pytest.raises(FormatError, match=f"model has a tensor {picture}, for which"):
        read(folder)
