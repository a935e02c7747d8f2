"""A new layer is its file: gradcheck finds it, and draws what it takes."""

import itertools
import sys

import numpy as np
import pytest

import layers
from errors import UserError
from gradcheck import check_layer
from layers.cases import draw_arguments, find_layers

SOFTSIGN = '''
"""out = weight x / (1 + |x|)."""
import numpy as np
from layers.gelu import gelu_backward, gelu_forward
from layers.shapes import check_shapes

@check_shapes
def softsign_forward(out: np.ndarray, x: np.ndarray, weight: np.ndarray) -> None:
    """
    Args:
        out: (N, C), written.
        x: (N, C).
        weight: (C,).
    """
    np.divide(weight * x, 1 + np.abs(x), out=out)

@check_shapes
def softsign_backward(
    dx: np.ndarray, dweight: np.ndarray, dout: np.ndarray, x: np.ndarray, weight: np.ndarray,
    accumulate: bool = False,
) -> None:
    """
    Args:
        dx: (N, C), written.
        dweight: (C,), written; added to with `accumulate`.
        dout: (N, C).
        x: (N, C).
        weight: (C,).
    """
    dx[...] = dout * weight / (1 + np.abs(x)) ** 2
    np.add(dweight if accumulate else 0, (dout * x / (1 + np.abs(x))).sum(axis=0), out=dweight)

def _half_forward(out, x):
    out[...] = x / 2
'''


@pytest.fixture
def new_layer(tmp_path, monkeypatch):
    """Puts a file beside those of layers/."""
    monkeypatch.setattr(layers, "__path__", [*layers.__path__, str(tmp_path)])

    def put(text):
        (tmp_path / "softsign.py").write_text(text, encoding="utf-8")

    yield put
    sys.modules.pop("layers.softsign", None)
    vars(layers).pop("softsign", None)


def test_a_new_file_is_a_new_layer(new_layer, program):
    before = find_layers()
    new_layer(SOFTSIGN)
    assert find_layers().keys() - before.keys() == {"softsign"}
    status, out, _ = program("gradcheck", "softsign")
    assert status == 0
    rows = [line.split()[:5] for line in out.splitlines()[1:-1]]
    assert rows == [
        ["softsign", f"N={N}", f"C={C}", each, size]
        for N, C, sizes in ((1, 1, "11"), (3, 5, ("15", "5")))
        for each, size in zip(("x", "weight"), sizes, strict=True)
    ]


def test_a_mistake_in_a_new_layer_is_caught(new_layer):
    new_layer(SOFTSIGN.replace("dweight if accumulate else 0", "0"))
    wrong = {result.tensor.split()[-1] for result in check_layer("softsign") if not result.ok}
    assert wrong == {"weight"}


def test_half_a_layer_is_none(new_layer):
    new_layer(SOFTSIGN.replace("softsign_backward", "backward"))
    with pytest.raises(UserError, match=r"softsign.py has softsign_forward, and no softsign_back"):
        find_layers()


def test_an_array_without_a_shape_is_missed(new_layer):
    new_layer(SOFTSIGN.replace("        weight: (C,).\n", ""))
    with pytest.raises(UserError, match="softsign needs a value for weight: no docstring says"):
        check_layer("softsign")


@pytest.mark.parametrize("name", find_layers())
def test_arguments_are_drawn_as_the_docstrings_say(name):
    layer, tokens = find_layers()[name], set()
    for case in itertools.chain(*layer.cases.values()):
        values = draw_arguments(layer, case, np.random.default_rng(0), np.float32)
        assert values.keys() == layer.parameters.keys() - {f"d{each}" for each in layer.inputs}
        drawn = [x for x in values.values() if isinstance(x, np.ndarray)]
        assert {x.dtype.str[1:] for x in drawn} <= {"f4", "c8", "i8"}
        for each in values.keys() & {"tokens", "targets"}:
            assert values[each].max() < case["V"]
            tokens |= set(values[each].tolist())
    assert len(tokens) != 1
