"""What all models promise around their numbers; the numbers themselves are in test_golden.py."""

from pathlib import Path

import numpy as np
import pytest
from tiny import B, T, batch, gradients, lively_model, new_model

from errors import UserError

ROOT = Path(__file__).parents[2]


# --- requests that cannot be met


@pytest.mark.parametrize("seq_len", [0, -1, 25])
def test_a_model_is_not_longer_than_its_positions(config, seq_len):
    with pytest.raises(UserError, match=f"sequence length of {seq_len} is outside 1 to 24"):
        new_model(config, seq_len=seq_len)


@pytest.mark.parametrize("batch_size", [0, -2])
def test_a_batch_holds_something(config, batch_size):
    with pytest.raises(UserError, match=f"batch of {batch_size} "):
        new_model(config, batch_size)


@pytest.mark.parametrize("as_targets", [False, True])
@pytest.mark.parametrize("bad", [-1, 131, 70000])
def test_tokens_are_in_the_vocabulary(config, model, bad, as_targets):
    """131 has a row in GPT-2's wte, but it is padding."""
    tokens, targets = batch(config)
    (targets if as_targets else tokens)[1, 2] = bad
    with pytest.raises(UserError, match=f"token {bad} is outside the vocabulary, 0 to 130"):
        model.forward(tokens, targets)


@pytest.mark.parametrize(
    "tokens",
    [
        np.zeros(4, int),
        np.zeros((1, 2, 3), int),
        np.zeros((2, 0), int),
        np.zeros((0, 2), int),
        np.zeros((2, 3)),
        np.zeros((2, 3), bool),
    ],
    ids=lambda tokens: f"{tokens.dtype}{tokens.shape}",
)
def test_tokens_are_integers_of_shape_b_t(model, tokens):
    with pytest.raises(UserError, match=r"shape \(B, T\), not") as error:
        model.forward(tokens)
    assert str(tokens.shape) in str(error.value)


