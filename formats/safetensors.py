"""safetensors files: tensors by name, their types and shapes in a header of JSON, then their bytes.

The `safetensors` library checks the header. The tensors are mapped and written here, because the
library copies those that it reads and needs in memory all those that it writes.

Handled: integers and floats of 8 to 64 bits as NumPy has them, and bfloat16; only float32, float16
and bfloat16 are written.
Not handled: floats of 8 bits and fewer.

Source of the format: safetensors, README.md, "Format".
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from errors import FormatError, UserError
from files import replacing
from formats.weights import FLOATS, Parts, as_type

TYPES = {
    "F32": FLOATS["float32"],
    "F16": FLOATS["float16"],
    "BF16": FLOATS["bfloat16"],
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
CODES = {dtype: code for code, dtype in TYPES.items()}

# A model of 70 billion parameters needs less than a hundredth of it, and a forged header cannot
# fill the memory.
LARGEST_HEADER = 4_000_000


def load(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by name: read-only arrays mapped from it.

    Raises:
        UserError: there is no such file.
        FormatError: it is not a safetensors file, or a damaged one, or has a type that is not
            handled here.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise _damaged(path, f"a header of {length} bytes")
        header = file.read(length)
    try:
        with safe_open(path, framework="np"):
            descriptions = json.loads(header, object_pairs_hook=_each_once)
    # What the library lets pass, such as a number of 5,000 digits where none is looked for.
    except (SafetensorError, ValueError, RecursionError) as error:
        raise _damaged(path, f"a header with this mistake: {error}") from None
    descriptions.pop("__metadata__", None)
    data = np.asarray(np.memmap(path, np.uint8, "r"))[8 + length :]
    return {name: _tensor(path, data, name, each) for name, each in descriptions.items()}


def save(path: Path, tensors: Mapping[str, Parts], dtype: str = "float32") -> None:
    """Write tensors in their order, some rows at a time.

    Args:
        dtype: a type of `FLOATS`, for all of them.

    Raises:
        UserError: a number is too large for the type.
        RunError: it cannot be written; what was there before is unharmed.
    """
    descriptions: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + math.prod(tensor.shape) * FLOATS[dtype].itemsize
        descriptions[name] = {
            "dtype": CODES[FLOATS[dtype]],
            "shape": tensor.shape,
            "data_offsets": [start, end],
        }
    header = json.dumps(descriptions).encode()
    header += b" " * (-len(header) % 8)  # the tensors then begin where their types want it
    with replacing(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors.values():
            for block in tensor.all_blocks():
                file.write(as_type(block, dtype, path).view(np.uint8))


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _tensor(path: Path, data: np.ndarray, name: str, description: dict[str, Any]) -> np.ndarray:
    code, shape, (start, end) = (description[key] for key in ("dtype", "shape", "data_offsets"))
    if code not in TYPES:
        raise FormatError(
            f"{path}: the tensor {name[:80]} has the type {code}, which is not handled here; "
            "get the model in float32, float16 or bfloat16"
        )
    try:
        return data[start:end].view(TYPES[code]).reshape(shape)
    except ValueError as error:  # more dimensions or larger numbers than NumPy has
        raise _damaged(path, f"a tensor {name[:80]!r} of an impossible shape ({error})") from None


def _damaged(path: Path, what: str) -> FormatError:
    return FormatError(
        f"{path} has {what}; it is damaged or not a safetensors file, so get it anew"
    )
