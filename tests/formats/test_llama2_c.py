import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from errors import FormatError, RunError, UserError
from formats import llama2_c
from formats.weights import Parts, Weights

# No two of the numbers are equal, so that none can stand in another's place unnoticed.
NUMBERS = {
    "dim": 24,
    "hidden_dim": 40,
    "num_layers": 3,
    "num_heads": 6,
    "num_kv_heads": 2,
    "vocab_size": 11,
    "seq_len": 5,
    "tied": False,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
SHAPES = {
    "wte": (11, 24),
    "rms1w": (3, 24),
    "wq": (3, 24, 24),
    "wk": (3, 8, 24),
    "wv": (3, 8, 24),
    "wo": (3, 24, 24),
    "rms2w": (3, 24),
    "w1": (3, 40, 24),
    "w2": (3, 24, 40),
    "w3": (3, 40, 24),
    "rmsfw": (24,),
    "wcls": (11, 24),
}
MATRICES = ("wte", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "wcls")

TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
ALL_VERSIONS = pytest.mark.parametrize("version", [0, 1, 2])


def model(tied=False):
    """A header's numbers and random tensors that fit them."""
    rng = np.random.default_rng(0)
    names = [name for name in SHAPES if name != "wcls" or not tied]
    tensors = {name: rng.standard_normal(SHAPES[name], np.float32) for name in names}
    return NUMBERS | {"tied": tied}, tensors


def write(path, numbers, tensors, version=0):
    """Write arrays, and not the parts of a model."""
    parts = {name: Parts.of(name, tensor) for name, tensor in tensors.items()}
    llama2_c.write(path, Weights("", "llama2", numbers, parts), version=version)


def read(path):
    """The numbers, and every tensor whole."""
    weights = llama2_c.read(path)
    tensors = {
        name: np.concatenate([part.reshape(-1) for part in parts]).reshape(parts.shape)
        for name, parts in weights.tensors.items()
    }
    return weights.config, tensors


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.bin"


# Layouts


@TIED
@pytest.mark.parametrize("version", [0, 1])
def test_floats_come_back_bit_by_bit(path, tied, version):
    numbers, tensors = model(tied)
    write(path, numbers, tensors, version)
    read_numbers, read_tensors = read(path)
    assert read_numbers == numbers
    assert read_tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read_tensors[name], tensor)
        assert read_tensors[name].dtype == np.float32


def test_a_part_of_floats_is_a_view_of_the_file(path):
    write(path, *model(), version=1)
    weights = llama2_c.read(path)
    assert weights.format == "llama2.c, version 1"
    assert [len(weights.tensors[name]) for name in ("wte", "wq", "rmsfw", "wcls")] == [1, 3, 1, 1]
    for part in weights.tensors["wq"]:
        assert isinstance(part, np.memmap)
        assert not part.flags.writeable


@TIED
def test_version_0_has_its_order_of_tensors_with_rotary_tables(path, tied):
    numbers, tensors = model(tied)
    write(path, numbers, tensors, version=0)
    angles = [[t * 10000.0 ** (-pair / 2) for pair in range(2)] for t in range(5)]  # heads of 4
    expected = [
        *(tensors[name] for name in SHAPES if name != "wcls"),
        np.cos(angles),
        np.sin(angles),
        *([] if tied else [tensors["wcls"]]),
    ]
    floats = np.concatenate([array.ravel() for array in expected])
    data = path.read_bytes()
    assert data[:28] == struct.pack("<7i", 24, 40, 3, 6, 2, 11 if tied else -11, 5)
    np.testing.assert_allclose(np.frombuffer(data[28:], "<f4"), floats, rtol=0, atol=1e-6)


@TIED
def test_version_1_has_the_norms_first(path, tied):
    numbers, tensors = model(tied)
    write(path, numbers, tensors, version=1)
    header = struct.pack("<Iiiiiiiii?", 0x616B3432, 1, 24, 40, 3, 6, 2, 11, 5, tied)
    names = ["rms1w", "rms2w", "rmsfw", *(name for name in MATRICES if name in tensors)]
    floats = [number for name in names for number in tensors[name].ravel()]
    expected = header + bytes(256 - len(header)) + struct.pack(f"<{len(floats)}f", *floats)
    assert path.read_bytes() == expected


def quantised(matrix: np.ndarray, group_size: int) -> bytes:
    """Int8 values and then scales, as the format describes them, number by number."""
    numbers = matrix.ravel().tolist()
    values, scales = [], []
    for start in range(0, len(numbers), group_size):
        group = numbers[start : start + group_size]
        scales.append(np.float32(max(map(abs, group))) / np.float32(127))
        values += [round(float(np.float32(number) / scales[-1])) for number in group]
    return struct.pack(f"<{len(values)}b{len(scales)}f", *values, *scales)


