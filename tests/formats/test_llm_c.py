"""llm.c's files, and dev/check_debug_state.py, which compares two of them with our GPT-2."""

import struct
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dev.check_debug_state import ten_losses
from errors import FormatError, UserError
from formats import llm_c
from formats.weights import Parts, Weights
from models.gpt2 import GPT2, GPT2Config

# No two of the numbers are equal, so that none can stand in another's place unnoticed.
CONFIG = {"seq_len": 7, "vocab_size": 5, "num_layers": 2, "num_heads": 3, "channels": 6}
SHAPES = {
    "wte": (5, 6),
    "wpe": (7, 6),
    "ln1w": (2, 6),
    "ln1b": (2, 6),
    "qkvw": (2, 18, 6),
    "qkvb": (2, 18),
    "attprojw": (2, 6, 6),
    "attprojb": (2, 6),
    "ln2w": (2, 6),
    "ln2b": (2, 6),
    "fcw": (2, 24, 6),
    "fcb": (2, 24),
    "fcprojw": (2, 6, 24),
    "fcprojb": (2, 6),
    "lnfw": (6,),
    "lnfb": (6,),
}
B, T = 2, 4
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def random_tensors():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


def weights_of(tensors, config=CONFIG):
    parts = {name: Parts.of(name, tensor) for name, tensor in tensors.items()}
    return Weights("", "gpt2", config, parts)


def whole(tensors):
    """Every tensor in one array."""
    return {
        name: np.concatenate([part.reshape(-1) for part in parts]).reshape(parts.shape)
        for name, parts in tensors.items()
    }


def header(*numbers):
    return struct.pack("<256i", *numbers, *[0] * (256 - len(numbers)))


def floats_of(tensors, rows=128):
    """The numbers of all tensors, in the order of the files; wte gets rows of zeros."""
    padding = np.zeros((rows - 5, 6), np.float32)
    tensors = tensors | {"wte": np.concatenate([tensors["wte"], padding])}
    return np.concatenate([tensors[name].ravel() for name in SHAPES])


def bfloat16(floats):
    """The upper half of every float32's bits, rounded to nearest, ties to even."""
    bits = floats.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def state_file(tokens, targets, logits, loss, grads):
    data = header(20240327, 2, B, T)
    for array in (tokens.astype("<i4"), targets.astype("<i4"), logits, np.float32(loss)):
        data += array.tobytes()
    return data + floats_of(grads).tobytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.bin"


@pytest.fixture
def state():
    """A batch, and what our own model computes from it, as `state_file` takes them."""
    model = make_model()
    tokens, targets = np.random.default_rng(1).integers(0, 5, (2, B, T))
    loss = model.forward(tokens, targets)
    logits = model.acts.logits.copy()
    model.zero_grad()
    model.backward()
    grads = {name: np.array(grad[: SHAPES[name][0]]) for name, grad in model.grads}
    return {"tokens": tokens, "targets": targets, "logits": logits, "loss": loss, "grads": grads}


def make_model():
    model = GPT2(GPT2Config(**CONFIG), B, T, seed=None)
    for name, tensor in random_tensors().items():
        model.params[name][: len(tensor)] = tensor
    return model


# Model files


@DTYPES
def test_the_file_byte_by_byte(path, dtype):
    tensors = random_tensors()
    llm_c.write(path, weights_of(tensors), dtype)
    floats = floats_of(tensors)
    version, numbers = (3, floats) if dtype == "float32" else (5, bfloat16(floats))
    assert path.read_bytes() == header(20240326, version, 7, 5, 2, 3, 6, 128) + numbers.tobytes()


@DTYPES
def test_what_was_written_comes_back(path, dtype):
    tensors = random_tensors()
    llm_c.write(path, weights_of(tensors), dtype)
    weights = llm_c.read(path)
    assert (
        weights.format
        == {
            "float32": "llm.c, version 3",
            "bfloat16": "llm.c, version 5",
        }[dtype]
    )
    assert weights.kind == "gpt2"
    assert weights.config == CONFIG
    assert weights.tokenizer is None
    assert list(weights.tensors) == list(SHAPES)
    for name, tensor in whole(weights.tensors).items():
        assert weights.tensors[name].shape == SHAPES[name]
        assert weights.tensors[name].dtype == tensor.dtype == dtype
        np.testing.assert_array_equal(tensor, tensors[name].astype(dtype))


@DTYPES
def test_a_second_round_changes_no_bit(path, tmp_path, dtype):
    llm_c.write(path, weights_of(random_tensors()), dtype)
    llm_c.write(tmp_path / "copy.bin", llm_c.read(path), dtype)
    assert (tmp_path / "copy.bin").read_bytes() == path.read_bytes()


