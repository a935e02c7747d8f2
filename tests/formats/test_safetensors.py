import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from errors import FormatError, RunError, UserError
from formats.safetensors import load, save
from formats.weights import Parts

FLOATS = {"float32": "<f4", "float16": "<f2", "bfloat16": ml_dtypes.bfloat16}
ALL_TYPES = [*FLOATS.values(), "f8", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def whole(array):
    """A tensor in one part."""
    return Parts.of("wte", array)


def file_with(path, header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


# What the library writes


def test_every_type_of_the_library_is_read(path):
    rng = np.random.default_rng(0)
    tensors = {str(np.dtype(t)): rng.integers(0, 2, (2, 3, 4)).astype(t) for t in ALL_TYPES}
    tensors |= {"no axis": np.array(2.5), "empty": np.empty((0, 3), np.float32)}
    save_file(tensors, path)
    result = load(path)
    assert result.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(result[name], tensor)
        assert (result[name].dtype, result[name].shape) == (tensor.dtype, tensor.shape)


def test_reading_maps_and_does_not_copy(path):
    save_file({"a": np.zeros(5, np.float32), "b": np.ones((3, 4), np.float32)}, path)
    tensor = load(path)["b"]
    assert not tensor.flags.writeable
    with path.open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(7.5).tobytes())
    assert tensor[2, 3] == 7.5


def test_a_file_without_tensors_has_none(path):
    save_file({}, path)
    assert load(path) == {}


# What is written


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_library_reads_what_is_written(path, dtype):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 5), np.float32), rng.standard_normal((5, 2, 7), np.float32)
    save(path, {"z": whole(a.T), "a": Parts.of("wq", b)}, dtype)
    for tensors in (load(path), load_file(path)):
        assert sorted(tensors) == ["a", "z"]
        np.testing.assert_array_equal(tensors["z"], a.T.astype(FLOATS[dtype]))
        np.testing.assert_array_equal(tensors["a"], b.astype(FLOATS[dtype]))
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}  # without it transformers refuses the file
        assert list(file.offset_keys()) == ["z", "a"]


@pytest.mark.parametrize("length", range(1, 9))
def test_the_tensors_are_aligned(path, length):
    save(path, {"n" * length: whole(np.ones(3, np.float32))})
    assert load(path)["n" * length].flags.aligned


def test_no_more_than_a_part_is_in_memory(path):
    shape = (256, 1024)
    makers = [lambda: np.ones(shape, np.float32)] * 10
    tracemalloc.start()
    save(path, {"a": Parts((10, *shape), np.float32, makers)}, "bfloat16")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 5_000_000
    assert peak < 2.5 * 4 * 256 * 1024
    assert load(path)["a"].astype(np.float32).sum() == 10 * 256 * 1024


def test_a_number_too_large_for_the_type_is_refused(path):
    with pytest.raises(UserError, match=r"model\.safetensors: a weight of 100000 is too large"):
        save(path, {"a": whole(np.array([1, 1e5], np.float32))}, "float16")
    assert not list(path.parent.iterdir())


def test_a_failed_write_leaves_what_was_there(path, monkeypatch):
    path.write_bytes(b"before")

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(RunError, match=r"model\.safetensors: No space left"):
        save(path, {"a": whole(np.ones(3, np.float32))})
    assert path.read_bytes() == b"before"


# Damage


def test_a_missing_file_is_refused(tmp_path):
    for path in (tmp_path / "nowhere.safetensors", tmp_path):
        with pytest.raises(UserError, match="there is no file"):
            load(path)


