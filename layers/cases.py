"""Every layer, and cases to try it on: what gradcheck.py proves, and dev/bench/layers.py times.

Layers are found by the names of their functions, and arguments are drawn by the shapes in their
docstrings. A new layer needs a line in `CASES` only for what the cases of all do not try.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import numpy as np

import layers
from errors import UserError
from layers.shapes import Written, match_shapes, written_shapes

# Sizes by the letters of the docstrings, and values by the names of arguments.
Case = Mapping[str, Any]


def sizes(letters: str, *rows: tuple[int, ...], **values: Any) -> list[Case]:
    """A case for each row, which has a size for each letter."""
    return [dict(zip(letters.split(), row, strict=True)) | values for row in rows]


# By layer, and by what those have in common that a function may be unable to do.
CASES: dict[str, dict[str, list[Case]]] = {
    "attention": {
        # One query more than a block of them, and than two, in the last ones.
        "as many heads of keys as of queries": sizes(
            "B T H K D",
            *((1, 1, 1, 1, 1), (1, 7, 1, 1, 5), (2, 5, 3, 3, 4), (3, 1, 2, 2, 3)),
            *((1, 129, 2, 2, 1), (1, 257, 1, 1, 1)),
        ),
        "fewer heads of keys than of queries": sizes(
            "B T H K D", (2, 5, 6, 3, 2), (1, 66, 4, 2, 2), (2, 3, 3, 1, 2)
        ),
        # The own position alone; over the border of two blocks of queries; as long as the text.
        "a window": [
            *sizes("B T H K D", (2, 5, 3, 3, 4), window=1),
            *sizes("B T H K D", (2, 7, 2, 2, 3), (1, 131, 1, 1, 1), window=3),
            *sizes("B T H K D", (2, 6, 2, 2, 3), window=6),
        ],
        "a window and fewer heads of keys": sizes(
            "B T H K D", (2, 9, 4, 2, 2), (1, 70, 2, 1, 2), window=4
        ),
        "a scale of its own": sizes("B T H K D", (2, 5, 3, 3, 4), scale=0.3),
    },
    "classifier": {
        "logits for all rows": sizes("N C V R", (1, 1, 2, 1), (4, 3, 5, 4)),
        # In equal parts; the last part smaller; a row at a time.
        "logits for some rows at a time": sizes(
            "N C V R", (6, 3, 5, 2), (7, 2, 4, 3), (3, 2, 4, 1)
        ),
    },
    # A row that begins within what one count of the counter gives, and one that begins with it.
    "dropout": {
        "": [
            *sizes("N C", (1, 1), (5, 7), p=0.4, seed=3, row=9, place=2),
            *sizes("N C", (3, 8), p=0.5, seed=1, row=2, place=0),
            *sizes("N C", (4, 3), p=0.0),
        ]
    },
    # Tokens that come twice, because there are more than the vocabulary has.
    "embedding": {"": sizes("N V C", (1, 1, 1), (7, 5, 3), (12, 4, 6))},
    # The mean of a single channel is the channel: that would prove nothing.
    "layernorm": {"": sizes("N C", (1, 2), (6, 7), (5, 16))},
    "linear": {
        "a bias": sizes("N I O", (1, 1, 1), (5, 7, 3), (6, 4, 4)),
        "no bias": sizes("N I O", (5, 3, 7), bias=None),
    },
    "rmsnorm": {"": sizes("N C", (1, 2), (6, 7), (5, 16))},
    "rope": {"": sizes("B T H D", (1, 1, 1, 2), (2, 5, 3, 4))},
}


@dataclass(frozen=True)
class Layer:
    """A layer's two functions.

    Attributes:
        forward: its first argument is its output.
        backward: an argument called dx is the derivative of the loss by x, and so on.
    """

    name: str
    forward: Callable
    backward: Callable

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The arguments of both."""
        return {**signature(self.forward).parameters, **signature(self.backward).parameters}

    @property
    def output(self) -> str:
        return next(iter(signature(self.forward).parameters))

    @property
    def inputs(self) -> list[str]:
        """What there is a gradient of."""
        forward, backward = (signature(each).parameters for each in (self.forward, self.backward))
        return [name for name in forward if name != self.output and f"d{name}" in backward]

    def is_parameter(self, name: str) -> bool:
        """Whether an input is one: then it has no rows, whose axis is first everywhere else."""
        return self.written[name].axes[0] != self.written[self.output].axes[0]

    @property
    def written(self) -> dict[str, Written]:
        """What the docstrings say; backward's is the stricter one."""
        return written_shapes(self.forward) | written_shapes(self.backward)

    @property
    def letters(self) -> list[str]:
        """The sizes that its arguments have."""
        axes = (axis for each in self.written.values() for axis in each.axes)
        return list(dict.fromkeys(axis.partition("/")[0] for axis in axes))

    @property
    def cases(self) -> dict[str, list[Case]]:
        """Those of `CASES`; else one with every size 1, and one where no two are the same."""
        different = {letter: 3 + 2 * i for i, letter in enumerate(self.letters)}
        return CASES.get(self.name, {"": [dict.fromkeys(self.letters, 1), different]})


