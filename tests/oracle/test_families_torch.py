"""Random small models of Gemma 3 and of each family that is Llama 2 with other numbers."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
torch.set_num_threads(1)

from test_golden import train_losses  # noqa: E402
from test_models_torch import TOLERANCE, assert_loss_and_gradients_agree, models  # noqa: E402
from tiny import batch  # noqa: E402

from dev import torch_models  # noqa: E402
from models.gemma3 import Gemma3Config  # noqa: E402
from models.llama2 import Llama2Config  # noqa: E402

B, T = 3, 21
ADAMW = {"betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.5, "max_norm": 0.5}


def random_config(family, seed):
    """Of `family`, whose own the numbers at the end are."""
    rng = np.random.default_rng([seed, *family.encode()])

    def count(low, high):
        return int(rng.integers(low, high))

    K, D = count(1, 4), 2 * count(1, 6)
    H, window = K * count(1, 4), count(1, T)
    either = (None, window)[count(0, 2)]
    factors, others = rng.uniform(1, 3, D // 2).tolist(), rng.uniform(1, 9, D // 2).tolist()
    longrope = {"rope_type": "longrope", "short_factor": factors, "long_factor": others}
    numbers = {
        "dim": H * D,
        "hidden_dim": count(5, 40),
        "num_layers": count(1, 4),
        "num_heads": H,
        "num_kv_heads": K,
        "vocab_size": count(30, 200),
        "seq_len": 24,
        "norm_eps": 10 ** rng.uniform(-6, -2),
        "rope_theta": 10 ** rng.uniform(1, 6),
        "tied": count(0, 2) == 0,
    }
    if family == "gemma3":
        del numbers["tied"]  # it always is
        return Gemma3Config(
            **numbers,
            head_size=2 * count(1, 6),
            rope_local_theta=10 ** rng.uniform(1, 6),
            window=window,
            window_pattern=count(1, 4),
            query_scalar=count(1, 20),
            rope_scaling=(None, {"rope_type": "linear", "factor": rng.uniform(1, 8)})[count(0, 2)],
        )
    return Llama2Config(
        **numbers
        | {
            "llama3": {
                "dim": H * count(2, 9),
                "head_size": D,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": rng.uniform(2, 32),
                    "low_freq_factor": rng.uniform(0.05, 1),
                    "high_freq_factor": rng.uniform(1.1, 4),
                    "original_max_position_embeddings": count(4, 20),
                },
            },
            "linear": {"rope_scaling": {"rope_type": "linear", "factor": rng.uniform(1, 8)}},
            "mistral": {"dim": count(3, 50), "head_size": D, "window": window},
            "qwen2": {"qkv_bias": True, "window": either},
            "qwen3": {"dim": count(3, 50), "head_size": D, "qk_norm": True, "window": either},
            # The border is below all lengths that there are here, or above: else transformers
            # changes the model on the way.
            "phi3_long": {
                "window": either,
                "rope_scaling": longrope | {"original_max_position_embeddings": 4},
            },
            "phi3_short": {
                "window": either,
                "rope_scaling": longrope
                | {"original_max_position_embeddings": 24, "attention_factor": 1.25},
            },
        }[family]
    )


FAMILIES = "llama3", "linear", "mistral", "qwen2", "qwen3", "phi3_long", "phi3_short", "gemma3"


@pytest.fixture(params=[(family, seed) for family in FAMILIES for seed in range(3)], ids=str)
def config(request):
    return random_config(*request.param)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


def their_logits(theirs, tokens):
    return torch_models.logits_of(theirs, tokens).detach().numpy()


def test_logits_loss_and_gradients(config, dtype):
    ours, theirs = models(config, B, T, dtype)
    tokens, targets = batch(config, B, T)
    expected = their_logits(theirs, tokens)
    np.testing.assert_allclose(ours.forward(tokens), expected, rtol=0, atol=TOLERANCE[dtype])
    assert_loss_and_gradients_agree(ours, theirs, tokens, targets, TOLERANCE[dtype])


def test_ten_steps_of_adamw(config):
    """In float64, as Adam takes whole steps even along gradients that are little but rounding.

    In float32, test_golden.py does the same with models that are not so wild.
    """
    ours, theirs = models(config, B, T, np.float64)
    tokens, targets = batch(config, B, T)
    lrs = [0.02, 0.03, 0.01, 0.005, 0.0, 0.01, 0.004, 0.003, 0.002, 0.001]
    expected = torch_models.train_losses(theirs, tokens, targets, lrs, **ADAMW)
    losses = train_losses(ours, tokens, targets, lrs, **ADAMW)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-9)
    for name, weight in torch_models.weights_of(theirs).items():
        np.testing.assert_allclose(ours.params[name], weight, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("prompt", [3, 13])
def test_token_by_token_over_the_edge_of_the_window(config, dtype, prompt):
    ours, theirs = models(config, B, T, dtype)
    tokens = batch(config, B, T)[0]
    expected = their_logits(theirs, tokens)
    logits = [ours.forward(tokens[:, :prompt]).copy()]
    logits += [ours.forward(tokens[:, t : t + 1], start=t).copy() for t in range(prompt, T)]
    result = np.concatenate(logits, axis=1)
    np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE[dtype])


def test_prompts_of_different_lengths_side_by_side(config, dtype):
    """Each has the logits that transformers has for it alone, at first and four tokens on."""
    ours, theirs = models(config, B, T, dtype)
    tokens, padding = batch(config, B, T)[0], np.array([0, 12, 5])
    alone = [
        their_logits(theirs, tokens[b : b + 1, hidden:])[0] for b, hidden in enumerate(padding)
    ]
    logits = [ours.forward(tokens[:, :17], padding=padding).copy()]
    logits += [
        ours.forward(tokens[:, t : t + 1], start=t, padding=padding).copy() for t in range(17, T)
    ]
    for result, expected, hidden in zip(
        np.concatenate(logits, axis=1), alone, padding, strict=True
    ):
        np.testing.assert_allclose(result[hidden:], expected, rtol=0, atol=TOLERANCE[dtype])


def test_beyond_the_border_and_below_it_a_phi3_is_two_models():
    """Where one grows over it, transformers changes what it has said already, and we do not."""
    long = random_config("phi3_long", 0)
    border = dict(long.rope_scaling) | {"original_max_position_embeddings": 16}
    config = replace(long, rope_scaling=border, window=None)
    tokens = batch(config, 1, T)[0]
    ours, theirs = models(config, 1, T, np.float64)
    made_for_16, _ = models(config, 1, 16, np.float64)
    below, beyond = their_logits(theirs, tokens[:, :16]), their_logits(theirs, tokens[:, :17])
    assert abs(beyond[:, :16] - below)[:, 1:].max(axis=-1).min() > 1e-4
    np.testing.assert_allclose(made_for_16.forward(tokens[:, :16]), below, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.forward(tokens[:, :17]), beyond, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.forward(tokens[:, :16]), beyond[:, :16], rtol=0, atol=1e-9)
