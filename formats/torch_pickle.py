"""Files of `torch.save`, read without PyTorch and without running anything that is in them.

Such a file is a zip archive with one folder. In it, data.pkl is a pickle: a program for a small
machine with a stack, which puts lists and dicts together, and tensors: `_rebuild_tensor_v2` called
with a storage, an offset, sizes and strides. A storage is another member, data/0, data/1, ...,
which has its numbers one behind the other and nothing else; several tensors can share one.

Python's own pickle module calls whatever function the program names: with os.system among them, to
open a file is to run it. The machine here has only the instructions that torch.save needs, and a
fixed list of names, each of which stands for something written on this page.

Handled: dense tensors of NumPy's types and bfloat16, parameters, dicts, lists, tuples, sets,
numbers, strings, bytes, argparse's namespaces, NumPy's scalars.
Not handled: any other class; sparse and quantised tensors; tensors of which two elements are in one
place, as torch.expand makes them; files of PyTorch before 1.6, and of TorchScript.

Sources: PyTorch, torch/serialization.py, torch/_utils.py, and torch/_weights_only_unpickler.py,
which has the same instructions; Python, Lib/pickletools.py.
"""

import io
import pickletools
import zipfile
import zlib
from argparse import Namespace
from collections.abc import Collection, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import ml_dtypes
import numpy as np

from errors import FormatError, UserError
from files import member_start

# No honest file comes near these: GPT-2 XL with its optimizer has a data.pkl of 0.2 MB. A hostile
# one would fill the memory, or the stack of a function that goes through what is in it.
MAX_BYTES = 1 << 20  # of data.pkl, and of the archive's table of contents
MAX_DEPTH = 32  # of lists in lists

# How a file of PyTorch 0.4 to 1.5 begins: its magic number, pickled.
BEFORE_1_6 = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
AGAIN = "load it with torch and torch.save it again"


def load(path: Path) -> Any:
    """What `torch.load(path, map_location="cpu")` gives, with arrays in the place of tensors.

    Returns:
        Lists, dicts and so on, as they were saved. An array is read-only and mapped from the file;
        those that shared a storage still do. A parameter is an array too, an OrderedDict and a
        Counter are dicts, a torch.Size is a tuple, a torch.device its name, a torch.dtype NumPy's.

    Raises:
        UserError: there is no such file.
        FormatError: it is not a file of torch.save, it is damaged, or it wants what no model's
            weights need.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    _check_beginning(path)
    try:
        members = _members(path)
        result = _run(path, members["data.pkl"].tobytes(), members)
        _height(result, 0, {})
    except (UserError, MemoryError):
        raise
    # On damaged bytes zipfile, pickletools and the machine below raise nearly anything.
    except Exception as error:
        raise FormatError(
            f"{path} cannot be read ({str(error)[:200]}): it is damaged, or not as torch.save "
            f"writes it; get it anew, or {AGAIN}"
        ) from error
    return result


# The archive


def _check_beginning(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(BEFORE_1_6) or start[257:262] == b"ustar":
        raise FormatError(f"{path} has the format of PyTorch before 1.6, not read here; {AGAIN}")
    if not start.startswith(b"PK"):
        raise FormatError(f"{path} is not a file of torch.save; if torch can load it, {AGAIN}")


def _check_names(path: Path, names: Collection[str]) -> None:
    if "constants.pkl" in names:
        raise FormatError(
            f"{path} is a TorchScript archive, a program and not only weights; load it with "
            "torch.jit.load, and torch.save its state_dict()"
        )
    if "data.pkl" not in names:
        raise FormatError(f"{path} is a zip archive without a data.pkl: not a file of torch.save")


class _Table(io.FileIO):
    """A file of which zipfile gets no longer a table of contents than an honest one is."""

    def read(self, size: int = -1) -> bytes:
        return super().read(min(size, MAX_BYTES))  # it asks for -1, the rest, near the end only


def _members(path: Path) -> dict[str, np.ndarray]:
    """The bytes of every member, mapped, by its name without the archive's folder."""
    data = np.asarray(np.memmap(path, np.uint8, "r"))
    members: dict[str, np.ndarray] = {}
    folders, end = set(), 0
    with _Table(path) as file, zipfile.ZipFile(file) as archive:
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        _check_names(path, [info.filename.partition("/")[2] for info in infos])
        for info in infos:
            shown = repr(info.filename[:80])
            folder, _, name = info.filename.partition("/")
            folders.add(folder)
            if len(folders) > 1 or {"", ".", ".."} & {folder, *name.split("/")}:
                raise ValueError(f"it has a member {shown}")
            if name in members:
                raise ValueError(f"it has two members {shown}")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise ValueError(f"its member {shown} is compressed or encrypted")
            if info.header_offset < end:
                raise ValueError(f"its member {shown} begins within another")
            start = member_start(file, info)
            end = start + info.file_size
            if end > archive.start_dir:
                raise ValueError(f"its member {shown} ends outside of the file")
            members[name] = data[start:end]
            if name == "data.pkl":
                _check_program(members[name], info.CRC)
    if "byteorder" in members and members["byteorder"][:7].tobytes() != b"little":
        raise ValueError("it is from a computer that has the bytes of a number in another order")
    return members