def find_layers() -> dict[str, Layer]:
    """Every layer that a file of layers/ defines, by name.

    Raises:
        UserError: there is a forward function without a backward one.
    """
    found = {}
    for file in pkgutil.iter_modules(layers.__path__):
        module = importlib.import_module(f"layers.{file.name}")
        for function, forward in vars(module).items():
            name, _, direction = function.rpartition("_")
            if direction != "forward" or name[0] == "_" or forward.__module__ != module.__name__:
                continue
            backward = getattr(module, f"{name}_backward", None)
            if not backward:
                raise UserError(f"{module.__file__} has {name}_forward, and no {name}_backward")
            found[name] = Layer(name, forward, backward)
    return found


def find_layer(name: str) -> Layer:
    """The layer of that name.

    Raises:
        UserError: there is none.
    """
    found = find_layers()
    if name not in found:
        raise UserError(f"there is no layer {name!r}; layers/ has {', '.join(found)}")
    return found[name]


def describe(layer: Layer, values: Mapping[str, Any]) -> str:
    """The sizes of arguments, which are None, and what else is given: "N=5 I=3 O=7 bias=None"."""
    written = layer.written
    shapes = {name: np.shape(values[name]) for name in written if values.get(name) is not None}
    numbers = match_shapes(layer.name, written, shapes)
    missing = [f"{name}=None" for name in layer.inputs if values[name] is None]
    options = [
        f"{name}={values[name]}"
        for name, parameter in layer.parameters.items()
        if name in values
        and name not in written
        and parameter.default not in (Parameter.empty, values[name])
    ]
    words = [*(f"{letter}={numbers[letter]}" for letter in layer.letters), *missing, *options]
    return " ".join(words)


def draw_arguments(
    layer: Layer, case: Case, rng: np.random.Generator, dtype: Any = np.float64
) -> dict[str, Any]:
    """What the functions of a layer take, by name, but for the gradients that they write.

    Args:
        layer: whose functions.
        case: sizes and values. What it leaves out is the default or, if that is none, drawn; sizes
            that the arrays among its values tell can be left out, too.
        rng: draws the rest.
        dtype: float32 or float64, of all numbers that are not whole.

    Raises:
        UserError: the case has what the layer has not, or lacks a size.
    """
    gradients = [f"d{name}" for name in layer.inputs]
    parameters = {name: p for name, p in layer.parameters.items() if name not in gradients}
    written, letters = layer.written, layer.letters
    for name in case:
        if name not in parameters and name not in letters:
            known = ", ".join([*parameters, *letters])
            raise UserError(f"{layer.name} has no {name!r}; it has {known}")

    given = {name: case[name] for name in parameters if name in case}
    shapes = {name: np.shape(x) for name, x in given.items() if x is not None}
    numbers = match_shapes(layer.name, written, shapes)
    numbers |= {letter: size for letter, size in case.items() if letter in letters}
    for letter, size in numbers.items():
        if not isinstance(size, int | np.integer) or size < 1:
            raise UserError(
                f"{layer.name}: {letter} must be a whole number from 1 up, not {size!r}"
            )
    values = {}
    for name, parameter in parameters.items():
        if name in given:
            x = given[name]
            is_array = name in written and x is not None
            values[name] = np.array(x, _type(written[name], dtype)) if is_array else x
        elif parameter.default is not Parameter.empty and name not in layer.inputs:
            values[name] = parameter.default
        elif name in written:
            values[name] = _draw(layer.name, written[name], numbers, rng, dtype)
        elif parameter.annotation is float:
            values[name] = rng.uniform()
        else:
            raise UserError(f"{layer.name} needs a value for {name}: no docstring says its shape")
    return values


def _draw(
    layer: str,
    written: Written,
    numbers: Mapping[str, int],
    rng: np.random.Generator,
    dtype: Any,
) -> np.ndarray:
    """An array as a docstring says it: of normal numbers, "integers below V" or "complex"."""
    shape = written.shape(numbers)
    for size in shape:
        if isinstance(size, str):
            raise UserError(f"{layer} needs a size for {size}, as in {size}=4, or an array with it")
    shape = tuple(map(int, shape))
    below = re.match(r" integers below (\w+)", written.words)
    if below:
        return rng.integers(0, numbers[below[1]], shape)
    if written.words.startswith(" complex"):
        return rng.standard_normal((*shape, 2), dtype).view(_type(written, dtype))[..., 0]
    if len(shape) == 4:  # heads: a view of something wider, as in a model
        B, T, H, D = shape
        return rng.standard_normal((B, T, 2 * H, D), dtype)[:, :, :H]
    return rng.standard_normal(shape, dtype)


def _type(written: Written, dtype: Any) -> np.dtype:
    """What type an argument has where its layer computes in `dtype`."""
    if written.words.startswith(" complex"):
        return np.result_type(dtype, np.complex64)
    return np.dtype(int if written.words.startswith(" integers") else dtype)
