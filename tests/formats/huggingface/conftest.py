"""A folder to write to, and pickles without torch."""

import pytest

from formats import torch_pickle


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "model"


@pytest.fixture
def pickles(monkeypatch):
    """What files of torch.save have in them, by name."""
    contents = {}
    monkeypatch.setattr(torch_pickle, "load", lambda path: contents[path.name])
    return contents
