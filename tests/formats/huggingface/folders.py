"""Small models, and their folders as Hugging Face has them."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from formats.weights import Parts, Weights
from models import FAMILIES
from models.gemma3 import Gemma3Config
from models.gpt2 import GPT2Config
from models.llama2 import Llama2Config

# No two of the numbers are equal, so that none can stand in another's place unnoticed.
GPT2 = GPT2Config(seq_len=7, vocab_size=11, num_layers=2, num_heads=3, channels=12)
LLAMA = {"dim": 36, "hidden_dim": 40, "num_layers": 3, "num_heads": 6, "num_kv_heads": 2}
LLAMA |= {"vocab_size": 20, "seq_len": 5, "norm_eps": 1e-6, "rope_theta": 500.0}
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.5}
LLAMA3_ROPE |= {"high_freq_factor": 4.5, "original_max_position_embeddings": 3}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.5],
    "long_factor": [2.0, 4.0, 8.0],
}
LONGROPE |= {"original_max_position_embeddings": 4, "attention_factor": 1.25}
MODELS = {
    "gpt2": GPT2,
    "tied": Llama2Config(**LLAMA, tied=True),
    "untied": Llama2Config(**LLAMA, tied=False),
    "llama3": Llama2Config(**LLAMA, head_size=14, rope_scaling=LLAMA3_ROPE),
    "mistral": Llama2Config(**LLAMA, tied=False, window=4),
    "qwen2": Llama2Config(**LLAMA, qkv_bias=True),
    "qwen3": Llama2Config(**LLAMA, tied=False, head_size=14, qk_norm=True),
    "phi3": Llama2Config(**LLAMA, tied=False, window=4, rope_scaling=LONGROPE),
    "gemma3": Gemma3Config(
        **LLAMA, head_size=14, rope_local_theta=50.0, window=4, window_pattern=2, query_scalar=9
    ),
}
KINDS = {"tied": "llama2", "untied": "llama2", "llama3": "llama2"}  # the others are their names
FLOATS = {"float32": "<f4", "float16": "<f2", "bfloat16": ml_dtypes.bfloat16}
NORMS = {"rms1w", "postrms1w", "rms2w", "postrms2w", "qnormw", "knormw", "rmsfw"}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)


def model(name, dtype="float32", tokenizer=None):
    """Weights of a model, and the same tensors as arrays."""
    config, rng = MODELS[name], np.random.default_rng(0)
    shapes = config.param_shapes() | {"wte": (config.vocab_size, config.param_shapes()["wte"][1])}
    tensors = {
        name: rng.standard_normal(shape, np.float32).astype(FLOATS[dtype])
        for name, shape in shapes.items()
    }
    for norm in NORMS if name == "gemma3" else ():  # to which 1 is added, and so in float32
        tensors[norm] = (1 + tensors[norm] / 8).astype(FLOATS[dtype]).astype(np.float32)
    parts = {name: Parts.of(name, tensor) for name, tensor in tensors.items()}
    return Weights("a test", KINDS.get(name, name), dict(vars(config)), parts, tokenizer), tensors


def made(weights, **changes):
    """The config that is made of the numbers of a file, which may leave out what follows."""
    return FAMILIES[weights.kind].config(**weights.config | changes)


def arrays(weights):
    """Every tensor whole."""
    return {
        name: np.stack(list(parts)).reshape(parts.shape) for name, parts in weights.tensors.items()
    }


def assert_same(weights, expected):
    result = arrays(weights)
    assert result.keys() == expected.keys()
    for name, tensor in expected.items():
        assert weights.tensors[name].dtype == result[name].dtype == tensor.dtype
        np.testing.assert_array_equal(result[name], tensor)


def config_of(folder):
    return json.loads((folder / "config.json").read_text("utf-8"))


def change_config(folder, **changes):
    (folder / "config.json").write_text(json.dumps(config_of(folder) | changes), "utf-8")


def change_tensors(folder, change):
    """Let `change` do something to the tensors in a folder."""
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors) or tensors, folder / "model.safetensors")
