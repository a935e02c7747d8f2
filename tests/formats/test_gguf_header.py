"""Hostile and damaged GGUF files."""

import struct
import tracemalloc

import gguf as library
import numpy as np
import pytest
from gguf_files import ALL_MODELS, TEXT, TRAINED, Type, forge, gpt2, llama, quantised
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import FormatError
from formats import gguf_header
from formats.gguf import read, write
from formats.gguf_header import MAX_HEADER_BYTES
from tokenizer import BytePairTokenizer


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


def header(tensors=0, values=0, magic=b"GGUF", version=3):
    return magic + struct.pack("<IQQ", version, tensors, values)


def string(text):
    return struct.pack("<Q", len(text)) + text


KEY = string(b"general.name")
HUGE = 2**64 - 1


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "no end of its header in the first 0 bytes"),
        (header()[:-1], "no end of its header in the first 23 bytes"),
        (header(magic=b"GGML"), "not the first four bytes of a GGUF file"),
        (header(version=1), "version 1 or a big-endian one"),
        (header(version=4), "version 4 or a big-endian one"),
        (header(version=3 << 24), "version 50331648 or a big-endian one"),
        (header(values=HUGE), f"0 tensors and {HUGE} keys"),
        (header(tensors=HUGE), f"{HUGE} tensors and 0 keys"),
        (header(values=65536), "no end of its header"),
        (header(tensors=65536), "no end of its header"),
        (header(values=1) + struct.pack("<Q", HUGE), "no end of its header"),
        (header(values=1) + string(b"k" * 257), "a name of 257 bytes"),
        (header(values=1) + KEY + struct.pack("<IQ", 8, HUGE), "no end of its header"),
        (header(values=1) + KEY + struct.pack("<I", 13), "a value of the unknown type 13"),
        (header(values=1) + KEY + struct.pack("<IIQ", 9, 0, HUGE), "no end of its header"),
        (header(values=1) + KEY + struct.pack("<IIQ", 9, 12, 2**61), "no end of its header"),
        (header(values=1) + KEY + struct.pack("<IIQ", 9, 8, 9), "no end of its header"),
        (header(values=1) + KEY + struct.pack("<IIQ", 9, 8, HUGE), f"{HUGE} strings in lists"),
        (header(values=1) + KEY + struct.pack("<IIQ", 9, 9, 1), "a value of the unknown type 9"),
        (header(values=1) + KEY + struct.pack("<IIQ", 9, 13, 0), "a value of the unknown type 13"),
        (header(values=2) + (KEY + struct.pack("<I?", 7, True)) * 2, "a key or a tensor twice"),
        (header(1) + string(b"x") + struct.pack("<I", 0), "a tensor x of 0 dimensions"),
        (header(1) + string(b"x") + struct.pack("<I", 2**32 - 1), "x of 4294967295 dimensions"),
        (header(1) + string(b"x") + struct.pack("<IQ", 1, 0) + bytes(12), r"of the shape \(0,\)"),
        (header(2) + (string(b"x") + struct.pack("<IQ", 1, 1) + bytes(12)) * 2, "a tensor twice"),
    ],
)
def test_lies_in_a_header_are_refused(path, data, sentence):
    path.write_bytes(data)
    with pytest.raises(FormatError, match=rf"model\.gguf .*{sentence}"):
        read(path)


def patched(data, name, place, number):
    """Bytes of a file in which a tensor's dimension, type or offset is another."""
    start = data.index(string(name)) + 8 + len(name) + place
    size = 4 if place == 20 else 8
    return data[:start] + number.to_bytes(size, "little") + data[start + size :]


@pytest.mark.parametrize("number", [2**63, HUGE, 2**40, 1 << 20])
@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        (4, r"bytes, but its tensor output\.weight ends at \d{7,};"),  # columns
        (12, r"bytes, but its tensor output\.weight ends at \d{7,};"),  # rows
        (24, r"bytes, but its tensor output\.weight ends at \d{7,};"),  # offset
    ],
)
def test_a_tensor_behind_the_end_of_the_file_is_refused(path, place, number, sentence):
    write(path, llama())
    path.write_bytes(patched(path.read_bytes(), b"output.weight", place, number))
    with pytest.raises(FormatError, match=sentence):
        read(path)


