"""The numbers of rotations, in the three places where config.json has had them."""

import json
import math
from dataclasses import asdict, replace

import pytest
from folders import LLAMA3_ROPE, LONGROPE, change_config, config_of, made, model

from errors import FormatError
from formats.huggingface import read, write
from load import open_model
from models.llama2 import Llama2Config

LINEAR = {"rope_type": "linear", "factor": 4.0}
ORIGINAL = "original_max_position_embeddings"


def scaling_of(folder, name="tied", **changes):
    """The scaling that is read of a folder with other numbers in its config.json."""
    write(folder, model(name)[0])
    change_config(folder, **changes)
    return made(read(folder)).rope_scaling


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": None, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
        {"rope_theta": 500, "rope_scaling": None},
        {"rope_scaling": {"type": "default"}},
        {"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"rope_theta": 500.0}},
    ],
)
def test_every_spelling_of_theta_is_read(folder, changes):
    weights, _ = model("tied")
    write(folder, weights)
    change_config(folder, **changes)
    assert made(read(folder)) == made(weights)


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("type", "dynamic"), ("rope_type", "yarn"), ("partial_rotary_factor", 0.5)],
)
def test_other_rotations_are_refused_by_name(folder, place, key, value):
    write(folder, model("tied")[0])
    change_config(folder, **{place: {key: value, "factor": 2.0}})
    with pytest.raises(FormatError, match=rf"config\.json: {key} is {value!r}"):
        read(folder)


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("value", ["linear", 3, [["type", "linear"]]])
def test_rotations_that_are_no_object_are_refused(folder, place, value):
    write(folder, model("tied")[0])
    change_config(folder, **{place: value})
    with pytest.raises(FormatError, match=rf"config\.json: {place} is not names and values"):
        read(folder)


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_scalings_are_read_in_both_places_and_spellings(folder, place, key):
    assert scaling_of(folder, **{place: {key: "linear", "factor": 4.0}}) == LINEAR


def test_rope_scaling_goes_before_rope_parameters_and_what_is_in_them_before_the_rest(folder):
    write(folder, model("tied")[0])
    change_config(
        folder,
        rope_scaling=LINEAR | {"rope_theta": 7.0},
        rope_parameters={"rope_type": "default", "rope_theta": 8.0},
        rope_theta=9.0,
    )
    config = read(folder).config
    assert (config["rope_theta"], config["rope_scaling"]) == (7.0, LINEAR)


@pytest.mark.parametrize(
    ("inside", "outside", "original"),
    [
        ({ORIGINAL: 3}, {}, 3),
        ({ORIGINAL: 3}, {ORIGINAL: 2}, 2),
        ({}, {ORIGINAL: 2}, 2),
        ({}, {}, 5),  # as many as after it
    ],
)
def test_where_the_positions_before_the_scaling_are_said(folder, inside, outside, original):
    found = {name: value for name, value in LLAMA3_ROPE.items() if name != ORIGINAL} | inside
    assert scaling_of(folder, rope_scaling=found, **outside) == LLAMA3_ROPE | {ORIGINAL: original}


def test_phi3_has_4096_positions_before_the_scaling_if_none_are_said_outside_of_it(folder):
    write(folder, model("phi3")[0])
    numbers = config_of(folder)
    del numbers[ORIGINAL]
    inside = numbers["rope_scaling"] | {ORIGINAL: 3}
    (folder / "config.json").write_text(json.dumps(numbers | {"rope_parameters": inside}), "utf-8")
    assert read(folder).config["rope_scaling"][ORIGINAL] == 4096


@pytest.mark.parametrize(
    ("said", "amplitude"),
    [
        ({"attention_factor": 1.5, "factor": 9.0}, 1.5),
        ({"factor": 4.0}, math.sqrt(1 + math.log(4) / math.log(3))),
        ({"factor": 0.5}, 1),
        ({}, math.sqrt(1 + math.log(5 / 3) / math.log(3))),
    ],
)
def test_what_longrope_multiplies_by_is_as_transformers_has_it(folder, said, amplitude):
    lists = {name: LONGROPE[name] for name in ("short_factor", "long_factor")}
    found = {"type": "su", **lists, **said}
    scaling = scaling_of(folder, rope_scaling=found, **{ORIGINAL: 3})
    assert scaling == LONGROPE | {ORIGINAL: 3, "attention_factor": pytest.approx(amplitude)}


@pytest.mark.parametrize("name", ["llama3", "phi3"])
def test_scalings_are_written_where_transformers_4_reads_them(folder, name):
    write(folder, model(name)[0])
    numbers = config_of(folder)
    assert numbers["rope_theta"] == 500.0
    assert "rope_parameters" not in numbers
    if name == "llama3":
        assert numbers["rope_scaling"] == LLAMA3_ROPE
    else:
        scaling = numbers["rope_scaling"] | {"rope_type": "longrope", ORIGINAL: numbers[ORIGINAL]}
        assert scaling.pop("type") == "longrope"
        assert scaling == LONGROPE


def test_what_longrope_multiplies_by_is_written_only_if_it_is_not_what_follows(folder):
    """transformers 4 wants no more of a Phi-3's scaling than its type and its two lists."""
    weights, _ = model("phi3")
    scaling = LONGROPE | {"attention_factor": math.sqrt(1 + math.log(5 / 4) / math.log(4))}
    write(folder, replace(weights, config=weights.config | {"rope_scaling": scaling}))
    assert len(config_of(folder)["rope_scaling"]) == 3
    assert read(folder).config["rope_scaling"] == scaling


def test_what_follows_is_the_same_for_a_config_and_for_its_file(folder):
    weights, _ = model("phi3")
    said = {name: LONGROPE[name] for name in ("rope_type", "short_factor", "long_factor")}
    numbers = weights.config | {"seq_len": 32768, "rope_scaling": said | {ORIGINAL: 8192}}
    write(folder, replace(weights, config=asdict(Llama2Config(**numbers))))
    assert "attention_factor" not in config_of(folder)["rope_scaling"]


@pytest.mark.parametrize(
    ("name", "scaling", "sentence"),
    [
        ("tied", {"rope_type": "linear"}, "factor must be a number above 0, not None"),
        ("tied", {"rope_type": "linear", "factor": -1}, "factor must be a number above 0, not -1"),
        ("tied", LLAMA3_ROPE | {"factor": "8"}, "factor must be a number above 0, not '8'"),
        ("tied", LLAMA3_ROPE | {"high_freq_factor": 1.5}, "high_freq_factor must be a number abov"),
        ("tied", LLAMA3_ROPE | {ORIGINAL: 0}, f"{ORIGINAL} must be a whole number from 1"),
        ("phi3", LONGROPE | {"short_factor": [1.0, 2.0]}, "short_factor must be 3 numbers"),
        ("phi3", LONGROPE | {"long_factor": [1.0, 2.0, "3"]}, "long_factor must be a number above"),
        ("phi3", LONGROPE | {"long_factor": None}, "long_factor must be 3 numbers"),
        ("phi3", {"type": "longrope"}, "short_factor must be 3 numbers"),
        ("phi3", LONGROPE | {"attention_factor": 0}, "attention_factor must be a number above 0"),
    ],
)
def test_scalings_that_cannot_be_are_refused(folder, name, scaling, sentence):
    write(folder, model(name)[0])
    change_config(folder, rope_scaling=scaling)
    with pytest.raises(FormatError, match=sentence):
        open_model(folder)
