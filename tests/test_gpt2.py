"""What GPT2 promises around its numbers; the numbers themselves are in test_golden.py."""

import gc
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from adam import AdamW
from errors import UserError
from gpt2 import GPT2, PRESETS, GPT2Config
from layers import attention, tiles

ROOT = Path(__file__).parent.parent
CONFIG = GPT2Config(seq_len=24, vocab_size=131, num_layers=2, num_heads=3, channels=24)
B, T = 3, 16


def batch(config=CONFIG, B=B, T=T, seed=1):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (2, B, T))


def lively_model(config=CONFIG, B=B, T=None, dtype=np.float64):
    """Weights ten times the initial ones, and no constants: everything has its effect."""
    model = GPT2(config, B, T, dtype)
    noise = np.random.default_rng(3).standard_normal(model.params.flat.size)
    model.params.flat += 0.2 * noise.astype(dtype)
    return model


def gradients(model, tokens, targets, dloss=1.0):
    """A copy of the gradients of one batch."""
    model.forward(tokens, targets)
    model.zero_grad()
    model.backward(dloss)
    return model.grads.flat.copy()


# --- config and initialisation


@pytest.mark.parametrize("name", ["seq_len", "vocab_size", "num_layers", "num_heads", "channels"])
@pytest.mark.parametrize("value", [0, -3, 2.5, "12", None])
def test_a_config_of_nonsense_is_refused(name, value):
    with pytest.raises(UserError, match=f"{name} must be a whole number .* not {value!r}"):
        GPT2Config(**{name: value})


def test_heads_must_divide_channels():
    with pytest.raises(UserError, match="5 heads do not divide 768 channels"):
        GPT2Config(num_heads=5)


@pytest.mark.parametrize(
    ("vocab_size", "padded"), [(1, 128), (128, 128), (129, 256), (50257, 50304)]
)
def test_the_vocabulary_is_padded_to_128(vocab_size, padded):
    assert GPT2Config(vocab_size=vocab_size).padded_vocab_size == padded


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("gpt2", 124), ("gpt2-medium", 355), ("gpt2-large", 774), ("gpt2-xl", 1558)],
)
def test_presets_have_the_published_sizes(preset, millions):
    config = PRESETS[preset]
    size = sum(int(np.prod(shape)) for shape in config.param_shapes().values())
    padding = (config.padded_vocab_size - config.vocab_size) * config.channels
    assert round((size - padding) / 1e6) == millions


def test_the_seed_decides_every_bit():
    weights = GPT2(CONFIG, seed=5).params.flat
    np.testing.assert_array_equal(weights, GPT2(CONFIG, batch_size=2, seed=5).params.flat)
    other = GPT2(CONFIG, seed=6).params
    assert (GPT2(CONFIG, seed=5).params.wte != other.wte)[: CONFIG.vocab_size].all()
    assert not GPT2(CONFIG, seed=None).params.flat.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_initial_weights_are_gpt2_s(dtype):
    config = GPT2Config(seq_len=200, vocab_size=1000, num_layers=8, num_heads=2, channels=64)
    params = GPT2(config, seq_len=1, dtype=dtype).params
    deviations = dict.fromkeys(("wte", "wpe", "qkvw", "fcw"), 0.02)
    deviations |= dict.fromkeys(("attprojw", "fcprojw"), 0.02 / 4)  # sqrt(2 * 8 layers)
    for name, tensor in params:
        if name in deviations:
            values = tensor[:1000] if name == "wte" else tensor
            # Five standard errors of the mean and of the deviation of so many normal numbers.
            slack = 5 * deviations[name] / np.sqrt(values.size)
            assert abs(values.mean()) < slack
            assert abs(values.std() - deviations[name]) < slack
        else:
            assert (tensor == (1 if name in ("ln1w", "ln2w", "lnfw") else 0)).all()
    assert not params.wte[1000:].any()


