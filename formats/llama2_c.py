"""llama2.c's model files: a header of a few numbers, then the tensors, one behind the other.

Handled: the three versions of llama2.c's export.py. 0 is the oldest, without a magic number, and
most models on the web have it. 1 has the same floats in another order. 2 has, but for the norms,
8-bit integers in groups, and a scale for each group.
Not handled: what the files do not tell. In llama2.c the base of the rotary angles is always 10000,
the epsilon of the norms 1e-5, and there is nothing that a Llama 2 has not.

Source of the format: llama2.c, export.py, run.c and runq.c.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from errors import FormatError, UserError
from files import replacing
from formats.weights import SINGLE, Parts, Weights, as_type
from models import FAMILIES
from models.llama2 import Llama2Config

DTYPES = ("float32",)  # to write; versions differ, see `write`
MAGIC = 0x616B3432.to_bytes(4, "little")
HEADER_BYTES = {0: 28, 1: 256, 2: 256}
NUMBERS = ("dim", "hidden_dim", "num_layers", "num_heads", "num_kv_heads", "vocab_size", "seq_len")
CONSTANTS = {"norm_eps": 1e-5, "rope_theta": 10000.0}  # the same in all its models
NORMS = ("rms1w", "rms2w", "rmsfw")
TABLES = ("cos", "sin")  # of the rotary angles, which llama2.c itself no longer reads


def read(path: Path) -> Weights:
    """What is in a file; the parts of version 2 are dequantised, the others views of the file.

    Raises:
        FormatError: it is not a llama2.c model, or a damaged one.
    """
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
    tensors = {
        name: _quantised_parts(name, path, *place, group_size)
        if version == 2 and name not in NORMS
        else Parts.mapped(name, path, np.dtype("<f4"), *place)
        for name, place in places.items()
        if name not in TABLES
    }
    return Weights(f"llama2.c, version {version}", "llama2", numbers | CONSTANTS, tensors)


def write(path: Path, weights: Weights, dtype: str = "float32", version: int = 0) -> None:
    """Write a model, by default in the version that llama2.c's run.c reads; runq.c reads 2.

    Raises:
        UserError: the model or its type is none that the format knows, or it has a number that is
            not llama2.c's.
        RunError: it cannot be written; what was there before is unharmed.
    """
    family = FAMILIES[weights.kind]
    if family.config is not Llama2Config or dtype not in DTYPES:
        raise UserError(f"cannot write {path}: llama2.c knows nothing but Llama 2 in float32")
    numbers = vars(Llama2Config(**weights.config))
    told = {name: numbers[name] for name in (*NUMBERS, "tied", "head_size")}
    theirs = vars(Llama2Config(**told | CONSTANTS))
    for name, value in {**theirs, "head_size": numbers["dim"] / numbers["num_heads"]}.items():
        if numbers[name] != value:
            raise UserError(
                f"cannot write {path}: the model's {name} is {numbers[name]}, and llama2.c, whose "
                f"files do not tell it, always computes with {value}; write another format"
            )
    # A group must not reach from one row of a matrix into the next.
    group_size = math.gcd(64, numbers["dim"], numbers["hidden_dim"])
    with replacing(path) as file:
        file.write(_header(numbers, version, group_size))
        for name in _shapes(numbers, version):
            for part in _rotary_table(name, numbers) if name in TABLES else weights.tensors[name]:
                if version == 2 and name not in NORMS:
                    file.writelines(_quantised(part, group_size))
                else:
                    file.write(as_type(part, dtype, path))


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


def _rotary_table(name: str, numbers: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """The cosines or sines of t · 10000^(-2i/D) for every position t and pair i: (t, D/2) a part.

    Source: Su et al. 2021 (arXiv 2104.09864), section 3.2.2.
    """
    head_size, T, rows = numbers["dim"] // numbers["num_heads"], numbers["seq_len"], 4096
    # Every step in float32, as llama2.c's model.py takes it.
    exponents = np.arange(0, head_size, 2, dtype=np.float32) / head_size
    for start in range(0, T, rows):
        positions = np.arange(start, min(start + rows, T), dtype=np.float32)
        angles = np.outer(positions, 1 / 10000**exponents)
        yield np.cos(angles) if name == "cos" else np.sin(angles)


def _quantised(matrix: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix as int8 values, (groups, group_size), and float32 scales, (groups,).

    Of each group the largest magnitude becomes 127: value = round(weight / scale).
    """
    groups = matrix.astype(np.float32, copy=False).reshape(-1, group_size)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    divisors = np.where(scales == 0, np.float32(1), scales)  # a group of zeros has the scale 0
    return np.rint(groups / divisors[:, None]).astype(np.int8), scales.astype("<f4", copy=False)


def _quantised_parts(
    name: str, path: Path, start: int, shape: tuple[int, ...], group_size: int
) -> Parts:
    """A tensor's matrices: each is its (groups, group_size) values, and then their scales."""
    matrix = shape if name in SINGLE else shape[1:]
    groups = math.prod(matrix) // group_size
    size = groups * (group_size + 4)

    def dequantised(start: int) -> np.ndarray:
        data = np.memmap(path, np.uint8, "r", start, (size,))
        values = data[: -4 * groups].view(np.int8).reshape(groups, group_size)
        scales = data[-4 * groups :].view("<f4").reshape(groups, 1)
        with np.errstate(all="ignore"):  # the scales of a damaged file may be anything
            return np.multiply(values, scales, dtype=np.float32).reshape(matrix)

    starts = range(start, start + math.prod(shape) // math.prod(matrix) * size, size)
    return Parts(shape, np.float32, [partial(dequantised, start) for start in starts], "int8")