def _check_program(program: np.ndarray, checksum: int) -> None:
    if len(program) > MAX_BYTES:
        raise ValueError(f"its data.pkl has {len(program):,} bytes")
    # 0 is from those who asked torch not to compute it. A storage's is not compared, as nobody
    # wants to read the whole of a large file in order to open it.
    if checksum not in (0, zlib.crc32(program)):
        raise ValueError("its data.pkl has another checksum")


# The machine

# Instructions that push what follows them in the program, or always the same.
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def _run(path: Path, program: bytes, members: Mapping[str, np.ndarray]) -> Any:
    """What a pickle leaves on its stack."""
    stack: list[Any] = []  # since the last mark
    below: list[list[Any]] = []  # what was there before each mark
    memo: dict[int, Any] = {}  # a dict, as a program can choose any index
    # What is called gets no more, all in all, than the program spells out: so nothing multiplies.
    left = len(program)
    for opcode, argument, _ in pickletools.genops(program):
        match opcode.name:
            case name if name in LITERALS:
                stack.append(argument)
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "MARK":
                below.append(stack)
                stack = []
            case "TUPLE":
                items, stack = stack, below.pop()
                stack.append(tuple(items))
            case "TUPLE1":
                stack.append((stack.pop(),))
            case "TUPLE2":
                stack.append((stack.pop(-2), stack.pop()))
            case "TUPLE3":
                stack.append((stack.pop(-3), stack.pop(-2), stack.pop()))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND":
                item = stack.pop()
                _is(list, stack[-1]).append(item)
            case "APPENDS":
                items, stack = stack, below.pop()
                _is(list, stack[-1]).extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                key, value = stack.pop(-2), stack.pop()
                _is(dict, stack[-1])[_key(key)] = value
            case "SETITEMS":
                items, stack = stack, below.pop()
                keys = map(_key, items[::2])
                _is(dict, stack[-1]).update(zip(keys, items[1::2], strict=True))
            case "GLOBAL":
                stack.append(_known(path, argument))
            case "REDUCE" | "NEWOBJ":
                arguments, function = _is(tuple, stack.pop()), _is(FunctionType, stack.pop())
                left -= sum(len(each) for each in arguments if isinstance(each, str | tuple | list))
                if left < 0:
                    raise ValueError("its data.pkl makes much of little")
                stack.append(function(*arguments))
            case "BUILD":
                state = stack.pop()
                _set_state(stack[-1], state)
            case "BINPERSID":
                stack.append(_storage(members, *_is(tuple, stack.pop())))
            case "PROTO" | "STOP":
                pass
            case name:
                raise ValueError(f"its data.pkl has the instruction {name}")
    return stack.pop()


def _is(kind: type, value: Any) -> Any:
    # Nothing must be done with a value before its type is known: to print or to compare lists that
    # contain one another can take forever.
    if not isinstance(value, kind):
        raise ValueError(
            f"its data.pkl has a {type(value).__name__} where a {kind.__name__} belongs"
        )
    return value


def _key(key: Any) -> Any:
    # Of tuples and very large integers anyone can find many with the same hash; a dict of those is
    # so slow that opening the file would never end.
    small = isinstance(key, int) and abs(key) < 1 << 60
    if not small and not isinstance(key, str | bytes | float | None):
        raise ValueError(f"it has a dict or a set with a {type(key).__name__} as a key")
    return key


def _known(path: Path, name: str) -> Any:
    if name not in KNOWN:
        shown = repr(name.replace(" ", ".", 1)[:80])[1:-1]
        raise FormatError(
            f"{path} wants to call {shown}, which no model's weights need, and nothing was run; do "
            "not trust it, or, if it is your own, torch.save no more than its state_dict()"
        )
    return KNOWN[name]


def _set_state(target: Any, state: Any) -> None:
    if isinstance(target, Namespace):
        target.__dict__ = state
    elif isinstance(target, np.dtype):
        if state[1] not in ("<", "|"):
            raise ValueError("it has a NumPy type that has its bytes in another order")
    else:
        _is(dict, target)  # an OrderedDict can have attributes, which are left out


def _storage(
    members: Mapping[str, np.ndarray], kind: Any, dtype: Any, key: Any, device: Any, count: Any
) -> np.ndarray:
    """The numbers of a storage, (count,): the member data/<key>."""
    if _is(str, kind) != "storage" or f"data/{_is(str, key)}" not in members:
        raise ValueError(f"it has no {kind[:80]!r} {key[:80]!r}")
    data = members[f"data/{key}"]
    if len(data) != _is(int, count) * _is(np.dtype, dtype).itemsize:
        raise ValueError(f"its storage {key} has {len(data)} bytes, not {count} numbers {dtype}")
    return data.view(dtype)


