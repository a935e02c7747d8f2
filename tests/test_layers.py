"""What layers promise besides their derivatives, which are gradcheck.py's."""

from inspect import signature

import numpy as np
import pytest

from gradcheck import check_layer
from layers import tiles
from layers.attention import attention_backward, attention_forward
from layers.cases import find_layer
from layers.rmsnorm import rmsnorm_backward, rmsnorm_forward
from layers.rope import rope_forward, rope_rotations
from layers.swiglu import swiglu_backward, swiglu_forward


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize(
    ("layer", "direction", "written", "read"),
    [
        ("layernorm", "backward", "dx", "dout"),
        ("rmsnorm", "backward", "dx", "dout"),
        ("rope", "forward", "out", "x"),
        ("rope", "backward", "dx", "dout"),
        ("gelu", "backward", "dx", "dout"),
        ("swiglu", "backward", "dgate", "dout"),
        ("softmax_crossentropy", "backward", "dlogits", "logits"),
    ],
)
def test_what_is_written_may_be_the_memory_of_what_is_read(layer, direction, written, read):
    function = getattr(find_layer(layer), direction)
    names = list(signature(function).parameters)
    written, read = names.index(written), names.index(read)

    def in_place(*arguments):
        shared = arguments[written]
        shared[...] = arguments[read]
        function(*(shared if i == read else x for i, x in enumerate(arguments)))

    results = check_layer(layer, **{direction: in_place})
    assert all(result.ok for result in results)


# --- attention


def attend(q, k, v, start=0, padding=None):
    B, T, H, _ = q.shape
    out, lse = np.full_like(q, np.nan), np.full((B, H, T), np.nan)
    attention_forward(out, lse, q, k, v, start, padding)
    return out, lse


@pytest.mark.parametrize(("K", "G"), [(3, 2), (1, 6), (6, 1)])
def test_grouped_heads_are_keys_and_values_repeated(K, G):
    """In two blocks of queries. A key's gradient is the sum over its group."""
    B, T, D = 2, 70, 4
    q, dout = draw(2, B, T, K * G, D)
    k, v = draw(2, B, T, K, D, seed=1)
    every_k, every_v = (np.repeat(x, G, axis=2) for x in (k, v))
    out, lse = attend(q, k, v)
    expected, expected_lse = attend(q, every_k, every_v)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(lse, expected_lse, rtol=0, atol=1e-14)

    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    attention_backward(dq, dk, dv, dout, q, k, v, out, lse)
    every_dq, every_dk, every_dv = np.empty((3, *q.shape))
    attention_backward(every_dq, every_dk, every_dv, dout, q, every_k, every_v, out, lse)
    np.testing.assert_allclose(dq, every_dq, rtol=0, atol=1e-13)
    for x, every_x in ((dk, every_dk), (dv, every_dv)):
        np.testing.assert_allclose(
            x, every_x.reshape(B, T, K, G, D).sum(axis=3), rtol=0, atol=1e-13
        )


@pytest.mark.parametrize(("start", "T"), [(0, 70), (9, 1), (9, 70)])
def test_padding_is_not_seen(monkeypatch, start, T):
    """A sequence gets what it gets alone, whatever lies in front of it; so does one without."""
    monkeypatch.setattr(tiles, "TILE", 64)  # so small that each sequence has a tile of its own
    padding = np.array([8, 0, 3])
    q = draw(3, T, 6, 4)
    k, v = draw(2, 3, start + T, 2, 4, seed=1)
    for b, hidden in enumerate(padding):
        k[b, :hidden], v[b, :hidden] = 100, -1e6
    out, _ = attend(q, k, v, start, padding)
    assert np.isfinite(out).all()  # also where a query is padding and sees nothing else
    for b, hidden in enumerate(padding):
        new = max(start, hidden) - start
        alone, _ = attend(
            q[b : b + 1, new:], k[b : b + 1, hidden:], v[b : b + 1, hidden:], start + new - hidden
        )
        np.testing.assert_allclose(out[b, new:], alone[0], rtol=0, atol=1e-14)


# --- rope


def test_each_pair_of_neighbours_turns_at_its_own_speed():
    rotations = rope_rotations(4, 4, theta=100, dtype=np.float64)
    x = np.tile([1.0, 0.0, 0.0, 2.0], (1, 4, 1, 1))
    out = np.empty_like(x)
    rope_forward(out, x, rotations)
    t = np.arange(4)
    fast, slow = (np.cos(t), np.sin(t)), (-2 * np.sin(t / 10), 2 * np.cos(t / 10))
    np.testing.assert_allclose(out[0, :, 0], np.transpose([*fast, *slow]), rtol=0, atol=1e-15)


def test_scores_depend_on_the_distance_only():
    rotations = rope_rotations(50, 6, theta=10000, dtype=np.float64)
    q, k = (np.tile(draw(6, seed=seed), (1, 50, 1, 1)) for seed in (0, 1))
    for x in (q, k):
        rope_forward(x, x, rotations)
    scores = q[0, :, 0] @ k[0, :, 0].T
    for distance in range(50):
        np.testing.assert_allclose(np.ptp(np.diag(scores, distance)), 0, atol=1e-12)
    assert len(np.unique(scores[0].round(6))) == 50


@pytest.mark.parametrize(
    ("dtype", "expected"), [(np.float32, np.complex64), (np.float64, np.complex128)]
)
def test_rotations_are_of_the_numbers_type(dtype, expected):
    assert rope_rotations(3, 4, 100, dtype).dtype == expected


# --- rmsnorm and swiglu


def test_rmsnorm_of_a_row_of_zeros():
    """Its derivative is finite: that of x / sqrt(eps)."""
    x, weight, dout = np.zeros((2, 3)), draw(3), draw(2, 3, seed=1)
    out, dx, rstd, dweight = np.empty_like(x), np.empty_like(x), np.empty(2), np.empty(3)
    rmsnorm_forward(out, rstd, x, weight, eps=1e-4)
    rmsnorm_backward(dx, dweight, dout, x, weight, rstd)
    assert not out.any()
    assert not dweight.any()
    np.testing.assert_allclose(dx, 100 * dout * weight, rtol=1e-14)


@pytest.mark.parametrize("gate", [1e3, 1e30])
def test_swiglu_does_not_overflow(gate):
    """Far out, silu is x on the one side and 0 on the other."""
    gates = np.array([[gate, -gate]], np.float32)
    up, dout = np.full((2, 1, 2), 3, np.float32)
    out, dgate, dup = np.empty((3, 1, 2), np.float32)
    swiglu_forward(out, gates, up)
    swiglu_backward(dgate, dup, dout, gates, up)
    np.testing.assert_array_equal(out, [[gates[0, 0] * 3, 0]])
    np.testing.assert_array_equal(dup, [[gates[0, 0] * 3, 0]])
    np.testing.assert_array_equal(dgate, [[9, 0]])
