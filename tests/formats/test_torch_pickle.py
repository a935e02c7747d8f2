import io
import os
import pickle
import pickletools
import struct
import sys
import tarfile
import tracemalloc
import zipfile
from argparse import Namespace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import FormatError, UserError
from formats import torch_pickle
from formats.torch_pickle import load

GOLDEN = Path(__file__).parent.parent / "golden" / "torch_save.pt"

# Pickles by hand. Every one of these is a piece of a program; see Lib/pickletools.py.

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


# Archives

FLOATS = np.arange(24, dtype="<f4")


def archive(path, program=None, members=None, folder="archive/", compression=zipfile.ZIP_STORED):
    """A file of torch.save, as far as possible; `program` is without its beginning and end."""
    if members is None:
        members = {"data.pkl": b"\x80\x02" + program + b".", "data/0": FLOATS.tobytes()}
    with zipfile.ZipFile(path, "w", compression) as file:
        for member, data in members.items():
            file.writestr(folder + member, data)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ckpt.pt"


@pytest.fixture
def run(path):
    """Loads a program."""
    return lambda program: load(archive(path, program))


@pytest.fixture
def refused(path):
    """Asserts that a program is refused with a sentence."""

    def check(program: bytes, sentence: str) -> None:
        with pytest.raises(FormatError, match=rf"ckpt\.pt cannot be read \({sentence}"):
            load(archive(path, program))

    return check


@pytest.fixture
def members():
    return {
        "data.pkl": b"\x80\x02" + tensor() + b".",
        "byteorder": b"little",
        "version": b"3\n",
        "data/0": FLOATS.tobytes(),
    }


# What torch has written


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # whoever imports it now fails


def test_a_file_of_torch_is_read_without_torch(without_torch):
    checkpoint = load(GOLDEN)
    F = FLOATS
    arrays = {
        "whole": F,
        "matrix": F.reshape(4, 6),
        "transposed": F.reshape(4, 6).T,
        "slice": F.reshape(2, 3, 4)[:, 1:, ::2],
        "diagonal": F[[0, 7, 14, 21]],
        "scalar": np.float32(1.5),
        "empty": np.empty((0, 3), np.float32),
        "parameter": np.ones(2, np.float32),
    }
    for key, expected in arrays.items():
        array = checkpoint.pop(key)
        np.testing.assert_array_equal(array, expected)
        assert (type(array), array.dtype, array.shape) == (np.ndarray, np.float32, expected.shape)
        assert expected.size == 0 or not array.flags.writeable
    state_dict = checkpoint.pop("state_dict")
    assert list(state_dict) == ["weight", "bias"]
    np.testing.assert_array_equal(state_dict["weight"], [1, 1])
    np.testing.assert_array_equal(state_dict["bias"], [0, 0])
    dtypes = ["d", "f", "e", ml_dtypes.bfloat16, *"qihbQIHB?FD"]
    for array, dtype in zip(checkpoint.pop("types"), dtypes, strict=True):
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, np.array([0, 1, 2]).astype(dtype))
    plain = {
        "constants": [None, True, False, 7, 300, -7, 2**40, -(2**70), 0.1, "Grüße"],
        "bytes": [b"", b"\0\xff"],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "sets": [{1, 2}, frozenset({"a"}), {"a": 2, "b": 1}],
        "one": [{"key": [0]}],
        "others": [2j, Namespace(lr=0.1), (2, 3), np.dtype(ml_dtypes.bfloat16)],
        "devices": ["cpu", "cuda:1"],
        "numpy": [np.float64(0.5), np.int32(7), np.bool_(True), np.dtype("float32")],
    }
    assert checkpoint == plain
    for key, values in plain.items():
        assert list(map(type, checkpoint[key])) == list(map(type, values))


def test_what_shared_a_storage_still_does():
    checkpoint = load(GOLDEN)
    for name in ("matrix", "transposed", "slice", "diagonal"):
        assert np.shares_memory(checkpoint["whole"], checkpoint[name])
    assert not np.shares_memory(checkpoint["whole"], checkpoint["parameter"])