def _height(value: Any, above: int, known: dict[int, int]) -> int:
    """How many lists, dicts and so on are in one another, where there are so many `above` already.

    Raises:
        ValueError: too many, or one is in itself.
    """
    items = _inside(value)
    if not items:
        return 0
    if above + known.get(id(value), 1) > MAX_DEPTH:
        raise ValueError(f"it has more than {MAX_DEPTH} lists or dicts in one another")
    if id(value) not in known:
        known[id(value)] = 1 + max(_height(item, above + 1, known) for item in items)
    return known[id(value)]


def _inside(value: Any) -> Collection[Any]:
    """What is in a list, a dict and so on; in anything else there is nothing."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


# What the names stand for


def _tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    metadata: Any = None,
) -> np.ndarray:
    """The view of a storage with a size and a stride, (dimensions,) each, counted in elements."""
    if metadata:
        raise ValueError("it has a tensor that is a conjugate or negative of its storage")
    for number in (offset, *_is(tuple, size), *_is(tuple, stride)):
        if _is(int, number) < 0:
            raise ValueError(f"it has a tensor with a size, a stride or an offset of {number}")
    if 0 in size:
        return np.ndarray(size, _is(np.ndarray, storage).dtype, storage)
    last = 0  # the place of the last element
    for step, length in sorted(zip(stride, size, strict=True)):
        if length > 1 and step <= last:
            raise ValueError("it has a tensor of which elements overlap until it is contiguous()")
        last += (length - 1) * step
    if offset + last >= _is(np.ndarray, storage).size:
        raise ValueError(f"it has a tensor up to {offset + last} of {storage.size} numbers")
    steps = [step * storage.itemsize for step in stride]
    return np.ndarray(size, storage.dtype, storage, offset * storage.itemsize, steps)


def _typed_tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> np.ndarray:
    """The same of a storage of bytes, for types that are newer than storages with a type."""
    storage = _is(np.ndarray, storage).view(_is(np.dtype, dtype))
    return _tensor(storage, offset, size, stride, requires_grad, hooks, metadata)


def _parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> Any:
    return data


def _device(kind: Any, index: Any = None) -> str:
    return _is(str, kind) if index is None else f"{_is(str, kind)}:{_is(int, index)}"


def _encode(text: Any = "", encoding: Any = "latin1") -> bytes:
    """Bytes, which torch.save writes as text of the characters 0 to 255."""
    if _is(str, encoding) != "latin1":
        raise ValueError(f"it has bytes as text in {encoding[:80]!r}")
    return _is(str, text).encode("latin-1")


def _complex(real: Any, imaginary: Any) -> complex:
    return complex(_is(float, real), _is(float, imaginary))


def _set(items: Any) -> set[Any]:
    return set(map(_key, _is(list, items)))


def _frozenset(items: Any) -> frozenset[Any]:
    return frozenset(_set(items))


def _numpy_dtype(code: Any, align: Any, copy: Any) -> np.dtype:
    return NUMPY_CODES[_is(str, code)]


def _numpy_scalar(dtype: Any, data: Any) -> Any:
    if len(_is(bytes, data)) != _is(np.dtype, dtype).itemsize:
        raise ValueError(f"it has a NumPy scalar {dtype} of {len(data)} bytes")
    return np.frombuffer(data, dtype)[0]


DTYPES = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint64": np.dtype("<u8"),
    "uint32": np.dtype("<u4"),
    "uint16": np.dtype("<u2"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
    "complex64": np.dtype("<c8"),
    "complex128": np.dtype("<c16"),
}
NUMPY_CODES = {dtype.str[1:]: dtype for name, dtype in DTYPES.items() if name != "bfloat16"}
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}

# All that a file can name, as it does: builtins is __builtin__ there, as in Python 2.
KNOWN: dict[str, Any] = {
    **{f"torch {name}": dtype for name, dtype in DTYPES.items()},
    **{f"torch {name}": DTYPES[dtype] for name, dtype in STORAGES.items()},
    "torch.storage UntypedStorage": DTYPES["uint8"],
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _typed_tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _parameter,
    "torch Size": lambda size=(): size,
    "torch device": _device,
    "collections OrderedDict": lambda: {},
    "collections Counter": lambda counts: counts,
    "argparse Namespace": lambda: Namespace(),
    "__builtin__ set": _set,
    "__builtin__ frozenset": _frozenset,
    "__builtin__ complex": _complex,
    "__builtin__ bytes": _encode,
    "_codecs encode": _encode,
    "numpy dtype": _numpy_dtype,
    "numpy.core.multiarray scalar": _numpy_scalar,  # of NumPy 1
    "numpy._core.multiarray scalar": _numpy_scalar,
}
