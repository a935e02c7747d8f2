"""llama2.c's model files: a header of a few numbers, then the tensors, one behind the other.

Handled: the three versions of llama2.c's export.py. 0 is the oldest, without a magic number, and
most models on the web have it. 1 has the same floats in another order. 2 has, but for the norms,
8-bit integers in groups, and a scale for each group.
Not handled: what the files do not tell. In llama2.c the base of the rotary angles is always 10000,
and the epsilon of the norms 1e-5.

Source of the format: llama2.c, export.py, run.c and runq.c.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from errors import FormatError, UserError
from files import replacing

MAGIC = 0x616B3432.to_bytes(4, "little")
HEADER_BYTES = {0: 28, 1: 256, 2: 256}
NUMBERS = ("dim", "hidden_dim", "num_layers", "num_heads", "num_kv_heads", "vocab_size", "seq_len")
CONSTANTS = {"norm_eps": 1e-5, "rope_theta": 10000.0}  # the same in all its models
NORMS = ("rms1w", "rms2w", "rmsfw")
TABLES = ("cos", "sin")  # of the rotary angles, which llama2.c itself no longer reads


def read(path: Path) -> tuple[dict[str, Any], Mapping[str, np.ndarray]]:
    """The numbers in a file's header, and its tensors by name.

    Returns:
        numbers: dim, hidden_dim, num_layers, num_heads, num_kv_heads, vocab_size, seq_len, and
            tied: whether the classifier is the embedding table.
        tensors: float32 arrays of the shapes in `_shapes`: read-only views of the file, or in
            version 2 made anew whenever one is looked up, so that not all are in memory at once.

    Raises:
        UserError: there is no such file.
        FormatError: it is not a llama2.c model, or a damaged one.
    """
    if not path.is_file():
        raise UserError(f"there is no model {path}")
    numbers, version, group_size = _read_header(path)
    places, end = {}, HEADER_BYTES[version]
    for name, shape in _shapes(numbers, version).items():
        places[name] = end, shape
        count = math.prod(shape)
        quantised = version == 2 and name not in NORMS
        end += count + count // group_size * 4 if quantised else count * 4
    size = path.stat().st_size
    if size != end:
        raise _damaged(path, f"{size} bytes, and with the numbers in its header it must have {end}")
    data = np.memmap(path, np.uint8, mode="r")
    if version == 2:
        return numbers, _Dequantised(data, places, group_size)
    return numbers, {
        name: _floats(data, *place) for name, place in places.items() if name not in TABLES
    }


def write(
    path: Path, numbers: Mapping[str, Any], tensors: Mapping[str, np.ndarray], version: int = 1
) -> None:
    """Write a model; `numbers` and `tensors` are as `read` returns them.

    Raises:
        UserError: there is no such version, a tensor has not the shape that the numbers say, or
            `numbers` has a norm_eps or a rope_theta that is not llama2.c's.
        RunError: it cannot be written; what was there before is unharmed.
    """
    if version not in HEADER_BYTES:
        raise UserError(f"cannot write {path} as version {version}; llama2.c knows 0, 1 and 2")
    for name, value in CONSTANTS.items():
        if numbers.get(name, value) != value:
            raise UserError(
                f"cannot write {path}: the model's {name} is {numbers[name]}, and llama2.c, whose "
                f"files do not tell it, always computes with {value}"
            )
    # A group must not reach from one row of a matrix into the next.
    group_size = math.gcd(64, numbers["dim"], numbers["hidden_dim"])
    tables = _rotary_tables(numbers) if version == 0 else {}
    with replacing(path) as file:
        file.write(_header(numbers, version, group_size))
        for name, shape in _shapes(numbers, version).items():
            tensor = tables[name] if name in TABLES else tensors[name]
            if tensor.shape != shape:
                raise UserError(
                    f"cannot write {path}: the tensor {name} is {tensor.shape}, and with the "
                    f"model's numbers it must be {shape}"
                )
            if version == 2 and name not in NORMS:
                for matrix in tensor.reshape(-1, *shape[-2:]):
                    file.writelines(_quantised(matrix, group_size))
            else:
                file.write(np.ascontiguousarray(tensor, "<f4"))


def _shapes(numbers: Mapping[str, Any], version: int) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a file, in the order of that version."""
    C, F, L, H, K, V, T = (numbers[name] for name in NUMBERS)
    D = C // H
    shapes = {
        "wte": (V, C),
        "rms1w": (L, C),
        "wq": (L, H * D, C),
        "wk": (L, K * D, C),
        "wv": (L, K * D, C),
        "wo": (L, C, H * D),
        "rms2w": (L, C),
        "w1": (L, F, C),
        "w2": (L, C, F),
        "w3": (L, F, C),
        "rmsfw": (C,),
        "cos": (T, D // 2),
        "sin": (T, D // 2),
        "wcls": (V, C),
    }
    if numbers["tied"]:
        del shapes["wcls"]
    if version > 0:
        norms_first = sorted(shapes, key=lambda name: name not in NORMS)
        shapes = {name: shapes[name] for name in norms_first if name not in TABLES}
    return shapes


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The numbers, the version, and the group size, which has a meaning in version 2 only."""
    with path.open("rb") as file:
        header = file.read(256)
    version = 0
    if header.startswith(MAGIC):
        version = int.from_bytes(header[4:8], "little")
        if version not in (1, 2):
            raise FormatError(
                f"{path} is a llama2.c model of version {version}, and only 0, 1 and 2 are known; "
                "export it again as one of them"
            )
    if len(header) < HEADER_BYTES[version]:
        raise _damaged(path, f"{len(header)} bytes, and a header alone has {HEADER_BYTES[version]}")
    if version == 0:
        *values, vocab_size, seq_len = struct.unpack_from("<7i", header)
        values += abs(vocab_size), seq_len
        tied, group_size = vocab_size > 0, 0
    else:
        *values, tied, group_size = struct.unpack_from("<7iBi", header, 8)
    numbers = dict(zip(NUMBERS, values, strict=True), tied=bool(tied))

    for name in NUMBERS:
        if numbers[name] < 1:
            raise _damaged(path, f"a {name} of {numbers[name]}")
    C, H, K = numbers["dim"], numbers["num_heads"], numbers["num_kv_heads"]
    if C % (2 * H):
        raise _damaged(path, f"a dim of {C}, not to be shared by {H} heads of even size")
    if H % K:
        raise _damaged(path, f"{H} heads, not to be shared by {K} key/value heads")
    if version == 2 and (group_size < 1 or C % group_size):
        raise _damaged(path, f"a dim of {C}, not to be cut into groups of {group_size}")
    return numbers, version, group_size


def _damaged(path: Path, what: str) -> FormatError:
    return FormatError(f"{path} has {what}; it is damaged or not a llama2.c model, so get it anew")


def _header(numbers: Mapping[str, Any], version: int, group_size: int) -> bytes:
    *values, vocab_size, seq_len = (numbers[name] for name in NUMBERS)
    if version == 0:
        sign = 1 if numbers["tied"] else -1
        return struct.pack("<7i", *values, sign * vocab_size, seq_len)
    header = MAGIC + struct.pack("<8iB", version, *values, vocab_size, seq_len, numbers["tied"])
    if version == 2:
        header += struct.pack("<i", group_size)
    return header.ljust(HEADER_BYTES[version], b"\0")


def _rotary_tables(numbers: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The cosines and sines of t · 10000^(-2i/D), for every position t and pair i: (T, D/2) each.

    Source: Su et al. 2021 (arXiv 2104.09864), section 3.2.2.
    """
    head_size = numbers["dim"] // numbers["num_heads"]
    # Every step in float32, as llama2.c's model.py takes it.
    exponents = np.arange(0, head_size, 2, dtype=np.float32) / head_size
    angles = np.outer(np.arange(numbers["seq_len"], dtype=np.float32), 1 / 10000**exponents)
    return {"cos": np.cos(angles), "sin": np.sin(angles)}


def _floats(data: np.ndarray, start: int, shape: tuple[int, ...]) -> np.ndarray:
    return data[start : start + 4 * math.prod(shape)].view("<f4").reshape(shape)


def _quantised(matrix: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix as int8 values, (groups, group_size), and float32 scales, (groups,).

    Of each group the largest magnitude becomes 127: value = round(weight / scale).
    """
    groups = matrix.astype(np.float32, copy=False).reshape(-1, group_size)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    divisors = np.where(scales == 0, np.float32(1), scales)  # a group of zeros has the scale 0
    return np.rint(groups / divisors[:, None]).astype(np.int8), scales.astype("<f4", copy=False)


class _Dequantised(Mapping[str, np.ndarray]):
    """The tensors of a file of version 2, as float32.

    Each of its matrices is (groups, group_size) int8 values followed by (groups,) float32 scales.
    """

    def __init__(self, data: np.ndarray, places: dict[str, tuple], group_size: int):
        self.data, self.places, self.group_size = data, places, group_size

    def __getitem__(self, name: str) -> np.ndarray:
        start, shape = self.places[name]
        if name in NORMS:
            return _floats(self.data, start, shape)
        tensor = np.empty(shape, np.float32)
        for matrix in tensor.reshape(-1, math.prod(shape[-2:]) // self.group_size, self.group_size):
            values = self.data[start : start + matrix.size].view(np.int8).reshape(matrix.shape)
            start += matrix.size
            scales = _floats(self.data, start, (len(matrix), 1))
            start += scales.nbytes
            np.multiply(values, scales, out=matrix)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)
