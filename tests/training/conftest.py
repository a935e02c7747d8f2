"""Small presets, and the arguments of a small run."""

import pytest

import train
from models import gpt2, llama2
from runs import LLAMA_NANO, NANO, SMALL
from training import timing


@pytest.fixture(autouse=True)
def nano(monkeypatch):
    monkeypatch.setitem(gpt2.PRESETS, "nano", NANO)
    monkeypatch.setitem(llama2.PRESETS, "nano", LLAMA_NANO)


@pytest.fixture
def small(corpus, tmp_path):
    """The arguments of a small run into tmp_path/run."""
    return [*SMALL, "--data", corpus, "--out", tmp_path / "run"]


@pytest.fixture
def quick(monkeypatch):
    """Leaves out what takes longer than all else in a small run."""
    monkeypatch.setattr(timing, "matmul_peak", lambda: 1.0)
    monkeypatch.setattr(train, "draw", lambda _: None)