def test_arrays_are_mapped_and_not_copied(path):
    path.write_bytes(GOLDEN.read_bytes())
    array = load(path)["transposed"]
    with path.open("r+b") as file:
        file.seek(path.read_bytes().index(FLOATS.tobytes()) + 4)
        file.write(struct.pack("<f", 7.5))
    assert array[1, 0] == 7.5


@pytest.mark.parametrize("gap", range(5))
def test_storages_can_be_anywhere_in_the_file(path, gap):
    program = b"\x80\x02" + tensor() + b"."
    members = {"data.pkl": program, "gap": bytes(gap), "data/0": FLOATS.tobytes()}
    np.testing.assert_array_equal(
        load(archive(path, members=members, folder="1 ö/")) * 2, FLOATS * 2
    )


def test_the_table_of_contents_can_have_any_order(path, members):
    with zipfile.ZipFile(path, "w") as file:
        for member, data in members.items():
            file.writestr(f"archive/{member}", data)
        file.filelist.reverse()
    np.testing.assert_array_equal(load(path), FLOATS)


def test_bfloat16_can_be_anywhere_in_the_file(path):
    values = np.arange(5).astype(ml_dtypes.bfloat16)
    storage = identity(count=number(5), dtype="torch BFloat16Storage") + BINPERSID
    program = b"\x80\x02" + tensor(0, (5,), (1,), storage) + b"."
    for folder in ("a/", "ab/"):
        members = {"data.pkl": program, "data/0": values.tobytes()}
        array = load(archive(path, members=members, folder=folder))
        np.testing.assert_array_equal(array.astype(np.float32), [0, 1, 2, 3, 4])


def test_a_dict_can_have_many_kinds_of_keys(run):
    keys = [text("a"), call("__builtin__ bytes"), b"G" + struct.pack(">d", 0.5), NONE, number(-7)]
    expected = {key: [] for key in ("a", b"", 0.5, None, -7)}
    assert run(EMPTY_DICT + b"(" + b"".join(key + EMPTY_LIST for key in keys) + b"u") == expected
    assert run(EMPTY_DICT + b"".join(key + EMPTY_LIST + SETITEM for key in keys)) == expected


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_scalars_of_both_numpys_are_read(run, module):
    dtype = call("numpy dtype", text("f8"), b"\x89", b"\x88")
    dtype += many(number(3), text("<"), NONE, NONE, NONE, number(-1)) + BUILD
    data = call("_codecs encode", text("\0" * 6 + "ø?"), text("latin1"))
    assert run(call(f"{module}.multiarray scalar", dtype, data)) == np.float64(1.5)


