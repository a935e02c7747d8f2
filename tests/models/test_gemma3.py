"""What is Gemma 3's own; what it shares with the others is in test_model.py."""

import math
from dataclasses import replace

import numpy as np
import pytest
from tiny import CONFIGS, batch, lively_model

from errors import UserError
from models.gemma3 import Gemma3, Gemma3Config

CONFIG = CONFIGS["gemma3"]  # layers 0 and 2 have a window of 7, layer 1 sees all


@pytest.mark.parametrize(
    ("heads", "complaint"),
    [
        ({"head_size": 5}, "head_size of 5 is odd"),
        ({"num_heads": 4, "num_kv_heads": 3}, "3 key/value heads cannot serve 4 query heads"),
    ],
)
def test_heads_that_cannot_be_are_refused(heads, complaint):
    with pytest.raises(UserError, match=complaint):
        Gemma3Config(**heads)


def test_the_last_of_each_six_layers_sees_all():
    assert Gemma3Config(num_layers=14).windows == [*[512] * 5, None, *[512] * 5, None, 512, 512]
    assert replace(CONFIG, window_pattern=1).windows == [None, None, None]


def test_scores_are_divided_by_the_root_of_the_head_size_unless_told_otherwise():
    assert Gemma3Config(head_size=6).query_scalar == 6
    assert Gemma3Config(query_scalar=168).query_scalar == 168


def test_the_embedding_is_as_large_as_a_normed_stream():
    model = lively_model(CONFIG)
    tokens, _ = batch(CONFIG)
    model.forward(tokens)
    expected = math.sqrt(40) * model.params.wte[tokens.ravel()]
    np.testing.assert_allclose(model.acts.residual[0], expected, rtol=1e-15)


@pytest.mark.parametrize(("window_pattern", "reach"), [(4, 1 + 3 * 6), (2, 24)])
def test_how_far_a_position_can_see(window_pattern, reach):
    """Three windows of 7 reach 18 positions back, the own one not counted; a layer without, all."""
    config = replace(CONFIG, window_pattern=window_pattern)
    model, (tokens, others) = lively_model(config, 1, 24), batch(config, 1, 24)
    logits = model.forward(tokens)[0, -1].copy()
    seen = []
    for s in range(24):
        changed = tokens.copy()
        changed[0, s] = others[0, s] if others[0, s] != tokens[0, s] else (others[0, s] + 1) % 131
        seen.append(abs(model.forward(changed)[0, -1] - logits).max() > 1e-12)
    assert seen == [False] * (24 - reach) + [True] * reach


@pytest.mark.parametrize("window_pattern", [1, 4])
def test_each_kind_of_layer_has_its_own_rotations(window_pattern):
    """With one kind only, the base and the scaling of the other do not matter."""
    config = replace(CONFIG, window_pattern=window_pattern)
    tokens, _ = batch(config)
    logits = lively_model(config).forward(tokens)
    scaling = {"rope_type": "linear", "factor": 8.0}
    for name, value, of_all in (
        ("rope_theta", 100.0, True),
        ("rope_scaling", scaling, True),
        ("rope_local_theta", 100.0, False),
    ):
        others = lively_model(replace(config, **{name: value})).forward(tokens)
        assert np.array_equal(others, logits) == (of_all != (window_pattern == 1))


def test_logits_of_a_large_vocabulary_are_never_whole():
    """Neither in training nor where the last ones alone are asked for."""
    config = replace(CONFIG, vocab_size=262_144, dim=4, num_layers=1)
    model = Gemma3(config, batch_size=64, seq_len=8, seed=None)
    assert model.acts.logits.nbytes == 256 * 2**20
    logits = model.forward(np.zeros((64, 8), int), last_only=True)
    assert np.shares_memory(logits, model.acts.logits)