def one(dtype="F32", shape=(1,), data_offsets=(0, 4), **others):
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets} | others


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"a": 1}',
        b"\xff{}",
        b"[" * 100_000,
        {"a": {}},
        {"a": one(shape=[2])},
        {"a": one(shape=[-1])},
        {"a": one(shape=[1.5])},
        {"a": one(shape=[2**63, 2**63])},
        {"a": one(shape=[10**30])},
        {"a": one(dtype="F33")},
        {"a": one(dtype=3)},
        {"a": one(data_offsets=[0, 8])},
        {"a": one(data_offsets=[0])},
        {"a": one(data_offsets=[4, 8])},
        {"a": one(data_offsets=[4, 0])},
        {"a": one(data_offsets=[-4, 0])},
        {"a": one(data_offsets=[2**64 - 4, 2**64])},
        {"a": one(shape=[2**61], data_offsets=[0, 2**63])},
        {"a": one(), "b": one()},
        {"a": one(shape=[2], data_offsets=[0, 8]), "b": one(data_offsets=[4, 8])},
        {"__metadata__": 3, "a": one()},
    ],
)
def test_a_lying_header_is_refused(path, header):
    file_with(path, header, bytes(4))
    with pytest.raises(FormatError, match=r"model\.safetensors has a header with this mistake: "):
        load(path)


def test_a_name_that_occurs_twice_is_refused(path):
    tensor = json.dumps(one()).encode()
    file_with(path, b'{"a": %s, "\\u0061": %s}' % (tensor, tensor), bytes(4))
    with pytest.raises(FormatError, match=r"model\.safetensors .* a name occurs twice"):
        load(path)


def test_what_nobody_looks_at_harms_nobody(path):
    file_with(path, {"a": one(path=1, name=[[[]]])}, bytes(4))
    assert load(path)["a"] == 0


@pytest.mark.parametrize("code", ["F8_E4M3", "F8_E5M2"])
def test_a_type_that_is_not_handled_is_named(path, code):
    file_with(path, {"a.b": one(code, [4])}, bytes(4))
    with pytest.raises(FormatError, match=rf"safetensors: the tensor a\.b has the type {code}"):
        load(path)


@pytest.mark.parametrize("length", [5, 100, 4_000_001, 99_999_999, 2**63, 2**64 - 1])
def test_a_lying_length_takes_no_memory(path, length):
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"model\.safetensors has a header "):
        load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("size", range(0, 12))
def test_half_a_file_is_refused(path, size):
    save_file({"a": np.ones(3, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(FormatError):
        load(path)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0"])
def test_a_file_of_another_length_is_refused(path, change):
    save_file({"a": np.ones(3, np.float32)}, path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(FormatError):
        load(path)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    rng = np.random.default_rng(0)
    names = ("h.0.attn.weight", "h.0.attn.bias", "wte.weight")
    save_file({name: rng.standard_normal((3, 4), np.float32) for name in names}, path)
    return path, path.read_bytes()


WORDS = [b"0", b"9", b"-1", b"99", b"null", b'"', b"]", b"}", b",", b"F16", b"F8_E5M2", b"\xff"]
# Where, how many bytes go, and which come in their place.
CHANGES = st.tuples(st.integers(0, 360), st.integers(0, 4), st.sampled_from(WORDS))


@settings(max_examples=1000)
@given(changes=st.lists(CHANGES, min_size=1, max_size=3))
def test_a_mutated_file_is_read_or_refused(original, changes):
    path, content = original
    assert 300 < len(content) < 400
    content = bytearray(content)
    for start, count, new in changes:
        content[start : start + count] = new
    mutated = path.with_name("mutated.safetensors")
    mutated.unlink(missing_ok=True)  # a new file is written five times faster than an old one
    mutated.write_bytes(content)
    try:
        tensors = load(mutated)
    except FormatError:
        return
    assert sum(tensor.nbytes for tensor in tensors.values()) <= len(content)
    for tensor in tensors.values():
        tensor.tobytes()


@pytest.mark.parametrize(
    ("shape", "size"), [([1] * 65, 4), ([2**62, 0], 0), ([0, 2**62, 2**62], 0)]
)
def test_a_shape_that_no_array_can_have_is_refused(tmp_path, shape, size):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    with pytest.raises(FormatError, match=r"model\.safetensors has a(.*shape| header with)"):
        load(path)
