"""The program in a file does nothing, and ends, whatever it wants."""

import os
import pickle
import pickletools
import tracemalloc

import pytest
from archives import (
    APPEND,
    BINPERSID,
    BUILD,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    NEWOBJ,
    NONE,
    REDUCE,
    SETITEM,
    STORAGE,
    archive,
    call,
    get,
    identity,
    many,
    name,
    number,
    numbers,
    put,
    shared,
    tensor,
    text,
)

from errors import FormatError
from formats import torch_pickle
from formats.torch_pickle import load


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