def test_reading_maps_and_does_not_copy(path):
    llm_c.write(path, weights_of(random_tensors()))
    for parts in llm_c.read(path).tensors.values():
        assert all(isinstance(part, np.memmap) and not part.flags.writeable for part in parts)


@pytest.mark.parametrize(("vocab_size", "rows"), [(127, 128), (128, 128), (129, 256)])
def test_the_vocabulary_is_padded_to_a_multiple_of_128(path, vocab_size, rows):
    tensors = random_tensors() | {"wte": np.ones((vocab_size, 6), np.float32)}
    llm_c.write(path, weights_of(tensors, CONFIG | {"vocab_size": vocab_size}))
    wte = np.frombuffer(path.read_bytes(), "<f4", rows * 6, offset=1024).reshape(rows, 6)
    assert wte[:vocab_size].all()
    assert not wte[vocab_size:].any()
    assert struct.unpack_from("<i", path.read_bytes(), 28) == (rows,)
    np.testing.assert_array_equal(whole(llm_c.read(path).tensors)["lnfb"], tensors["lnfb"])


def test_another_padding_is_read(path):
    tensors = random_tensors()
    data = header(20240326, 3, 7, 5, 2, 3, 6, 9) + floats_of(tensors, rows=9).tobytes()
    path.write_bytes(data)
    for name, tensor in whole(llm_c.read(path).tensors).items():
        np.testing.assert_array_equal(tensor, tensors[name])


@pytest.mark.parametrize(("kind", "dtype"), [("gpt2", "float16"), ("llama2", "float32")])
def test_what_llm_c_does_not_know_is_not_written(path, kind, dtype):
    weights = Weights("", kind, CONFIG, weights_of(random_tensors()).tensors)
    with pytest.raises(UserError, match=r"model\.bin: .* GPT-2 in float32 and bfloat16"):
        llm_c.write(path, weights, dtype)
    assert not path.exists()


def test_a_weight_too_large_for_bfloat16_is_not_written(path):
    tensors = random_tensors()
    tensors["lnfb"][3] = 3.4e38
    with pytest.raises(UserError, match=r"a weight of 3\.4e\+38 is too large for bfloat16"):
        llm_c.write(path, weights_of(tensors), "bfloat16")
    assert not path.exists()


@pytest.mark.parametrize("version", [0, 1, 2, 4, 6, -3])
def test_other_versions_are_named(path, version):
    path.write_bytes(header(20240326, version, 7, 5, 2, 3, 6, 128) + bytes(10000))
    with pytest.raises(FormatError, match=rf"an llm\.c model of version {version}, .* 3 .* and 5"):
        llm_c.read(path)


@pytest.mark.parametrize(
    ("place", "number", "sentence"),
    [
        *((place, number, f"a {name} of {number}")
          for place, name in enumerate(CONFIG, start=2) for number in (0, -1, -(2**31))),
        *((place, 2**31 - 1, "8392 bytes, and .* it must have") for place in (2, 4, 7)),
        (3, 129, "a vocabulary of 129 padded to 128"),
        (3, 2**31 - 1, "a vocabulary of 2147483647 padded to 128"),
        (7, 4, "a vocabulary of 5 padded to 4"),
        (7, -128, "a vocabulary of 5 padded to -128"),
        (5, 4, "6 channels, not to be shared by 4 heads"),
        (5, 2**31 - 1, "6 channels, not to be shared by 2147483647 heads"),
        (6, 2**31 - 1, "2147483647 channels, not to be shared by 3 heads"),
        (6, 2**31 - 2, "8392 bytes, and .* it must have"),
    ],
)  # fmt: skip
def test_absurd_numbers_are_refused(path, place, number, sentence):
    numbers = [20240326, 3, 7, 5, 2, 3, 6, 128]
    numbers[place] = number
    path.write_bytes(header(*numbers) + floats_of(random_tensors()).tobytes())
    with pytest.raises(FormatError, match=rf"model\.bin has {sentence}"):
        llm_c.read(path)


def test_a_file_of_another_length_is_refused(path):
    llm_c.write(path, weights_of(random_tensors()))
    data = path.read_bytes()
    for length in [*range(40), *range(97, len(data), 97), len(data) - 1, len(data) + 1]:
        path.write_bytes(data[:length].ljust(length, b"\0"))
        with pytest.raises(FormatError, match=r"model\.bin "):
            llm_c.read(path)


@pytest.mark.parametrize("name", ["stories260K.bin", "tok512.bin", "tinyshakespeare.txt"])
def test_other_files_are_refused(starter, name):
    with pytest.raises(FormatError, match=r"is not an llm\.c model, which begins with 20240326"):
        llm_c.read(starter / name)


