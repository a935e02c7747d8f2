"""One array, its names, and nothing copied."""

import math

import numpy as np
import pytest

from buffers import Buffer, extents, num_elements

SHAPES = {"wte": (4, 3), "bias": (5,), "scale": (), "none": (0, 7), "cube": (2, 3, 4)}


@pytest.fixture
def buffer():
    return Buffer(SHAPES, np.float64)


def test_names_lie_one_after_another_in_the_order_of_the_table(buffer):
    buffer.flat[:] = np.arange(12 + 5 + 1 + 0 + 24)
    assert [(name, tensor.shape) for name, tensor in buffer] == list(SHAPES.items())
    assert len(buffer) == len(SHAPES)
    np.testing.assert_array_equal(
        np.concatenate([tensor.ravel() for _, tensor in buffer]), buffer.flat
    )
    np.testing.assert_array_equal(buffer.wte, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]])
    assert buffer.scale == 17
    assert buffer.cube[1, 2, 3] == 41


def test_views_are_the_flat_array(buffer):
    for name, tensor in buffer:
        assert buffer[name] is tensor
        assert getattr(buffer, name) is tensor
        assert tensor.base is buffer.flat
        assert tensor.flags.c_contiguous
        tensor[...] = 7
    assert (buffer.flat == 7).all()
    buffer.flat[1] = 8
    assert buffer.wte[0, 1] == 8


def test_turned_matrices_lie_column_by_column():
    buffer = Buffer(SHAPES, np.float64, turned=["wte", "cube"])
    assert [(name, tensor.shape) for name, tensor in buffer] == list(SHAPES.items())
    buffer.flat[:] = np.arange(42)
    np.testing.assert_array_equal(buffer.wte, [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]])
    np.testing.assert_array_equal(buffer.cube[1].T.ravel(), np.arange(30, 42))
    buffer.cube[1, 2, 3] = 99
    assert buffer.flat[30 + 3 * 3 + 2] == 99
    assert buffer.like().wte.flags.c_contiguous


def test_assigning_to_a_name_writes_into_the_buffer(buffer):
    view = buffer.wte
    buffer.wte = np.arange(12).reshape(4, 3)
    buffer["bias"] = 3
    buffer.cube += 1
    assert buffer.wte is view
    np.testing.assert_array_equal(buffer.flat[:18], [*range(12), 3, 3, 3, 3, 3, 0])
    assert (buffer.flat[18:] == 1).all()
    with pytest.raises(ValueError, match="broadcast"):
        buffer.wte = np.zeros(5)


def test_extents_say_where_each_tensor_lies():
    assert extents(SHAPES) == {
        "wte": (0, 12),
        "bias": (12, 17),
        "scale": (17, 18),
        "none": (18, 18),
        "cube": (18, 42),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_starts_as_zeros_of_its_type(dtype):
    buffer = Buffer(SHAPES, dtype)
    assert buffer.flat.dtype == dtype
    assert all(tensor.dtype == dtype for _, tensor in buffer)
    assert not buffer.flat.any()
    assert Buffer(SHAPES).flat.dtype == np.float32


def test_like_has_the_layout_but_not_the_contents(buffer):
    buffer.flat[:] = 1
    other = buffer.like()
    assert other.shapes == buffer.shapes
    assert other.flat.dtype == buffer.flat.dtype
    assert not other.flat.any()
    other.wte[:] = 2
    assert (buffer.flat == 1).all()


def test_an_unknown_name_is_named(buffer):
    with pytest.raises(AttributeError, match="no tensor named 'wpe'"):
        _ = buffer.wpe
    with pytest.raises(KeyError, match="wpe"):
        _ = buffer["wpe"]
    assert not hasattr(buffer, "wpe")


def test_changing_the_table_afterwards_changes_nothing():
    shapes = {"a": (2,)}
    buffer = Buffer(shapes)
    shapes["b"] = (3,)
    assert buffer.shapes == {"a": (2,)}
    assert [name for name, _ in buffer] == ["a"]


def test_num_elements_needs_no_memory():
    assert num_elements(SHAPES) == 42
    assert num_elements({}) == 0
    assert num_elements({"huge": (10**9, 10**9)}) == 10**18


def test_describe_is_a_table_in_bytes():
    table = Buffer({"wte": (1000, 3), "bias": (5,)}, np.float64).describe()
    assert [line.split() for line in table.splitlines()] == [
        ["name", "shape", "offset", "bytes"],
        ["wte", "(1000,", "3)", "0", "24,000"],
        ["bias", "(5,)", "24,000", "40"],
        ["total", "float64", "24,040"],
    ]
    assert len({len(line) for line in table.splitlines()}) == 1


def test_describe_adds_up(buffer):
    *_, total = buffer.describe().splitlines()
    assert total.split()[-1] == str(8 * sum(math.prod(shape) for shape in SHAPES.values()))
