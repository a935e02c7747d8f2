"""What PyTorch and transformers computed for tiny models, without PyTorch.

The files are written by dev/make_golden.py; tests/oracle compares with the real thing.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from adam import AdamW
from models import FAMILIES
from models.gemma3 import Gemma3Config
from models.gpt2 import GPT2Config
from models.llama2 import Llama2Config

MODELS = {family.config: family.model for family in FAMILIES.values()}
FILES = {
    "odd_heads": GPT2Config,
    "one_head": GPT2Config,
    "long": GPT2Config,
    "llama2_groups": Llama2Config,
    "llama2_long": Llama2Config,
    "llama3": Llama2Config,
    "mistral": Llama2Config,
    "qwen2": Llama2Config,
    "qwen3": Llama2Config,
    "phi3": Llama2Config,
    "phi3_short": Llama2Config,
    "gemma3": Gemma3Config,
}
# In float64 only the reference's own rounding to float32 is left.
TOLERANCE = {np.float32: 1e-4, np.float64: 1e-6}


def section(file, prefix):
    """The entries that start with `prefix`, without it."""
    return {name.removeprefix(prefix): file[name] for name in file if name.startswith(prefix)}


def model_with(weights, config, B, T, dtype):
    """A model with these weights; what pads them in GPT-2's wte must not matter."""
    model = MODELS[type(config)](config, B, T, dtype, seed=None)
    model.params.flat.fill(1e4)
    assert weights.keys() == model.params.shapes.keys()
    for name, tensor in model.params:
        tensor[: len(weights[name])] = weights[name]
    return model


def assert_grads_agree(model, expected, tolerance):
    """Every tensor, relative to its largest element; padding gets none."""
    assert expected.keys() == model.grads.shapes.keys()
    # Where the true gradient is 0 there is nothing but rounding to compare: a query's or a key's
    # if T is 1. No other tensor's are so small.
    smallest_scale = max(abs(reference).max() for reference in expected.values()) / 100
    for name, tensor in model.grads:
        reference = expected[name]
        error = abs(tensor[: len(reference)] - reference).max()
        assert error <= tolerance * max(abs(reference).max(), smallest_scale), name
        assert not tensor[len(reference) :].any()


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


def read_golden(name):
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as file:
        golden = dict(file)
    return golden | {"config": FILES[name](**json.loads(golden["config"].item()))}


@pytest.fixture(scope="module", params=FILES)
def golden(request):
    return read_golden(request.param)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def model(golden, dtype):
    weights, shape = section(golden, "param_"), golden["tokens"].shape
    return model_with(weights, golden["config"], *shape, dtype)


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
