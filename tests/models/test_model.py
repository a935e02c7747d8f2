"""What both models promise around their numbers; the numbers themselves are in test_golden.py."""

import gc
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_golden import MODELS

from adam import AdamW
from buffers import num_elements
from errors import UserError
from layers import attention, classifier, tiles
from models import gpt2, llama2
from models.gpt2 import GPT2Config
from models.llama2 import Llama2Config

ROOT = Path(__file__).parents[2]
# Sizes that differ (only there are as many layers as query heads to a key), so that none can stand
# in for another.
LLAMA2 = {"num_heads": 10, "num_kv_heads": 5, "vocab_size": 131, "seq_len": 24}
CONFIGS = {
    "gpt2": GPT2Config(seq_len=24, vocab_size=131, num_layers=2, num_heads=5, channels=30),
    "llama2": Llama2Config(40, 41, 2, **LLAMA2, tied=False),
    "llama2_tied": Llama2Config(40, 41, 2, **LLAMA2),
}
B, T = 3, 16


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture
def model(config):
    return lively_model(config)


def new_model(config, *args, **kwargs):
    return MODELS[type(config)](config, *args, **kwargs)


def lively_model(config, B=B, T=T, dtype=np.float64, **kwargs):
    """Weights ten times the initial ones, and no constants: everything has its effect."""
    model = new_model(config, B, T, dtype, **kwargs)
    noise = np.random.default_rng(3).standard_normal(model.params.flat.size)
    model.params.flat += 0.2 * noise.astype(dtype)
    return model


def batch(config, B=B, T=T, seed=1):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (2, B, T))


def gradients(model, tokens, targets, dloss=1.0):
    """A copy of the gradients of one batch."""
    model.forward(tokens, targets)
    model.zero_grad()
    model.backward(dloss)
    return model.grads.flat.copy()


# --- config and initialisation


@pytest.mark.parametrize("value", [0, -3, 2.5, "12", True])
@pytest.mark.parametrize(
    ("Config", "name"),
    [
        *((GPT2Config, name) for name in vars(GPT2Config())),
        *((Llama2Config, name) for name in ("dim", "num_layers", "num_heads", "num_kv_heads")),
        *((Llama2Config, name) for name in ("hidden_dim", "vocab_size", "seq_len")),
    ],
)
def test_a_config_of_nonsense_is_refused(Config, name, value):
    with pytest.raises(UserError, match=f"{name} must be a whole number .* not {value!r}"):
        Config(**{name: value})


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        (
            "gpt2",
            {
                "wte": (256, 30),
                "wpe": (24, 30),
                "ln1w": (2, 30),
                "ln1b": (2, 30),
                "qkvw": (2, 90, 30),
                "qkvb": (2, 90),
                "attprojw": (2, 30, 30),
                "attprojb": (2, 30),
                "ln2w": (2, 30),
                "ln2b": (2, 30),
                "fcw": (2, 120, 30),
                "fcb": (2, 120),
                "fcprojw": (2, 30, 120),
                "fcprojb": (2, 30),
                "lnfw": (30,),
                "lnfb": (30,),
            },
        ),
        (
            "llama2",
            {
                "wte": (131, 40),
                "rms1w": (2, 40),
                "wq": (2, 40, 40),
                "wk": (2, 20, 40),
                "wv": (2, 20, 40),
                "wo": (2, 40, 40),
                "rms2w": (2, 40),
                "w1": (2, 41, 40),
                "w2": (2, 40, 41),
                "w3": (2, 41, 40),
                "rmsfw": (40,),
                "wcls": (131, 40),
            },
        ),
    ],
)
def test_parameters_lie_in_the_order_of_the_files(name, shapes):
    assert list(CONFIGS[name].param_shapes().items()) == list(shapes.items())


# GPT-2: Hugging Face's models. Llama 2: V C + L (2 C + 2 C C + 2 KD C + 3 C F) + C, and V C more
# for a classifier of its own; llama2.c and Meta give the same.
@pytest.mark.parametrize(
    ("presets", "name", "size"),
    [
        (gpt2.PRESETS, "gpt2", 124_439_808),
        (gpt2.PRESETS, "gpt2-medium", 354_823_168),
        (gpt2.PRESETS, "gpt2-large", 774_030_080),
        (gpt2.PRESETS, "gpt2-xl", 1_557_611_200),
        (llama2.PRESETS, "stories260K", 260_032),
        (llama2.PRESETS, "stories15M", 15_191_712),
        (llama2.PRESETS, "stories42M", 41_689_600),
        (llama2.PRESETS, "stories110M", 109_529_856),
        (llama2.PRESETS, "llama2-7b", 6_738_415_616),
    ],
)
def test_presets_have_the_published_sizes(presets, name, size):
    shapes = presets[name].param_shapes()
    rows, channels = shapes["wte"]
    assert num_elements(shapes) - (rows - presets[name].vocab_size) * channels == size