@TIED
def test_version_2_has_values_and_scales_layer_by_layer(path, tied):
    numbers, tensors = model(tied)
    write(path, numbers, tensors, version=2)
    header = struct.pack("<Iiiiiiiii?i", 0x616B3432, 2, 24, 40, 3, 6, 2, 11, 5, tied, 8)
    expected = header + bytes(256 - len(header))
    for name in ("rms1w", "rms2w", "rmsfw"):
        expected += tensors[name].tobytes()
    for name in MATRICES:
        if name in tensors:
            layers = tensors[name] if tensors[name].ndim == 3 else [tensors[name]]
            expected += b"".join(quantised(layer, 8) for layer in layers)
    assert path.read_bytes() == expected


def test_headers_byte_by_byte(path):
    numbers, tensors = model()
    numbers_bytes = bytes.fromhex("18000000 28000000 03000000 06000000 02000000")
    write(path, numbers, tensors, version=0)
    assert path.read_bytes()[:28] == numbers_bytes + bytes.fromhex("f5ffffff 05000000")
    numbers_bytes += bytes.fromhex("0b000000 05000000")
    write(path, numbers, tensors, version=1)
    assert path.read_bytes()[:256] == b"24ka\x01\0\0\0" + numbers_bytes + bytes(256 - 36)
    write(path, numbers, tensors, version=2)
    assert path.read_bytes()[:256] == (
        b"24ka\x02\0\0\0" + numbers_bytes + b"\0" + b"\x08\0\0\0" + bytes(256 - 41)
    )


