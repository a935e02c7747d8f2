"""What layers promise besides their derivatives, which are gradcheck.py's."""

from inspect import signature

import numpy as np
import pytest

from errors import UserError
from gradcheck import check_layer
from layers import attention, tiles
from layers.attention import attention_backward, attention_forward
from layers.cases import find_layer
from layers.dropout import dropout_backward, dropout_forward
from layers.linear import linear_forward
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
        ("dropout", "forward", "out", "x"),
        ("dropout", "backward", "dx", "dout"),
        ("swiglu", "backward", "dgate", "dout"),
        ("geglu", "backward", "dgate", "dout"),
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


# --- linear


@pytest.mark.parametrize("N", [1, 2, 7, 8, 30])
def test_how_weights_lie_in_memory_does_not_matter(N):
    x, weight, bias = draw(N, 5), draw(9, 5, seed=1), draw(9, seed=2)
    for turned in (weight, np.asfortranarray(weight)):
        out = np.full((N, 9), np.nan)
        linear_forward(out, x, turned, bias)
        np.testing.assert_allclose(out, x @ weight.T + bias, rtol=0, atol=1e-14)


# --- attention


def attend(q, k, v, start=0, padding=None, window=None, scale=None):
    B, T, H, _ = q.shape
    out, lse = np.full_like(q, np.nan), np.full((B, H, T), np.nan)
    attention_forward(out, lse, q, k, v, start, padding, window, scale)
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


@pytest.mark.parametrize("tile", [attention.TILE, 64])  # each sequence has a tile of its own
@pytest.mark.parametrize("window", [None, 1, 5, 66])
@pytest.mark.parametrize(("start", "T"), [(0, 70), (9, 1), (9, 70)])
def test_padding_is_not_seen(monkeypatch, start, T, window, tile):
    """A sequence gets what it gets alone, whatever lies in front of it; so does one without."""
    monkeypatch.setattr(attention, "TILE", tile)
    padding = np.array([8, 0, 3])
    q = draw(3, T, 6, 4)
    k, v = draw(2, 3, start + T, 2, 4, seed=1)
    for b, hidden in enumerate(padding):
        k[b, :hidden], v[b, :hidden] = 100, -1e6
    out, _ = attend(q, k, v, start, padding, window)
    assert np.isfinite(out).all()  # also where a query is padding and sees nothing else
    for b, hidden in enumerate(padding):
        new = max(start, hidden) - start
        one = slice(b, b + 1)
        first = start + new - hidden
        alone, _ = attend(q[one, new:], k[one, hidden:], v[one, hidden:], first, window=window)
        np.testing.assert_allclose(out[b, new:], alone[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 129, 130])
