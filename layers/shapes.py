"""The shapes of a layer's arguments: written in its docstring, and nowhere else.

    out: (N, C), written.                   a letter is the same number wherever it stands
    dk, dv: (B, T, K, D), written.          of both
    rotations: (T, D/2), those of ...       half as many
    out: (N, O), written; or (B, T, O).     B times T are N

A layer's arguments are held to them. What else has to be true, that K divides H or that S is large
enough, the layer looks at itself.
"""

import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from inspect import signature
from typing import Any, NamedTuple

from errors import UserError

# "dk, dv: (B, T, K, D), written; or ..."
LINE = re.compile(r"^ +(\w+(?:, \w+)*): \(([^)]*)\)(.*)", re.MULTILINE)
OTHER = re.compile(r"; or \(([^)]*)\)")

Shape = tuple[int, ...]


class Written(NamedTuple):
    """What a docstring says of an argument: its axes, those it may have instead, and the rest."""

    axes: tuple[str, ...]
    other: tuple[str, ...]
    words: str

    def fold(self, shape: Shape) -> Shape:
        """A shape of the other axes as one of `axes`; any else as it is."""
        if not self.other or len(shape) != len(self.other):
            return shape
        first = len(self.other) - len(self.axes) + 1
        return math.prod(shape[:first]), *shape[first:]

    def shape(self, sizes: Mapping[str, int]) -> tuple[Fraction | str, ...]:
        """The size of each axis, and the axis itself where that is not known."""
        return tuple(
            Fraction(sizes[letter], int(divisor or 1)) if letter in sizes else letter
            for letter, _, divisor in (axis.partition("/") for axis in self.axes)
        )


def check_shapes(layer: Callable[..., None]) -> Callable[..., None]:
    """The layer, which now refuses arguments whose shapes are not those of its docstring.

    Raises:
        UserError: in a call; it names the argument, the shape that it has and the right one.
    """
    declared = signature(layer)

    # In small models a comparison is felt, so none is made twice. Bounded, because with every token
    # of a text there is one key more.
    @functools.lru_cache(maxsize=1024)
    def compare(*shapes: Shape | None) -> None:
        found = {
            name: shape or ()
            for (name, parameter), shape in zip(declared.parameters.items(), shapes, strict=False)
            if shape is not None or not isinstance(None, parameter.annotation)
        }
        match_shapes(layer.__name__, written_shapes(layer), found)

    @functools.wraps(layer)
    def checked(*args: Any, **kwargs: Any) -> None:
        if kwargs:
            bound = declared.bind(*args, **kwargs)
            bound.apply_defaults()
            args = bound.args
        compare(*[getattr(x, "shape", None if x is None else ()) for x in args])
        layer(*args)

    return checked


def written_shapes(layer: Callable) -> dict[str, Written]:
    """What the docstring of a layer says of its arrays, by name and in order."""
    found = {}
    for names, axes, words in LINE.findall(layer.__doc__ or ""):  # python -OO leaves none
        other = OTHER.search(words)
        written = Written(_split(axes), _split(other[1]) if other else (), words)
        found |= dict.fromkeys(names.split(", "), written)
    return found


def match_shapes(
    where: str, written: Mapping[str, Written], shapes: Mapping[str, Shape]
) -> dict[str, int]:
    """What number each letter is: in most of the arrays, or in the last ones, which are inputs.

    Raises:
        UserError: an array has another shape than these numbers make; the message begins with
            `where`.
    """
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    names = [name for name in written if name in shapes]
    for name in reversed(names):
        axes, shape = written[name].axes, written[name].fold(shapes[name])
        if len(shape) == len(axes):
            for axis, size in zip(axes, shape, strict=True):
                letter, _, divisor = axis.partition("/")
                votes[letter][size * int(divisor or 1)] += 1
    sizes = {letter: counter.most_common(1)[0][0] for letter, counter in votes.items()}
    for name in names:
        expected = written[name].shape(sizes)
        if written[name].fold(shapes[name]) != expected:
            what = f"has shape {shapes[name]}, and should have"
            if not shapes[name]:
                what = "is no array, and should be one of shape"
            raise UserError(
                f"{where}: {name} {what} {_tuple(expected)}: "
                f"the other arguments' {_tuple(written[name].axes)}"
            )
    return sizes


def _split(axes: str) -> tuple[str, ...]:
    """ "N, C" -> ("N", "C"), and "N," -> ("N",)."""
    return tuple(axes.rstrip(",").split(", "))


def _tuple(items: Iterable[str | Fraction]) -> str:
    """As Python writes a tuple, but letters without quotation marks."""
    words = [str(item) for item in items]
    return f"({words[0]},)" if len(words) == 1 else f"({', '.join(words)})"