def test_the_seed_decides_every_bit(config):
    weights = new_model(config, seed=5).params.flat
    np.testing.assert_array_equal(weights, new_model(config, batch_size=2, seed=5).params.flat)
    other = new_model(config, seed=6).params
    assert (new_model(config, seed=5).params.wte != other.wte)[: config.vocab_size].all()
    assert not new_model(config, seed=None).params.flat.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("config", "others", "projections"),
    [
        (
            GPT2Config(seq_len=200, vocab_size=1000, num_layers=8, num_heads=2, channels=64),
            {"wte", "wpe", "qkvw", "fcw"},
            {"attprojw", "fcprojw"},
        ),
        (
            Llama2Config(64, 96, 8, 4, 2, vocab_size=1000, seq_len=200, tied=False),
            {"wte", "wq", "wk", "wv", "w1", "w3", "wcls"},
            {"wo", "w2"},
        ),
    ],
    ids=["gpt2", "llama2"],
)
def test_initial_weights_are_gpt2_s(config, others, projections, dtype):
    params = new_model(config, seq_len=1, dtype=dtype).params
    for name, tensor in params:
        if name in others | projections:
            values = tensor[:1000] if name == "wte" else tensor
            deviation = 0.02 / 4 if name in projections else 0.02  # 4 = sqrt(2 * 8 layers)
            # Five standard errors of the mean and of the deviation of so many normal numbers.
            slack = 5 * deviation / np.sqrt(values.size)
            assert abs(values.mean()) < slack
            assert abs(values.std() - deviation) < slack
        else:
            is_norm = name.startswith(("ln", "rms")) and name.endswith("w")
            assert (tensor == is_norm).all()
    assert not params.wte[1000:].any()


def test_an_untrained_model_knows_nothing(config):
    tokens, targets = batch(config, 8, 24)
    loss = new_model(config, 8).forward(tokens, targets)
    assert loss == pytest.approx(np.log(config.vocab_size), abs=0.05)


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


# --- what the backward pass makes again


@pytest.mark.parametrize("recompute", ["norms", "blocks"])
@pytest.mark.parametrize("shape", [(B, T), (2, 5)])
def test_what_is_made_again_has_the_same_bits(config, recompute, shape):
    config = replace(config, num_layers=4)
    tokens, targets = batch(config, *shape)
    model, other = lively_model(config), lively_model(config, recompute=recompute)
    other.acts.flat.fill(np.nan)
    for dloss in (1.0, 0.5):
        expected = gradients(model, tokens, targets, dloss)
        np.testing.assert_array_equal(gradients(other, tokens, targets, dloss), expected)
    np.testing.assert_array_equal(other.forward(tokens), model.forward(tokens))


@pytest.mark.parametrize(
    ("recompute", "widths"),
    [
        # GPT-2: the stream, and of (ln1 qkv att stream ln2 fch gelu) what is kept.
        # Llama 2, with F = 3 C: the stream, and of (rms1 q k v att stream rms2 gate up swiglu).
        ("none", {"gpt2": 1 + 1 + 3 + 1 + 1 + 1 + 4 + 4, "llama2": 1 + 1 + 3 + 1 + 1 + 1 + 3 * 3}),
        ("norms", {"gpt2": 1 + 3 + 1 + 1 + 4, "llama2": 1 + 3 + 1 + 1 + 3 * 2}),
        ("blocks", {"gpt2": 1 + 3, "llama2": 1 + 3}),
    ],
)
def test_what_is_made_again_takes_no_memory(recompute, widths):
    """What another layer adds, in numbers for each row and channel."""
    C, rows = 64, B * T
    configs = {
        "gpt2": GPT2Config(num_heads=1, channels=C, num_layers=5),
        "llama2": Llama2Config(C, 3 * C, num_heads=1, num_layers=5),
    }
    for name, config in configs.items():
        sizes = [
            num_elements(replace(config, num_layers=L).act_shapes(B, T, recompute=recompute))
            for L in (5, 6)
        ]
        statistics = 5 if name == "gpt2" else 3  # of norms, and the lse
        assert sizes[1] - sizes[0] == (widths[name] * C + statistics) * rows


