"""A profile accounts for all of a step's time and all of its products, and leaves no trace.

And the peak that speeds are compared with is one.
"""

import re
import sys

import numpy as np
import pytest

from adam import AdamW
from layers import attention
from models.gpt2 import GPT2, GPT2Config
from models.llama2 import Llama2, Llama2Config
from training import timing
from training.timing import Peak, Profile

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

    monkeypatch.setattr(timing, "matmul_peak", lambda: 1e-9)  # a machine that is busy to the brim
    lines = profile.table(Peak()).splitlines()
    shares = [float(re.findall(r"([\d.]+)%", line)[0]) for line in lines[1:-2]]
    assert sum(shares) == pytest.approx(100, abs=1)  # each is rounded
    assert lines[-2].startswith("step ")
    assert "100.0%" in lines[-2]
    assert "(100% of peak, measured again: " in lines[-1]


def test_a_step_that_beats_the_peak_has_it_measured_again(monkeypatch):
    measured = iter([100.0, 180.0, 170.0])
    monkeypatch.setattr(timing, "matmul_peak", lambda: next(measured))
    peak = Peak()
    assert peak.share(50) == "50% of peak"
    assert peak.share(100) == "100% of peak"
    assert peak.share(144) == "80% of peak, measured again"
    assert peak.share(144) == "80% of peak"
    assert peak.share(200) == "100% of peak, measured again"  # the machine is busy still
    assert peak.share(150) == "75% of peak"
    assert not list(measured)


def test_the_peak_of_all_ranks_is_measured_by_all_together(monkeypatch):
    """Who is below it himself measures, too, where another rank is above."""
    measured = iter([50.0, 80.0])
    monkeypatch.setattr(timing, "matmul_peak", lambda: next(measured))
    others = iter([50.0, False, True, 90.0])
    peak = Peak(total=lambda value: value + next(others))
    assert peak.speed == 100
    assert peak.share(85) == "85% of peak"
    assert peak.share(85) == "50% of peak, measured again"
    assert not list(others)


def test_no_step_is_faster_than_the_peak(program, small, monkeypatch):
    monkeypatch.setattr(timing, "matmul_peak", lambda: 1e-9)
    status, out, _ = program("gpt2_train", *small, "--steps", 8)
    assert status == 0
    shares = [int(share) for share in re.findall(r"(\d+)% of peak", out)]
    assert len(shares) == 8
    assert max(shares) == 100
    assert 1 <= out.count("measured again") < 8
