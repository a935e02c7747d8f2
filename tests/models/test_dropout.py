"""What a model drops, where, and that its backward pass drops the same."""

import sys

import numpy as np
import pytest
from tiny import B, batch, gradients

from gradcheck import check_model
from models import FAMILIES
from models.model import Dropout


@pytest.mark.parametrize("name", ["gpt2", "llama2", "qwen3", "gemma3"])
def test_gradients_of_what_is_kept(name):
    family = FAMILIES[name]
    for config in family.small:
        results = check_model(family, config, elements=12, drop=Dropout(0.3, seed=1, row=5))
        assert [result for result in results if not result.ok] == []


def test_every_branch_has_a_mask_of_its_own(config, model, monkeypatch):
    """The backward pass goes through the same places in mirrored order."""
    module, places = sys.modules[type(model).__module__], {"forward": [], "backward": []}

    def noting(layer, seen):
        return lambda *args: (seen.append(args[2:]), layer(*args))

    for direction, seen in places.items():
        name = f"dropout_{direction}"
        monkeypatch.setattr(module, name, noting(getattr(module, name), seen))
    gradients(model, *batch(config), drop=Dropout(0.2, 3, 70))
    branches = 2 * config.num_layers
    assert places["forward"] == [(0.2, 3, 70, place) for place in range(branches + 1)]
    assert places["backward"] == places["forward"][::-1]


def test_a_batch_may_be_shared_out(config, model):
    """Among ranks or micro-batches: the rows' numbers say what is dropped from each sequence."""
    tokens, targets = batch(config)
    T = tokens.shape[1]
    whole = gradients(model, tokens, targets, drop=Dropout(0.2, row=5))
    model.zero_grad()
    for b in range(B):
        one = slice(b, b + 1)
        model.forward(tokens[one], targets[one], drop=Dropout(0.2, row=5 + b * T))
        model.backward(1 / B)
    np.testing.assert_allclose(model.grads.flat, whole, rtol=0, atol=1e-13)


def test_nothing_is_dropped_unless_it_is_asked_for(config, model):
    tokens, targets = batch(config)
    expected = gradients(model, tokens, targets)
    assert (gradients(model, tokens, targets, drop=Dropout(0.2)) != expected).any()
    np.testing.assert_array_equal(gradients(model, tokens, targets), expected)