def test_a_tensor_of_an_unknown_type_is_refused(path):
    write(path, llama())
    data = path.read_bytes()
    for kind in (4, 999, 2**32 - 1):
        path.write_bytes(patched(data, b"output.weight", 20, kind))
        with pytest.raises(FormatError, match=rf"output\.weight is of the type {kind}, which"):
            read(path)


@ALL_MODELS
def test_a_file_that_was_cut_short_is_refused(path, model):
    write(path, model())
    data = path.read_bytes()
    end = len(data.rstrip(b"\0"))
    for length in [*range(0, 6000, 97), *range(6000, end - 40, 3001), end - 4]:
        path.write_bytes(data[:length])
        with pytest.raises(FormatError, match=r"model\.gguf has"):
            read(path)


def test_a_string_as_long_as_the_file_is_not_taken_into_memory(path):
    length = 3 * MAX_HEADER_BYTES
    with path.open("wb") as file:
        file.write(header(values=1) + KEY + struct.pack("<IQ", 8, length))
        file.truncate(length + 1000)
    tracemalloc.start()
    with pytest.raises(FormatError, match=f"no end of its header .* {MAX_HEADER_BYTES} bytes"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * MAX_HEADER_BYTES


def test_more_strings_than_any_model_has_are_not_taken_into_memory(path, monkeypatch):
    """One of two bytes takes ten in a file, and five times as many in memory."""
    monkeypatch.setattr(gguf_header, "MAX_STRINGS", 9)
    strings = [struct.pack("<IIQ", 9, 8, 5) + string(b"ab") * count for count in (5, 0)]
    path.write_bytes(header(values=2) + KEY + strings[0] + string(b"k") + strings[1])
    with pytest.raises(FormatError, match="10 strings in lists"):
        read(path)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Small files and where their headers end, of which two are quantised."""
    folder = tmp_path_factory.mktemp("sources")
    special = BytePairTokenizer(TRAINED.ranks, ["<pad>"])
    write(folder / "gpt2.gguf", gpt2(special, vocab_size=270))
    write(folder / "llama.gguf", llama(), "float16")
    types = {"attn_k": "Q4_0", "attn_v": "Q8_0", "ffn_gate": "Q6_K"}
    blocks = {
        f"blk.{i}.{name}.weight": (quantised(Type[kind], 8), Type[kind])
        for name, kind in types.items()
        for i in (0, 1)
    }
    forge(folder / "quantised.gguf", tensors=blocks)
    table = np.ones((8, 256), np.float32)
    tensors = {
        name: (library.quantize(table, Type[kind]), Type[kind])
        for name, kind in (("token_embd.weight", "Q4_0"), ("output.weight", "Q8_0"))
    }
    forge(folder / "twice.gguf", tensors=tensors, architecture="gpt2")
    for architecture in ("gemma3", "phi3"):
        forge(folder / f"{architecture}.gguf", architecture=architecture)
    return [
        (path.read_bytes(), library.GGUFReader(path).data_offset)
        for path in sorted(folder.iterdir())
    ]


def mutated(data, end, edits):
    """Bytes with damage in front of `end`, four of `edits` for each: where, what and how."""
    data = bytearray(data)
    for high, low, value, how in zip(*[iter(edits)] * 4, strict=False):
        start = (high * 256 + low) * end >> 16
        count = (1, 1, 4, 8)[how % 4]
        kept = start if how & 4 else start + count  # something is put in, or replaced
        data[start:kept] = bytes([0 if how & 8 else value] * count)
        if how > 240:
            del data[start:]
    return bytes(data)


SOURCES = ["gemma3", "gpt2", "llama", "phi3", "quantised", "twice"]


@pytest.mark.parametrize("number", range(len(SOURCES)), ids=SOURCES)
@settings(max_examples=1000)
@given(edits=st.binary(min_size=4, max_size=12))
def test_a_mutated_file_is_read_or_refused(sources, tmp_path_factory, number, edits):
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.unlink(missing_ok=True)  # a new file is written five times faster than an old one
    path.write_bytes(mutated(*sources[number], edits))
    try:
        weights = read(path)
    except FormatError as error:
        assert "mutated.gguf" in str(error)
        return
    tokens = weights.tokenizer.encode(TEXT) if weights.tokenizer else []
    assert all(0 <= token < weights.config["vocab_size"] for token in tokens)
    for parts in weights.tensors.values():
        for part in parts:
            assert part.dtype == parts.dtype
            assert part.shape == parts.shape[len(parts.shape) - part.ndim :]