def test_a_real_model(starter, path):
    source = starter / "stories260K.bin"
    numbers, tensors = read(source)
    assert numbers == {
        "dim": 64,
        "hidden_dim": 172,
        "num_layers": 5,
        "num_heads": 8,
        "num_kv_heads": 4,
        "vocab_size": 512,
        "seq_len": 512,
        "tied": True,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
    assert tensors["wk"].shape == (5, 32, 64)
    assert tensors["w2"].shape == (5, 64, 172)
    assert sum(tensor.size for tensor in tensors.values()) == 260_032
    assert 0.5 < tensors["rmsfw"].mean() < 40  # nothing is shifted: a norm's weights are not small

    write(path, numbers, tensors, version=0)
    original, written = (np.frombuffer(file.read_bytes(), np.uint8) for file in (source, path))
    tables = slice(-512 * 8 * 4, None)  # cosines and sines, (512, 4) each
    np.testing.assert_array_equal(written[: tables.start], original[: tables.start])
    np.testing.assert_allclose(
        written[tables].view("<f4"), original[tables].view("<f4"), rtol=0, atol=1e-6
    )


# Quantisation


@TIED
def test_dequantised_weights_are_half_a_step_off_at_most(path, tied):
    numbers, tensors = model(tied)
    write(path, numbers, tensors, version=2)
    read_numbers, read_tensors = read(path)
    assert read_numbers == numbers
    assert list(read_tensors) == [n for n in ("rms1w", "rms2w", "rmsfw", *MATRICES) if n in tensors]
    assert len(read_tensors) == len(tensors)
    for name, tensor in tensors.items():
        assert read_tensors[name].dtype == np.float32
        assert read_tensors[name].shape == tensor.shape
        if name in MATRICES:
            steps = np.abs(tensor.reshape(-1, 8)).max(axis=1, keepdims=True) / 127
            error = np.abs(read_tensors[name] - tensor).reshape(-1, 8)
            assert (error <= 0.5001 * steps).all()
            assert error.any()
        else:
            np.testing.assert_array_equal(read_tensors[name], tensor)


def test_what_was_quantised_stays_as_it_is(path, tmp_path):
    numbers, tensors = model()
    for exponent, name in enumerate(MATRICES):
        tensors[name] *= 10.0 ** (4 * exponent - 18)
    write(path, numbers, tensors, version=2)
    write(tmp_path / "again.bin", *read(path), version=2)
    assert (tmp_path / "again.bin").read_bytes() == path.read_bytes()


def test_a_group_of_zeros_stays_zero(path):
    numbers, tensors = model()
    tensors["w2"][:] = 0
    tensors["wq"][1, 2, 8:16] = 0
    write(path, numbers, tensors, version=2)
    _, read_tensors = read(path)
    assert not read_tensors["w2"].any()
    assert not read_tensors["wq"][1, 2, 8:16].any()
    assert read_tensors["wq"][1, 2, :8].any()


WEIGHTS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


@given(matrix=hnp.arrays(np.float32, (3, 4), elements=WEIGHTS))
def test_every_group_is_quantised_to_its_largest_weight(matrix):
    # Near the end of float32's range a scale would have fewer bits.
    matrix = np.where(np.abs(matrix) < 2.0**-100, np.float32(0), matrix)
    values, scales = llama2_c._quantised(matrix, 4)
    assert values.dtype == np.int8
    for group, scale, row in zip(values, scales, matrix, strict=True):
        assert np.abs(group.astype(int)).max() == (127 if row.any() else 0)
        assert (np.abs(group * scale - row) <= 0.5001 * scale).all()


@pytest.mark.parametrize(
    ("dim", "hidden_dim", "group_size"),
    [(24, 40, 8), (64, 128, 64), (288, 768, 32), (64, 172, 4), (6, 64, 2), (10, 64, 2)],
)
def test_the_group_size_divides_every_row(path, dim, hidden_dim, group_size):
    """As llama2.c's runq.c needs it."""
    numbers = {"dim": dim, "hidden_dim": hidden_dim, "num_heads": 1, "num_kv_heads": 1}
    numbers = NUMBERS | numbers
    shapes = {
        "wte": (11, dim),
        "rms1w": (3, dim),
        "rms2w": (3, dim),
        "rmsfw": (dim,),
        "wcls": (11, dim),
        "w1": (3, hidden_dim, dim),
        "w2": (3, dim, hidden_dim),
        "w3": (3, hidden_dim, dim),
    } | dict.fromkeys(("wq", "wk", "wv", "wo"), (3, dim, dim))
    tensors = {name: np.full(shape, 2, np.float32) for name, shape in shapes.items()}
    write(path, numbers, tensors, version=2)
    assert struct.unpack_from("<i", path.read_bytes(), 37) == (group_size,)
    for name, tensor in read(path)[1].items():  # scales need not be at multiples of 4 bytes
        np.testing.assert_allclose(tensor, tensors[name], rtol=1e-6)


# What is written


@ALL_VERSIONS
def test_any_array_of_the_right_shape_can_be_written(path, tmp_path, version):
    numbers, tensors = model()
    write(path, numbers, tensors, version)
    others = {
        name: np.asfortranarray(tensor.astype(np.float64)) for name, tensor in tensors.items()
    }
    write(tmp_path / "others.bin", numbers, others, version)
    assert (tmp_path / "others.bin").read_bytes() == path.read_bytes()


@ALL_VERSIONS
def test_a_model_can_be_rewritten_in_its_own_place(path, version):
    write(path, *model(), version=version)
    before = path.read_bytes()
    write(path, *read(path), version=version)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["model.bin"]


@pytest.mark.parametrize("other", [{"kind": "gpt2"}, {"dtype": "float16"}])
def test_what_the_format_does_not_know_is_not_written(path, other):
    asked = {"kind": "llama2", "dtype": "float32"} | other
    with pytest.raises(UserError, match=r"model\.bin: llama2\.c knows nothing but Llama 2 in"):
        llama2_c.write(path, Weights("", asked["kind"], {}, {}), asked["dtype"])
    assert not list(path.parent.iterdir())


def test_a_failed_write_leaves_what_was_there(path, monkeypatch):
    write(path, *model())
    before = path.read_bytes()

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(RunError, match=r"model\.bin: No space left"):
        write(path, *model(), version=2)
    assert path.read_bytes() == before


# Damage


@ALL_VERSIONS
def test_a_file_of_another_length_is_refused(path, version):
    write(path, *model(), version=version)
    data = path.read_bytes()
    for changed in (data[:-1], data[: len(data) // 2], data[:256], data + b"\0", data * 2):
        path.write_bytes(changed)
        with pytest.raises(
            FormatError, match=rf"model\.bin has {len(changed)} bytes, .* must have {len(data)};"
        ):
            read(path)


@pytest.mark.parametrize(
    ("data", "header_bytes"),
    [(b"", 28), (b"24k", 28), (bytes(27), 28), (b"24ka\x01\0\0\0" + bytes(247), 256)],
)
def test_half_a_header_is_refused(path, data, header_bytes):
    path.write_bytes(data)
    sentence = rf"model\.bin has {len(data)} bytes, and a header alone has {header_bytes};"
    with pytest.raises(FormatError, match=sentence):
        read(path)


@pytest.mark.parametrize("version", [0, 3, 2**32 - 1])
def test_an_unknown_version_is_refused(path, version):
    path.write_bytes(b"24ka" + version.to_bytes(4, "little") + bytes(300))
    with pytest.raises(
        FormatError, match=rf"model\.bin is a llama2\.c model of version {version},"
    ):
        read(path)


def header(version, tied=True, group_size=1, **changes):
    numbers = list(({name: NUMBERS[name] for name in llama2_c.NUMBERS} | changes).values())
    if version == 0:
        return struct.pack("<7i", *numbers)
    return struct.pack("<4s8iBi", b"24ka", version, *numbers, tied, group_size).ljust(256, b"\0")


@ALL_VERSIONS
@pytest.mark.parametrize("value", [0, -1, -(2**31)])
@pytest.mark.parametrize("name", [name for name in llama2_c.NUMBERS if name != "vocab_size"])
def test_a_number_below_one_is_refused(path, version, name, value):
    path.write_bytes(header(version, **{name: value}))
    with pytest.raises(FormatError, match=rf"model\.bin has a {name} of {value};"):
        read(path)


# A negative one is version 0's way to say that the classifier is not the embedding table.
@pytest.mark.parametrize(("version", "value"), [(0, 0), (1, 0), (2, 0), (1, -11), (2, -11)])
def test_a_vocabulary_size_below_one_is_refused(path, version, value):
    path.write_bytes(header(version, vocab_size=value))
    with pytest.raises(FormatError, match=rf"model\.bin has a vocab_size of {value};"):
        read(path)


@ALL_VERSIONS
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dim": 25}, "a dim of 25, not to be shared by 6 heads"),
        ({"dim": 18}, "a dim of 18, not to be shared by 6 heads of even size"),
        ({"num_heads": 5, "dim": 40}, "5 heads, not to be shared by 2 key/value heads"),
        ({"num_kv_heads": 12}, "6 heads, not to be shared by 12 key/value heads"),
        ({"num_layers": 2**31 - 1}, r"bytes, and with the numbers in its header .* \d{14};"),
        (
            dict.fromkeys(llama2_c.NUMBERS, 2**31 - 2) | {"num_heads": 1, "num_kv_heads": 1},
            r"bytes, and with the numbers in its header .* \d{28,};",
        ),
    ],
)
def test_absurd_numbers_are_refused(path, version, changes, sentence):
    path.write_bytes(header(version, **changes) + bytes(1000))
    with pytest.raises(FormatError, match=rf"model\.bin has .*{sentence}"):
        read(path)


@pytest.mark.parametrize("group_size", [0, -8, 7, 48, 2**31 - 1])
def test_an_impossible_group_size_is_refused(path, group_size):
    path.write_bytes(header(2, group_size=group_size))
    with pytest.raises(
        FormatError, match=rf"a dim of 24, not to be cut into groups of {group_size}"
    ):
        read(path)


@pytest.mark.parametrize("name", ["tok512.bin", "llama2_tokenizer.model", "tinyshakespeare.txt"])
def test_other_files_are_refused(starter, name):
    with pytest.raises(FormatError, match=r"it is damaged or not a llama2\.c model"):
        read(starter / name)


@given(data=st.binary(max_size=600), version=st.sampled_from([0, 1, 2]))
def test_noise_is_refused(tmp_path_factory, data, version):
    path = tmp_path_factory.getbasetemp() / "noise.bin"
    path.write_bytes((b"24ka" + bytes([version, 0, 0, 0]) if version else b"") + data)
    with pytest.raises(FormatError):
        read(path)


@pytest.mark.parametrize(("name", "value"), [("norm_eps", 1e-6), ("rope_theta", 500000.0)])
def test_a_model_that_the_format_cannot_tell_is_not_written(path, name, value):
    numbers, tensors = model()
    with pytest.raises(UserError, match=f"{name} is {value}"):
        write(path, numbers | {name: value}, tensors)
    assert not path.exists()


def test_heads_that_are_no_part_of_the_width_are_named(path):
    numbers, tensors = model()
    with pytest.raises(UserError, match="the model's head_size is 4, and llama2"):
        write(path, numbers | {"dim": 17, "head_size": 4}, tensors)


def test_the_rotary_tables_of_a_long_context_are_whole(path):
    numbers, tensors = model(tied=True)
    write(path, numbers | {"seq_len": 5000}, tensors, version=0)
    tables = np.frombuffer(path.read_bytes(), "<f4")[-2 * 5000 * 2 :].reshape(2, 5000, 2)
    angles = np.outer(np.arange(5000), [1, 0.01])  # heads of 4
    np.testing.assert_allclose(tables, [np.cos(angles), np.sin(angles)], rtol=0, atol=1e-3)