def test_a_window_counts_the_own_position(window):
    """Every position t sees s with t - window < s <= t, also over the borders of blocks."""
    T, D = 130, 4
    q, k, v = draw(3, 1, T, 1, D)
    distance = np.arange(T)[:, None] - np.arange(T)
    scores = np.exp(q[0, :, 0] @ k[0, :, 0].T / 2) * ((0 <= distance) & (distance < window))
    expected = scores / scores.sum(axis=1, keepdims=True) @ v[0, :, 0]
    out, lse = attend(q, k, v, window=window)
    np.testing.assert_allclose(out[0, :, 0], expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(lse[0, 0], np.log(scores.sum(axis=1)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("window", [1, 3, 64, 100])
@pytest.mark.parametrize("T", [1, 5, 130])
def test_a_window_from_the_cache_is_that_of_one_pass(T, window):
    """The queries of the end see the same, whether or not those before are computed with them."""
    start = 40
    q, (k, v) = draw(1, start + T, 6, 4), draw(2, 1, start + T, 2, 4, seed=1)
    whole, whole_lse = attend(q, k, v, window=window)
    end, end_lse = attend(q[:, start:], k, v, start, window=window)
    np.testing.assert_allclose(end, whole[:, start:], rtol=0, atol=1e-14)
    np.testing.assert_allclose(end_lse, whole_lse[..., start:], rtol=0, atol=1e-14)


def test_keys_before_the_window_are_not_read():
    """Not by a single query; nor by a block of them, but for the window of its first."""
    q, (k, v) = draw(1, 200, 2, 4), draw(2, 1, 300, 2, 4, seed=1)
    k[:, :91] = v[:, :91] = np.nan  # the query at 100 sees 91 to 100
    for T in (1, 200):
        out, lse = attend(q[:, :T], k, v, start=100, window=10)
        assert np.isfinite(out).all()
        assert np.isfinite(lse).all()


@pytest.mark.parametrize(("window", "share"), [(128, 0.30), (512, 0.78)])
def test_a_window_makes_attention_cheaper(monkeypatch, window, share):
    """In multiplications: nearly T W - W^2 / 2 of T^2 / 2."""
    T = 1024
    q, dout = draw(2, 1, T, 3, 4)
    k, v = draw(2, 1, T, 1, 4, seed=1)
    count, matmul = [0], np.matmul

    def counting(x, y, out):
        count[0] += x.shape[-1] * out.size
        return matmul(x, y, out=out)

    def multiplications(window):
        count[0] = 0
        out, lse = attend(q, k, v, window=window)
        forward, count[0] = count[0], 0
        gradients = np.empty_like(q), np.empty_like(k), np.empty_like(v)
        attention_backward(*gradients, dout, q, k, v, out, lse, window)
        return np.array([forward, count[0]])

    monkeypatch.setattr(np, "matmul", counting)
    saved = multiplications(window) / multiplications(None)
    np.testing.assert_allclose(saved, share, rtol=0, atol=0.01)


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_of_nothing_is_refused(window):
    q, k, v = draw(3, 1, 5, 2, 4)
    out, lse = attend(q, k, v)
    with pytest.raises(UserError, match=f"at least 1, the own position, not {window}"):
        attend(q, k, v, window=window)
    with pytest.raises(UserError, match=f"at least 1, the own position, not {window}"):
        attention_backward(*np.empty((3, *q.shape)), out, q, k, v, out, lse, window)


def test_the_scale_is_in_the_place_of_the_default():
    q, k, v = draw(3, 2, 5, 3, 4)
    expected, expected_lse = attend(q, k, v)
    out, lse = attend(q, k, v, scale=0.5)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(lse, expected_lse)
    doubled, _ = attend(2 * q, k, v)
    np.testing.assert_array_equal(attend(q, k, v, scale=1)[0], doubled)


# --- dropout


def mask(p, seed=0, row=0, place=0, shape=(64, 24), direction=dropout_forward):
    """What ones become: 0, or 1 / (1 - p)."""
    out = np.full(shape, np.nan)
    direction(out, np.ones(shape), p, seed, row, place)
    return out


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_the_share_p_and_keeps_the_mean(p):
    """Within five standard deviations; and neighbours have nothing to do with each other."""
    masks = mask(p, shape=(1000, 200))
    N = masks.size
    kept = masks[masks > 0]
    assert (kept == kept[0]).all()
    assert kept[0] == pytest.approx(1 / (1 - p), rel=1e-4)  # p is rounded
    assert abs(kept.size / N - (1 - p)) < 5 * np.sqrt(p * (1 - p) / N)
    assert abs(masks.mean() - 1) < 5 * np.sqrt(p / (1 - p) / N)
    assert masks.var() == pytest.approx(p / (1 - p), rel=0.05)
    for other in (masks[:, 1:] - 1) * (masks[:, :-1] - 1), (masks[1:] - 1) * (masks[:-1] - 1):
        assert abs(other.mean()) < 5 * p / (1 - p) / np.sqrt(N)


def test_the_backward_pass_makes_the_same_mask():
    where = {"p": 0.3, "seed": 5, "row": 7, "place": 2}
    np.testing.assert_array_equal(mask(**where), mask(**where, direction=dropout_backward))


def test_another_seed_place_or_row_has_another_mask():
    masks = [
        mask(0.5, **{name: number})
        for name in ("seed", "place", "row")
        for number in (1, 2, 1000, 2**40)
    ]
    different = [(x != y).mean() for i, x in enumerate(masks) for y in masks[:i]]
    np.testing.assert_allclose(different, 0.5, rtol=0, atol=0.07)


@pytest.mark.parametrize("C", [1, 5, 16, 24])
def test_a_mask_depends_on_no_tile_and_no_batch(monkeypatch, C):
    """A row's is the same, whichever rows are computed with it."""
    whole = mask(0.4, row=3, shape=(50, C))
    for n in (0, 1, 17, 49):
        alone = mask(0.4, row=3 + n, shape=(1, C))
        np.testing.assert_array_equal(alone[0], whole[n])
    for threads in (1, 3):
        monkeypatch.setattr(tiles, "num_threads", lambda threads=threads: threads)
        monkeypatch.setattr(tiles, "TILE", 40)
        tiles._helpers.cache_clear()
        np.testing.assert_array_equal(mask(0.4, row=3, shape=(50, C)), whole)
    tiles._helpers.cache_clear()


@pytest.mark.parametrize("p", [1e-9, 1 - 1e-9])
def test_the_ends_of_p_are_rounded_but_stay_finite(p):
    assert np.isfinite(mask(p)).all()


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_dropout_of_everything_is_refused(p):
    with pytest.raises(UserError, match=f"p must be 0 or more and below 1, not {p}"):
        mask(p)


def test_a_p_of_0_leaves_all_as_it_is():
    np.testing.assert_array_equal(mask(0), 1)


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


def test_factors_slow_each_pair_down_and_the_amplitude_makes_it_longer():
    plain = rope_rotations(5, 4, theta=100, dtype=np.float64)
    half = rope_rotations(9, 4, 100, np.float64, factors=2)
    np.testing.assert_allclose(half[::2], plain, rtol=0, atol=1e-15)
    slow = rope_rotations(9, 4, 100, np.float64, np.array([2, 1]), amplitude=1.5)
    expected = 1.5 * np.stack([plain[:, 0], rope_rotations(9, 4, 100, np.float64)[::2, 1]], axis=1)
    np.testing.assert_allclose(slow[::2], expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("dtype", "expected"), [(np.float32, np.complex64), (np.float64, np.complex128)]
)
def test_rotations_are_of_the_numbers_type(dtype, expected):
    assert rope_rotations(3, 4, 100, dtype).dtype == expected


# --- rmsnorm and the gated activations


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