@pytest.mark.parametrize("shape", [(B, T - 1), (B - 1, T), (T, B), (2 * B, T // 2)])
def test_targets_have_the_tokens_shape(config, shape):
    targets = np.zeros(shape, int)
    with pytest.raises(UserError, match=rf"targets .*\({shape[0]}, {shape[1]}\)"):
        new_model(config, T, T).forward(batch(config)[0], targets)


def test_a_batch_fits_the_buffers(model):
    with pytest.raises(UserError, match="4 sequences are more than the 3"):
        model.forward(np.zeros((4, 2), int))


@pytest.mark.parametrize(
    ("start", "length", "positions"),
    [(0, 17, "0 to 16"), (16, 1, "16 to 16"), (10, 7, "10 to 16"), (-1, 2, "-1 to 0")],
)
def test_positions_fit_the_buffers(model, start, length, positions):
    """The model has 24 positions, the buffers only 16."""
    with pytest.raises(UserError, match=f"positions {positions} are outside the 16"):
        model.forward(np.zeros((1, length), int), start=start)


def test_backward_needs_a_forward_pass_with_targets(config, model):
    tokens, targets = batch(config)
    with pytest.raises(UserError, match="forward pass with targets"):
        model.backward()
    model.forward(tokens, targets)
    model.forward(tokens)
    with pytest.raises(UserError, match="forward pass with targets"):
        model.backward()
    model.forward(tokens, targets)
    model.backward()
    with pytest.raises(UserError, match="forward pass with targets"):
        model.backward()


def test_backward_needs_the_whole_sequence(config, model):
    """Of cached positions only the keys and values are left."""
    tokens, targets = batch(config)
    model.forward(tokens[:, :4])
    model.forward(tokens[:, 4:], targets[:, 4:], start=4)
    with pytest.raises(UserError, match="start"):
        model.backward()


def test_a_loss_needs_every_position(config, model):
    tokens, targets = batch(config)
    for option in {"padding": np.zeros(B, int)}, {"last_only": True}:
        with pytest.raises(UserError, match="a loss needs the logits of every position"):
            model.forward(tokens, targets, **option)


def test_a_refused_batch_changes_nothing(config, model):
    """The batch before it can still be differentiated."""
    tokens, targets = batch(config)
    expected = gradients(model, tokens, targets)
    model.forward(tokens, targets)
    others, _ = batch(config, seed=2)
    with pytest.raises(UserError, match="token 999"):
        model.forward(others, np.full_like(targets, 999))
    model.zero_grad()
    model.backward()
    np.testing.assert_array_equal(model.grads.flat, expected)


# --- forward


@pytest.mark.parametrize("sequences", [1, 2, B])
@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize("prompt", [1, 7])
def test_cached_sampling_gives_the_full_forward_s_logits(config, model, sequences, chunk, prompt):
    tokens = batch(config)[0][:sequences]
    full = model.forward(tokens).copy()
    model.acts.flat.fill(np.nan)  # nothing is left of the full pass
    logits = [model.forward(tokens[:, :prompt]).copy()]
    for start in range(prompt, T, chunk):
        logits.append(model.forward(tokens[:, start : start + chunk], start=start).copy())
    np.testing.assert_allclose(np.concatenate(logits, axis=1), full, rtol=0, atol=1e-12)


def test_cached_sampling_in_float32(config):
    model = lively_model(config, dtype=np.float32)
    tokens = batch(config)[0]
    full = model.forward(tokens).copy()
    model.forward(tokens[:, :5])
    for t in range(5, T):
        logits = model.forward(tokens[:, t : t + 1], start=t)
        np.testing.assert_allclose(logits[:, 0], full[:, t], rtol=0, atol=1e-5)


def test_a_token_can_be_taken_back(config, model):
    """The cache is positions, not history: starting earlier overwrites."""
    tokens, others = batch(config)
    expected = model.forward(tokens)[:, 7].copy()
    model.forward(others)
    model.forward(tokens[:, :5])
    model.forward(others[:, 5:9], start=5)
    model.forward(tokens[:, 5:7], start=5)
    np.testing.assert_allclose(
        model.forward(tokens[:, 7:8], start=7)[:, 0], expected, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_sequences_of_different_lengths_share_a_batch(config, dtype, tolerance):
    """Each gets the logits it has alone, from the prompt and then token by token."""
    model, alone = lively_model(config, dtype=dtype), lively_model(config, 1, dtype=dtype)
    tokens = batch(config)[0]  # what is before a sequence is any tokens
    padding, prompt = np.array([4, 0, 9]), 10
    expected = np.full((B, T, config.vocab_size), np.nan)
    for b, hidden in enumerate(padding):
        expected[b, hidden:] = alone.forward(tokens[b : b + 1, hidden:])[0]

    logits = model.forward(tokens[:, :prompt], padding=padding)
    for b, hidden in enumerate(padding):
        np.testing.assert_allclose(
            logits[b, hidden:], expected[b, hidden:prompt], rtol=0, atol=tolerance
        )
    for t in range(prompt, T):
        logits = model.forward(tokens[:, t : t + 1], start=t, padding=padding)
        np.testing.assert_allclose(logits[:, 0], expected[:, t], rtol=0, atol=tolerance)


@pytest.mark.parametrize("start", [0, 5])
def test_only_the_last_logits(config, model, start):
    tokens = batch(config, B - 1)[0]
    expected = model.forward(tokens)[:, -1:].copy()
    model.forward(tokens[:, :start] if start else tokens)
    model.acts.logits.fill(np.nan)
    logits = model.forward(tokens[:, start:], start=start, last_only=True)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)
    assert np.isfinite(model.acts.logits).all(axis=1).sum() == B - 1


def test_a_position_sees_no_later_token(config, model):
    tokens, others = batch(config)
    mixed = np.concatenate([tokens[:, :9], others[:, 9:]], axis=1)
    logits = model.forward(tokens).copy()
    np.testing.assert_allclose(model.forward(mixed)[:, :9], logits[:, :9], rtol=0, atol=1e-12)
    assert abs(model.forward(mixed)[:, 9:] - logits[:, 9:]).max(axis=-1).min() > 1e-3


def test_any_integers_will_do(config, model):
    tokens, targets = batch(config)
    loss = model.forward(tokens, targets)
    for dtype in (np.uint8, np.uint16, np.int32):
        assert model.forward(tokens.astype(dtype), targets.astype(dtype)) == loss
    turned = (np.ascontiguousarray(x.T).T for x in (tokens, targets))
    assert model.forward(*turned) == loss


def test_the_caller_may_reuse_its_arrays_before_backward(config, model):
    tokens, targets = batch(config)
    expected = gradients(model, tokens, targets)
    model.forward(tokens, targets)
    tokens[:], targets[:] = 0, 0
    model.zero_grad()
    model.backward()
    np.testing.assert_array_equal(model.grads.flat, expected)


# --- the gradient law


def test_the_first_backward_assigns(config, model):
    tokens, targets = batch(config)
    expected = gradients(model, tokens, targets)
    for buffer in (model.grads, model.acts):
        buffer.flat.fill(np.nan)
    np.testing.assert_array_equal(gradients(model, tokens, targets), expected)


def test_every_further_backward_adds(config, model):
    first, second, third = (batch(config, seed=seed) for seed in range(3))
    expected = sum(gradients(model, *x, dloss=1 / 3) for x in (first, second, third))
    model.zero_grad()
    for micro_batch in (first, second, third):
        model.forward(*micro_batch)
        model.backward(dloss=1 / 3)
    np.testing.assert_allclose(model.grads.flat, expected, rtol=0, atol=1e-14)


def test_a_batch_is_the_mean_of_its_sequences(config, model):
    tokens, targets = batch(config)
    expected = gradients(model, tokens, targets)
    model.zero_grad()
    for b in range(B):
        model.forward(tokens[b : b + 1], targets[b : b + 1])
        model.backward(dloss=1 / B)
    np.testing.assert_allclose(model.grads.flat, expected, rtol=0, atol=1e-14)


def test_sampling_between_batches_leaves_no_trace(config, model):
    first, second = batch(config, seed=1), batch(config, seed=2)
    expected = gradients(model, *first, dloss=0.5) + gradients(model, *second, dloss=0.5)
    model.zero_grad()
    model.forward(*first)
    model.backward(dloss=0.5)
    model.forward(second[0][:1, :3])
    model.forward(second[0][:1, 3:4], start=3)
    model.forward(*second)
    model.backward(dloss=0.5)
    np.testing.assert_allclose(model.grads.flat, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(1, 1), (1, T), (2, 5), (B, 1), (B, T - 1)])
def test_a_smaller_batch_in_a_larger_model(config, model, shape):
    """The same numbers as in a model made for it, also after and before a full batch."""
    tokens, targets = batch(config, *shape)
    expected = gradients(lively_model(config, *shape), tokens, targets)
    full = gradients(model, *batch(config))
    np.testing.assert_allclose(gradients(model, tokens, targets), expected, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(gradients(model, *batch(config)), full)