def test_an_untrained_model_knows_nothing():
    tokens, targets = batch(CONFIG, 8, 24)
    loss = GPT2(CONFIG, 8).forward(tokens, targets)
    assert loss == pytest.approx(np.log(CONFIG.vocab_size), abs=0.05)


# --- requests that cannot be met


@pytest.mark.parametrize("seq_len", [0, -1, 25])
def test_a_model_is_not_longer_than_its_positions(seq_len):
    with pytest.raises(UserError, match=f"sequence length of {seq_len} is outside 1 to 24"):
        GPT2(CONFIG, seq_len=seq_len)


@pytest.mark.parametrize("batch_size", [0, -2])
def test_a_batch_holds_something(batch_size):
    with pytest.raises(UserError, match=f"batch of {batch_size} "):
        GPT2(CONFIG, batch_size)


@pytest.mark.parametrize("as_targets", [False, True])
@pytest.mark.parametrize("bad", [-1, 131, 70000])
def test_tokens_are_in_the_vocabulary(bad, as_targets):
    """131 has a row in wte, but it is padding."""
    model = GPT2(CONFIG, B, T)
    tokens, targets = batch()
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
def test_tokens_are_integers_of_shape_b_t(tokens):
    with pytest.raises(UserError, match=r"shape \(B, T\), not") as error:
        GPT2(CONFIG, B, T).forward(tokens)
    assert str(tokens.shape) in str(error.value)


