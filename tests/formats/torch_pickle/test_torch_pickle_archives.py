"""Archives that are damaged, or of somebody else."""

import io
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from argparse import Namespace

import numpy as np
import pytest
from archives import (
    FLOATS,
    GOLDEN,
    archive,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import FormatError, UserError
from formats import torch_pickle
from formats.torch_pickle import load


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
