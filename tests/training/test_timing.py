"""A profile accounts for all of a step's time and all of its products, and leaves no trace."""

import re
import sys

import numpy as np
import pytest

from adam import AdamW
from layers import attention
from models.gpt2 import GPT2, GPT2Config
from models.llama2 import Llama2, Llama2Config
from training.timing import Profile

MODELS = {
    GPT2: GPT2Config(seq_len=32, vocab_size=70, num_layers=2, num_heads=2, channels=32),
    Llama2: Llama2Config(32, None, 2, num_heads=2, vocab_size=70, seq_len=32, tied=False),
}


@pytest.mark.parametrize("Model", MODELS)
def test_every_call_and_every_product_is_counted(monkeypatch, Model):
    monkeypatch.setattr(attention, "QUERIES", 1)  # so that nothing masked is computed
    config, B, T = MODELS[Model], 4, 16
    model = Model(config, B, T)
    optimizer = AdamW(model.params, model.grads)
    tokens, targets = np.random.default_rng(0).integers(0, 70, (2, B, T))
    module = sys.modules[Model.__module__]
    before = np.matmul, dict(vars(module)), optimizer.step
    steps = 0

    def take_step():
        nonlocal steps
        steps += 1
        loss = model.forward(tokens, targets)
        model.zero_grad()
        model.backward()
        optimizer.step()
        return loss

    profile = Profile(model, optimizer, take_step, count=1)
    assert steps == 2
    assert (np.matmul, dict(vars(module)), optimizer.step) == before

    figures = profile.figures
    layers = {name.split()[0] for name, kind in figures if kind in ("forward", "backward")}
    assert layers == {name.rsplit("_", 1)[0] for name in vars(module) if name.endswith("_forward")}
    assert figures["AdamW", "update"] > 0
    diagonal = 7 * config.num_layers * B * T * 32  # half of T (T + 1) is this more
    assert figures["step", "operations"] == config.step_flops(B, T) + diagonal
    # A parameter tells linear layers apart; each has both directions.
    for name in ("attprojw", "fcw") if Model is GPT2 else ("wo", "w2"):
        assert figures[f"linear {name}", "forward"] > 0
        assert figures[f"linear {name}", "backward"] > figures[f"linear {name}", "products"] / 10

    lines = profile.table(peak=100).splitlines()
    shares = [float(re.findall(r"([\d.]+)%", line)[0]) for line in lines[1:-2]]
    assert sum(shares) == pytest.approx(100, abs=1)  # each is rounded
    assert lines[-2].startswith("step ")
    assert "100.0%" in lines[-2]
