"""A batch that threads share: the loss, gradients and refusals of one that they do not."""

import math
import threading

import numpy as np
import pytest

from errors import UserError
from layers import tiles
from layers.gelu import gelu_forward
from models import gemma3, gpt2, llama2, parts
from models.model import RECOMPUTE

CONFIGS = [
    (gpt2.GPT2, gpt2.SMALL[0]),
    (llama2.Llama2, llama2.SMALL[0]),
    (gemma3.Gemma3, gemma3.SMALL[0]),
]


@pytest.fixture
def threads(monkeypatch):
    """Sets the number of threads; and models are parted however many parameters they have."""
    tiles._helpers.cache_clear()
    monkeypatch.setattr(parts, "MOST_GRADS", math.inf)
    yield lambda count: monkeypatch.setattr(tiles, "_limit_blas", lambda: (count, False))
    tiles._helpers.cache_clear()


def batches(config, B, T):
    return np.random.default_rng(3).integers(0, config.vocab_size, (2, 2, B, T))


def train(model, T):
    """Two batches, with gradients that add up: the losses and the gradients."""
    losses = []
    model.zero_grad()
    for tokens, targets in batches(model.config, model.batch_size, T):
        losses.append(model.forward(tokens, targets))
        model.backward(0.5)
    return losses, model.grads.flat.copy()


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize(("kind", "config"), CONFIGS)
def test_parts_have_the_loss_and_the_gradients_of_the_whole(kind, config, recompute, threads):
    for T in (config.seq_len, config.seq_len - 1):
        model = kind(config, 6, dtype=np.float64, recompute=recompute)
        threads(1)
        whole_losses, whole = train(model, T)
        assert not model.parts
        threads(3)
        losses, grads = train(model, T)
        assert [part.first_row for part in model.parts] == [0, 2 * T, 4 * T]
        assert np.allclose(losses, whole_losses, rtol=1e-14)
        assert np.allclose(grads, whole, rtol=1e-9, atol=1e-14)
        again = train(model, T)
        assert again[0] == losses
        assert np.array_equal(again[1], grads)


def test_parts_and_their_gradients_are_made_once(threads):
    threads(2)
    model = gpt2.GPT2(gpt2.SMALL[0], 4)
    train(model, 6)
    shared, more_grads = list(model.parts), list(model.more_grads)
    train(model, 6)
    assert all(map(lambda a, b: a is b, model.parts + model.more_grads, shared + more_grads))


@pytest.mark.parametrize("B", [1, 3])
def test_sequences_that_cannot_be_shared_evenly_are_not(B, threads):
    threads(2)
    model = gpt2.GPT2(gpt2.SMALL[0], 4)
    (tokens, targets), _ = batches(model.config, B, 6)
    model.forward(tokens, targets)
    assert not model.parts


def test_a_model_of_many_parameters_is_not_parted(threads, monkeypatch):
    threads(2)
    monkeypatch.setattr(parts, "MOST_GRADS", 0.25)
    model = gpt2.GPT2(gpt2.SMALL[0], 2)
    assert model.params.flat.size > model.acts.flat.size / 4
    train(model, 6)
    assert not model.parts


def test_logits_that_all_rows_share_are_not_parted(threads, monkeypatch):
    threads(2)
    monkeypatch.setattr("layers.classifier.LOGITS", 11 * 5)
    model = gpt2.GPT2(gpt2.SMALL[0], 2)
    train(model, 6)
    assert not model.parts


def test_sampling_between_the_passes_uses_the_activations_up(threads):
    threads(2)
    model = gpt2.GPT2(gpt2.SMALL[0], 2)
    (tokens, targets), _ = batches(model.config, 2, 6)
    model.forward(tokens, targets)
    model.forward(tokens[:1])
    with pytest.raises(UserError, match="backward needs a forward pass"):
        model.backward()


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_what_a_part_raises_reaches_the_caller_and_the_next_batch_is_computed(
    where, threads, monkeypatch
):
    threads(2)
    model = gpt2.GPT2(gpt2.SMALL[0], 2)
    (tokens, targets), _ = batches(model.config, 2, 6)
    expected = model.forward(tokens, targets)
    meeting, here = threading.Barrier(2), threading.get_ident()

    def fails(out, x):
        meeting.wait(10)  # both threads have a part
        if (threading.get_ident() == here) == (where == "here"):
            meeting.abort()
            raise KeyboardInterrupt
        gelu_forward(out, x)

    with monkeypatch.context() as patched:
        patched.setattr(gpt2, "gelu_forward", fails)
        with pytest.raises((KeyboardInterrupt, threading.BrokenBarrierError)):
            model.forward(tokens, targets)
    with pytest.raises(UserError, match="backward needs a forward pass"):
        model.backward()
    assert model.forward(tokens, targets) == expected
    assert tiles.num_threads() == 2  # nobody is left alone
    model.backward()
