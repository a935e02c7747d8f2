"""Muon against torch.optim.Muon."""

import inspect

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from buffers import Buffer  # noqa: E402
from muon import Muon  # noqa: E402

SHAPES = {"wq": (2, 16, 16), "ln1w": (2, 16), "w1": (2, 40, 16), "w2": (2, 16, 40)}
MATRICES = ("wq", "w1", "w2")


def in_float32(monkeypatch):
    """Take PyTorch's cast to bfloat16 out of its own code."""
    module = torch.optim._muon
    source = inspect.getsource(module._zeropower_via_newtonschulz)
    assert source.count(".bfloat16()") == 1
    names = dict(vars(module))
    exec(source.replace(".bfloat16()", ".clone()"), names)
    function = names["_zeropower_via_newtonschulz"]
    monkeypatch.setattr(module, "_zeropower_via_newtonschulz", function)


def largest_difference(adjust_lr, steps=10, lr=0.02):
    """Of any parameter after these steps, ours and PyTorch's; and the largest change of any."""
    rng = np.random.default_rng(0)
    params = Buffer(SHAPES)
    params.flat[:] = rng.standard_normal(params.flat.size)
    before, grads = params.flat.copy(), params.like()
    theirs = {name: [torch.tensor(each) for each in params[name].copy()] for name in MATRICES}
    ours = Muon(params, grads, lr=lr, weight_decay=0.1, adjust_lr=adjust_lr)
    flat = [each for name in MATRICES for each in theirs[name]]
    reference = torch.optim.Muon(flat, lr=lr, weight_decay=0.1, adjust_lr_fn=adjust_lr)
    for _ in range(steps):
        grads.flat[:] = rng.standard_normal(grads.flat.size)
        for name in MATRICES:
            for each, grad in zip(theirs[name], grads[name].copy(), strict=True):
                each.grad = torch.tensor(grad)
        ours.step()
        reference.step()
    differences = [np.abs(params[name] - np.stack(theirs[name])).max() for name in MATRICES]
    return max(differences), np.abs(params.flat - before).max()


@pytest.mark.parametrize("adjust_lr", ["original", "match_rms_adamw"])
def test_ten_steps_are_pytorchs(monkeypatch, adjust_lr):
    in_float32(monkeypatch)
    difference, change = largest_difference(adjust_lr)
    assert difference < 1e-5 < 0.01 < change


def test_bfloat16_is_a_small_part_of_an_update():
    """What its class computes as it is: the docstring says how far off that is."""
    difference, change = largest_difference("match_rms_adamw", steps=1)
    assert 1e-5 < difference < 0.05 * change
