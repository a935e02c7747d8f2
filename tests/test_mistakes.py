"""Planted mistakes: each function here is a plain backward pass with one of them switched on."""

import math

import numpy as np
import pytest

from gradcheck import check_layer


def verdicts(name, mutant, **sizes):
    """Whether each tensor passes, with `mutant` as the layer's backward pass."""
    results = check_layer(name, backward=mutant, **sizes)
    return {result.tensor.split()[-1]: result.ok for result in results}


def plain_linear(mistake):
    def backward(dx, dweight, dbias, dout, x, weight, accumulate=False):
        dx[...] = dout @ (weight.T if mistake == "transposed weight" else weight)
        if mistake == "always +=" or (accumulate and mistake != "= for +="):
            dweight += dout.T @ x
            dbias += dout.sum(axis=0)
        else:
            dweight[...] = dout.T @ x
            dbias[...] = dout.mean(axis=0) if mistake == "mean for sum" else dout.sum(axis=0)

    return backward


def plain_layernorm(mistake):
    def backward(dx, dweight, dbias, dout, x, weight, mean, rstd, accumulate=False):
        norm = (x - mean[:, None]) * rstd[:, None]
        dnorm = dout * weight
        if mistake == "no weight":
            dnorm = dout
        d = dnorm.copy()
        if mistake != "no mean term":
            d -= dnorm.mean(axis=1, keepdims=True)
        if mistake != "no variance term":
            d -= norm * (dnorm * norm).mean(axis=1, keepdims=True)
        dx[...] = d if mistake == "no rstd" else d * rstd[:, None]
        old = (dweight, dbias) if accumulate else (0, 0)
        dweight[...] = old[0] + (dout * (x if mistake == "x for norm" else norm)).sum(axis=0)
        dbias[...] = old[1] + dout.sum(axis=0)

    return backward


def plain_rmsnorm(mistake):
    def backward(dx, dweight, dout, x, weight, rstd, accumulate=False):
        norm = x * rstd[:, None]
        dnorm = dout if mistake == "no weight" else dout * weight
        square_term = norm * (dnorm * norm).mean(axis=1, keepdims=True)
        if mistake == "no square term":
            square_term = 0
        d = dnorm - square_term
        dx[...] = d if mistake == "no rstd" else d * rstd[:, None]
        old = dweight if accumulate else 0
        dweight[...] = old + (dout * (x if mistake == "x for norm" else norm)).sum(axis=0)

    return backward


def plain_attention(mistake):
    def backward(dq, dk, dv, dout, q, k, v, out, lse, window=None, scale=None):
        q, k, v, dout = (x.transpose(0, 2, 1, 3) for x in (q, k, v, dout))
        T = q.shape[2]
        if scale is None or mistake == "1/sqrt(d) for scale":
            scale = 1 / math.sqrt(q.shape[3])
        scores = scale * q @ k.swapaxes(2, 3)
        if mistake != "no causal mask":
            scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
        if window is not None and mistake != "no window":
            window += {"a key too many": 1, "a key too few": -1}.get(mistake, 0)
            scores = np.where(np.tri(T, k=-window, dtype=bool), -np.inf, scores)
        probs = np.exp(scores - scores.max(axis=-1, keepdims=True))
        probs /= probs.sum(axis=-1, keepdims=True)
        dprobs = dout @ v.swapaxes(2, 3)
        row_sums = (probs * dprobs).sum(axis=-1, keepdims=True)
        if mistake == "no row sum":
            row_sums = 0
        dscores = probs * (dprobs - row_sums)
        if mistake == "sign":
            dscores = -dscores
        results = {
            "q": dscores @ k * (1 if mistake == "no 1/sqrt(d)" else scale),
            "k": (dscores if mistake == "not transposed" else dscores.swapaxes(2, 3)) @ q * scale,
            "v": probs.swapaxes(2, 3) @ dout,
        }
        for name, d in (("q", dq), ("k", dk), ("v", dv)):
            if mistake == "+= for =":
                d += results[name].transpose(0, 2, 1, 3)
            else:
                d[...] = results[name].transpose(0, 2, 1, 3)

    return backward


