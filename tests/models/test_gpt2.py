"""What is GPT-2's own; what it shares with Llama 2 is in test_model.py."""

import numpy as np
import pytest
from tiny import CONFIGS, batch, gradients, lively_model

from errors import UserError
from models.gpt2 import GPT2Config


def test_heads_must_divide_channels():
    with pytest.raises(UserError, match="5 heads do not divide 768 channels"):
        GPT2Config(num_heads=5)


@pytest.mark.parametrize(
    ("vocab_size", "padded"), [(1, 128), (128, 128), (129, 256), (50257, 50304)]
)
def test_the_vocabulary_is_padded_to_128(vocab_size, padded):
    assert GPT2Config(vocab_size=vocab_size).padded_vocab_size == padded


def test_padding_rows_of_wte_do_nothing():
    config = CONFIGS["gpt2"]
    model = lively_model(config)
    tokens, targets = batch(config)
    expected = gradients(model, tokens, targets)
    model.params.wte[config.vocab_size :] = 1e6
    np.testing.assert_array_equal(gradients(model, tokens, targets), expected)
    assert not model.grads.wte[config.vocab_size :].any()
