"""Every layer holds its arguments to the shapes in its docstring, and says which one is wrong."""

import re
from inspect import signature

import numpy as np
import pytest

import layers
from errors import UserError
from gradcheck import differences
from layers.attention import attention_forward
from layers.cases import draw_arguments, find_layers
from layers.embedding import position_forward
from layers.gelu import gelu_forward
from layers.layernorm import layernorm_backward, layernorm_forward
from layers.linear import linear_backward, linear_forward
from layers.rope import rope_forward
from layers.shapes import written_shapes

FUNCTIONS = [
    pytest.param(name, direction, id=f"{name}_{direction}")
    for name in find_layers()
    for direction in ("forward", "backward")
]


def arguments(name, direction):
    """A layer's function, and arrays of the largest of its sizes to call it with."""
    layer = find_layers()[name]
    case = [case for cases in layer.cases.values() for case in cases][1]
    values = draw_arguments(layer, case, np.random.default_rng(0))
    values |= {f"d{each}": np.empty_like(values[each]) for each in layer.inputs}
    function = getattr(layer, direction)
    return function, {each: values[each] for each in signature(function).parameters}


@pytest.mark.parametrize(("name", "direction"), FUNCTIONS)
def test_the_shape_of_every_array_is_written(name, direction):
    function, values = arguments(name, direction)
    arrays = [
        each
        for each, parameter in signature(function).parameters.items()
        if isinstance(values[each], np.ndarray) or "ndarray" in str(parameter.annotation)
    ]
    assert list(written_shapes(function)) == arrays


@pytest.mark.parametrize(("name", "direction"), FUNCTIONS)
def test_an_axis_too_many_is_refused(name, direction):
    function, values = arguments(name, direction)
    function(**values)
    for each, value in values.items():
        if isinstance(value, np.ndarray):
            shape = re.escape(str((*value.shape, 1)))
            with pytest.raises(UserError, match=f"{name}_{direction}: {each} has shape {shape}, "):
                function(**{**values, each: value[..., None]})
            with pytest.raises(UserError, match=f"{name}_{direction}: {each} is no array"):
                function(**{**values, each: 0.5})


@pytest.mark.parametrize(("name", "direction"), FUNCTIONS)
def test_one_more_along_an_axis_is_refused(name, direction):
    """NumPy would stretch or cut some of them without a word."""
    function, values = arguments(name, direction)
    written = written_shapes(function)
    arrays = [each for each in written if values[each] is not None]
    letters = [axis.partition("/")[0] for each in arrays for axis in written[each].axes]
    for each in arrays:
        for i, axis in enumerate(written[each].axes):
            value = values[each]
            if value is not None and letters.count(axis.partition("/")[0]) > 1:
                longer = np.concatenate([value, value.take([0], axis=i)], axis=i)
                with pytest.raises(UserError, match=f"{name}_{direction}: .* has shape"):
                    function(**{**values, each: longer})


def ones(*shape):
    return np.ones(shape)


Q = ones(1, 5, 2, 8)  # B, T, H, D
SWAPPED = Q.swapaxes(1, 2)
KEYS = ones(1, 5, 3, 8)