# Debug states


def test_a_debug_state_is_read(path, state):
    path.write_bytes(state_file(**state))
    read = llm_c.read_debug_state(path, CONFIG)
    for name in ("tokens", "targets"):
        np.testing.assert_array_equal(getattr(read, name), state[name])
    assert read.logits.shape == (B, T, 5)
    np.testing.assert_array_equal(read.logits.reshape(-1, 5), state["logits"])
    assert read.loss == np.float32(state["loss"])
    assert list(read.grads) == list(SHAPES)
    for name, grad in whole(read.grads).items():
        np.testing.assert_array_equal(grad, state["grads"][name])
    for array in (read.logits, read.grads["wte"][0], read.grads["fcw"][1]):
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable


@pytest.mark.parametrize(
    ("place", "number", "sentence"),
    [
        (0, 20240326, "is not an llm.c debug state, which begins with 20240327"),
        (1, 1, "is an llm.c debug state of version 1, and only 2 is known"),
        (1, 3, "is an llm.c debug state of version 3, and only 2 is known"),
        (2, 0, "has 0 sequences of 4 positions, for a model of 7 positions"),
        (2, -2, "has -2 sequences of 4 positions"),
        (2, 2**31 - 1, "has .* bytes, and .* it must have"),
        (3, 0, "has 2 sequences of 0 positions"),
        (3, -4, "has 2 sequences of -4 positions"),
        (3, 8, "has 2 sequences of 8 positions"),
        (3, 7, "has .* bytes, and .* it must have"),
        (256, -1, "has a token -1, in a vocabulary of 5"),
        (256 + 8, 5, "has a token 5, in a vocabulary of 5"),
    ],
)
def test_a_damaged_debug_state_is_refused(path, state, place, number, sentence):
    data = bytearray(state_file(**state))
    struct.pack_into("<i", data, 4 * place, number)
    path.write_bytes(data)
    with pytest.raises(FormatError, match=rf"model\.bin {sentence}"):
        llm_c.read_debug_state(path, CONFIG)


@pytest.mark.parametrize(
    "change", [{"vocab_size": 6}, {"num_layers": 3}, {"channels": 9}, {"seq_len": 6}]
)
def test_the_debug_state_of_another_model_is_refused(path, state, change):
    path.write_bytes(state_file(**state))
    with pytest.raises(FormatError, match=r"bytes, and with the model's numbers it must have"):
        llm_c.read_debug_state(path, CONFIG | change)


def test_a_debug_state_of_another_length_is_refused(path, state):
    data = state_file(**state)
    for length in [*range(40), *range(97, len(data), 97), len(data) - 1, len(data) + 1]:
        path.write_bytes(data[:length].ljust(length, b"\0"))
        with pytest.raises(FormatError, match=r"model\.bin "):
            llm_c.read_debug_state(path, CONFIG)


# Whatever is done to a file

NUMBER = st.integers(-2, 300) | st.integers(-(2**31), 2**31 - 1)


def damaged(data, place, number, start, noise, change):
    """A number of the header is replaced, bytes anywhere, and the end is cut off or added to."""
    data = bytearray(data)
    if number is not None:
        struct.pack_into("<i", data, 4 * place, number)
    data[start : start + len(noise)] = noise
    length = max(0, len(data) + change)
    return bytes(data[:length].ljust(length, b"\1"))


@pytest.fixture(scope="module")
def files():
    """A whole file of each kind."""
    floats = floats_of(random_tensors())
    tokens, logits = np.zeros((B, T), np.int32), np.zeros((B, T, 5), np.float32)
    return {
        "3": header(20240326, 3, 7, 5, 2, 3, 6, 128) + floats.tobytes(),
        "5": header(20240326, 5, 7, 5, 2, 3, 6, 128) + bfloat16(floats).tobytes(),
        "state": state_file(tokens, tokens, logits, 0, random_tensors()),
    }


@settings(max_examples=2500)
@given(
    kind=st.sampled_from(["3", "5", "state"]),
    place=st.integers(0, 9),
    number=st.none() | NUMBER,
    start=st.integers(0, 2**13),
    noise=st.binary(max_size=5),
    change=st.just(0) | st.integers(-(2**13), 2**8),
)
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, files, kind, **damage):
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.unlink(missing_ok=True)  # a new file is written five times faster than an old one
    path.write_bytes(damaged(files[kind], **damage))
    try:
        if kind == "state":
            state = llm_c.read_debug_state(path, CONFIG)
            assert state.tokens.shape == state.targets.shape == state.logits.shape[:2]
            tensors = state.grads
        else:
            weights = llm_c.read(path)
            GPT2Config(**weights.config)
            tensors = weights.tensors
    except FormatError:
        return
    for name, tensor in whole(tensors).items():
        assert tensor.shape == tensors[name].shape


