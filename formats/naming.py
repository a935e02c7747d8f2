"""What others call our models' numbers and tensors, and how theirs differ from ours.

The tables of these names are in families/, a file for each class of model.
"""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from errors import FormatError, UserError

LARGEST_COUNT = 1 << 24
LARGEST_NUMBER = 1e30  # which every float type here can hold

Config = Mapping[str, Any]
NEEDED = object()


@dataclass(frozen=True)
class Number:
    """A number of a model, as others write it.

    Attributes:
        name: theirs.
        type: int from 1 up, float above 0, or bool.
        default: what it is where they do not say it; `NEEDED` if they must. A function makes it of
            those of our numbers that stand before it.
        null: what it is where they say that there is none; by default as if they did not say it.
    """

    name: str
    type: type = int
    default: Any = NEEDED
    null: Any = NEEDED

    def read(self, path: Path, numbers: Mapping[str, Any], config: Config) -> Any:
        """Our number.

        Args:
            path: what error messages call the file.
            numbers: theirs.
            config: those of ours that are known.

        Raises:
            FormatError: it is missing, or not of its type.
        """
        value = numbers.get(self.name)
        if value is None:
            says_none = self.name in numbers and self.null is not NEEDED
            value = self.null if says_none else self.default
            value = value(config) if callable(value) else value
            if value is None:
                return None
        if self.type is bool:
            check_value(path, self.name, value, [False, True])
            return bool(value)
        if self.type is int and type(value) is int and 1 <= value <= LARGEST_COUNT:
            return value
        if self.type is float and type(value) in (int, float) and 0 < value < LARGEST_NUMBER:
            return float(value)
        wanted = {float: "number above 0", int: f"whole number from 1 to {LARGEST_COUNT}"}
        raise FormatError(
            f"{path}: {self.name} must be a {wanted[self.type]}, not "
            f"{reprlib.repr(numbers.get(self.name))}; it is damaged"
        )


def read_numbers(
    path: Path, numbers: Mapping[str, Any], table: Mapping[str, Number]
) -> dict[str, Any]:
    """Our numbers, those of a table, out of theirs.

    Raises:
        FormatError: one is missing, or not of its type.
    """
    config: dict[str, Any] = {}
    for ours, number in table.items():
        config[ours] = number.read(path, numbers, config)
    return config


def head_size(config: Config) -> int:
    """How many numbers a head has, if not said otherwise."""
    return config.get("head_size") or config["dim"] // config["num_heads"]


