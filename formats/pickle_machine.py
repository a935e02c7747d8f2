"""Pickles, run by a machine that can do nothing but put together what is written here.

A pickle is a program for a small machine with a stack, which puts lists and dicts together, and in
a file of torch.save tensors: `_rebuild_tensor_v2` called with a storage, an offset, sizes and
strides. nanoGPT's meta.pkl is one, too.

Python's own pickle module calls whatever function the program names: with os.system among them, to
open a file is to run it. The machine here has only the instructions that torch.save and plain dicts
need, and a fixed list of names, each of which stands for something written on this page.

Handled: dense tensors of NumPy's types and bfloat16, parameters, dicts, lists, tuples, sets,
numbers, strings, bytes, argparse's namespaces, NumPy's scalars.
Not handled: any other class; sparse and quantised tensors; tensors of which two elements are in one
place, as torch.expand makes them.

Sources: PyTorch, torch/_utils.py, and torch/_weights_only_unpickler.py, which has the same
instructions; Python, Lib/pickletools.py.
"""

import pickletools
from argparse import Namespace
from collections.abc import Collection, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import ml_dtypes
import numpy as np

from errors import FormatError

# No honest file comes near these: GPT-2 XL with its optimizer has a data.pkl of 0.2 MB. A hostile
# one would fill the memory, or the stack of a function that goes through what is in it.
MAX_BYTES = 1 << 20  # of a pickle, and of an archive's table of contents
MAX_DEPTH = 32  # of lists in lists

# Instructions that push what follows them in the program, or always the same.
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def run(path: str | Path, program: bytes, members: Mapping[str, np.ndarray]) -> Any:
    """What a pickle makes, which is what it leaves on its stack.

    Args:
        path: what error messages call its file.
        program: the pickle, of at most `MAX_BYTES`.
        members: the storages of its tensors, by names such as data/0.

    Raises:
        FormatError: it wants to call something that is not on this page.
        Exception: nearly any, if it is damaged.
    """
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
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
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
            case "STACK_GLOBAL":
                module, name = _is(str, stack.pop(-2)), _is(str, stack.pop())
                stack.append(_known(path, f"{module} {name}"))
            case "REDUCE" | "NEWOBJ":
                arguments, function = _is(tuple, stack.pop()), _is(FunctionType, stack.pop())
                left -= sum(len(each) for each in arguments if isinstance(each, str | tuple | list))
                if left < 0:
                    raise ValueError("its pickle makes much of little")
                stack.append(function(*arguments))
            case "BUILD":
                state = stack.pop()
                _set_state(stack[-1], state)
            case "BINPERSID":
                stack.append(_storage(members, *_is(tuple, stack.pop())))
            case "PROTO" | "FRAME" | "STOP":
                pass
            case name:
                raise ValueError(f"its pickle has the instruction {name}")
    result = stack.pop()
    _height(result, 0, {})
    return result


def _is(kind: type, value: Any) -> Any:
    # Nothing must be done with a value before its type is known: to print or to compare lists that
    # contain one another can take forever.
    if not isinstance(value, kind):
        raise ValueError(f"its pickle has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _key(key: Any) -> Any:
    # Of tuples and very large integers anyone can find many with the same hash; a dict of those is
    # so slow that opening the file would never end.
    small = isinstance(key, int) and abs(key) < 1 << 60
    if not small and not isinstance(key, str | bytes | float | None):
        raise ValueError(f"it has a dict or a set with a {type(key).__name__} as a key")
    return key


def _known(path: str | Path, name: str) -> Any:
    if name not in KNOWN:
        shown = repr(name.replace(" ", ".", 1)[:80])[1:-1]
        raise FormatError(
            f"{path} wants to call {shown}, which no model needs, and nothing was run; do not "
            "trust it, or, if it is your own, save no more than its state_dict(), or plain dicts"
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
