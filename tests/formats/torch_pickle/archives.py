"""Archives like those of torch.save, and the programs in them, written by hand."""

import struct
import zipfile
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[2] / "golden" / "torch_save.pt"
NONE, EMPTY_TUPLE, EMPTY_LIST, EMPTY_DICT = b"N", b")", b"]", b"}"
REDUCE, BUILD, NEWOBJ, BINPERSID, APPEND, SETITEM = b"R", b"b", b"\x81", b"Q", b"a", b"s"


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def name(module_and_name: str) -> bytes:
    return b"c" + module_and_name.replace(" ", "\n", 1).encode() + b"\n"


def many(*pieces: bytes) -> bytes:
    return b"(" + b"".join(pieces) + b"t"


def numbers(*values: int) -> bytes:
    return many(*map(number, values))


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def call(function: str, *arguments: bytes) -> bytes:
    return name(function) + many(*arguments) + REDUCE


def identity(key=None, count=None, dtype="torch FloatStorage", kind=None) -> bytes:
    pieces = [kind or text("storage"), name(dtype), key or text("0"), text("cpu")]
    return many(*pieces, count or number(24))


STORAGE = identity() + BINPERSID


def tensor(offset=0, size=(24,), stride=(1,), storage=STORAGE, metadata=()) -> bytes:
    return call(
        "torch._utils _rebuild_tensor_v2",
        storage,
        number(offset),
        numbers(*size),
        numbers(*stride),
        b"\x89",
        call("collections OrderedDict"),
        *metadata,
    )


def shared(depth: int) -> bytes:
    """A pair of twice the same pair of twice the same pair ...: 2^depth leaves for who counts."""
    return EMPTY_TUPLE + b"".join(put(i) + get(i) + b"\x86" for i in range(depth))


FLOATS = np.arange(24, dtype="<f4")


def archive(path, program=None, members=None, folder="archive/", compression=zipfile.ZIP_STORED):
    """A file of torch.save, as far as possible; `program` is without its beginning and end."""
    if members is None:
        members = {"data.pkl": b"\x80\x02" + program + b".", "data/0": FLOATS.tobytes()}
    with zipfile.ZipFile(path, "w", compression) as file:
        for member, data in members.items():
            file.writestr(folder + member, data)
    return path
