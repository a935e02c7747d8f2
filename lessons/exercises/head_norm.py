"""Norm and rotation of each head: what they are, and what is easily written instead."""

from collections.abc import Callable

import numpy as np

EPS = 1e-6
rng = np.random.default_rng(20)


def rmsnorm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPS) * weight


def rope(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None]
    return np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape)


def norm_rotate(x: np.ndarray, weight: np.ndarray, angles: np.ndarray) -> np.ndarray:
    return rope(rmsnorm(x, weight), angles)


def turn_back(dout, angles):
    return rope(dout, -angles)


def second_term(dnorm, norm, weight=1):
    return norm * (dnorm * norm).mean(axis=-1, keepdims=True)


def divide(dx, rstd):
    return dx * rstd


def sum_of_all(dout, norm, weight=1):
    return (dout * norm).reshape(-1, norm.shape[-1]).sum(axis=0)


def norm_rotate_with(
    turn=turn_back,
    weigh=lambda dout, weight: dout * weight,
    second=second_term,
    scale=divide,
    statistic=lambda x: (x**2).mean(axis=-1, keepdims=True) + EPS,
    dweight=sum_of_all,
) -> Callable:
    """Its backward pass with another function in the place of some of its steps."""

    def backward(dout, x, weight, angles):
        rstd = 1 / np.sqrt(statistic(x))
        norm, turned = x * rstd, turn(dout, angles)
        dnorm = weigh(turned, weight)
        dx = scale(dnorm - second(dnorm, norm, weight), rstd)
        return dx, dweight(turned, norm, weight)

    return backward


def norm_rotate_backward(
    dout: np.ndarray, x: np.ndarray, weight: np.ndarray, angles: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return norm_rotate_with()(dout, x, weight, angles)


def other_order(dout, x, weight, angles):
    """The norm's backward pass first, and then the rotation's."""
    dx, dweight = norm_rotate_with(turn=lambda dout, angles: dout)(dout, x, weight, angles)
    return turn_back(dx, angles), dweight


def of_rotated(dout, x, weight, angles):
    """The backward pass of a rotation followed by a norm."""
    dx, dweight = norm_rotate_with(turn=lambda dout, angles: dout)(
        dout, rope(x, angles), weight, angles
    )
    return turn_back(dx, angles), dweight


def dweight_unturned(dout, x, weight, angles):
    still = norm_rotate_with(turn=lambda dout, angles: dout)
    return (
        norm_rotate_backward(dout, x, weight, angles)[0],
        still(dout, x, weight, angles)[1],
    )


def weighed_before(dout, x, weight, angles):
    """`weight` multiplies dout before that is turned back."""
    dx, _ = norm_rotate_with(weigh=lambda dout, weight: dout)(dout * weight, x, weight, angles)
    return dx, norm_rotate_backward(dout, x, weight, angles)[1]


def x_turned(dout, x, weight, angles):
    return norm_rotate_backward(dout, turn_back(x, angles), weight, angles)


def only_first_scaled(dout, x, weight, angles):
    """rstd multiplies the first term of dx and not the second."""
    rstd = 1 / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPS)
    turned = turn_back(dout, angles)
    return rstd * turned * weight - second_term(turned * weight, x * rstd), sum_of_all(
        turned, x * rstd
    )


def dweight_of_x(dout, x, weight, angles):
    turned = turn_back(dout, angles)
    return norm_rotate_backward(dout, x, weight, angles)[0], sum_of_all(turned, x)


def norm_inputs_kept(dout, x, weight, angles):
    """`x` where the normalised row belongs, in the second term."""
    rstd = 1 / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPS)
    turned = turn_back(dout, angles)
    dnorm = turned * weight
    dx = rstd * (dnorm - x * (dnorm * x).mean(axis=-1, keepdims=True))
    return dx, sum_of_all(turned, x * rstd)


