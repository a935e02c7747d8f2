"""What PyTorch and transformers computed for tiny models, without PyTorch.

The files are written by dev/make_golden.py; tests/oracle compares with the real thing.
"""

from pathlib import Path

import numpy as np
import pytest

from adam import AdamW
from gpt2 import GPT2, GPT2Config

# In float64 only the reference's own rounding to float32 is left.
TOLERANCE = {np.float32: 1e-4, np.float64: 1e-6}


def section(file, prefix):
    """The entries that start with `prefix`, without it."""
    return {name.removeprefix(prefix): file[name] for name in file if name.startswith(prefix)}


def model_with(weights, config, B, T, dtype):
    """A model with these weights, wte without padding; what pads it must not matter."""
    model = GPT2(config, B, T, dtype, seed=None)
    V = config.vocab_size
    for name, tensor in model.params:
        (tensor[:V] if name == "wte" else tensor)[:] = weights[name]
    model.params.wte[V:] = 1e4
    return model


def assert_grads_agree(model, expected, tolerance):
    """Every tensor, relative to its largest element; the padding of wte gets none."""
    V = model.config.vocab_size
    assert expected.keys() == model.grads.shapes.keys()
    for name, tensor in model.grads:
        reference = expected[name]
        error = abs((tensor[:V] if name == "wte" else tensor) - reference).max()
        assert error <= tolerance * abs(reference).max(), name
    assert not model.grads.wte[V:].any()


def train_losses(model, tokens, targets, lrs, max_norm, **options):
    """The losses of one AdamW step per learning rate, all on the same batch."""
    optimizer = AdamW(model.params, model.grads, **options)
    losses = []
    for lr in lrs:
        losses.append(model.forward(tokens, targets))
        model.zero_grad()
        model.backward()
        optimizer.step(lr, max_norm)
    return losses


@pytest.fixture(scope="module", params=["odd_heads", "one_head", "long"])
def golden(request):
    with np.load(Path(__file__).parent / "golden" / f"{request.param}.npz") as file:
        return dict(file)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def model(golden, dtype):
    config = GPT2Config(**{name: int(n) for name, n in section(golden, "config_").items()})
    return model_with(section(golden, "param_"), config, *golden["tokens"].shape, dtype)


def test_logits_and_loss(golden, dtype, model):
    logits = model.forward(golden["tokens"])
    assert logits.dtype == dtype
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=TOLERANCE[dtype])
    loss = model.forward(golden["tokens"], golden["targets"])
    assert loss == pytest.approx(float(golden["loss"]), abs=TOLERANCE[dtype])


def test_every_gradient(golden, dtype, model):
    model.forward(golden["tokens"], golden["targets"])
    model.backward()
    assert_grads_agree(model, section(golden, "grad_"), TOLERANCE[dtype])


def test_ten_steps_of_adamw(golden, dtype, model):
    losses = train_losses(
        model,
        golden["tokens"],
        golden["targets"],
        golden["lrs"].tolist(),
        float(golden["max_norm"]),
        **{name: value.tolist() for name, value in section(golden, "adamw_").items()},
    )
    np.testing.assert_allclose(losses, golden["losses"], rtol=0, atol=TOLERANCE[dtype])
