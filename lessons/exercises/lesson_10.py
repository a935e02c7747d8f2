"""The exercises of lesson 10, the whole GPT-2."""

import math
from collections.abc import Sequence

import numpy as np

from exercises import Exercise, Grader
from exercises.lesson_09 import Arrays, arrays, layernorm, layernorm_backward

# --- exercise 1: how many parameters


def count_parameters(num_layers: int, channels: int, vocab_size: int, seq_len: int) -> int:
    C = channels
    matrices, vectors = 12 * C * C, 13 * C
    return (vocab_size + seq_len) * C + num_layers * (matrices + vectors) + 2 * C


SIZES = [
    dict(zip(("num_layers", "channels", "vocab_size", "seq_len"), sizes, strict=True))
    for sizes in ((12, 768, 50257, 1024), (2, 4, 7, 5))
]

# --- exercise 2: the embedding


def embed(tokens: np.ndarray, wte: np.ndarray, wpe: np.ndarray) -> np.ndarray:
    return wte[tokens] + wpe[: tokens.shape[1]]


def embed_backward(
    dout: np.ndarray, tokens: np.ndarray, wte: np.ndarray, wpe: np.ndarray
) -> Arrays:
    dwte, dwpe = np.zeros_like(wte), np.zeros_like(wpe)
    np.add.at(dwte, tokens, dout)
    dwpe[: dout.shape[1]] = dout.sum(axis=0)
    return dwte, dwpe


def counted_once(dout: np.ndarray, tokens: np.ndarray, wte: np.ndarray, wpe: np.ndarray) -> Arrays:
    dwte = np.zeros_like(wte)
    dwte[tokens] += dout
    return dwte, embed_backward(dout, tokens, wte, wpe)[1]


def mean_position(dout: np.ndarray, tokens: np.ndarray, wte: np.ndarray, wpe: np.ndarray) -> Arrays:
    dwte, dwpe = embed_backward(dout, tokens, wte, wpe)
    return dwte, dwpe / len(dout)


EMBEDDINGS = [
    arrays(0, dout=(2, 4, 3), wte=(5, 3), wpe=(6, 3))
    | {"tokens": np.array([[1, 4, 1, 0], [2, 1, 4, 4]])},
    arrays(1, dout=(3, 2, 4), wte=(4, 4), wpe=(2, 4))
    | {"tokens": np.array([[3, 3], [0, 3], [1, 0]])},
]