# Tensors that are not in their storage


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(23, (1,), (1,)), (0, (4, 3, 2), (1, 4, 12)), (3, (), ()), (5, (1, 2), (0, 18))],
)
def test_a_tensor_may_reach_to_the_end_of_its_storage(run, offset, size, stride):
    array = run(tensor(offset, size, stride))
    expected = np.lib.stride_tricks.as_strided(FLOATS[offset:], size, [4 * s for s in stride])
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    ("offset", "size", "stride", "sentence"),
    [
        (24, (), (), "it has a tensor up to 24 of 24 numbers"),
        (1, (24,), (1,), "it has a tensor up to 24 of 24 numbers"),
        (0, (25,), (1,), "it has a tensor up to 24 of 24 numbers"),
        (0, (2,), (24,), "it has a tensor up to 24 of 24 numbers"),
        (0, (4, 7), (6, 1), "it has a tensor of which elements overlap"),
        (1, (4, 6), (6, 1), "it has a tensor up to 24 of 24 numbers"),
        (1, (6, 4), (1, 6), "it has a tensor up to 24 of 24 numbers"),
        (2**62, (2,), (2**62,), r"it has a tensor up to \d{19} of 24 numbers"),
        (0, (2**32, 2**32), (2**32, 1), r"it has a tensor up to \d{20} of 24 numbers"),
        (0, (2**63,), (1,), r"it has a tensor up to \d{19} of 24 numbers"),
        (0, (2**700,), (1,), r"it has a tensor up to \d+"),
        (0, (2,), (0,), "it has a tensor of which elements overlap"),
        (0, (10**9, 10**9), (0, 0), "it has a tensor of which elements overlap"),
        (0, (2, 2), (1, 1), "it has a tensor of which elements overlap"),
        (0, (3, 2), (1, 2), "it has a tensor of which elements overlap"),
        (-1, (2,), (1,), "it has a tensor with a size, a stride or an offset of -1"),
        (0, (-1,), (1,), "it has a tensor with a size, a stride or an offset of -1"),
        (23, (24,), (-1,), "it has a tensor with a size, a stride or an offset of -1"),
        (0, (24,), (), "zip"),
        (0, (), (1,), "zip"),
        (0, (1,) * 65, (1,) * 65, "maximum supported dimension"),
        (0, (0, 2**62), (1, 1), "array is too big"),
        (0, (0, 2**62, 2**62), (1, 1, 1), "array is too big"),
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(refused, offset, size, stride, sentence):
    refused(tensor(offset, size, stride), sentence)


@pytest.mark.parametrize("piece", [NONE, text("a"), EMPTY_LIST, EMPTY_DICT, b"G" + bytes(8)])
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_tensor_of_anything_else_is_refused(refused, piece, place):
    pieces = [STORAGE, number(0), numbers(24), numbers(1)]
    pieces[place] = piece
    program = call("torch._utils _rebuild_tensor_v2", *pieces, b"\x89", EMPTY_DICT)
    refused(program, "its pickle has a ")


def test_a_conjugate_is_refused(refused):
    metadata = EMPTY_DICT + text("conj") + b"\x88" + SETITEM
    refused(tensor(metadata=[metadata]), "it has a tensor that is a conjugate")


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (identity(kind=text("module")), r"it has no 'module' '0'"),
        (identity(key=text("1")), r"it has no 'storage' '1'"),
        (identity(key=text("../data.pkl")), r"it has no 'storage' '\.\./data\.pkl'"),
        (identity(key=text("/etc/passwd")), r"it has no 'storage' '/etc/passwd'"),
        (identity(key=number(0)), "its pickle has a int where a str belongs"),
        (identity(key=shared(200)), "its pickle has a tuple where a str belongs"),
        (identity(kind=shared(200)), "its pickle has a tuple where a str belongs"),
        (identity(count=number(23)), "its storage 0 has 96 bytes, not 23 numbers float32"),
        (identity(count=number(-24)), "its storage 0 has 96 bytes, not -24 numbers float32"),
        (identity(count=number(2**2000)), "its storage 0 has 96 bytes, not "),
        (identity(count=EMPTY_LIST), "its pickle has a list where a int belongs"),
        (identity(dtype="torch DoubleStorage"), "its storage 0 has 96 bytes, not 24 .*float64"),
        (identity(dtype="torch Size"), "its pickle has a function where a dtype belongs"),
        (many(text("storage"), text("0")), "_storage"),
        (text("0"), "its pickle has a str where a tuple belongs"),
        (STORAGE, "its pickle has a ndarray where a tuple belongs"),
    ],
)
def test_what_is_no_storage_is_refused(refused, asked, sentence):
    refused(asked + BINPERSID, sentence)


# Programs that want more than to be weights


