"""AdamW against the formula written plainly, its refusals, and the schedules."""

import itertools
import math

import numpy as np
import pytest

from adam import AdamW, cosine_schedule, decays, warmup_stable_decay
from buffers import Buffer
from errors import RunError
from layers import tiles

SHAPES = {"wte": (9, 8), "ln1w": (2, 8), "ln1b": (2, 8), "qkvw": (2, 24, 8), "qkvb": (2, 24)}
OPTIONS = {"betas": (0.8, 0.97), "eps": 1e-3, "weight_decay": 0.3}


def buffers(dtype=np.float64, seed=0):
    """Random parameters, and gradients still zero."""
    params = Buffer(SHAPES, dtype)
    params.flat[:] = np.random.default_rng(seed).standard_normal(params.flat.size)
    return params, params.like()


def gradients(size, num_steps):
    return np.random.default_rng(1).standard_normal((num_steps, size))


def reference(p, grads, lrs, max_norm, decay, betas, eps, weight_decay):
    """Loshchilov and Hutter's algorithm 2, and Pascanu's algorithm 1, with all its temporaries."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, (g, lr) in enumerate(zip(grads, lrs, strict=True), start=1):
        norm = np.sqrt((g**2).sum())
        if norm > max_norm:
            g = g * max_norm / (norm + 1e-6)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        p = p - lr * weight_decay * decay * p - lr * m_hat / (np.sqrt(v_hat) + eps)
    return p


@pytest.mark.parametrize("max_norm", [math.inf, 3.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 1e-5)])
@pytest.mark.parametrize("tile", [tiles.TILE, 50])
def test_steps_are_the_formula(monkeypatch, dtype, tolerance, max_norm, tile):
    monkeypatch.setattr(tiles, "TILE", tile)
    params, grads = buffers(dtype)
    decay = np.concatenate(
        [np.full(tensor.size, name in ("wte", "qkvw")) for name, tensor in params]
    )
    lrs = [0.1, 0.05, 0.2, 0.0, 0.01]
    all_grads = gradients(params.flat.size, len(lrs))
    expected = reference(params.flat.astype(np.float64), all_grads, lrs, max_norm, decay, **OPTIONS)
    optimizer = AdamW(params, grads, **OPTIONS)
    for g, lr in zip(all_grads, lrs, strict=True):
        grads.flat[:] = g
        norm = optimizer.step(lr, max_norm)
        assert norm == pytest.approx(np.linalg.norm(g), rel=tolerance)
    np.testing.assert_allclose(params.flat, expected, rtol=0, atol=tolerance)


def test_parts_together_are_the_whole():
    """As with ZeRO: each of several optimisers has the moments of its part only."""
    (params, grads), (same_params, same_grads) = buffers(), buffers()
    size = params.flat.size
    options = {"lr": 0.1, "weight_decay": 0.3}
    parts = [
        AdamW(params, grads, part=slice(*edge), total=lambda _: grads.flat @ grads.flat, **options)
        for edge in itertools.pairwise([0, 7, 8, size // 2 + 3, size])
    ]
    whole = AdamW(same_params, same_grads, **options)
    for g in gradients(size, 3):
        grads.flat[:] = same_grads.flat[:] = g
        norm = whole.step(max_norm=2.0)
        assert [part.step(max_norm=2.0) for part in parts] == pytest.approx([norm] * 4)
    np.testing.assert_allclose(params.flat, same_params.flat, rtol=1e-12)
    np.testing.assert_allclose(np.concatenate([part.m for part in parts]), whole.m, rtol=1e-12)
    np.testing.assert_allclose(np.concatenate([part.v for part in parts]), whole.v, rtol=1e-12)


def test_the_norm_is_that_of_all_parts():
    params, grads = buffers()
    grads.flat[:] = gradients(grads.flat.size, 1)[0]
    half = grads.flat.size // 2
    rest = float(np.sum(grads.flat[half:] ** 2))
    optimizer = AdamW(params, grads, part=slice(0, half), total=lambda own: own + rest)
    assert optimizer.grad_norm() == pytest.approx(np.linalg.norm(grads.flat))


def test_the_optimizer_s_own_rate_is_the_default():
    (params, grads), (same_params, same_grads) = buffers(), buffers()
    grads.flat[:] = same_grads.flat[:] = 1
    AdamW(params, grads, lr=0.05, **OPTIONS).step()
    AdamW(same_params, same_grads, lr=7.0, **OPTIONS).step(lr=0.05)
    np.testing.assert_array_equal(params.flat, same_params.flat)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    params, grads = buffers()
    optimizer = AdamW(params, grads, lr=0.1)
    grads.flat[:] = 1
    optimizer.step()
    before = [array.copy() for array in (params.flat, optimizer.m, optimizer.v)]

    grads.qkvw[1, 3, 4] = bad
    with pytest.raises(RunError, match=r"gradient norm is (nan|inf)"):
        optimizer.step(max_norm=1.0)

    after = [params.flat, optimizer.m, optimizer.v]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    assert optimizer.num_steps == 1


def test_gradients_under_the_limit_are_not_clipped_and_none_is_written():
    params, grads = buffers()
    grads.flat[:] = gradients(grads.flat.size, 1)[0]
    before = grads.flat.copy()
    norm = AdamW(params, grads).step(max_norm=1e9)
    unclipped, _ = buffers()
    AdamW(unclipped, grads).step()
    np.testing.assert_array_equal(params.flat, unclipped.flat)
    np.testing.assert_array_equal(grads.flat, before)
    assert norm == pytest.approx(np.linalg.norm(before), rel=1e-14)


def test_without_gradient_only_matrices_and_embeddings_decay():
    params, grads = buffers()
    before = params.like()
    before.flat[:] = params.flat
    AdamW(params, grads, lr=0.1, weight_decay=0.5).step()
    for name, tensor in params:
        factor = 0.95 if name in ("wte", "qkvw") else 1
        np.testing.assert_allclose(tensor, factor * before[name], rtol=1e-15, err_msg=name)


def test_which_tensors_decay():
    """All of GPT-2's names, all of llama2.c's, and those that Llama 2's descendants add."""
    names = "wte wpe qkvw attprojw fcw fcprojw wq wk wv wo w1 w2 w3 token_embedding_table wcls"
    assert all(map(decays, names.split()))
    names = "ln1w ln1b ln2w ln2b lnfw lnfb qkvb attprojb fcb fcprojb bq bk bv qnormw knormw"
    assert not any(map(decays, names.split()))
    assert not any(map(decays, ["rms_att_weight", "rms_ffn_weight", "rms_final_weight"]))


