"""Scaled rotations: the tables, what is refused, and that a text's logits never change."""

import math
from dataclasses import replace

import numpy as np
import pytest
from tiny import lively_model

from errors import UserError
from layers.rope import rope_rotations
from models.llama2 import Llama2Config
from models.rotations import check_scaling, make_rotations

LINEAR = {"rope_type": "linear", "factor": 3.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [1.2, 4.0, 9.0],
    "original_max_position_embeddings": 16,
}
CONFIG = Llama2Config(
    *(12, 10, 2, 2, 2), vocab_size=40, seq_len=24, rope_theta=30.0, rope_scaling=LONGROPE
)


def table(scaling, T=20, D=6, theta=50.0):
    return make_rotations(T, D, theta, np.float64, check_scaling(scaling, D, seq_len=64))


def test_without_a_scaling_they_are_the_layer_s():
    np.testing.assert_array_equal(table(None), rope_rotations(20, 6, 50.0, np.float64))


def test_linear_is_a_third_of_each_position():
    np.testing.assert_allclose(table(LINEAR, 58)[::3], table(None, 20), rtol=0, atol=1e-12)


def test_llama3_by_the_length_of_each_wave():
    """As Meta has it: case by case, and in wavelengths."""
    D, theta = 32, 200.0
    angles = np.angle(table(LLAMA3, 2, D, theta)[1])
    cases = set()
    for frequency, angle in zip(theta ** (-np.arange(0, D, 2) / D), angles, strict=True):
        wavelength = 2 * math.pi / frequency
        if wavelength < 64 / 4:
            case, expected = "kept", frequency
        elif wavelength > 64 / 1:
            case, expected = "slower", frequency / 8
        else:
            smooth = (64 / wavelength - 1) / (4 - 1)
            case, expected = "between", (1 - smooth) * frequency / 8 + smooth * frequency
        cases.add(case)
        assert angle == pytest.approx(expected, abs=1e-12)
    assert len(cases) == 3


@pytest.mark.parametrize(("T", "name"), [(16, "short_factor"), (17, "long_factor")])
def test_longrope_takes_the_list_for_as_many_positions_as_there_are(T, name):
    frequencies = 50.0 ** (-np.arange(0, 6, 2) / 6) / LONGROPE[name]
    length = math.sqrt(1 + math.log(64 / 16) / math.log(16))  # 64 positions, and 16 before
    expected = length * np.exp(1j * np.outer(np.arange(T), frequencies))
    np.testing.assert_allclose(table(LONGROPE, T), expected, rtol=0, atol=1e-12)


def test_longrope_has_the_amplitude_that_is_given_or_1_if_nothing_has_grown():
    assert abs(table(LONGROPE | {"attention_factor": 1.25})) == pytest.approx(1.25)
    assert check_scaling(LONGROPE, 6, seq_len=16)["attention_factor"] == 1
    assert check_scaling(LONGROPE, 6, seq_len=8)["attention_factor"] == 1


def test_a_config_s_amplitude_stays_where_it_gets_fewer_positions():
    shorter = replace(CONFIG, seq_len=16)
    assert shorter.rope_scaling == CONFIG.rope_scaling
    assert shorter.rope_scaling["attention_factor"] > 1


def test_longrope_s_logits_do_not_change_when_a_text_grows():
    """Over the border of 16: in one pass, and in a cache that was filled before it."""
    tokens = np.random.default_rng(0).integers(0, 40, (2, 24))
    model = lively_model(CONFIG, 2, 24)
    whole = model.forward(tokens).copy()
    for T in (16, 17):
        np.testing.assert_allclose(model.forward(tokens[:, :T]), whole[:, :T], rtol=0, atol=1e-12)
    model.forward(tokens[:, :10])
    rest = model.forward(tokens[:, 10:17], start=10).copy()
    np.testing.assert_allclose(rest, whole[:, 10:17], rtol=0, atol=1e-12)
    rest = model.forward(tokens[:, 17:], start=17)
    np.testing.assert_allclose(rest, whole[:, 17:], rtol=0, atol=1e-12)
    # But a model that is made for 16 positions has the other list.
    short = lively_model(CONFIG, 2, 16).forward(tokens[:, :16])
    assert abs(short - whole[:, :16])[:, 1:].max(axis=-1).min() > 1e-3


@pytest.mark.parametrize(
    ("scaling", "missing"),
    [(scaling, name) for scaling in (LINEAR, LLAMA3, LONGROPE) for name in list(scaling)[1:]],
)
def test_no_number_may_be_missing(scaling, missing):
    rest = {name: value for name, value in scaling.items() if name != missing}
    with pytest.raises(UserError, match=rf"^rope_scaling's {missing} must be .*, not None$"):
        check_scaling(rest, 6, 64)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "8", True, 10**400, [2.0]])
@pytest.mark.parametrize("name", ["factor", "low_freq_factor", "original_max_position_embeddings"])
def test_numbers_are_above_0(name, value):
    with pytest.raises(UserError, match=f"rope_scaling's {name} must be a number above 0, not "):
        check_scaling(LLAMA3 | {name: value}, 6, 64)


@pytest.mark.parametrize(
    ("scaling", "sentence"),
    [
        ({"rope_type": "yarn"}, "a rope_type of linear, llama3, longrope, and is .*: 'yarn'}"),
        ({"rope_type": ["linear"]}, r"longrope, and is .*\['linear'\]"),
        ({}, "longrope, and is {}"),
        ("linear", "longrope, and is 'linear'"),
        (LINEAR | {"beta_fast": 32}, "of the type linear knows no 'beta_fast'"),
        (LLAMA3 | {"high_freq_factor": 1.0}, "high_freq_factor must be a number above 1.0, not 1"),
        (LONGROPE | {"short_factor": [1.0] * 4}, "must be 3 numbers, .* a head of 6, not 4$"),
        (LONGROPE | {"long_factor": 2.0}, "long_factor must be 3 numbers, .* not 2.0$"),
        (LONGROPE | {"long_factor": "abc"}, "long_factor must be a number above 0, not 'a'"),
        (LONGROPE | {"long_factor": [1, 2, 0]}, "long_factor must be a number above 0, not 0"),
        (LONGROPE | {"original_max_position_embeddings": 1}, "number above 1, not 1"),
        (LONGROPE | {"attention_factor": 0}, "attention_factor must be a number above 0, not 0"),
    ],
)
def test_a_scaling_that_cannot_be(scaling, sentence):
    with pytest.raises(UserError, match=sentence):
        Llama2Config(12, num_heads=2, rope_scaling=scaling)