# --- exercise 3: the classifier


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def classify(
    x: np.ndarray, lnfw: np.ndarray, lnfb: np.ndarray, wte: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    probs = softmax(layernorm(x, lnfw, lnfb) @ wte.T)
    return -np.log(np.take_along_axis(probs, targets[..., None], axis=-1)).mean()


def classify_backward(
    dout: float,
    x: np.ndarray,
    lnfw: np.ndarray,
    lnfb: np.ndarray,
    wte: np.ndarray,
    targets: np.ndarray,
) -> Arrays:
    return _classify_backward(dout, x, lnfw, lnfb, wte, targets)


def _classify_backward(
    dout: float,
    x: np.ndarray,
    lnfw: np.ndarray,
    lnfb: np.ndarray,
    wte: np.ndarray,
    targets: np.ndarray,
    one_hot: int = 1,
    normed: bool = True,
    norm_of_normed: bool = False,
) -> Arrays:
    lnf = layernorm(x, lnfw, lnfb)
    dlogits = dout * (softmax(lnf @ wte.T) - one_hot * np.eye(len(wte))[targets]) / targets.size
    dwte = np.einsum("btv,btc->vc", dlogits, lnf if normed else x)
    return *layernorm_backward(dlogits @ wte, lnf if norm_of_normed else x, lnfw), dwte


CLASSIFIERS = [
    {"dout": dout, "targets": np.random.default_rng(V).integers(0, V, (B, T))}
    | arrays(V, x=(B, T, C), lnfw=(C,), lnfb=(C,), wte=(V, C))
    for dout, (B, T, C, V) in ((1.0, (2, 4, 3, 5)), (0.5, (3, 2, 4, 6)))
]

# --- exercise 4: where is the mistake


def first_suspect(errors: Sequence[tuple[str, float]], tolerance: float) -> str | None:
    for name, error in reversed(errors):
        if not error < tolerance:
            return name
    return None


ERRORS = [
    [("wte", 0.5), ("ln1w", 0.9), ("qkvw", 0.1), ("attprojw", 1e-9), ("fcw", 2e-9), ("lnfw", 0.0)],
    [("wte", 1e-8), ("ln1w", 3e-9), ("qkvw", 1e-9), ("lnfw", 1e-10)],
    [("wte", 0.2), ("ln1w", 0.9), ("qkvw", 0.7), ("fcw", math.nan), ("fcprojw", 1e-9)],
]
TOLERANCE = 1e-6


grade = Grader(
    Exercise(
        count_parameters,
        SIZES,
        ["the number"],
        mistakes={
            "You counted the table twice. The classifier multiplies by wte itself.": (
                lambda num_layers, channels, vocab_size, seq_len: count_parameters(
                    num_layers, channels, 2 * vocab_size, seq_len
                )
            ),
            "Only the matrices are in it: each block also has eight vectors, and the last norm "
            "two.": lambda num_layers, channels, vocab_size, seq_len: (
                (vocab_size + seq_len + 12 * num_layers * channels) * channels
            ),
            "Not all of the eight vectors have C elements: qkvb has 3C, and fcb 4C.": (
                lambda num_layers, channels, vocab_size, seq_len: (
                    count_parameters(num_layers, channels, vocab_size, seq_len)
                    - 5 * num_layers * channels
                )
            ),
            "The final norm is missing, lnfw and lnfb.": (
                lambda num_layers, channels, vocab_size, seq_len: (
                    count_parameters(num_layers, channels, vocab_size, seq_len) - 2 * channels
                )
            ),
            "You forgot the positions, wpe.": lambda num_layers, channels, vocab_size, seq_len: (
                count_parameters(num_layers, channels, vocab_size, 0)
            ),
        },
    ),
    Exercise(
        embed_backward,
        EMBEDDINGS,
        ["dwte", "dwpe"],
        embed,
        mistakes={
            "A token that comes twice was counted once: dwte[tokens] += dout keeps only the last "
            "of the sums. np.add.at adds them all.": counted_once,
            "You took the mean over the sequences for dwpe. Each of them uses the row: sum.": (
                mean_position
            ),
        },
    ),
    Exercise(
        classify_backward,
        CLASSIFIERS,
        ["dx", "dlnfw", "dlnfb", "dwte"],
        classify,
        mistakes={
            "The one-hot vectors are missing: the gradient of the logits is p minus y.": (
                lambda **a: _classify_backward(**a, one_hot=0)
            ),
            "y minus p is the direction that makes the loss smaller. The gradient is p minus y.": (
                lambda **a: tuple(-d for d in classify_backward(**a))
            ),
            "layernorm_backward needs the norm's input, which is x; you gave it its output.": (
                lambda **a: _classify_backward(**a, norm_of_normed=True)
            ),
            "All is right but dwte: what wte was multiplied by is lnf, not x.": (
                lambda **a: _classify_backward(**a, normed=False)
            ),
        },
        factors=lambda dout, targets, **_: {"1/(B T)": 1 / targets.size, "dout": dout},
    ),
    Exercise(
        first_suspect,
        [{"errors": errors, "tolerance": TOLERANCE} for errors in ERRORS],
        ["the name"],
        mistakes={
            "You named the first in the order of the forward pass. But backward goes from the end: "
            "whatever comes after a mistake, on the way to the input, is wrong too.": (
                lambda errors, tolerance: next((n for n, e in errors if not e < tolerance), None)
            ),
            "You named the one with the largest error. How large an error is says nothing about "
            "where it comes from.": lambda errors, tolerance: max(
                (e for e in errors if not e[1] < tolerance), key=lambda e: e[1], default=(None,)
            )[0],
            "An error of NaN is wrong as well, and `error > tolerance` is False for it: ask "
            "`not error < tolerance`.": lambda errors, tolerance: next(
                (n for n, e in reversed(errors) if e > tolerance), None
            ),
        },
    ),
)
