"""What torch.save has written is read without torch, and a tensor never leaves its storage."""

import struct
import sys
import zipfile
from argparse import Namespace

import ml_dtypes
import numpy as np
import pytest
from archives import (
    BINPERSID,
    BUILD,
    EMPTY_DICT,
    EMPTY_LIST,
    FLOATS,
    GOLDEN,
    NONE,
    SETITEM,
    STORAGE,
    archive,
    call,
    identity,
    many,
    number,
    numbers,
    shared,
    tensor,
    text,
)

from formats.torch_pickle import load


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