@pytest.mark.parametrize("shape", [(B, T - 1), (B - 1, T), (T, B), (2 * B, T // 2)])
def test_targets_have_the_tokens_shape(shape):
    targets = np.zeros(shape, int)
    with pytest.raises(UserError, match=rf"targets .*\({shape[0]}, {shape[1]}\)"):
        GPT2(CONFIG, T, T).forward(batch()[0], targets)


def test_a_batch_fits_the_buffers():
    with pytest.raises(UserError, match="4 sequences are more than the 3"):
        GPT2(CONFIG, B, T).forward(np.zeros((4, 2), int))


@pytest.mark.parametrize(
    ("start", "length", "positions"),
    [(0, 17, "0 to 16"), (16, 1, "16 to 16"), (10, 7, "10 to 16"), (-1, 2, "-1 to 0")],
)
def test_positions_fit_the_buffers(start, length, positions):
    """The model has 24 positions, the buffers only 16."""
    with pytest.raises(UserError, match=f"positions {positions} are outside the 16"):
        GPT2(CONFIG, B, T).forward(np.zeros((1, length), int), start=start)


def test_backward_needs_a_forward_pass_with_targets():
    model = GPT2(CONFIG, B, T)
    tokens, targets = batch()
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


def test_backward_needs_the_whole_sequence():
    """Of cached positions only the keys and values are left."""
    model = GPT2(CONFIG, B, T)
    tokens, targets = batch()
    model.forward(tokens[:, :4])
    model.forward(tokens[:, 4:], targets[:, 4:], start=4)
    with pytest.raises(UserError, match="start"):
        model.backward()


def test_a_refused_batch_changes_nothing():
    """The batch before it can still be differentiated."""
    model = lively_model(T=T)
    tokens, targets = batch()
    expected = gradients(model, tokens, targets)
    model.forward(tokens, targets)
    others, _ = batch(seed=2)
    with pytest.raises(UserError, match="token 999"):
        model.forward(others, np.full_like(targets, 999))
    model.zero_grad()
    model.backward()
    np.testing.assert_array_equal(model.grads.flat, expected)


# --- forward


@pytest.mark.parametrize("sequences", [1, 2, B])
@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize("prompt", [1, 7])
def test_cached_sampling_gives_the_full_forward_s_logits(sequences, chunk, prompt):
    model = lively_model(T=T)
    tokens = batch()[0][:sequences]
    full = model.forward(tokens).copy()
    model.acts.flat.fill(np.nan)  # nothing is left of the full pass
    logits = [model.forward(tokens[:, :prompt]).copy()]
    for start in range(prompt, T, chunk):
        logits.append(model.forward(tokens[:, start : start + chunk], start=start).copy())
    np.testing.assert_allclose(np.concatenate(logits, axis=1), full, rtol=0, atol=1e-12)


def test_cached_sampling_in_float32():
    model = lively_model(dtype=np.float32, T=T)
    tokens = batch()[0]
    full = model.forward(tokens).copy()
    model.forward(tokens[:, :5])
    for t in range(5, T):
        logits = model.forward(tokens[:, t : t + 1], start=t)
        np.testing.assert_allclose(logits[:, 0], full[:, t], rtol=0, atol=1e-5)


def test_a_token_can_be_taken_back():
    """The cache is positions, not history: starting earlier overwrites."""
    model = lively_model(T=T)
    tokens, others = batch()
    expected = model.forward(tokens)[:, 7].copy()
    model.forward(others)
    model.forward(tokens[:, :5])
    model.forward(others[:, 5:9], start=5)
    model.forward(tokens[:, 5:7], start=5)
    np.testing.assert_allclose(
        model.forward(tokens[:, 7:8], start=7)[:, 0], expected, rtol=0, atol=1e-12
    )


def test_a_position_sees_no_later_token():
    model = lively_model(T=T)
    tokens, others = batch()
    mixed = np.concatenate([tokens[:, :9], others[:, 9:]], axis=1)
    logits = model.forward(tokens).copy()
    np.testing.assert_allclose(model.forward(mixed)[:, :9], logits[:, :9], rtol=0, atol=1e-12)
    assert abs(model.forward(mixed)[:, 9:] - logits[:, 9:]).max(axis=-1).min() > 1e-3


def test_any_integers_will_do():
    model = lively_model(T=T)
    tokens, targets = batch()
    loss = model.forward(tokens, targets)
    for dtype in (np.uint8, np.uint16, np.int32):
        assert model.forward(tokens.astype(dtype), targets.astype(dtype)) == loss
    turned = (np.ascontiguousarray(x.T).T for x in (tokens, targets))
    assert model.forward(*turned) == loss


def test_the_caller_may_reuse_its_arrays_before_backward():
    model = lively_model(T=T)
    tokens, targets = batch()
    expected = gradients(model, tokens, targets)
    model.forward(tokens, targets)
    tokens[:], targets[:] = 0, 0
    model.zero_grad()
    model.backward()
    np.testing.assert_array_equal(model.grads.flat, expected)


def test_padding_rows_of_wte_do_nothing():
    model = lively_model(T=T)
    tokens, targets = batch()
    expected = gradients(model, tokens, targets)
    model.params.wte[CONFIG.vocab_size :] = 1e6
    np.testing.assert_array_equal(gradients(model, tokens, targets), expected)
    assert not model.grads.wte[CONFIG.vocab_size :].any()


# --- the gradient law


def test_the_first_backward_assigns():
    model = lively_model(T=T)
    tokens, targets = batch()
    expected = gradients(model, tokens, targets)
    for buffer in (model.grads, model.acts):
        buffer.flat.fill(np.nan)
    np.testing.assert_array_equal(gradients(model, tokens, targets), expected)


def test_every_further_backward_adds():
    model = lively_model(T=T)
    first, second, third = (batch(seed=seed) for seed in range(3))
    expected = sum(gradients(model, *x, dloss=1 / 3) for x in (first, second, third))
    model.zero_grad()
    for micro_batch in (first, second, third):
        model.forward(*micro_batch)
        model.backward(dloss=1 / 3)
    np.testing.assert_allclose(model.grads.flat, expected, rtol=0, atol=1e-14)


def test_a_batch_is_the_mean_of_its_sequences():
    model = lively_model(T=T)
    tokens, targets = batch()
    expected = gradients(model, tokens, targets)
    model.zero_grad()
    for b in range(B):
        model.forward(tokens[b : b + 1], targets[b : b + 1])
        model.backward(dloss=1 / B)
    np.testing.assert_allclose(model.grads.flat, expected, rtol=0, atol=1e-14)


def test_sampling_between_batches_leaves_no_trace():
    model = lively_model(T=T)
    first, second = batch(seed=1), batch(seed=2)
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
def test_a_smaller_batch_in_a_larger_model(shape):
    """The same numbers as in a model made for it, also after and before a full batch."""
    small, large = lively_model(CONFIG, *shape), lively_model(T=T)
    tokens, targets = batch(CONFIG, *shape)
    expected = gradients(small, tokens, targets)
    full = gradients(large, *batch())
    np.testing.assert_allclose(gradients(large, tokens, targets), expected, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(gradients(large, *batch()), full)


# --- tiles, threads and memory


def test_tiles_do_not_change_the_result(monkeypatch):
    model = lively_model(T=T)
    tokens, targets = batch()

    def results():
        grads = gradients(model, tokens, targets)
        logits = model.forward(tokens).copy()
        model.forward(tokens, targets)
        model.backward()  # the second adds, which is other code
        return grads, logits, model.grads.flat.copy()

    expected = results()
    monkeypatch.setattr(tiles, "TILE", 64)
    monkeypatch.setattr(attention, "QUERIES", 3)
    assert len(attention._query_slices(T)) == 6
    for tiled, untiled in zip(results(), expected, strict=True):
        np.testing.assert_allclose(tiled, untiled, rtol=0, atol=1e-13)


TWO_BATCHES = """
import hashlib
import numpy as np
from adam import AdamW
from gpt2 import GPT2, GPT2Config

model = GPT2(GPT2Config(64, vocab_size=1000, num_layers=2, num_heads=4, channels=128), 16)
optimizer = AdamW(model.params, model.grads)
tokens, targets = np.random.default_rng(0).integers(0, 1000, (2, 16, 64))
for _ in range(2):
    loss = model.forward(tokens, targets)
    model.backward()
norm = optimizer.step(max_norm=1.0)
print(loss, norm, hashlib.sha256(model.grads.flat).hexdigest(),
      hashlib.sha256(model.params.flat).hexdigest())
"""


@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_same_threads_give_the_same_bits(num_threads):
    def run():
        return subprocess.run(
            [sys.executable, "-c", TWO_BATCHES],
            env={**os.environ, "OMP_NUM_THREADS": str(num_threads), "PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    assert run() == run()


def test_a_step_allocates_no_activation(monkeypatch):
    """Two micro-batches, the optimiser, and a sample; measured after a first such step.

    The smallest activation is (N, C): 2 MiB, four tiles of float32. On one thread, because every
    thread has its own scratch and their number is the machine's. That scratch, which the first
    step leaves behind, must not hold an activation either.
    """
    monkeypatch.setattr(tiles, "num_threads", lambda: 1)
    monkeypatch.setattr(tiles, "_memory", tiles._Memory())  # not what other tests left
    config = GPT2Config(seq_len=256, vocab_size=1000, num_layers=2, num_heads=4, channels=256)
    B, T = 8, 256
    model = GPT2(config, B)
    optimizer = AdamW(model.params, model.grads)
    tokens, targets = batch(config, B, T)

    def step():
        model.zero_grad()
        for _ in range(2):
            model.forward(tokens, targets)
            model.backward(dloss=0.5)
        optimizer.step(max_norm=1.0)
        model.forward(tokens[:, : T // 2])
        model.forward(tokens[:, T // 2 : T // 2 + 1], start=T // 2)

    def traced():
        gc.collect()  # the interpreter keeps freed tuples for later, which are not ours
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        with threadpool_limits(1):
            step()
            before = traced()
            tracemalloc.reset_peak()
            step()
            peak = tracemalloc.get_traced_memory()[1]
            step()
            growth = traced() - before
    finally:
        tracemalloc.stop()
    activation = model.acts.att[0].nbytes
    assert activation >= 4 * tiles.TILE * 4  # or the comparison below says nothing
    assert peak - before < activation
    assert tiles._memory.block.nbytes < activation
    assert growth < 10_000