@dataclass(frozen=True)
class Naming:
    """What somebody calls our tensors, and how the parts of theirs differ from ours.

    Attributes:
        names: theirs by ours; {} stands for the number of the layer. Several of ours may be one of
            theirs, which has the rows of each below those of the one before.
        shares: which of our numbers says what share of these rows one of several has.
        transposed: those of ours that they keep as (in, out).
        halves: those of ours whose rows are pairs to be rotated, and which they keep with the first
            numbers of all pairs of a head before the second ones; in ours the two of a pair are
            neighbours.
        less_one: those of ours from which they have taken 1 off.
    """

    names: Mapping[str, str]
    shares: Mapping[str, str] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    halves: frozenset[str] = frozenset()
    less_one: frozenset[str] = frozenset()

    def keeps(self, ours: str) -> bool:
        """Whether one of theirs is just this one of ours."""
        changed = (self.shares, self.transposed, self.halves, self.less_one)
        return not any(ours in each for each in changed)

    @cached_property
    def joined(self) -> dict[str, list[str]]:
        """Those of ours that are in one of theirs, in order, by its name."""
        result: dict[str, list[str]] = {}
        for ours, theirs in self.names.items():
            result.setdefault(theirs, []).append(ours)
        return result

    def our_shape(self, ours: str, shape: Sequence[int], config: Config) -> tuple[int, ...] | None:
        """The shape of our tensor, of one layer, or None if one of theirs cannot have `shape`."""
        shape = list(shape)
        if ours in self.shares:
            rows = self.rows(ours, shape[0], config) if len(shape) > 1 else None
            if rows is None:
                return None
            shape[0] = rows.stop - rows.start
        if ours in self.transposed:
            if len(shape) != 2:
                return None
            shape.reverse()
        if ours in self.halves:
            size = head_size(config)
            if not shape or size < 2 or size % 2 or shape[0] % size:
                return None
        return tuple(shape)

    def to_ours(self, ours: str, theirs: np.ndarray, config: Config) -> np.ndarray:
        """Our tensor, of one layer, out of theirs of a shape that `our_shape` knows.

        Where 1 has to be added this makes float32 of it, of which theirs may not have the digits.
        """
        return self.rows_to_ours(ours, theirs[self.rows(ours, len(theirs), config)], config)

    def rows_to_ours(self, ours: str, rows: np.ndarray, config: Config) -> np.ndarray:
        """As `to_ours`, of nothing but those rows of theirs that are ours: all, or whole heads."""
        if ours in self.transposed:
            rows = rows.T
        if ours in self.halves:
            rows = _swapped(rows, head_size(config), 2)
        if ours in self.less_one:
            rows = rows.astype(np.float32) + np.float32(1)
        return rows

    def to_theirs(self, ours: str, part: np.ndarray, config: Config) -> np.ndarray:
        """What of theirs is our tensor, of one layer: the way back from `to_ours`."""
        if ours in self.transposed:
            part = part.T
        if ours in self.halves:
            part = _swapped(part, head_size(config), head_size(config) // 2)
        if ours in self.less_one:
            part = part.astype(np.float32) - np.float32(1)
        return part

    def rows(self, ours: str, count: int, config: Config) -> slice | None:
        """Which rows of theirs, which has `count`, are ours; None if these do not add up."""
        if ours not in self.shares:
            return slice(0, count)
        names = self.joined[self.names[ours]]
        shares = [config[self.shares[name]] for name in names]
        unit, rest = divmod(count, sum(shares))
        start = unit * sum(shares[: names.index(ours)])
        return None if rest else slice(start, start + unit * config[self.shares[ours]])


def _swapped(tensor: np.ndarray, size: int, groups: int) -> np.ndarray:
    """Of each `size` rows, in `groups`, first the first row of every group, then the second, ...

    Two halves of a head become neighbours so, and neighbours, in D/2 groups, two halves.
    """
    cut = tensor.reshape(-1, groups, size // groups, *tensor.shape[1:])
    return cut.swapaxes(1, 2).reshape(tensor.shape)


@dataclass(frozen=True)
class Others:
    """Numbers that no table can tell, since several of theirs are one of ours or the like.

    Attributes:
        read: makes ours of theirs, and of those of ours that the table has; raises FormatError.
        write: makes theirs of all of ours.
        names: theirs that it looks at.
    """

    read: Callable[[Path, Mapping[str, Any], Config], Config]
    write: Callable[[Config], Mapping[str, Any]]
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Architecture:
    """A kind of model in somebody's terms.

    Attributes:
        name: theirs.
        kinds: ours, names in `FAMILIES`; a model in a file is of the first.
        naming: of its tensors.
        numbers: by our names.
        always: those of ours that are the same in all its models.
        computed: other numbers of theirs, and those values of each that mean what we compute: first
            what it is where they do not say it. A function makes them of our numbers.
        others: what of its numbers no table can tell.
        only: whether it can have a model of ours, besides what it always has.
        code: the name of the program for it, where a file says that.
        inside: the name of the object with its numbers, if they are in one.
    """

    name: str
    kinds: tuple[str, ...]
    naming: Naming
    numbers: Mapping[str, Number]
    computed: Mapping[str, Sequence[Any] | Callable[[Config], Sequence[Any]]]
    always: Mapping[str, Any] = field(default_factory=dict)
    others: Sequence[Others] = ()
    only: Callable[[Config], bool] = lambda config: True
    code: str = ""
    inside: str = ""

    def read(self, path: Path, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """Our numbers of a model out of theirs.

        Raises:
            FormatError: one is missing, or means what no model of ours computes.
        """
        theirs = {**theirs, **inner(path, theirs, self.inside)}
        config = read_numbers(path, theirs, self.numbers) | dict(self.always)
        for other in self.others:
            config |= other.read(path, theirs, config)
        for name, values in self._computed(config).items():
            check_value(path, name, theirs.get(name, values[0]), values)
        return config

    def write(self, config: Config) -> dict[str, Any]:
        """Their numbers of a model: the way back from `read`."""
        theirs: dict[str, Any] = {}
        for ours, number in self.numbers.items():
            value = config[ours]
            theirs[number.name] = value if value is None else number.type(value)
        for name, values in self._computed(config).items():
            if values[0] is not None:
                theirs[name] = values[0]
        for other in self.others:
            theirs |= other.write(config)
        return theirs

    def has(self, config: Config) -> bool:
        """Whether a model with our numbers is one of these."""
        return all(config[ours] == value for ours, value in self.always.items()) and self.only(
            config
        )

    def _computed(self, config: Config) -> dict[str, Sequence[Any]]:
        return {
            name: values(config) if callable(values) else values
            for name, values in self.computed.items()
        }


def architecture_of(
    path: Path, kind: str, config: Config, by_class: Sequence[Sequence[Architecture]]
) -> Architecture:
    """The architecture of that name or, if it cannot have a model of these numbers, the next.

    Args:
        path: what error messages call what shall be written.
        kind: the model's name in `FAMILIES`.
        config: ours.
        by_class: architectures, those of each class of model together.

    Raises:
        UserError: none can have it.
    """
    known = next(each for each in by_class if any(kind in other.kinds for other in each))
    for architecture in sorted(known, key=lambda each: kind not in each.kinds):
        if architecture.has(config):
            return architecture
    raise UserError(
        f"cannot write {path}: none of {', '.join(each.name for each in known)} has all that this "
        "model has; choose another format"
    )


def inner(path: Path, numbers: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The object called `name` among the numbers; nothing if there is none.

    Raises:
        FormatError: it is no object.
    """
    found = numbers.get(name) or {}
    if not isinstance(found, Mapping):
        raise FormatError(f"{path}: {name} is not names and values; it is damaged")
    return found


def check_value(path: Path, name: str, value: Any, values: Sequence[Any]) -> None:
    """Refuse a number of theirs that is not among those that mean what we compute.

    Raises:
        FormatError: it is not.
    """
    if value not in values:
        raise FormatError(
            f"{path}: {name} is {value!r:.60}, and models here have "
            f"{' or '.join(map(repr, values))} only"
        )
