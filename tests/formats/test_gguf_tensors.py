"""Quantised tensors in GGUF, and the table that older files have twice."""

import struct
import tracemalloc
from pathlib import Path

import gguf as library
import numpy as np
import pytest
from gguf_files import FLOATING, Type, forge, llama, quantised

from buffers import Buffer
from errors import FormatError
from formats import gguf_header, gguf_tensors
from formats.gguf import read
from formats.weights import FLOATS
from load import fill


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


@pytest.mark.parametrize(
    "kind",
    ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"],
)
def test_every_quantised_type_becomes_float32(path, kind):
    data = quantised(Type[kind], 32)
    forge(
        path, tensors={f"blk.{i}.ffn_down.weight": (data[:: -i or 1], Type[kind]) for i in (0, 1)}
    )
    parts = read(path).tensors["w2"]
    assert (parts.shape, parts.dtype, parts.stored) == ((2, 32, 256), np.float32, kind)
    with np.errstate(all="ignore"):  # random scales
        expected = library.dequantize(data, Type[kind])
    assert np.isfinite(expected).mean() > 0.5
    for part, other in zip(parts, (expected, expected[::-1]), strict=True):
        assert part.dtype == np.float32
        np.testing.assert_array_equal(part, other)


def test_blocks_number_by_number(path):
    """As ggml-quants.h describes them: a scale in float16, then 32 integers."""
    eights, fours = (library.quantize(FLOATING * 7, each) for each in (Type.Q8_0, Type.Q4_0))
    eights[3] = [*struct.pack("<e", 0.5), *range(32)]
    fours[3] = [*struct.pack("<e", -2), *[0x90 + j for j in range(16)]]
    forge(
        path,
        tensors={
            "blk.0.attn_q.weight": (eights, Type.Q8_0),
            "blk.1.attn_q.weight": (fours, Type.Q4_0),
        },
    )
    parts = read(path).tensors["wq"]
    assert parts.stored == "Q4_0 Q8_0"
    np.testing.assert_array_equal(parts[0][3], [0.5 * j for j in range(32)])
    np.testing.assert_array_equal(parts[1][3], [*(-2 * (j - 8) for j in range(16)), *[-2] * 16])
    np.testing.assert_allclose(parts[0][4], 7, rtol=1e-3)


@pytest.mark.parametrize(
    ("first", "second"), [("F16", "F32"), ("BF16", "F16"), ("F32", "Q8_0"), ("Q8_0", "BF16")]
)
def test_layers_of_several_types_become_float32(path, first, second):
    original = {"F32": FLOATING, "F16": FLOATING.astype(np.float16)}
    original["BF16"] = FLOATING.astype(FLOATS["bfloat16"]).view(np.uint8)
    original["Q8_0"] = library.quantize(FLOATING, Type.Q8_0)
    types = {
        f"blk.{i}.attn_q.weight": (original[n], Type[n]) for i, n in enumerate((first, second))
    }
    forge(path, tensors=types)
    parts = read(path).tensors["wq"]
    assert parts.dtype == np.float32
    for part in parts:
        assert part.dtype == np.float32
        np.testing.assert_allclose(part, FLOATING, rtol=1e-3)


