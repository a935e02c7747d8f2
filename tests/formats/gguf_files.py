"""Small models and their GGUF files, for the tests of that format."""

from functools import partial

import gguf as library
import numpy as np
import pytest

from formats.gguf import TENSORS, write
from formats.tokenizer_files import load_tokenizer
from formats.weights import Parts, Weights
from models.gpt2 import GPT2Config
from models.llama2 import Llama2Config
from models.model import unpadded_shapes
from tokenizer import BYTE_PIECES, SPECIAL_PIECES, LlamaTokenizer, train_bpe

Type = library.GGMLQuantizationType

TEXT = "it's a naïve 😀 test,  it's 12 tests\n"
BYTES = load_tokenizer("bytes")
TRAINED = train_bpe(TEXT * 2, 9)
TEXTS = [" ", "a", "b", " a", "ab", " ab", "é", "  "]
PIECES = [*SPECIAL_PIECES, *BYTE_PIECES, *map(str.encode, TEXTS)]
LLAMA = LlamaTokenizer(PIECES, [0.0] * 259 + [-1.5 * place for place in range(len(TEXTS))])
TOKENIZERS = pytest.mark.parametrize(
    "tokenizer", [BYTES, TRAINED, LLAMA], ids=["bytes", "trained", "llama"]
)

# No two of the numbers are equal, so that none can stand in another's place unnoticed.
GPT2 = {"seq_len": 7, "vocab_size": 257, "num_layers": 2, "num_heads": 3, "channels": 12}
LLAMA2 = {
    "dim": 32,
    "hidden_dim": 64,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "vocab_size": 267,
    "seq_len": 9,
    "norm_eps": 1e-6,
    "rope_theta": 500000.0,
    "tied": False,
}


def gpt2(tokenizer=BYTES, **changes):
    config = GPT2 | {"vocab_size": tokenizer.vocab_size} | changes
    return weights_of("gpt2", config, unpadded_shapes(GPT2Config(**config)), tokenizer)


def llama(tokenizer=LLAMA, **changes):
    config = LLAMA2 | {"vocab_size": tokenizer.vocab_size} | changes
    shapes = Llama2Config(**config).param_shapes()
    return weights_of("llama2", config, shapes, tokenizer)


def weights_of(kind, config, shapes, tokenizer):
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    parts = {name: Parts.of(name, tensor) for name, tensor in tensors.items()}
    return Weights("", kind, config, parts, tokenizer)


ALL_MODELS = pytest.mark.parametrize(
    "model",
    [gpt2, llama, partial(llama, tied=True)],
    ids=["gpt2", "llama", "tied"],
)


def assert_same(weights, expected):
    assert weights.config == expected.config
    assert weights.tensors.keys() == expected.tensors.keys()
    for name, parts in weights.tensors.items():
        assert parts.shape == expected.tensors[name].shape
        for part, other in zip(parts, expected.tensors[name], strict=True):
            assert part.dtype == parts.dtype
            np.testing.assert_array_equal(part, other)


def fields_of(path):
    """What the library finds in a file, but for how many keys and tensors there are."""
    fields = library.GGUFReader(path).fields
    return {key: fields[key].contents() for key in fields if not key.startswith("GGUF.")}


FLOATING = np.ones((32, 32), np.float32)


FORGED = {
    "gpt2": {
        "gpt2.context_length": 7,
        "gpt2.block_count": 2,
        "gpt2.attention.head_count": 4,
        "gpt2.embedding_length": 256,
    },
    "llama": {
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 64,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.context_length": 9,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.rope.freq_base": 500000.0,
    },
}


def forge(path, keys=None, tensors=None, architecture="llama"):
    """A model's file with other keys or tensors, as (array, type); None leaves one out."""
    llamas = architecture == "llama"
    model = llama(num_layers=2) if llamas else gpt2(channels=256, num_heads=4)
    stored = {
        TENSORS[architecture][name].format(layer): (part, Type.F32)
        for name, parts in model.tensors.items()
        for layer, part in enumerate(parts)
    } | (tensors or {})
    numbers = {"general.architecture": architecture, **FORGED[architecture]}
    writer = library.GGUFWriter(path, architecture)
    writer.kv_data[0].clear()
    for key, value in (numbers | (keys or {})).items():
        if isinstance(value, library.GGUFValue):
            writer.add_key_value(key, *vars(value).values())
        elif value is not None:
            kind = library.GGUFValueType.get_type(value)
            number = kind == library.GGUFValueType.INT32
            writer.add_key_value(key, value, library.GGUFValueType.UINT32 if number else kind)
    for name, value in stored.items():
        if value is not None:
            array, kind = value
            writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def quantised(kind, rows, columns=256):
    """Random blocks of a type, (rows, bytes)."""
    block, size = library.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (rows, columns // block * size), np.uint8)


def forge_tokenizer(path, tokenizer, **changes):
    """A file with a tokenizer that is changed here and there; None leaves something out."""
    write(path, llama(tokenizer))
    keys = {key: value for key, value in fields_of(path).items() if key.startswith("tokenizer")}
    keys |= {f"tokenizer.ggml.{name}": change for name, change in changes.items()}
    embedding = np.zeros((tokenizer.vocab_size, 32), np.float32), Type.F32
    forge(path, keys, {"token_embd.weight": embedding})
