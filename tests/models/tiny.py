"""Models so small that every number in them can be looked at, one of each kind."""

import numpy as np
from test_golden import MODELS

from models.gemma3 import Gemma3Config
from models.gpt2 import GPT2Config
from models.llama2 import Llama2Config
from models.model import NO_DROPOUT

# Sizes that differ (only there are as many layers as query heads to a key), so that none can stand
# in for another.
LLAMA2 = {"num_heads": 10, "num_kv_heads": 5, "vocab_size": 131, "seq_len": 24}
CONFIGS = {
    "gpt2": GPT2Config(seq_len=24, vocab_size=131, num_layers=2, num_heads=5, channels=30),
    "llama2": Llama2Config(40, 41, 2, **LLAMA2, tied=False),
    "llama2_tied": Llama2Config(40, 41, 2, **LLAMA2),
    # All that its descendants have.
    "llama2_descendants": Llama2Config(
        *(40, 41, 2),
        **LLAMA2,
        head_size=6,
        qkv_bias=True,
        qk_norm=True,
        window=5,
        rope_scaling={"rope_type": "linear", "factor": 2.0},
    ),
    "gemma3": Gemma3Config(
        *(40, 41, 3), **LLAMA2, head_size=6, window=7, window_pattern=2, query_scalar=10
    ),
}
B, T = 3, 16


def new_model(config, *args, **kwargs):
    return MODELS[type(config)](config, *args, **kwargs)


def lively_model(config, B=B, T=T, dtype=np.float64, **kwargs):
    """Weights ten times the initial ones, and no constants: everything has its effect."""
    model = new_model(config, B, T, dtype, **kwargs)
    rng = np.random.default_rng(3)
    for _, tensor in model.params:
        tensor += 0.2 * rng.standard_normal(tensor.shape).astype(dtype)
    return model


def batch(config, B=B, T=T, seed=1):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (2, B, T))


def gradients(model, tokens, targets, dloss=1.0, drop=NO_DROPOUT):
    """A copy of the gradients of one batch."""
    model.forward(tokens, targets, drop=drop)
    model.zero_grad()
    model.backward(dloss)
    return model.grads.flat.copy()