# The program


@pytest.fixture
def check(program, tmp_path, state):
    """Runs dev/check_debug_state.py on our model and a state, by default what it computed."""

    def run(*options, **changes):
        model, file = tmp_path / "model.bin", tmp_path / "state.bin"
        llm_c.write(model, weights_of(random_tensors()))
        file.write_bytes(state_file(**state | changes))
        return program("dev.check_debug_state", model, file, *options)

    return run


@pytest.fixture
def losses(state):
    return list(ten_losses(make_model(), state["tokens"], state["targets"]))


def wrong(printed):
    """The names of the checks that failed."""
    return [line.split("  ")[0] for line in printed.splitlines() if line.endswith("WRONG")]


def test_our_own_pair_passes(check, losses):
    status, printed, complaint = check()
    assert (status, complaint) == (0, "")
    assert wrong(printed) == []
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines[1:19]] == [
        "logits",
        "loss",
        *(f"d{n}" for n in SHAPES),
    ]
    assert lines[19] == "ten losses: " + " ".join(f"{loss:.6f}" for loss in losses)
    assert lines[20].startswith("They were not compared")
    assert lines[21:] == ["OK: all 18 checks hold"]


def test_given_losses_are_compared(check, losses):
    status, printed, _ = check("--losses", *losses)
    assert status == 0
    assert "compared" not in printed
    assert printed.endswith("OK: all 28 checks hold\n")


@pytest.mark.parametrize("step", [0, 9])
@pytest.mark.parametrize("off", [0.0101, -0.0101, np.nan])
def test_a_wrong_loss_of_a_step_is_named(check, losses, step, off):
    losses[step] += off
    status, printed, complaint = check("--losses", *losses)
    assert status == 1
    assert wrong(printed) == [f"loss, step {step}"]
    assert "error: 1 of 28 checks failed for " in complaint


def test_llm_c_s_own_pair_is_known(check, losses, monkeypatch):
    monkeypatch.setattr("dev.check_debug_state.LOSSES", losses)
    assert "They were not compared" in check()[1]  # llm.c's is another model
    monkeypatch.setattr("dev.check_debug_state.GPT2Config", partial(GPT2Config, **CONFIG))
    assert check()[1].endswith("OK: all 28 checks hold\n")
    monkeypatch.setattr("dev.check_debug_state.LOSSES", [*losses[:9], losses[9] + 0.02])
    assert wrong(check()[1]) == ["loss, step 9"]
    # Another batch, and so another first loss: llm.c's ten say nothing.
    monkeypatch.setattr("dev.check_debug_state.LOSSES", [loss + 0.02 for loss in losses])
    assert "They were not compared" in check()[1]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("element", "off"), [(0, 0.0202), (-1, -0.0202), (0, np.nan)])
def test_a_wrong_gradient_is_named(check, state, name, element, off):
    state["grads"][name].ravel()[element] += off
    status, printed, complaint = check()
    assert status == 1
    assert wrong(printed) == [f"d{name}"]
    assert "error: 1 of 18 checks failed for " in complaint


@pytest.mark.parametrize("off", [0.0101, -0.0101, np.nan])
def test_wrong_logits_and_losses_are_named(check, state, off):
    logits = state["logits"].copy()
    logits[-1, -1] += off
    assert wrong(check(logits=logits)[1]) == ["logits"]
    assert wrong(check(loss=state["loss"] + off)[1]) == ["loss"]


def test_llm_c_s_tolerances_are_kept(check, state):
    logits, grads = (state["logits"] + 0.0098), dict(state["grads"])
    for name in grads:
        grads[name] = grads[name] - 0.0198
    status, printed, _ = check(logits=logits, loss=state["loss"] - 0.0098, grads=grads)
    assert (status, wrong(printed)) == (0, [])


def test_a_machine_too_small_is_told_so(check, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**14))
    status, printed, complaint = check()
    assert (status, printed) == (2, "")
    assert "to train this model on 2 sequences of 4 tokens" in complaint


def test_bad_input_ends_with_2(program, path, tmp_path):
    llm_c.write(path, weights_of(random_tensors()))
    status, _, complaint = program("dev.check_debug_state", path, tmp_path / "none.bin")
    assert (status, complaint) == (2, f"error: there is no file {tmp_path / 'none.bin'}\n")
    status, _, complaint = program("dev.check_debug_state", path, path)
    assert status == 2
    assert f"error: {path} is not an llm.c debug state" in complaint
    assert program("dev.check_debug_state", path, path, "--losses", 1, 2)[0] == 2
