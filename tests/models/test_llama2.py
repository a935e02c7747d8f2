"""What is Llama 2's own; what it shares with GPT-2 is in test_model.py."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import CONFIGS, batch, gradients, lively_model

from errors import UserError
from models.llama2 import Llama2Config


@pytest.mark.parametrize(
    ("dim", "hidden_dim"), [(288, 768), (512, 1376), (768, 2048), (192, 512), (60, 160), (2, 32)]
)
def test_the_mlp_costs_what_gpt2_s_does(dim, hidden_dim):
    """Where 8/3 dim is no multiple of 32, a little more. The first three are llama2.c's models."""
    assert Llama2Config(dim, num_heads=1).hidden_dim == hidden_dim
    assert Llama2Config(dim, 7, num_heads=1).hidden_dim == 7


def test_every_query_head_has_its_own_keys_unless_told_otherwise():
    assert Llama2Config(num_heads=16).num_kv_heads == 16


@pytest.mark.parametrize("num_heads", [5, 64])
def test_heads_have_an_even_size(num_heads):
    """64 heads do divide 192 channels, but into 3 each, which cannot be paired."""
    with pytest.raises(UserError, match=f"{num_heads} heads do not divide 192 channels"):
        Llama2Config(192, num_heads=num_heads)


def test_heads_of_a_size_of_their_own_need_divide_nothing():
    shapes = Llama2Config(50, num_heads=7, head_size=6).param_shapes()
    assert shapes["wq"][1:] == (42, 50)
    assert shapes["wo"][1:] == (50, 42)
    with pytest.raises(UserError, match="a head_size of 5 is odd, and heads are rotated in pairs"):
        Llama2Config(50, num_heads=7, head_size=5)


@pytest.mark.parametrize("num_kv_heads", [3, 5, 16])
def test_key_heads_divide_query_heads(num_kv_heads):
    with pytest.raises(UserError, match=f"{num_kv_heads} key/value heads cannot serve 8 query"):
        Llama2Config(64, num_heads=8, num_kv_heads=num_kv_heads)


def test_a_query_sees_its_window_and_no_further():
    """Of one layer: what comes through another is a window further back."""
    config = replace(CONFIGS["llama2"], num_layers=1, window=4)
    tokens, others = batch(config)
    logits = lively_model(config).forward(tokens).copy()
    tokens[:, 5] = others[:, 5]
    changed = abs(lively_model(config).forward(tokens) - logits).max(axis=(0, 2)) > 1e-6
    assert changed.nonzero()[0].tolist() == [5, 6, 7, 8]


def test_a_window_as_wide_as_the_text_is_none():
    config = CONFIGS["llama2"]
    tokens, targets = batch(config)
    expected = gradients(lively_model(config), tokens, targets)
    wide = gradients(lively_model(replace(config, window=16)), tokens, targets)
    np.testing.assert_array_equal(wide, expected)


def test_a_tied_classifier_is_the_embedding_s_table():
    """The same numbers as with a copy of the table, and the table's gradient is the sum of both."""
    tied = lively_model(CONFIGS["llama2_tied"])
    untied = lively_model(replace(CONFIGS["llama2_tied"], tied=False))
    for name, tensor in tied.params:
        untied.params[name] = tensor
    untied.params.wcls = tied.params.wte
    tokens, targets = batch(tied.config)
    np.testing.assert_array_equal(tied.forward(tokens), untied.forward(tokens))
    for model in tied, untied:
        gradients(model, tokens, targets)
    expected = dict(untied.grads)
    expected["wte"] += expected.pop("wcls")
    for name, gradient in tied.grads:
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-14, err_msg=name)