def test_the_schedule_rises_straight_and_falls_along_half_a_cosine():
    rates = [cosine_schedule(step, 1.0, 0.1, warmup=4, num_steps=24) for step in range(30)]
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[14] == pytest.approx((1.0 + 0.1) / 2)  # half of the way down
    assert rates[9] == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)  # a quarter of it
    assert all(higher > lower for higher, lower in itertools.pairwise(rates[4:25]))
    np.testing.assert_allclose(rates[24:], 0.1)


def test_the_schedule_s_edges():
    assert cosine_schedule(0, 1.0, 0.1, warmup=0, num_steps=10) == 1.0
    assert cosine_schedule(0, 1.0, 0.1, warmup=0, num_steps=0) == 1.0
    assert cosine_schedule(2, 1.0, 0.1, warmup=4, num_steps=2) == 0.75  # ends while it rises
    assert cosine_schedule(9, 1.0, 0.1, warmup=4, num_steps=4) == pytest.approx(0.1)
    assert cosine_schedule(7, 0.3, 0.3, warmup=2, num_steps=10) == pytest.approx(0.3)


def test_the_other_schedule_rises_is_level_and_falls_straight():
    rates = [warmup_stable_decay(step, 1.0, 0.2, 4, 8, num_steps=24) for step in range(30)]
    np.testing.assert_allclose(rates[:4], [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_array_equal(rates[4:17], 1.0)  # up to the first step of the fall
    np.testing.assert_allclose(rates[16:25], np.linspace(1.0, 0.2, 9))
    np.testing.assert_array_equal(rates[24:], 0.2)


def test_the_other_schedule_s_edges():
    assert warmup_stable_decay(0, 1.0, 0.1, warmup=0, decay=4, num_steps=10) == 1.0
    assert warmup_stable_decay(2, 1.0, 0.1, warmup=4, decay=9, num_steps=2) == 0.75
    assert warmup_stable_decay(9, 1.0, 0.1, warmup=0, decay=0, num_steps=10) == 1.0  # no fall
    assert warmup_stable_decay(10, 1.0, 0.1, warmup=0, decay=0, num_steps=10) == 0.1
    # A fall that takes more steps than there are begins lower.
    assert warmup_stable_decay(0, 1.0, 0.0, warmup=0, decay=20, num_steps=10) == 0.5
    assert warmup_stable_decay(3, 0.3, 0.3, warmup=2, decay=5, num_steps=7) == 0.3
