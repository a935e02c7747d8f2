"""Tensors in a GGUF file: views of floats, and quantised ones that become floats bit by bit.

The library `gguf` dequantises.

Source of the types: ggml, docs/gguf.md and src/ggml-common.h.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np

from errors import FormatError, UserError
from formats.gguf_header import Stored, damaged
from formats.naming import Config, Naming, head_size
from formats.weights import FLOATS, SINGLE, Parts, copy_blocks

# Numbers that are made at once: few enough to stay in the processor's cache.
BLOCK = 1 << 17

Turn = Callable[[np.ndarray], np.ndarray]

# The types of tensors that are not quantised, by their numbers in the file.
FLOAT_TYPES = {0: FLOATS["float32"], 1: FLOATS["float16"], 30: FLOATS["bfloat16"]}


def library(path: Path) -> ModuleType:
    """The library `gguf`.

    Raises:
        UserError: it is not installed, and `path` needs it.
    """
    try:
        import gguf
    except ImportError:
        raise UserError(
            f'{path} needs the library gguf, which is not installed: pip install -e ".[gguf]"'
        ) from None
    return gguf


def parts_of(
    path: Path, ours: str, naming: Naming, config: Config, layers: Sequence[Stored]
) -> Parts:
    """The tensor that we call `ours`, float32 if its layers are quantised or of different types.

    Raises:
        FormatError: it does not lie in the file, or is of a type or a shape that cannot be.
        UserError: it is quantised, and the library is not installed.
    """
    shape = layers[0].shape
    if any(stored.shape != shape for stored in layers):
        raise damaged(path, f"layers whose {ours} is not {shape} as in the first")
    our_shape = naming.our_shape(ours, shape, config)
    if our_shape is None:
        raise damaged(path, f"a tensor {layers[0].name} of the shape {shape}, unlike its heads")
    kinds = {stored.kind for stored in layers}
    dtype = FLOAT_TYPES.get(layers[0].kind) if len(kinds) == 1 else None
    rows = naming.rows(ours, shape[0], config)
    turn, unit = None, 1
    if ours in naming.halves:
        turn, unit = partial(naming.rows_to_ours, ours, config=config), head_size(config)
    makers, blocks = [], []
    for stored in layers:
        row_bytes = _row_bytes(path, stored)
        offset = stored.offset + rows.start * math.prod(shape[1:-1]) * row_bytes
        stored = stored._replace(offset=offset, shape=our_shape)
        arguments = path, stored, row_bytes, dtype or np.dtype(np.float32), turn, unit
        makers.append(partial(_part, *arguments))
        blocks.append(partial(_blocks, *arguments))
    quantised = [library(path).GGMLQuantizationType(k).name for k in kinds - FLOAT_TYPES.keys()]
    whole = our_shape if ours in SINGLE else (len(layers), *our_shape)
    stored_as = " ".join(sorted(quantised))
    return Parts(whole, dtype or np.float32, makers, stored_as, blocks)


def _row_bytes(path: Path, stored: Stored) -> int:
    """How many bytes a row takes, when it is certain that all are there and can become floats."""
    if stored.kind in FLOAT_TYPES:
        row_bytes = stored.shape[-1] * FLOAT_TYPES[stored.kind].itemsize
    else:
        row_bytes = _quantised_bytes(path, stored)
    end, size = stored.offset + math.prod(stored.shape[:-1]) * row_bytes, path.stat().st_size
    if end > size:
        raise damaged(path, f"{size} bytes, but its tensor {stored.name} ends at {end}")
    return row_bytes


def _quantised_bytes(path: Path, stored: Stored) -> int:
    columns = stored.shape[-1]
    gguf = library(path)
    try:
        kind = gguf.GGMLQuantizationType(stored.kind)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except (ValueError, NotImplementedError):
        raise FormatError(
            f"{path}: the tensor {stored.name} is of the type {stored.kind}, which the library "
            "gguf does not turn into floats; convert it with llama.cpp's llama-quantize"
        ) from None
    if columns % block:
        raise damaged(path, f"rows of {columns} in {stored.name}, in blocks of {block}")
    return columns // block * block_bytes


def _part(
    path: Path, stored: Stored, row_bytes: int, dtype: np.dtype, turn: Turn | None, unit: int
) -> np.ndarray:
    """All of a tensor: a view of the file, if that has just these numbers."""
    if FLOAT_TYPES.get(stored.kind) == dtype and not turn:
        return np.memmap(path, dtype, "r", stored.offset, stored.shape)
    part = np.empty(stored.shape, dtype)
    copy_blocks(_blocks(path, stored, row_bytes, dtype, turn, unit), part)
    return part


def _blocks(
    path: Path,
    stored: Stored,
    row_bytes: int,
    dtype: np.dtype,
    turn: Turn | None = None,
    unit: int = 1,
) -> Iterator[np.ndarray]:
    """A tensor, some rows at a time; a vector is one block.

    Args:
        turn: what is made of each block; by default it stays as it is.
        unit: a block has as many rows, or a multiple of it.
    """
    rows, *inner = stored.shape if len(stored.shape) > 1 else (1, *stored.shape)
    count = max(1, BLOCK // math.prod(inner) // unit) * unit
    with path.open("rb") as file:
        file.seek(stored.offset)
        for start in range(0, rows, count):
            shape = (min(count, rows - start), *inner) if len(stored.shape) > 1 else stored.shape
            data = file.read(math.prod(shape[:-1]) * row_bytes)
            block = _floats(path, stored.kind, np.frombuffer(data, np.uint8), dtype)
            block = block.reshape(shape)
            yield turn(block) if turn else block


def _floats(path: Path, kind: int, data: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if kind in FLOAT_TYPES:
        return data.view(FLOAT_TYPES[kind]).astype(dtype, copy=False)
    gguf = library(path)
    with np.errstate(all="ignore"):  # whatever a file has for a scale
        # As one row, since the library makes 16 at a time: half again as fast.
        return gguf.dequantize(data[None], gguf.GGMLQuantizationType(kind))[0]


def check_copy(path: Path, table: Stored, copy: Stored) -> None:
    """Refuse a classifier that is not the embedding's table, in a model that has no other.

    Until March 2025 llama.cpp's converter wrote the table twice, and its llama-quantize still gives
    the two different types: Q4_K and Q6_K, say. They are one table if no number differs by more
    than what the two types can be wrong.

    Raises:
        FormatError: a number does.
    """
    row_bytes = [_row_bytes(path, each) for each in (table, copy)]
    floats = [FLOAT_TYPES[each.kind] for each in (table, copy) if each.kind in FLOAT_TYPES]
    dtype = min(floats, key=lambda each: each.itemsize, default=np.dtype(np.float32))
    error = _largest_error(path, table.kind) + _largest_error(path, copy.kind)
    blocks = [
        _blocks(path, each, size, dtype)
        for each, size in zip((table, copy), row_bytes, strict=True)
    ]
    same = table.shape == copy.shape
    if not same or not all(_alike(*pair, error) for pair in zip(*blocks, strict=True)):
        raise FormatError(
            f"{path} has a classifier {copy.name} that is not the embedding's table {table.name}, "
            "as it is in all models of its kind; give another"
        )


def _alike(rows: np.ndarray, others: np.ndarray, error: float) -> bool:
    """Whether no two numbers differ by more than `error` times the largest in their row."""
    rows, others = rows.astype(np.float32, copy=False), others.astype(np.float32, copy=False)
    with np.errstate(all="ignore"):  # whatever a file has for numbers
        largest = np.maximum(np.abs(rows), np.abs(others)).max(axis=-1, keepdims=True)
        return bool((np.abs(rows - others) <= error * largest).all())


def _largest_error(path: Path, kind: int) -> float:
    """How far a number may be from what it stands for, as a part of the largest in its row.

    A type of b bits has 2^b steps from the largest down to its negative. Two of these are never
    reached, seen with ggml's own quantisers of all types that llama-quantize has for a table, on
    numbers of many distributions; most types stay below one. Floats are compared exactly.
    """
    if kind in FLOAT_TYPES:
        return 0.0
    name = library(path).GGMLQuantizationType(kind).name  # such as Q4_K: the digit is b
    return 2.0 ** (2 - int(re.search(r"\d", name)[0]))