def grouped_attention(mistake):
    """Each key/value head repeated for its group, and the plain backward pass of that."""

    def backward(dq, dk, dv, dout, q, k, v, out, lse):
        H, K = q.shape[2], k.shape[2]
        every_k, every_v = (np.repeat(x, H // K, axis=2) for x in (k, v))
        if mistake == "every K-th head":
            every_k, every_v = (np.tile(x, (1, 1, H // K, 1)) for x in (k, v))
        every_dk, every_dv = np.empty((2, *q.shape))
        plain_attention(None)(dq, every_dk, every_dv, dout, q, every_k, every_v, out, lse)
        for d, every_d in ((dk, every_dk), (dv, every_dv)):
            groups = every_d.reshape(*d.shape[:3], -1, d.shape[3])
            d[...] = groups[:, :, :, 0] if mistake == "one of the group" else groups.sum(axis=3)

    return backward


def plain_rope(mistake):
    def backward(dx, dout, rotations):
        turn = (rotations if mistake == "turned forwards" else rotations.conj())[:, None]
        if mistake == "same angle for every pair":
            turn = turn[..., :1]
        d = (dout[..., ::2] + 1j * dout[..., 1::2]) * turn
        dx[..., ::2], dx[..., 1::2] = d.real, d.imag

    return backward


def plain_gelu(mistake):
    def backward(dx, dout, x):
        scale, cubic = math.sqrt(2 / math.pi), 0.044715
        t = np.tanh(scale * (x + cubic * x**3))
        du = scale * (1 + (1 if mistake == "no factor 3" else 3) * cubic * x**2)
        outer = 0 if mistake == "no chain rule" else x / 2 * (1 - t**2) * du
        dx[...] = dout * ((1 + t) / 2 + outer)

    return backward


def plain_swiglu(mistake):
    def backward(dgate, dup, dout, gate, up):
        s = 1 / (1 + np.exp(-gate))
        silu = s if mistake == "sigmoid for silu" else gate * s
        slope = s if mistake == "no chain rule" else s + gate * s * (1 - s)
        dup[...] = dout * silu
        dgate[...] = dout * slope * (1 if mistake == "no up" else up)

    return backward


def plain_geglu(mistake):
    def backward(dgate, dup, dout, gate, up):
        if mistake == "up for gate":
            gate, up = up, gate
        ones = np.ones_like(gate)
        slope, cdf = np.empty_like(gate), np.empty_like(gate)
        plain_gelu(None)(slope, ones, gate)
        plain_gelu("no chain rule")(cdf, ones, gate)
        dup[...] = dout * (cdf if mistake == "cdf for gelu" else gate * cdf)
        dgate[...] = dout * (cdf if mistake == "no chain rule" else slope)
        if mistake != "no up":
            dgate *= up

    return backward


def plain_crossentropy(mistake):
    def backward(dlogits, dlosses, logits, targets, lse):
        probs = np.exp(logits - lse[:, None])
        onehot = np.eye(logits.shape[1])[targets]
        if mistake == "no onehot":
            onehot = 0
        dlogits[...] = (probs - onehot) * (1 if mistake == "no 1/N" else dlosses)

    return backward


# Layer, its plain function, the sizes to try it on, and the tensors that each mistake makes wrong.
MISTAKES = [
    (
        "linear",
        plain_linear,
        {"N": 6, "I": 4, "O": 4},
        {
            "transposed weight": {"x"},
            "= for +=": {"weight", "bias"},
            "always +=": {"weight", "bias"},
            "mean for sum": {"bias"},
        },
    ),
    (
        "layernorm",
        plain_layernorm,
        {"N": 6, "C": 7},
        {
            "no weight": {"x"},
            "no mean term": {"x"},
            "no variance term": {"x"},
            "no rstd": {"x"},
            "x for norm": {"weight"},
        },
    ),
    (
        "rmsnorm",
        plain_rmsnorm,
        {"N": 6, "C": 7},
        {
            "no weight": {"x"},
            "no square term": {"x"},
            "no rstd": {"x"},
            "x for norm": {"weight"},
        },
    ),
    (
        "attention",
        plain_attention,
        {"B": 2, "T": 5, "H": 3, "K": 3, "D": 4},
        {
            "no causal mask": {"q", "k", "v"},
            "no row sum": {"q", "k"},
            "sign": {"q", "k"},
            "no 1/sqrt(d)": {"q"},
            "not transposed": {"k"},
            "+= for =": {"q", "k", "v"},
        },
    ),
    (
        "attention",
        grouped_attention,
        {"B": 2, "T": 5, "H": 6, "K": 3, "D": 4},
        {"every K-th head": {"q", "k", "v"}, "one of the group": {"k", "v"}},
    ),
    (
        "attention",
        plain_attention,
        {"B": 2, "T": 5, "H": 3, "K": 3, "D": 4, "window": 3, "scale": 0.3},
        {
            "no window": {"q", "k", "v"},
            "a key too many": {"q", "k", "v"},
            "a key too few": {"q", "k", "v"},
            "1/sqrt(d) for scale": {"q", "k", "v"},
        },
    ),
    (
        "rope",
        plain_rope,
        {"B": 2, "T": 5, "H": 3, "D": 4},
        {"turned forwards": {"x"}, "same angle for every pair": {"x"}},
    ),
    ("gelu", plain_gelu, {"N": 7, "C": 9}, {"no factor 3": {"x"}, "no chain rule": {"x"}}),
    (
        "swiglu",
        plain_swiglu,
        {"N": 7, "F": 9},
        {"sigmoid for silu": {"up"}, "no chain rule": {"gate"}, "no up": {"gate"}},
    ),
    (
        "geglu",
        plain_geglu,
        {"N": 7, "F": 9},
        {
            "up for gate": {"gate", "up"},
            "cdf for gelu": {"up"},
            "no chain rule": {"gate"},
            "no up": {"gate"},
        },
    ),
    (
        "softmax_crossentropy",
        plain_crossentropy,
        {"N": 6, "V": 7},
        {"no onehot": {"logits"}, "no 1/N": {"logits"}},
    ),
]


@pytest.mark.parametrize(
    ("name", "plain", "sizes", "mistake", "wrong"),
    [
        pytest.param(name, plain, sizes, mistake, wrong, id=f"{plain.__name__} {mistake}")
        for name, plain, sizes, mistakes in MISTAKES
        for mistake, wrong in {None: set(), **mistakes}.items()
    ],
)
def test_a_planted_mistake_is_caught_where_it_is(name, plain, sizes, mistake, wrong):
    found = verdicts(name, plain(mistake), **sizes)
    assert {tensor for tensor, ok in found.items() if not ok} == wrong


def test_embedding_that_loses_a_token_that_comes_twice():
    def backward(dweight, dout, tokens, accumulate=False):
        if not accumulate:
            dweight.fill(0)
        dweight[tokens] += dout

    assert verdicts("embedding", backward, N=7, V=5, C=3) == {"weight": False}


def test_position_that_leaves_later_positions_as_they_were():
    def backward(dweight, dout, accumulate=False):
        old = dweight[: dout.shape[1]] if accumulate else 0
        dweight[: dout.shape[1]] = old + dout.sum(axis=0)

    assert verdicts("position", backward, B=1, T=5, C=3, maxT=5) == {"weight": True}
    assert verdicts("position", backward, B=3, T=5, C=4, maxT=7) == {"weight": False}