def test_quantised_parts_are_made_when_they_are_looked_up(path, monkeypatch):
    forge(path, tensors={"output.weight": (quantised(Type.Q4_K, 32), Type.Q4_K)})
    made = []
    original = library.dequantize
    monkeypatch.setattr(library, "dequantize", lambda *args: made.append(1) or original(*args))
    parts = read(path).tensors["wcls"]
    made.clear()  # it has been tried on a block of zeros
    parts[0]
    assert len(made) == 1


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_K"])
@pytest.mark.parametrize("shape", [(100, 256), (5, 3, 256), (256,)])
def test_blocks_are_a_part_one_below_the_other(path, monkeypatch, kind, shape):
    monkeypatch.setattr(gguf_tensors, "BLOCK", 3 * 256)
    block, size = library.GGML_QUANT_SIZES[Type[kind]]
    rng = np.random.default_rng(0)
    data = rng.integers(0, 100, (*shape[:-1], shape[-1] // block * size), np.uint8)
    forge(path, tensors={"output.weight": (data, Type[kind])})
    parts = read(path).tensors["wcls"]
    blocks = list(parts.blocks(0))
    assert max(len(each) for each in blocks) * np.prod(shape[1:]) <= 3 * 256
    np.testing.assert_array_equal(np.concatenate(blocks), parts[0])
    assert parts[0].shape == shape


def test_a_model_is_filled_some_rows_at_a_time(path, monkeypatch):
    table = library.quantize(np.ones((2**13, 32), np.float32), Type.Q8_0)
    forge(path, tensors={"output.weight": (table, Type.Q8_0)})
    weights = read(path)
    params = Buffer({"wcls": (2**13 + 9, 32)})
    monkeypatch.setattr(gguf_tensors, "BLOCK", 2**12)
    tracemalloc.start()
    fill(params, weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < params.flat.nbytes / 4
    np.testing.assert_allclose(params.wcls[: 2**13], 1, rtol=1e-3)
    assert not params.wcls[2**13 :].any()


# The table that llama.cpp wrote twice

TABLE = np.random.default_rng(0).standard_normal((5, 256), np.float32)
# These numbers in types that the library cannot make, from ggml_quantize_chunk of ggml 0.25.3.
BLOCKS = np.load(Path(__file__).parents[1] / "golden" / "ggml_blocks.npz")


def stored(numbers, kind):
    """Numbers in a type, as `forge` takes them."""
    if kind not in BLOCKS:
        return library.quantize(numbers, Type[kind]), Type[kind]
    assert numbers is TABLE
    return BLOCKS[kind], Type[kind]


def forge_twice(path, table, copy):
    """A GPT-2's file that has a classifier besides the table."""
    tensors = {"token_embd.weight": table, "output.weight": copy}
    return forge(path, tensors=tensors, architecture="gpt2")


# What llama-quantize makes of the two, and what the converter itself wrote.
BOTH = [
    *(("F32", "F32"), ("F16", "F16"), ("BF16", "BF16"), ("F16", "F32"), ("F32", "BF16")),
    *(("Q8_0", "Q8_0"), ("Q6_K", "Q6_K"), ("Q5_K", "Q6_K"), ("Q4_K", "Q6_K"), ("Q3_K", "Q6_K")),
    *(("Q2_K", "Q6_K"), ("IQ4_XS", "Q6_K"), ("Q4_0", "Q6_K"), ("Q5_1", "Q8_0"), ("F16", "Q6_K")),
]


@pytest.mark.parametrize(("first", "second"), BOTH)
def test_a_copy_of_the_table_is_the_table(path, first, second):
    model = forge_twice(path, stored(TABLE, first), stored(TABLE, second))
    weights = read(path)
    assert weights.tensors.keys() == model.tensors.keys()
    expected = library.dequantize(*stored(TABLE, first))
    np.testing.assert_array_equal(weights.tensors["wte"][0], expected)


def different(how):
    """The table with one number, one row or all of them not as they were."""
    other = TABLE.copy()
    if how == "number":
        other[4, 255] = np.nextafter(other[4, 255], 1)
    elif how == "row":
        other[3] = TABLE[2]
    elif how == "scale":
        other *= 1.5
    else:
        other = np.random.default_rng(1).standard_normal(TABLE.shape, np.float32)
    return other


@pytest.mark.parametrize(
    ("table", "copy", "how"),
    [
        ("F32", "F32", "number"),
        *((kind, "F16", how) for kind in ("F32", "BF16") for how in ("row", "scale")),
        *((kind, "Q8_0", "scale") for kind in ("Q6_K", "Q5_K", "Q4_K")),
        *((kind, "Q8_0", "row") for kind in ("Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "F16")),
        *((kind, "Q4_0", "all") for kind in ("Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_XS")),
    ],
)
def test_a_classifier_that_is_another_table_is_refused(path, table, copy, how):
    forge_twice(path, stored(TABLE, table), stored(different(how), copy))
    sentence = r"model\.gguf has a classifier output\.weight that is not the embedding's table"
    with pytest.raises(FormatError, match=sentence):
        read(path)


def test_a_classifier_of_another_shape_is_refused(path):
    for other in (TABLE[:4], np.vstack([TABLE, TABLE[:1]]), TABLE[:, :128], TABLE[0]):
        forge_twice(path, (TABLE, Type.F32), (other, Type.F32))
        with pytest.raises(FormatError, match="is not the embedding's table"):
            read(path)


@pytest.mark.parametrize("kind", ["F16", "Q4_0"])
def test_tables_are_compared_some_rows_at_a_time(path, monkeypatch, kind):
    table = np.resize(TABLE, (2**12, 256))
    forge_twice(path, stored(table, kind), stored(table, kind))
    read(path)  # imports are not to be counted
    monkeypatch.setattr(gguf_tensors, "BLOCK", 2**14)
    monkeypatch.setattr(gguf_header, "MAX_HEADER_BYTES", 2**14)
    tracemalloc.start()
    read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < table.nbytes / 4


def test_a_llama_is_tied_only_if_it_has_no_classifier(path):
    model = llama(num_layers=2)
    table = model.tensors["wte"][0], Type.F32
    forge(path, tensors={"token_embd.weight": table, "output.weight": table})
    assert read(path).config["tied"] is False
