"""The models against transformers, in float32 and in float64.

float32 is held to 1e-4 and float64 to 1e-9: an error that rounding could hide in the one cannot
hide in the other.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
torch.set_num_threads(1)  # more gain nothing on models so small, and wait for each other

from test_golden import assert_grads_agree, model_with, train_losses  # noqa: E402
from tiny import batch  # noqa: E402

from dev import torch_models  # noqa: E402
from dev.torch_gpt2 import TorchGPT2  # noqa: E402
from models.gemma3 import Gemma3Config  # noqa: E402
from models.gpt2 import GPT2Config  # noqa: E402
from models.llama2 import Llama2Config  # noqa: E402

TOLERANCE = {np.float32: 1e-4, np.float64: 1e-9}

# The config; B, T. The configs' first numbers are: seq_len, vocab_size, num_layers, num_heads,
# channels; or dim, hidden_dim, num_layers, num_heads, num_kv_heads, vocab_size, seq_len.
CASES = {
    "gpt2_plain": (GPT2Config(32, 256, 2, 4, 64), 4, 32),
    "gpt2_odd_heads": (GPT2Config(16, 131, 3, 3, 15), 2, 11),
    "gpt2_one_head": (GPT2Config(16, 77, 2, 1, 24), 3, 16),
    "gpt2_one_sequence": (GPT2Config(24, 300, 2, 2, 32), 1, 24),
    "gpt2_one_token": (GPT2Config(8, 100, 2, 2, 16), 1, 1),
    "gpt2_query_blocks": (GPT2Config(256, 129, 2, 2, 16), 2, 200),
    "llama2_plain": (Llama2Config(64, 172, 2, 4, 4, 256, 32), 4, 32),
    "llama2_groups": (Llama2Config(64, 41, 2, 8, 2, 131, 16, tied=False), 2, 11),
    "llama2_one_key_head": (Llama2Config(36, 41, 3, 6, 1, 77, 16), 3, 16),
    "llama2_one_head": (Llama2Config(10, 27, 2, 1, 1, 77, 16, tied=False), 3, 16),
    "llama2_constants": (Llama2Config(24, 29, 2, 2, 1, 300, 24, 0.03, 20.0), 1, 24),
    "llama2_one_token": (Llama2Config(24, 32, 2, 2, 1, 100, 8, tied=False), 1, 1),
    "llama2_query_blocks": (Llama2Config(24, 41, 2, 4, 2, 129, 256), 2, 200),
    "gemma3_one_key_head": (
        Gemma3Config(*(36, 41, 3, 6, 1, 10, 77, 16), window=3, window_pattern=3, query_scalar=5),
        3,
        16,
    ),
    "gemma3_query_blocks": (
        Gemma3Config(*(24, 41, 3, 4, 2, 6, 129, 256), window=50, window_pattern=2),
        2,
        200,
    ),
}


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def models(config, B, T, dtype, reference=torch_models.huggingface):
    """Our model and PyTorch's with the same weights."""
    weights = torch_models.random_weights(config)
    theirs = reference(config).to(torch.from_numpy(np.empty(0, dtype)).dtype)
    torch_models.load_weights(theirs, weights)
    return model_with(weights, config, B, T, dtype), theirs


def assert_loss_and_gradients_agree(ours, theirs, tokens, targets, tolerance):
    loss = torch_models.loss_of(theirs, tokens, targets)
    loss.backward()
    assert ours.forward(tokens, targets) == pytest.approx(loss.item(), abs=tolerance)
    ours.backward()
    assert_grads_agree(ours, torch_models.grads_of(theirs), tolerance)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_loss_and_gradients(case, dtype, attention):
    config, B, T = case
    ours, theirs = models(
        config, B, T, dtype, lambda config: torch_models.huggingface(config, attention)
    )
    tokens, targets = batch(config, B, T)
    logits = torch_models.logits_of(theirs, tokens).detach().numpy()
    np.testing.assert_allclose(ours.forward(tokens), logits, rtol=0, atol=TOLERANCE[dtype])
    assert_loss_and_gradients_agree(ours, theirs, tokens, targets, TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["gpt2_odd_heads", "llama2_groups", "gemma3_one_key_head"])
def test_micro_batches_accumulate(name, dtype):
    """Two backward(0.5) on halves are PyTorch's two on halves, and its one on the whole batch."""
    config, B, T = CASES[name]
    ours, theirs = models(config, B, T, dtype)
    tokens, targets = batch(config, 2 * B, T)
    for half in slice(0, B), slice(B, 2 * B):
        ours.forward(tokens[half], targets[half])
        ours.backward(dloss=0.5)
        (0.5 * torch_models.loss_of(theirs, tokens[half], targets[half])).backward()
    assert_grads_agree(ours, torch_models.grads_of(theirs), TOLERANCE[dtype])
    theirs.zero_grad()
    torch_models.loss_of(theirs, tokens, targets).backward()
    assert_grads_agree(ours, torch_models.grads_of(theirs), TOLERANCE[dtype])


def test_ten_steps_of_adamw(case, dtype):
    """Losses, with clipping and a rate that changes; in float64 the weights afterwards, too."""
    config, B, T = case
    ours, theirs = models(config, B, T, dtype)
    training = {
        "lrs": [0.02, 0.03, 0.01, 0.005, 0.0, 0.01, 0.004, 0.003, 0.002, 0.001],
        "max_norm": 0.5,
        "betas": (0.9, 0.95),
        "eps": 1e-6,
        "weight_decay": 0.5,
    }
    tokens, targets = batch(config, B, T)
    expected = torch_models.train_losses(theirs, tokens, targets, **training)
    losses = train_losses(ours, tokens, targets, **training)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=TOLERANCE[dtype])
    if dtype is np.float64:
        for name, weight in torch_models.weights_of(theirs).items():
            tensor = ours.params[name][: len(weight)]
            np.testing.assert_allclose(tensor, weight, rtol=0, atol=1e-9, err_msg=name)


def test_the_benchmark_s_model_is_the_same_function(dtype):
    config, B, T = CASES["gpt2_odd_heads"]
    ours, theirs = models(config, B, T, dtype, TorchGPT2)
    assert_loss_and_gradients_agree(ours, theirs, *batch(config, B, T), TOLERANCE[dtype])