class Trap:
    """Python's pickle module calls this function when it reads one."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, rf"{os.name}\.system"),
        (eval, "__builtin__.eval"),
        (exec, "__builtin__.exec"),
        (getattr, "__builtin__.getattr"),
        (__import__, "__builtin__.__import__"),
        (open, r"_?io\.open"),
        (pickle.loads, r"c?Pickle\.loads|_?pickle\.loads"),
        (os.unlink, rf"{os.name}\.(unlink|remove)"),
    ],
)
def test_nothing_is_called(path, tmp_path, function, name):
    command = f"open({str(tmp_path / 'ran')!r}, 'w')"
    data = pickle.dumps({"model": Trap(function, command)}, protocol=2)
    archive(path, members={"data.pkl": data})
    with pytest.raises(FormatError, match=rf"ckpt\.pt wants to call {name}, .* nothing was run;"):
        load(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "unknown",
    [
        "os system",
        "torch._utils _rebuild_tensor_v2.__globals__",
        "torch load",
        "torch FloatStorage.__class__",
        "numpy load",
        "numpy._core.multiarray _reconstruct",
        "builtins eval",
        "__builtin__ bytearray",
        "formats.torch_pickle load",
        "collections OrderedDict ",
    ],
)
def test_any_other_name_is_refused(path, unknown):
    shown = unknown.replace(" ", ".", 1)
    with pytest.raises(FormatError, match=rf"ckpt\.pt wants to call {shown}, "):
        load(archive(path, call(unknown)))


def test_a_name_is_shown_without_its_control_characters(path):
    with pytest.raises(FormatError, match=r"wants to call os\.\\x1b\[2Jsystem, "):
        load(archive(path, name("os \x1b[2Jsystem")))


@pytest.mark.parametrize(
    "piece", [text("a"), STORAGE, EMPTY_LIST, EMPTY_DICT, name("torch float32"), tensor()]
)
@pytest.mark.parametrize("instruction", [REDUCE, NEWOBJ])
def test_only_functions_are_called(refused, piece, instruction):
    refused(piece + EMPTY_TUPLE + instruction, r"its pickle has a .* where a function belongs")


@pytest.mark.parametrize("piece", [text("a"), STORAGE, EMPTY_LIST, EMPTY_DICT])
def test_functions_are_called_with_tuples(refused, piece):
    program = name("torch Size") + piece + REDUCE
    refused(program, r"its pickle has a .* where a tuple belongs")


SURPRISES = [
    EMPTY_LIST + EMPTY_DICT + BUILD,
    tensor() + EMPTY_DICT + BUILD,
    name("torch._utils _rebuild_tensor_v2") + EMPTY_DICT + BUILD,
    call("argparse Namespace") + EMPTY_LIST + BUILD,
    call("argparse Namespace") + number(1) + BUILD,
    call("argparse Namespace", text("a")),
    call("collections OrderedDict", EMPTY_LIST),
    name("numpy dtype") + EMPTY_DICT + BUILD,
    name("torch float32") + many(number(3), text(">")) + BUILD,
    name("torch float32") + EMPTY_TUPLE + BUILD,
    call("numpy dtype", text("O"), NONE, NONE),
    call("numpy dtype", text("V2"), NONE, NONE),
    call("numpy dtype", shared(200), NONE, NONE),
    call("numpy._core.multiarray scalar", name("torch float32"), text("abcd")),
    call("numpy._core.multiarray scalar", name("torch float32"), call("_codecs encode", text("a"))),
    call("numpy._core.multiarray scalar", name("torch int8"), call("_codecs encode", text("ab"))),
    call("_codecs encode", text("a"), text("utf-7")),
    call("_codecs encode", text("a"), shared(200)),
    call("_codecs encode", text("€"), text("latin1")),
    call("__builtin__ bytes", number(10**9)),
    call("__builtin__ complex", text("1"), text("2")),
    call("__builtin__ complex", number(1), number(2)),
    call("__builtin__ set", EMPTY_LIST + shared(200) + APPEND),
    call("__builtin__ frozenset", EMPTY_LIST + number(2**61 - 1) + APPEND),
    call("__builtin__ set", STORAGE),
    call("__builtin__ set", text("abc")),
    call("torch device", shared(200)),
    call("torch device", text("cpu"), shared(200)),
    call("torch._utils _rebuild_tensor_v3", STORAGE, number(0), *[numbers(1)] * 4, text("<i4")),
    EMPTY_LIST + NONE + APPEND + number(0) + NONE + SETITEM,
    call("__builtin__ set", EMPTY_LIST) + b"(" + b"u",
    EMPTY_DICT + b"(" + number(0) + b"u",
    EMPTY_DICT + EMPTY_LIST + NONE + SETITEM,
    EMPTY_DICT + shared(200) + NONE + SETITEM,
    EMPTY_DICT + number(2**61 - 1) + NONE + SETITEM,
    EMPTY_DICT + b"(" + number(-(2**61) + 1) + NONE + b"u",
    EMPTY_DICT + name("torch float32") + NONE + SETITEM,
    get(0),
    put(0),
    BINPERSID,
    b"",
    b"t",
    b"\x85",
    b"N\x86",
    b"NN\x87",
    b"N(\x85",
    b"e",
    b"R",
    b"N)R",
    b"(NR",
    b"b",
    b"Nb",
    b"a",
    b"s",
    b"}u",
]


@pytest.mark.parametrize("piece", [EMPTY_TUPLE, EMPTY_DICT, text("a"), STORAGE])
def test_only_lists_are_added_to(refused, piece):
    for program in (piece + NONE + APPEND, piece + b"(NNe"):
        refused(program, r"its pickle has a \w+ where a list belongs")


@pytest.mark.parametrize("program", SURPRISES)
def test_what_no_checkpoint_does_is_refused(refused, program):
    refused(program, ".")


KNOWN = (
    "MARK STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE "
    "SHORT_BINUNICODE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST APPEND APPENDS EMPTY_DICT "
    "SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE BUILD NEWOBJ BINPERSID BINPUT LONG_BINPUT BINGET "
    "LONG_BINGET MEMOIZE PROTO FRAME"
)
OTHERS = [opcode for opcode in pickletools.opcodes if opcode.name not in KNOWN.split()]


@pytest.mark.parametrize("opcode", OTHERS, ids=[opcode.name for opcode in OTHERS])
def test_other_instructions_are_refused(refused, opcode):
    argument = b"" if opcode.arg is None else bytes(8)
    if opcode.arg and opcode.arg.n == pickletools.UP_TO_NEWLINE:
        argument = b"'1'\n" if opcode.name == "STRING" else b"1\n1\n"
    program = EMPTY_DICT * 3 + b"(" + EMPTY_DICT + opcode.code.encode("latin-1") + argument
    refused(program, rf"its pickle has the instruction {opcode.name}\)")


@pytest.mark.parametrize(
    "piece",
    [
        b"X\xff\xff\xff\xffabc",  # BINUNICODE
        b"\x8d" + b"\xff" * 8,  # BINUNICODE8
        b"B\xff\xff\xff\xffabc",  # BINBYTES
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",  # BINBYTES8
        b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f",  # BYTEARRAY8
        b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",  # FRAME
        b"\x8b\xff\xff\xff\x7f",  # LONG4
        b"\x8a\xff",  # LONG1
        b"I" + b"9" * 10_000 + b"\n",  # INT
        b"cos\nsystem",  # GLOBAL
        b"X\x01\0\0\0\xff",  # not UTF-8
        b"\xff",
    ],
)
def test_lengths_that_lie_are_refused(path, piece):
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"ckpt\.pt cannot be read \(.*get it anew"):
        load(archive(path, piece))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_the_sentence_is_short_whatever_is_in_the_file(path):
    with pytest.raises(FormatError) as caught:
        load(archive(path, b"S" + b"a" * 10_000 + b"\n"))
    assert len(str(caught.value)) < 500


# Programs that want to fill the memory, or never to end


def filled(size: int, start: bytes, piece: bytes, end: bytes = b"") -> bytes:
    return start + piece * ((size - len(start + end) - 8) // len(piece)) + end


BOMBS = {
    "lists": (b"(", EMPTY_LIST, b"t"),
    "dicts": (EMPTY_LIST + b"(", EMPTY_DICT, b"e"),
    "marks": (b"", b"(", b""),
    "tuples in tuples": (EMPTY_TUPLE, b"\x85", b""),
    "storages": (identity() + b"q\0(", b"h\0Q", b"t"),
    "tensors": (
        name("torch._utils _rebuild_tensor_v2")
        + b"q\0"
        + many(STORAGE, number(0), EMPTY_TUPLE, EMPTY_TUPLE, NONE, NONE)
        + b"q\1(",
        b"h\0h\1R",
        b"t",
    ),
    "dimensions": (
        name("torch._utils _rebuild_tensor_v2")
        + b"q\0"
        + many(STORAGE, number(0), numbers(*[1] * 64), numbers(*[1] * 64), NONE, NONE)
        + b"q\1(",
        b"h\0h\1R",
        b"t",
    ),
    "OrderedDicts": (name("collections OrderedDict") + b"q\0(", b"h\0)R", b"t"),
    "namespaces": (name("argparse Namespace") + b"q\0(", b"h\0)\x81", b"t"),
    "empty sets": (name("__builtin__ set") + b"q\0" + many(EMPTY_LIST) + b"q\1(", b"h\0h\1R", b"t"),
    "sets": (
        name("__builtin__ set")
        + b"q\0"
        + many(EMPTY_LIST + b"(" + b"".join(map(number, range(1000))) + b"e")
        + b"q\1(",
        b"h\0h\1R",
        b"t",
    ),
    "bytes": (
        name("_codecs encode") + b"q\0" + many(text("a" * 1000), text("latin1")) + b"q\1(",
        b"h\0h\1R",
        b"t",
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_memory_is_in_proportion_to_the_program(path, monkeypatch, bomb):
    size, worst = 20_000, 150
    assert worst * torch_pickle.MAX_BYTES < 160e6
    archive(path, filled(size, *BOMBS[bomb]))
    tracemalloc.start()
    try:
        result = load(path)
    except FormatError:
        result = None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del result
    assert peak < worst * size + 500_000


def test_a_set_of_ever_the_same_things_is_made_once(refused):
    refused(filled(20_000, *BOMBS["sets"]), "its pickle makes much of little")
    refused(filled(20_000, *BOMBS["bytes"]), "its pickle makes much of little")
    refused(filled(20_000, *BOMBS["dimensions"]), "its pickle makes much of little")


def test_the_memo_can_have_any_index(run):
    tracemalloc.start()
    assert run(EMPTY_LIST + put(2**32 - 1) + get(2**32 - 1) + b"\x86") == ([], [])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


# What stands before and after the thing that is inside.
SHELLS = {
    "list": (EMPTY_LIST, APPEND),
    "tuple": (b"", b"\x85"),
    "dict": (EMPTY_DICT + text("a"), SETITEM),
    "namespace": (call("argparse Namespace") + EMPTY_DICT + text("a"), SETITEM + BUILD),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_only_so_many_can_be_in_one_another(run, refused, shell):
    before, after = SHELLS[shell]
    inside = EMPTY_LIST + NONE + APPEND
    run(before * 31 + inside + after * 31)
    for count in (32, 5000):
        refused(before * count + inside + after * count, "it has more than 32 lists or dicts in")


def test_depth_is_that_of_the_deepest_way(refused):
    """To the same list lead a short way, which is seen first, and one that is too long."""
    inner = EMPTY_LIST + NONE + APPEND + b"\x85" * 20
    refused(inner + put(0) + b"(" + get(0) + get(0) + b"\x85" * 12 + b"t", "it has more than 32")


def test_a_list_in_itself_is_refused(refused):
    refused(EMPTY_LIST + put(0) + get(0) + APPEND, "it has more than 32 lists or dicts")


def test_what_is_shared_is_gone_through_once(run):
    pair = run(NONE + b"\x85" + b"".join(put(i) + get(i) + b"\x86" for i in range(31)))
    for _ in range(31):
        assert pair[0] is pair[1]
        pair = pair[0]
    assert pair == (None,)


# Archives that are not of torch.save


def cannot_be_read(path, sentence=""):
    with pytest.raises(FormatError, match=rf"ckpt\.pt cannot be read \(.*{sentence}.*get it anew"):
        load(path)


@pytest.mark.parametrize("folder", ["", "/", "../", "../../x/", "./", "/tmp/", "a//", "a/../"])
def test_members_outside_of_their_folder_are_refused(path, members, folder):
    archive(path, members=members, folder=folder)
    with pytest.raises(
        FormatError, match=r"ckpt\.pt (is a zip archive without a data\.pkl|cannot)"
    ):
        load(path)


@pytest.mark.parametrize("name", ["../x", "data/../../x", "data//0", "data/."])
def test_a_member_that_is_a_path_is_refused(path, members, name):
    cannot_be_read(archive(path, members=members | {name: b""}), "it has a member 'archive/")


def test_a_second_folder_is_refused(path, members):
    archive(path, members=members)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("other/data.pkl", members["data.pkl"])
    cannot_be_read(path, "it has a member 'other/data.pkl'")


def test_a_second_program_is_refused(path, members):
    archive(path, members=members)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("archive/data.pkl", members["data.pkl"])
    cannot_be_read(path, "it has two members 'archive/data.pkl'")


def test_compressed_members_are_refused(path, members):
    archive(path, members=members, compression=zipfile.ZIP_DEFLATED)
    cannot_be_read(path, "its member 'archive/data.pkl' is compressed or encrypted")
    bomb = members | {"data/0": bytes(10_000_000)}
    cannot_be_read(archive(path, members=bomb, compression=zipfile.ZIP_DEFLATED), "is compressed")
    assert path.stat().st_size < 20_000


# Where these are in a member's record in the table of contents, and how they are packed.
FIELDS = {"flags": (8, "<H"), "method": (10, "<H"), "crc": (16, "<I"), "offset": (42, "<I")}
FIELDS |= {"packed size": (20, "<I"), "size": (24, "<I"), "name length": (28, "<H")}


def patch(path, member, field, value):
    data = bytearray(path.read_bytes())
    place, packed = FIELDS[field]
    struct.pack_into(packed, data, data.rindex(member.encode()) - 46 + place, value)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("member", "field", "value", "sentence"),
    [
        ("data/0", "flags", 1, "is compressed or encrypted"),
        ("data/0", "method", 8, "is compressed or encrypted"),
        ("data.pkl", "method", 99, "is compressed or encrypted"),
        ("data/0", "size", 95, "its storage 0 has 95 bytes, not 24 numbers float32"),
        ("data/0", "size", 97, "its member 'archive/data/0' ends outside of the file"),
        ("data/0", "size", 2**32 - 2, "its member 'archive/data/0' ends outside of the file"),
        ("data/0", "offset", 2**32 - 2, "not where it should be"),
        ("data/0", "offset", 0, "begins within another"),
        ("data/0", "offset", 1, "begins within another"),
        ("data.pkl", "size", 100, "its data.pkl has another checksum"),
        ("version", "size", 3, "its member 'archive/data/0' begins within another"),
        ("data.pkl", "size", 2**21, "its member 'archive/data.pkl' ends outside of the file"),
        ("data.pkl", "crc", 1, "its data.pkl has another checksum"),
        ("data.pkl", "offset", 1, "is not where it should be"),
        ("version", "offset", 0, "begins within another"),
        ("version", "name length", 65535, "."),
    ],
)
def test_a_table_of_contents_that_lies_is_refused(path, members, member, field, value, sentence):
    archive(path, members=members)
    patch(path, f"archive/{member}", field, value)
    cannot_be_read(path, sentence)


def test_torch_can_leave_checksums_out(path, members):
    archive(path, members=members)
    patch(path, "archive/data.pkl", "crc", 0)
    np.testing.assert_array_equal(load(path), FLOATS)


def test_the_other_order_of_bytes_is_refused(path, members):
    archive(path, members=members | {"byteorder": b"big"})
    cannot_be_read(path, "it is from a computer that has the bytes of a number in another order")
    del members["byteorder"]  # as before PyTorch 2.1
    np.testing.assert_array_equal(load(archive(path, members=members)), FLOATS)


def test_a_large_program_is_refused(path, members):
    members["data.pkl"] = members["data.pkl"].ljust(torch_pickle.MAX_BYTES, b"\0")
    np.testing.assert_array_equal(load(archive(path, members=members)), FLOATS)
    members["data.pkl"] += b"\0"
    cannot_be_read(archive(path, members=members), "its data.pkl has 1,048,577 bytes")


def test_a_large_table_of_contents_is_refused(path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "MAX_BYTES", 50_000)
    record = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, *[0] * 7, 3, *[0] * 6) + b"x/a"
    table = record * 50_000
    path.write_bytes(table + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, len(table), 0, 0))
    tracemalloc.start()
    cannot_be_read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_any_shorter_file_is_refused(path):
    data = GOLDEN.read_bytes()
    for size in range(1, len(data), 37):
        path.write_bytes(data[:size])
        with pytest.raises(FormatError):
            load(path)


def test_torchscript_is_refused(path, members):
    members |= {"constants.pkl": b"", "code/__torch__.py": b"def forward(): pass"}
    archive(path, members=members, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match=r"ckpt\.pt is a TorchScript archive, .*state_dict\(\)"):
        load(path)


def test_other_archives_are_refused(path):
    archive(path, members={"meta.json": b"{}"})
    with pytest.raises(FormatError, match=r"ckpt\.pt is a zip archive without a data\.pkl"):
        load(path)
    zipfile.ZipFile(path, "w").close()
    with pytest.raises(FormatError, match=r"ckpt\.pt is a zip archive without a data\.pkl"):
        load(path)


def test_the_format_before_1_6_is_refused(path):
    before = r"ckpt\.pt has the format of PyTorch before 1\.6, .* torch\.save it again"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + bytes(100))
    with pytest.raises(FormatError, match=before):
        load(path)
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(path, "w", format=format) as file:
            file.addfile(tarfile.TarInfo("sys_info"), io.BytesIO())
        with pytest.raises(FormatError, match=before):
            load(path)


@pytest.mark.parametrize(
    "data", [b"", b"P", b"\x80\x02}.", pickle.dumps({}), b"{}", b"version https://git-lfs"]
)
def test_other_files_are_refused(path, data):
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"ckpt\.pt is not a file of torch\.save; "):
        load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*nowhere\.pt"):
        load(tmp_path / "nowhere.pt")


# A file of torch with a few bytes changed, taken out or put in

EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=3
)


def edited(data: bytes, edits) -> bytes:
    for where, cut, inserted in edits:
        place = int(where * len(data))
        data = data[:place] + inserted + data[place + cut :]
    return data


def everything_in(value):
    """All leaves; every number of every array is read."""
    if isinstance(value, np.ndarray):
        assert value.nbytes <= 1000
        yield value.tobytes()
    elif isinstance(value, Namespace):
        yield from everything_in(vars(value))
    elif isinstance(value, dict):
        yield from everything_in([*value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from everything_in(item)
    else:
        yield value


@pytest.fixture(scope="module")
def mutant(tmp_path_factory):
    return tmp_path_factory.mktemp("mutants") / "mutant.pt"


@settings(max_examples=1200)
@given(edits=EDITS)
def test_a_changed_file_is_refused_or_read(mutant, edits):
    mutant.unlink(missing_ok=True)  # a new file is written five times faster than an old one
    mutant.write_bytes(edited(GOLDEN.read_bytes(), edits))
    try:
        list(everything_in(load(mutant)))
    except FormatError as error:
        assert str(mutant) in str(error)


@settings(max_examples=1200)
@given(edits=EDITS)
def test_a_changed_program_is_refused_or_run(mutant, edits):
    with zipfile.ZipFile(GOLDEN) as file:
        program = file.read("torch_save/data.pkl")
    changed = edited(program, edits).ljust(len(program), b"\0")[: len(program)]
    mutant.unlink(missing_ok=True)  # a new file is written five times faster than an old one
    mutant.write_bytes(GOLDEN.read_bytes().replace(program, changed))
    patch(mutant, "torch_save/data.pkl", "crc", 0)
    try:
        list(everything_in(load(mutant)))
    except FormatError as error:
        assert str(mutant) in str(error)