def test_sampling_with_one_place_for_all_layers(config):
    """A sampler's model: the keys and values of every layer are kept all the same."""
    tokens, _ = batch(config)
    expected = lively_model(config).forward(tokens)
    model = lively_model(config, recompute="blocks")
    for t in range(T):
        logits = model.forward(tokens[:, t : t + 1], start=t)
        np.testing.assert_allclose(logits[:, 0], expected[:, t], rtol=0, atol=1e-12)


def test_unknown_ways_to_recompute_are_refused(config):
    with pytest.raises(UserError, match="'all' must be one of none, norms, blocks"):
        new_model(config, recompute="all")


@pytest.mark.parametrize("rows", [1, 7, B * T - 1])
def test_logits_need_not_exist_all_at_once(monkeypatch, config, model, rows):
    tokens, targets = batch(config)
    expected, logits = gradients(model, tokens, targets), model.forward(tokens).copy()
    loss = model.forward(tokens, targets)
    monkeypatch.setattr(classifier, "LOGITS", (rows + 1) * config.vocab_size - 1)
    frugal = lively_model(config)
    assert frugal.acts.logits.shape == (rows, config.vocab_size)
    np.testing.assert_allclose(gradients(frugal, tokens, targets), expected, rtol=0, atol=1e-14)
    assert abs(frugal.forward(tokens, targets) - loss) < 1e-14
    # All of them are to be had all the same.
    np.testing.assert_allclose(frugal.forward(tokens), logits, rtol=0, atol=1e-13)
    last = frugal.forward(tokens, last_only=True)
    np.testing.assert_allclose(last[:, 0], logits[:, -1], rtol=0, atol=1e-13)


# --- tiles, threads and memory


def test_tiles_do_not_change_the_result(monkeypatch, config, model):
    tokens, targets = batch(config)

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


def test_step_flops_are_those_of_the_matrix_products(monkeypatch, config, model):
    """With one query to a block, so that none of the masked half is computed."""
    flops = []
    matmul = np.matmul

    def counting(x, y, out):
        flops.append(2 * x.shape[-1] * out.size)
        return matmul(x, y, out=out)

    monkeypatch.setattr(np, "matmul", counting)
    monkeypatch.setattr(attention, "QUERIES", 1)
    model.forward(*batch(config))
    model.backward()
    channels = model.acts.residual.shape[-1]
    diagonal = 7 * config.num_layers * B * T * channels  # half of T (T + 1) is this more
    assert sum(flops) == config.step_flops(B, T) + diagonal


TWO_BATCHES = """
import hashlib
import numpy as np
from adam import AdamW
from models.gpt2 import GPT2, GPT2Config
from models.llama2 import Llama2, Llama2Config

sizes = {"num_layers": 2, "vocab_size": 1000, "seq_len": 64}
tokens, targets = np.random.default_rng(0).integers(0, 1000, (2, 16, 64))
for model in (
    GPT2(GPT2Config(num_heads=4, channels=128, **sizes), 16),
    Llama2(Llama2Config(128, num_heads=4, num_kv_heads=2, **sizes), 16),
):
    optimizer = AdamW(model.params, model.grads)
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


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(seq_len=256, vocab_size=300, num_layers=1, num_heads=4, channels=256),
        Llama2Config(256, None, 1, 4, num_kv_heads=2, vocab_size=300, seq_len=256),
    ],
    ids=["gpt2", "llama2"],
)
def test_a_step_allocates_no_activation(monkeypatch, config):
    """Two micro-batches, the optimiser, and a sample; measured after a first such step.

    An activation is here (N, C): 2 MiB, four tiles of float32. On one thread, because every
    thread has its own scratch and their number is the machine's. That scratch, which the first
    step leaves behind, must not hold an activation either.
    """
    monkeypatch.setattr(tiles, "num_threads", lambda: 1)
    monkeypatch.setattr(tiles, "_memory", tiles._Memory())  # not what other tests left
    B, T = 8, 256
    model = new_model(config, B)
    optimizer = AdamW(model.params, model.grads)
    tokens, targets = batch(config, B, T)

    def step():
        model.zero_grad()
        for _ in range(2):
            model.forward(tokens, targets)
            model.backward(dloss=0.5)
        optimizer.step(max_norm=1.0)
        model.forward(tokens[:, :-1])
        model.forward(tokens[:, -1:], start=T - 1)

    def traced():
        gc.collect()  # the interpreter keeps freed tuples for later, which are not ours
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
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