@pytest.mark.parametrize(
    ("function", "shapes", "complaint"),
    [
        (
            attention_forward,
            [ones(1, 5, 2, 8), ones(1, 5, 2), Q, Q, Q],
            "attention_forward: lse has shape (1, 5, 2), and should have (1, 2, 5): "
            "the other arguments' (B, H, T)",
        ),
        (
            attention_forward,
            [ones(1, 2, 5, 8), ones(1, 2, 5), SWAPPED, SWAPPED, SWAPPED],
            "lse has shape (1, 2, 5), and should have (1, 5, 2): the other arguments' (B, H, T)",
        ),
        (
            attention_forward,
            [ones(1, 5, 2, 8), ones(1, 2, 5), SWAPPED, Q, Q],
            "q has shape (1, 2, 5, 8), and should have (1, 5, 2, 8)",
        ),
        (
            attention_forward,
            [ones(1, 5, 4, 8), ones(1, 4, 5), ones(1, 5, 4, 8), KEYS, KEYS],
            "3 heads of keys cannot serve 4 of queries in equal groups",
        ),
        (
            attention_forward,
            [ones(1, 5, 2, 8), ones(1, 2, 5), Q, Q, Q, 1],
            "5 queries from position 1 on are not all among the 5 positions of k",
        ),
        (
            attention_forward,
            [ones(1, 5, 2, 8), ones(1, 2, 5), Q, Q, Q, 0, np.zeros(2, int)],
            "padding has shape (2,), and should have (1,)",
        ),
        (
            attention_forward,
            [ones(1, 5, 2, 8), ones(1, 2, 5), Q, Q.tolist(), Q],
            "k is no array, and should be one of shape (1, 5, 2, 8)",
        ),
        (
            position_forward,
            [ones(2, 3, 4), ones(5, 4), 4],
            "positions 4 to 6 are outside the 5 that weight has",
        ),
        (
            layernorm_forward,
            [ones(6, 7), ones(6), ones(6), ones(6, 7), ones(1), ones(7)],
            "weight has shape (1,), and should have (7,): the other arguments' (C,)",
        ),
        (
            gelu_forward,  # which is right? The input.
            [ones(7, 6), ones(6, 7)],
            "out has shape (7, 6), and should have (6, 7)",
        ),
        (
            linear_forward,
            [ones(2, 4, 5), ones(6, 7), ones(5, 7)],
            "out has shape (2, 4, 5), and should have (6, 5): the other arguments' (N, O)",
        ),
        (
            rope_forward,
            [ones(1, 4, 2, 6), ones(1, 4, 2, 6), np.ones((4, 6), complex)],
            "rotations has shape (4, 6), and should have (4, 3): the other arguments' (T, D/2)",
        ),
    ],
)
def test_the_sentence_names_the_argument_its_shape_and_the_right_one(function, shapes, complaint):
    with pytest.raises(UserError, match=re.escape(complaint)):
        function(*shapes)


def test_what_may_be_left_out_or_differ_is_let_through():
    x, weight = ones(6, 7), ones(4, 7)
    out = np.empty((2, 5, 4))[:, :3]  # rows that are not one block of memory
    linear_forward(out, x, weight)
    assert (out == 7).all()
    dweight = np.zeros((4, 7))
    linear_backward(np.empty_like(x), dweight, None, ones(6, 4), x, weight, accumulate=True)
    assert (dweight == 6).all()
    room = ones(1, 9, 2, 8)  # more keys than are read
    attention_forward(np.empty_like(Q), ones(1, 2, 5), Q, room, room, padding=np.array([1]))


def test_what_is_given_by_name_is_held_to_its_shape():
    with pytest.raises(UserError, match=r"padding has shape \(2,\), and should have \(1,\)"):
        attention_forward(np.empty_like(Q), ones(1, 2, 5), q=Q, k=Q, v=Q, padding=np.zeros(2, int))


def test_a_function_is_found_out_in_every_call_not_only_in_the_first():
    x = ones(2, 3)
    for _ in range(2):
        gelu_forward(np.empty_like(x), x)
        with pytest.raises(UserError, match="out has shape"):
            gelu_forward(np.empty((3, 3)), x)


def test_the_gradients_of_one_layer_on_ones_own_arrays():
    """The six lines that layers/ begins with do what they say."""
    lines = [line for line in layers.__doc__.splitlines() if line.startswith("    ")]
    assert len(lines) == 6
    names = {
        "np": np,
        "layernorm_forward": layernorm_forward,
        "layernorm_backward": layernorm_backward,
    }
    exec("\n".join(line.strip() for line in lines), names)

    def forward(x, weight, bias):
        centred = x - x.mean(axis=1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * weight + bias

    inputs = {name: names[name] for name in ("x", "weight", "bias")}
    for name, array in inputs.items():
        expected = differences(lambda: forward(**inputs), array, names["dout"])
        np.testing.assert_allclose(names[f"d{name}"], expected, atol=1e-8)
