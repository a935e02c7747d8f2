"""Messages of protocol buffers, as far as SentencePiece's need it.

A message is a sequence of fields, each with a number, a type and a value. What the numbers stand
for is not in it: who reads or writes it has a table {number: name}.

Source of the format: protobuf.dev, "Encoding".
"""

import struct
from collections.abc import Mapping
from typing import TypeVar

VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # the types
SIZES = {EIGHT_BYTES: 8, FOUR_BYTES: 4}

Value = TypeVar("Value", int, bytes)


class Message:
    """The fields of a message that have a name. Those of other numbers are passed over.

    Numbers are integers, and all else is bytes.

    Args:
        names: {number: name}.

    Raises:
        ValueError: `data` is none.
    """

    def __init__(self, names: Mapping[int, str], data: bytes):
        self._fields: list[tuple[str, int | bytes]] = []
        position = 0
        while position < len(data):
            key, position = _read_varint(data, position)
            value, position = _read_value(data, position, key & 7)
            if key >> 3 in names:
                self._fields.append((names[key >> 3], value))

    def all(self, name: str, kind: type[Value]) -> list[Value]:
        """All values of a field that may come more than once.

        Raises:
            ValueError: one is of another type.
        """
        values = [value for field, value in self._fields if field == name]
        if not all(type(value) is kind for value in values):
            raise ValueError(f"its {name} is of another type")
        return values

    def get(self, name: str, default: Value) -> Value:
        """The value of a field, which is the last if there are several.

        Raises:
            ValueError: it is not of the default's type.
        """
        for field, value in reversed(self._fields):
            if field == name:
                if type(value) is not type(default):
                    raise ValueError(f"its {name} is of another type")
                return value
        return default

    def part(self, name: str, names: Mapping[int, str], default: bytes | None = None) -> "Message":
        """The message in a field; if it comes several times, they are one when joined.

        Raises:
            ValueError: there is none, and no default.
        """
        parts = self.all(name, bytes) or [default]
        if parts == [None]:
            raise ValueError(f"it has no {name}")
        return Message(names, b"".join(parts))


def write_message(names: Mapping[int, str], **values: int | float | bytes) -> bytes:
    """A message of fields with these names. Floats have four bytes."""
    numbers = {name: number for number, name in names.items()}
    return b"".join(_field(numbers[name], value) for name, value in values.items())


def _read_value(data: bytes, position: int, kind: int) -> tuple[int | bytes, int]:
    """A value, and the position behind it."""
    if kind == VARINT:
        return _read_varint(data, position)
    if kind == BYTES:
        size, position = _read_varint(data, position)
    elif kind in SIZES:
        size = SIZES[kind]
    else:
        raise ValueError(f"there is no type {kind} of fields")
    end = position + size
    if end > len(data):
        raise ValueError("it ends too early")
    return data[position:end], end


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """A number, 7 bits in each byte, the lowest first, of which only the last has no bit 7."""
    if position < len(data) and data[position] < 0x80:  # most have one byte
        return data[position], position + 1
    value = 0
    for shift in range(0, 70, 7):
        if position == len(data):
            raise ValueError("it ends too early")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number in it is too large")


def _field(number: int, value: int | float | bytes) -> bytes:
    if isinstance(value, float):
        return _varint(number << 3 | FOUR_BYTES) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(number << 3 | VARINT) + _varint(value)
    return _varint(number << 3 | BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*result, value])
