"""One flat array, and the tensors that lie in it one after another."""

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import psutil

import own_imports
from errors import UserError

Shapes = Mapping[str, tuple[int, ...]]


class Buffer:
    """Allocates one flat array, once, and hands out a named view for each tensor in it.

        params = Buffer({"wte": (512, 64), "wpe": (32, 64)}, np.float32)
        params.wte, params["wte"]       the same view, (512, 64)
        params.flat                     all of it, (34816,)
        for name, tensor in params      in the order of the table

    Views are never copies: what is written to one is written to the flat array.

    Args:
        shapes: of the tensors, by name.
        dtype: of their numbers.
        turned: names of tensors whose matrices, their last two axes, lie in memory column by
            column. Their views have the same shapes as ever.
    """

    def __init__(
        self, shapes: Shapes, dtype: Any = np.float32, turned: Collection[str] = ()
    ) -> None:
        self.shapes = dict(shapes)
        # The system gives zeroed pages as they are touched: what is never used costs nothing.
        self.flat = np.zeros(num_elements(shapes), dtype)
        self._views: dict[str, np.ndarray] = {}
        for name, (start, stop) in extents(shapes).items():
            part, shape = self.flat[start:stop], self.shapes[name]
            if name in turned:
                self._views[name] = part.reshape(*shape[:-2], shape[-1], shape[-2]).mT
            else:
                self._views[name] = part.reshape(shape)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._views[name]

    def __getattr__(self, name: str) -> np.ndarray:
        # Called only for names that are not ordinary attributes.
        try:
            return self.__dict__["_views"][name]
        except KeyError:
            raise AttributeError(f"no tensor named {name!r} in this buffer") from None

    def __setitem__(self, name: str, value: Any) -> None:
        self._views[name][...] = value

    def __setattr__(self, name: str, value: Any) -> None:
        # params.wte = x writes into the buffer, like params["wte"] = x; it does not hide the view.
        if name in self.__dict__.get("_views", ()):
            self[name] = value
        else:
            super().__setattr__(name, value)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, tensor) in the order of the table."""
        return iter(self._views.items())

    def __len__(self) -> int:
        """The number of tensors."""
        return len(self._views)

    def like(self) -> "Buffer":
        """Another buffer of the same shapes and type, none turned, all zero."""
        return Buffer(self.shapes, self.flat.dtype)

    def describe(self) -> str:
        """A table: name, shape, offset in bytes, bytes."""
        itemsize = self.flat.itemsize
        lines = [f"{'name':<16} {'shape':<24} {'offset':>14} {'bytes':>14}"]
        for name, (start, stop) in extents(self.shapes).items():
            offset, size = start * itemsize, (stop - start) * itemsize
            lines.append(f"{name:<16} {self.shapes[name]!s:<24} {offset:>14,} {size:>14,}")
        lines.append(f"{'total':<16} {self.flat.dtype!s:<24} {'':>14} {self.flat.nbytes:>14,}")
        return "\n".join(lines)


def num_elements(shapes: Shapes) -> int:
    """How many elements a buffer of these shapes has, without allocating it."""
    return sum(math.prod(shape) for shape in shapes.values())


def extents(shapes: Shapes) -> dict[str, tuple[int, int]]:
    """Where each tensor of a buffer of these shapes starts and stops, in elements."""
    result, start = {}, 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape)
        result[name] = start, stop
        start = stop
    return result


def check_available(needed: int, what: str, advice: str) -> None:
    """Refuse what needs more memory than this machine has available.

    Args:
        needed: in bytes.
        what: what they are needed for, as in "for this run".
        advice: what to do about it.

    Raises:
        UserError: less is available.
    """
    available = psutil.virtual_memory().available
    if needed > available:
        raise UserError(
            f"{megabytes(needed)} of memory are needed {what}, and this machine has "
            f"{megabytes(available)} available; {advice}"
        )


def megabytes(size: float) -> str:
    """Bytes for a person: "1,177 MiB", or "0.3 MiB"."""
    return f"{size / 2**20:,.1f} MiB" if size < 10 * 2**20 else f"{size / 2**20:,.0f} MiB"