norm_steps = {
    "turn": {
        "Nothing is turned back: the rotation came last, so its backward pass comes first.": (
            lambda dout, angles: dout
        ),
        "You turned forwards once more. The way back turns by the opposite angle.": rope,
    },
    "weigh": {
        "`weight` is missing: the gradient of the normalised row is weight times the gradient that "
        "was turned back.": lambda dout, weight: dout,
    },
    "second": {
        "dx is the direct path alone. But x is in rstd, too: the term with the mean of dnorm norm "
        "is missing.": lambda dnorm, norm, weight: 0,
        "You summed dnorm norm over the head. The mean square is a mean, so this is one, too.": (
            lambda dnorm, norm, weight: norm * (dnorm * norm).sum(axis=-1, keepdims=True)
        ),
        "You took the mean of dnorm norm over everything. Each head has a statistic of its own: "
        "axis=-1, with keepdims=True.": lambda dnorm, norm, weight: norm * (dnorm * norm).mean(),
        "You took the mean of dnorm off, too. That is layernorm's term; RMSNorm takes no mean "
        "off.": lambda dnorm, norm, weight: (
            second_term(dnorm, norm) + dnorm.mean(axis=-1, keepdims=True)
        ),
        "You took the mean of dnorm norm over all heads of a position. Each head has a mean of its "
        "own: axis=-1 alone.": lambda dnorm, norm, weight: (
            norm * (dnorm * norm).mean(axis=(-2, -1), keepdims=True)
        ),
        "In the term with the mean, norm is x rstd, without `weight`.": (
            lambda dnorm, norm, weight: second_term(dnorm, norm * weight)
        ),
        "The sign of the term with the mean is wrong: it is subtracted.": (
            lambda dnorm, norm, weight: -second_term(dnorm, norm)
        ),
        "The mean of dnorm norm has to be multiplied by norm again: a row moves along itself.": (
            lambda dnorm, norm, weight: (dnorm * norm).mean(axis=-1, keepdims=True)
        ),
    },
    "scale": {
        "The factor rstd in front of the bracket of dx is missing.": lambda dx, rstd: dx,
        "You divided by rstd. It is 1 over the root already: multiply.": (
            lambda dx, rstd: dx / rstd
        ),
    },
    "statistic": {
        "Your rstd takes the mean of x off, as layernorm does. RMSNorm divides by the root of the "
        "mean square.": lambda x: x.var(axis=-1, keepdims=True) + EPS,
        "The root is missing: rstd is 1 over the root of the mean square.": (
            lambda x: ((x**2).mean(axis=-1, keepdims=True) + EPS) ** 2
        ),
        "Nearly: EPS is 1e-6 here, not 1e-5.": (
            lambda x: (x**2).mean(axis=-1, keepdims=True) + 10 * EPS
        ),
        "Nearly: EPS is missing in rstd.": lambda x: (x**2).mean(axis=-1, keepdims=True),
        "Your mean square runs over all heads of a position. Each head is normalised by itself: "
        "axis=-1 alone.": (lambda x: (x**2).mean(axis=(-2, -1), keepdims=True) + EPS),
        "Your rstd has the sum of squares. It is their mean.": (
            lambda x: (x**2).sum(axis=-1, keepdims=True) + EPS
        ),
    },
    "dweight": {
        "dweight is the mean in yours. One weight serves every text, position and head, so what "
        "they ask of it adds up: sum.": (
            lambda dout, norm, weight: (dout * norm).reshape(-1, norm.shape[-1]).mean(axis=0)
        ),
        "dweight is not summed. One weight serves every text, position and head: sum over all axes "
        "but the last.": lambda dout, norm, weight: dout * norm,
        "dweight is summed over the texts alone. One weight serves every position and head, too: "
        "sum over all axes but the last.": lambda dout, norm, weight: (dout * norm).sum(axis=0),
        "dweight is summed over texts and positions. One weight serves every head, too.": (
            lambda dout, norm, weight: (dout * norm).sum(axis=(0, 1))
        ),
        "dweight has a factor `weight` too many: what multiplies the weight is the normalised row "
        "alone.": lambda dout, norm, weight: sum_of_all(dout, norm * weight),
        "dweight has to be multiplied by the normalised row: out = norm weight, turned.": (
            lambda dout, norm, weight: dout.reshape(-1, norm.shape[-1]).sum(axis=0)
        ),
    },
}


def norm_cases(*sizes: tuple[int, int, int, int]) -> list[dict[str, np.ndarray]]:
    return [
        {
            "dout": rng.standard_normal((B, T, H, D)),
            "x": 2 * rng.standard_normal((B, T, H, D)) + 0.5,
            "weight": rng.uniform(0.5, 2, D),
            "angles": np.outer(np.arange(1, T + 1), 100.0 ** (-np.arange(0, D, 2) / D)),
        }
        for B, T, H, D in sizes
    ]
