"""A model's weights as every format here reads and writes them: described, but not yet in memory.

Each format translates between its files and these names, layouts and numbers, which are those of
models/; whether a model can be made of them is for load.py to say.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from errors import FormatError, UserError
from tokenizer import Tokenizer

# Types that weights are stored in, by the names that people give them.
FLOATS = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

# Tensors that a model has once; of all others it has one for each layer.
SINGLE = frozenset({"wte", "wpe", "lnfw", "lnfb", "rmsfw", "wcls"})

MOST_LAYERS = 1000  # many times what models have; a forged header must not fill the memory


class Parts(Sequence[np.ndarray]):
    """A tensor in parts, each made when it is looked up: so they need not all be in memory at once.

    A tensor that every layer has, (L, ...), has a part for each layer; any other is one part.

    Args:
        shape: of the whole tensor.
        dtype: of the parts, as the file has them.
        makers: each makes one part.
        stored: what the file's own type is called, if the parts are made of another.
        blocks: each makes one part some rows at a time, which one after the other are all of it.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        makers: Sequence[Callable[[], np.ndarray]],
        stored: str | None = None,
        blocks: Sequence[Callable[[], Iterator[np.ndarray]]] = (),
    ) -> None:
        self.shape, self.dtype, self._makers = tuple(shape), np.dtype(dtype), makers
        self._blocks = blocks
        self.stored = stored or self.dtype.name

    @classmethod
    def of(cls, name: str, tensor: np.ndarray, stored: str | None = None) -> "Parts":
        """The parts of the tensor `name`, all there already: in memory, or mapped from a file."""
        arrays = [tensor] if name in SINGLE else list(tensor)
        makers = [lambda part=part: part for part in arrays]
        return cls(tensor.shape, tensor.dtype, makers, stored)

    @classmethod
    def mapped(
        cls, name: str, path: Path, dtype: np.dtype, offset: int, shape: tuple[int, ...]
    ) -> "Parts":
        """The parts of the tensor `name` that lies in a file from byte `offset` on.

        Each is a read-only view of the file, which nobody keeps open in between.

        Raises:
            FormatError: there are more layers than any model has.
        """
        count, shape_of_part = (1, shape) if name in SINGLE else (shape[0], shape[1:])
        if count > MOST_LAYERS:
            raise FormatError(f"{path} has {count} layers, which cannot be; it is damaged")
        size = math.prod(shape_of_part) * dtype.itemsize
        starts = range(offset, offset + count * size, size)
        makers = [partial(np.memmap, path, dtype, "r", start, shape_of_part) for start in starts]
        return cls(shape, dtype, makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._makers[index]()

    def __iter__(self) -> Iterator[np.ndarray]:
        return (make() for make in self._makers)

    def blocks(self, index: int) -> Iterator[np.ndarray]:
        """A part some rows at a time, for who needs no more of it in memory."""
        return self._blocks[index]() if self._blocks else iter([self[index]])

    def all_blocks(self) -> Iterator[np.ndarray]:
        """The same of one part after the other."""
        for index in range(len(self)):
            yield from self.blocks(index)


def copy_blocks(blocks: Iterable[np.ndarray], place: np.ndarray) -> None:
    """Copy rows, one block of them below the other."""
    start = 0
    for block in blocks:
        place[start : start + len(block)] = block
        start += len(block)


@dataclass(frozen=True)
class Weights:
    """What is in a file, or shall be in one.

    Attributes:
        format: what a person calls the file's format and version.
        kind: its name in `FAMILIES`.
        config: what the family's config is made of; to be written, all of its numbers.
        tensors: by the names in models/, in any order. "wte" has as many rows as the config's
            vocab_size says: without padding.
        tokenizer: the model's, if the file has it.
        unread_tokenizer: why there is none, if the file has one.
        chat_template: the text of the model's, which is never run; "" if the file says that there
            is none, None if its format cannot say.
        ends: tokens that end a text, besides those that the tokenizer knows.
        note: what whoever converts the model should know.
    """

    format: str
    kind: str
    config: dict[str, Any]
    tensors: Mapping[str, Parts]
    tokenizer: Tokenizer | None = field(default=None, repr=False)
    unread_tokenizer: str = ""
    chat_template: str | None = field(default=None, repr=False)
    ends: frozenset[int] = frozenset()
    note: str = ""


def as_type(part: np.ndarray, dtype: str, path: Path) -> np.ndarray:
    """A part as one block of memory in a type of `FLOATS`, to be written to `path`.

    Raises:
        UserError: a number is too large for the type.
    """
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(part, FLOATS[dtype])
    if result.dtype != part.dtype and not np.isfinite(result).all() and np.isfinite(part).all():
        raise UserError(
            f"cannot write {path}: a weight of {np.abs(part).max():g} is too large for {dtype}; "
            "choose another --dtype"
        )
    return result


def missing(path: Path, name: str) -> FormatError:
    """The error for a file that lacks the tensor that it calls `name`."""
    return FormatError(f"{path} has no tensor {name}; it is damaged, or a model of another kind")
