"""Attention with a window: what it is, and what is easily written instead."""

import math
from collections.abc import Callable

import numpy as np

from exercises.lesson_08 import (
    ALONG_KEYS,
    DIAGONAL,
    DK,
    DV,
    FIRST_TERM,
    OTHER_FACTOR,
    OVER_QUERIES,
    SWAPPED,
    along_keys,
    attention_dq_dk,
    attention_dscores,
    backward_with,
    dv_not_transposed,
    not_transposed,
    only_diagonal,
    only_first_term,
    other_factor,
    over_queries,
    softmax,
    swapped,
)

rng = np.random.default_rng(19)


def sees(T: int, window: int) -> np.ndarray:
    """(T, T): whether query t sees key s."""
    return np.tri(T, dtype=bool) & ~np.tri(T, k=-window, dtype=bool)


def root_of_head_size(q: np.ndarray) -> float:
    return math.sqrt(q.shape[1])


def window_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int) -> np.ndarray:
    scores = np.where(sees(len(q), window), q @ k.T / root_of_head_size(q), -np.inf)
    return softmax(scores) @ v


def window_backward_with(
    visible=sees, divisor=root_of_head_size, hidden=-np.inf, cut=None, **steps: Callable
) -> Callable:
    """The backward pass of a head with something else in the place of some of its steps.

    `cut` names a step, "probs" or "dscores", whose result is cut to the window afterwards.
    """

    def backward(dout, q, k, v, window):
        def scores(q, k):
            return np.where(visible(len(q), window), q @ k.T / divisor(q), hidden)

        def cut_to_window(function):
            return lambda *arrays: function(*arrays) * sees(len(q), window)

        functions = {"probs": softmax, "dscores": attention_dscores} | steps
        if cut:
            functions[cut] = cut_to_window(functions[cut])
        return backward_with(scores, **functions)(dout, q, k, v)

    return backward


def window_backward(
    dout: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return window_backward_with()(dout, q, k, v, window)


def dscores_of_infinite(dprobs, probs):
    with np.errstate(invalid="ignore"):  # 0 times infinity is no number
        return attention_dscores(np.where(probs > 0, dprobs, -np.inf), probs)


def over_queries_softmax(scores):
    return softmax(scores.T).T


def with_scale(of_dq: int, of_dk: int, dq_dk: Callable = attention_dq_dk) -> Callable:
    """dq and dk with these powers of the scale more than they should have."""

    def scaled(dscores, q, k):
        scale = 1 / math.sqrt(q.shape[1])
        dq, dk = dq_dk(dscores, q, k)
        return dq * scale**of_dq, dk * scale**of_dk

    return scaled


def by_positions(dscores, q, k):
    scale = math.sqrt(q.shape[1] / len(q))
    return tuple(gradient * scale for gradient in attention_dq_dk(dscores, q, k))


def causal(T, window):
    return np.tri(T, dtype=bool)


def everything(T, window):
    return np.ones((T, T), bool)


TOO_MANY = (
    "Your window has one key too many: the query's own position counts, so the keys are "
    "t - window + 1 to t."
)
TOO_FEW = (
    "Your window has one key too few: window keys are visible, the query's own and window - 1 "
    "before it."
)
NO_WINDOW = "The mask is only causal: keys that lie window or more positions back have to go, too."
NO_FUTURE = "Only the window's far end is masked: keys after the query have to go, too."
BOTH_SIDES = "Your window looks both ways: keys after the query have to go, too."
VISIBLE = {
    TOO_MANY: lambda T, window: sees(T, window + 1),
    NO_WINDOW: causal,
    NO_FUTURE: lambda T, window: ~np.tri(T, k=-window, dtype=bool),
    TOO_FEW: lambda T, window: sees(T, window - 1),
    BOTH_SIDES: lambda T, window: sees(T, window) | sees(T, window).T,
}
NOT_ADDED_UP = (
    "You cut probabilities off after the softmax, so the rows of those that are left do not add up "
    "to 1. Hide the scores before it, with -inf."
)

window_steps = {
    "visible": {
        **VISIBLE,
        "Nothing is masked: a query sees neither keys after it nor those out of its window.": (
            everything
        ),
    },
    "divisor": {
        "You forgot 1/sqrt(head_size) in the recomputed scores: those are not the probabilities of "
        "the forward pass.": lambda q: 1,
        "The scores are divided by sqrt(T) in yours; divide by sqrt(head_size), q.shape[1].": (
            lambda q: math.sqrt(len(q))
        ),
        "The scores are divided by head_size in yours; divide by its root.": (lambda q: q.shape[1]),
    },
    "hidden": {
        "Hidden scores are 0 in yours. exp(0) is 1, so hidden keys get probability: use -inf.": 0
    },
    "probs": {
        "Your softmax runs over the queries. Each query has one of its own, over its keys: "
        "axis=1.": over_queries_softmax,
        "Your probabilities are not divided by the sum of their row.": np.exp,
    },
    "dscores": {
        "dprobs is transposed in yours: rows are queries, so it is dout times v transposed.": (
            lambda dprobs, probs: attention_dscores(dprobs.T, probs)
        ),
        FIRST_TERM: only_first_term,
        OVER_QUERIES: over_queries,
        ALONG_KEYS: along_keys,
        DIAGONAL: only_diagonal,
        "You left out the softmax: dq and dk are made of dscores, not of dprobs.": (
            lambda dprobs, probs: dprobs
        ),
        "You left out the softmax, and masked dprobs in its place: dq and dk are made of "
        "dscores.": lambda dprobs, probs: np.where(probs > 0, dprobs, 0),
        "You subtracted the row sums. The last step of dscores is missing: multiply by probs.": (
            lambda dprobs, probs: dprobs - (probs * dprobs).sum(axis=1, keepdims=True)
        ),
        "The row sum is that of probs * dprobs: yours is the plain sum of dprobs.": (
            lambda dprobs, probs: probs * (dprobs - dprobs.sum(axis=1, keepdims=True))
        ),
        "The sign of dscores is wrong: dprobs minus the row sum.": (
            lambda dprobs, probs: -attention_dscores(dprobs, probs)
        ),
    },
    "dq_dk": {
        SWAPPED: swapped,
        DK: not_transposed,
        OTHER_FACTOR: other_factor,
        "dq and dk lack 1/sqrt(head_size).": with_scale(-1, -1),
        "dq and dk are divided by head_size in yours; divide by its root, once.": with_scale(1, 1),
        "dq and dk are multiplied by sqrt(head_size) in yours; divide by it.": with_scale(-2, -2),
        "dq and dk are divided by sqrt(T) in yours; divide by sqrt(head_size).": by_positions,
        f"dq and dk lack 1/sqrt(head_size). {DK}": with_scale(-1, -1, not_transposed),
        "dq lacks 1/sqrt(head_size).": with_scale(-1, 0),
        "dk lacks 1/sqrt(head_size).": with_scale(0, -1),
    },
    "dv": {
        DV: dv_not_transposed,
        "dv is made of dprobs in yours. It is made of probs and dout.": (
            lambda dout, probs, v: (dout @ v.T).T @ dout
        ),
        "dv is made of dscores in yours. It is made of probs and dout.": (
            lambda dout, probs, v: attention_dscores(dout @ v.T, probs).T @ dout
        ),
    },
}


def window_cases(*sizes: tuple[int, int, int]) -> list[dict[str, np.ndarray | int]]:
    return [
        {
            "dout": rng.standard_normal((T, D)),
            **dict(zip("qkv", 1.5 * rng.standard_normal((3, T, D)), strict=True)),
            "window": window,
        }
        for T, D, window in sizes
    ]
