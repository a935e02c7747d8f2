"""The header of a GGUF file: keys with values, then each tensor's name, shape, type and place.

The library `gguf` does not read it for us: it believes every length in a file, and makes an array
of every value.

Source of the format: ggml, docs/gguf.md.
"""

from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from errors import FormatError

# Llama 3's header, with 128,000 tokens and their merges, has 8 MB, and Gemma 3's, with 262,144
# tokens, 6.5; with 515,000 merges it would have 17. What a forged one can cost is bounded so.
MAX_HEADER_BYTES = 20_000_000
MAX_STRINGS = 1 << 20  # in lists
MAX_ENTRIES = 1 << 16
MAX_NAME_BYTES = 256  # of a key, a tensor or one of Llama's tokens

# The types of values, by their numbers in the file.
SCALARS = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
STRING, ARRAY = 8, 9


class Stored(NamedTuple):
    """How and where a tensor lies in a file; `kind` is the number of its type."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def read_header(path: Path) -> tuple[int, dict[str, Any], dict[str, Stored]]:
    """The version, the values by key, and the tensors by name.

    A string is a str, but one in a list is bytes, since tokens need not be whole characters.

    Raises:
        FormatError: it is not a GGUF file, a damaged one, or one of another version.
    """
    return _Header(path).read()


def get(path: Path, values: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    """The value of a key, which must be of the type `kind`, or `default` if there is none.

    Raises:
        FormatError: it is of another type.
    """
    value = values.get(key, default)
    if type(value) is not kind and value is not default:
        raise damaged(path, f"a {key} of {value!s:.60}")
    return value


def damaged(path: Path, what: str) -> FormatError:
    """The error for a file that has `what` no whole one has."""
    return FormatError(f"{path} has {what}; it is damaged or not a GGUF file, so get it anew")


class _Header:
    """The header of a file, read from front to back."""

    def __init__(self, path: Path) -> None:
        self.path, self.position, self.num_strings = path, 0, 0
        size = min(path.stat().st_size, MAX_HEADER_BYTES)
        with path.open("rb") as file:
            # Mapped: were 20 MB read and freed, the C library would keep as much for later.
            self.data = mmap(file.fileno(), size, access=ACCESS_READ) if size else b""

    def read(self) -> tuple[int, dict[str, Any], dict[str, Stored]]:
        if self.take(4) != b"GGUF":
            raise damaged(self.path, "not the first four bytes of a GGUF file")
        version = self.integer(4)
        if version not in (2, 3):
            raise FormatError(
                f"{self.path} is a GGUF file of version {version} or a big-endian one; only "
                "little-endian files of version 2 and 3 are known, so convert it with llama.cpp"
            )
        num_tensors, num_values = self.integer(8), self.integer(8)
        if max(num_tensors, num_values) > MAX_ENTRIES:
            raise damaged(self.path, f"{num_tensors} tensors and {num_values} keys")
        values = {self.name(): self.value() for _ in range(num_values)}
        tensors = [self.tensor() for _ in range(num_tensors)]
        alignment = get(self.path, values, "general.alignment", int, 32)
        if alignment < 1:
            raise damaged(self.path, f"an alignment of {alignment}")
        start = -(-self.position // alignment) * alignment
        stored = {each.name: each._replace(offset=start + each.offset) for each in tensors}
        if len(values) < num_values or len(stored) < num_tensors:
            raise damaged(self.path, "a key or a tensor twice")
        return version, values, stored

    def tensor(self) -> Stored:
        """A tensor's description; its offset counts from the end of the header."""
        name = self.name()
        num_dims = self.integer(4)
        if not 1 <= num_dims <= 4:
            raise damaged(self.path, f"a tensor {name} of {num_dims} dimensions")
        shape = tuple(self.integer(8) for _ in range(num_dims))[::-1]
        if 0 in shape:
            raise damaged(self.path, f"a tensor {name} of the shape {shape}")
        return Stored(name, shape, kind=self.integer(4), offset=self.integer(8))

    def value(self) -> Any:
        kind = self.integer(4)
        if kind == STRING:
            return self.string().decode("utf-8", errors="replace")
        if kind != ARRAY:
            number = self.numbers(kind, 1)[0]
            # The shortest number that float32 makes this one of: 1e-05, not 9.999999747378752e-06.
            return float(str(number)) if number.dtype == np.float32 else number.item()
        kind, count = self.integer(4), self.integer(8)
        if kind == STRING:
            return self.strings(count)
        return self.numbers(kind, count)

    def numbers(self, kind: int, count: int) -> np.ndarray:
        if kind not in SCALARS:
            raise damaged(self.path, f"a value of the unknown type {kind}")
        dtype = np.dtype(SCALARS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def name(self) -> str:
        name = self.string()
        if len(name) > MAX_NAME_BYTES:
            raise damaged(self.path, f"a name of {len(name)} bytes")
        return name.decode("utf-8", errors="replace")

    def string(self) -> bytes:
        return self.take(self.integer(8))

    def strings(self, count: int) -> list[bytes]:
        """As `string`, many times: in one loop, since a file may have half a million."""
        self.num_strings += count
        if self.num_strings > MAX_STRINGS:
            raise damaged(self.path, f"{self.num_strings} strings in lists")
        data, start, result = self.data, self.position, []
        for _ in range(count):
            stop = start + 8
            start = stop + int.from_bytes(data[stop - 8 : stop], "little")
            if start > len(data):
                break
            result.append(data[stop:start])
        self.position = start
        self.take(0)
        return result

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def take(self, size: int) -> bytes:
        start, self.position = self.position, self.position + size
        if self.position > len(self.data):
            raise damaged(self.path, f"no end of its header in the first {len(self.data)} bytes")
        return self.data[start : self.position]
