"""Dropout against PyTorch, whose models are given our masks."""

import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
torch.set_num_threads(1)

from test_models_torch import CASES, assert_grads_agree, models  # noqa: E402
from tiny import batch  # noqa: E402

from dev import torch_models  # noqa: E402
from layers.dropout import dropout_forward  # noqa: E402
from models.model import Dropout  # noqa: E402

# The modules whose outputs are dropped from: at the front, and in every layer, in that order.
# nanoGPT drops from the same, and in transformers' GPT-2 they are followed by an nn.Dropout.
PLACES = {
    "gpt2_odd_heads": (r"drop", r"\.(\d+)\.attn\.c_proj", r"\.(\d+)\.mlp\.c_proj"),
    "llama2_groups": (r"embed_tokens", r"\.(\d+)\.self_attn\.o_proj", r"\.(\d+)\.mlp"),
    "gemma3_one_key_head": (
        r"embed_tokens",
        r"\.(\d+)\.post_attention_layernorm",
        r"\.(\d+)\.post_feedforward_layernorm",
    ),
}


def place_of(module, places):
    """The number of the place at the end of a module, or None."""
    for number, name in enumerate(places):
        if found := re.search(rf"\b{name}$", module):
            return number and 2 * int(found[1]) + number
    return None


@pytest.mark.parametrize("name", PLACES)
def test_loss_and_gradients(name):
    config, B, T = CASES[name]
    ours, theirs = models(config, B, T, np.float64)
    drop, seen = Dropout(0.3, seed=2, row=11), []

    def dropping(place):
        def hook(module, inputs, out):
            mask = np.empty((B * T, out.shape[-1]))
            dropout_forward(mask, np.ones_like(mask), *drop, place)
            seen.append(place)
            return out * torch.from_numpy(mask).view(out.shape)

        return hook

    for module_name, module in theirs.named_modules():
        if (place := place_of(module_name, PLACES[name])) is not None:
            module.register_forward_hook(dropping(place))
    tokens, targets = batch(config, B, T)
    loss = torch_models.loss_of(theirs, tokens, targets)
    loss.backward()
    assert seen == list(range(2 * config.num_layers + 1))
    assert ours.forward(tokens, targets, drop=drop) == pytest.approx(loss.item(), abs=1e-9)
    ours.backward()
    assert_grads_agree(ours, torch_models.grads_of(theirs), 1e-9)
