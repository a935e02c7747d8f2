"""Small models and their GGUF files, for the tests of that format."""

from dataclasses import asdict
from functools import partial

import gguf as library
import numpy as np
import pytest

from formats.gguf import ARCHITECTURES, write
from formats.state_dict import to_theirs
from formats.tokenizer_files import load_tokenizer
from formats.weights import Parts, Weights
from models import FAMILIES
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
ORIGINAL = "original_max_position_embeddings"
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR = {"rope_type": "linear", "factor": 8.0}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.05, 1.25, 2.5],
    "long_factor": [1.0, 3.5, 16.25, 64.1],
    ORIGINAL: 5,
    "attention_factor": 1.19,
}
CONFIGS = {
    "gpt2": GPT2,
    "llama2": LLAMA2,
    "llama3": LLAMA2 | {"rope_scaling": LLAMA3 | {ORIGINAL: 8192}, "head_size": 40},
    "mistral": LLAMA2 | {"window": 5, "head_size": 20},
    "qwen2": LLAMA2 | {"qkv_bias": True, "rope_scaling": LINEAR},
    "qwen3": LLAMA2 | {"qk_norm": True, "head_size": 20},
    "phi3": LLAMA2 | {"window": 6, "rope_scaling": LONGROPE},
    "gemma3": {
        **{name: LLAMA2[name] for name in [*LLAMA2][:-1]},
        **{"head_size": 20, "window": 5, "window_pattern": 2, "query_scalar": 20},
        **{"rope_local_theta": 20000.0, "rope_scaling": LINEAR},
    },
}
# What a file is read as, whose architecture several kinds share.
READ_AS = {"llama3": "llama2", "mistral": "llama2"}


def model_of(kind, tokenizer=None, **changes):
    """A model of random numbers."""
    tokenizer = tokenizer or (BYTES if kind == "gpt2" else LLAMA)
    numbers = CONFIGS[kind] | {"vocab_size": tokenizer.vocab_size} | changes
    config = FAMILIES[kind].config(**numbers)
    rng = np.random.default_rng(0)
    parts = {
        name: Parts.of(name, rng.standard_normal(shape, np.float32))
        for name, shape in unpadded_shapes(config).items()
    }
    return Weights("", kind, asdict(config), parts, tokenizer)


gpt2, llama = (partial(model_of, kind) for kind in ("gpt2", "llama2"))
MODELS = {kind: partial(model_of, kind) for kind in CONFIGS}
MODELS["tied"] = partial(llama, tied=True)
ALL_MODELS = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


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


LLAMA_KEYS = {
    "embedding_length": 32,
    "feed_forward_length": 64,
    "block_count": 2,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "context_length": 9,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 500000.0,
}
GPT2_KEYS = {
    "context_length": 7,
    "block_count": 2,
    "attention.head_count": 4,
    "embedding_length": 256,
}
# How llama.cpp's converter writes the numbers of `model_of`, with two layers: the keys that it has
# of a model, each behind the name of the architecture.
FORGED = {
    "gpt2": GPT2_KEYS,
    "llama": LLAMA_KEYS,
    "qwen2": LLAMA_KEYS | {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    "qwen3": LLAMA_KEYS | {"attention.key_length": 20, "attention.value_length": 20},
    "phi3": LLAMA_KEYS
    | {
        "rope.dimension_count": 8,
        "rope.scaling.original_context_length": 5,
        "rope.scaling.attn_factor": 1.19,
        "attention.sliding_window": 6,
    },
    "gemma3": LLAMA_KEYS
    | {
        "attention.key_length": 20,
        "attention.value_length": 20,
        "rope.freq_base_swa": 20000.0,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
        "attention.sliding_window": 5,
        "attention.sliding_window_pattern": 2,
    },
}
FACTORS = {
    "phi3": {
        "rope_factors_long.weight": (np.float32(LONGROPE["long_factor"]), Type.F32),
        "rope_factors_short.weight": (np.float32(LONGROPE["short_factor"]), Type.F32),
    }
}


def forge(path, keys=None, tensors=None, architecture="llama"):
    """A model's file with other keys or tensors, as (array, type); None leaves one out."""
    kind = ARCHITECTURES[architecture].kinds[0]
    large = {"channels": 256, "num_heads": 4} if kind == "gpt2" else {}
    model = model_of(kind, num_layers=2, **large)
    stored = {
        name: (parts[0], Type.F32)
        for name, parts in to_theirs(model, ARCHITECTURES[architecture].naming).items()
    }
    stored |= FACTORS.get(architecture, {}) | (tensors or {})
    own = {f"{architecture}.{key}": value for key, value in FORGED[architecture].items()}
    numbers = {"general.architecture": architecture, **own}
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
