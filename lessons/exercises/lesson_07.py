"""The exercises of lesson 07, attention forwards."""

import math

import numpy as np

from exercises import Exercise, Grader


def softmax(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)


def future(T: int) -> np.ndarray:
    return np.triu(np.ones((T, T), bool), k=1)


def causal_softmax(scores: np.ndarray) -> np.ndarray:
    return softmax(np.where(future(len(scores)), -np.inf, scores))


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return causal_softmax(q @ k.T / math.sqrt(q.shape[1])) @ v


def multi_head(qkv: np.ndarray, num_heads: int) -> np.ndarray:
    q, k, v = np.split(qkv, 3, axis=1)
    heads = [np.split(x, num_heads, axis=1) for x in (q, k, v)]
    return np.hstack([attention(*head) for head in zip(*heads, strict=True)])


def by_distance(probs: np.ndarray) -> np.ndarray:
    return np.array([np.diagonal(probs, -distance).mean() for distance in range(len(probs))])


def split_in_heads(qkv: np.ndarray, axes: str, **sizes: int) -> list[np.ndarray]:
    """qkv cut along its channels in the order of `axes`, into q, k and v of (H, T, D) each."""
    T = len(qkv)
    shape = [{"3": 3, **sizes}[axis] for axis in axes]
    order = [axes.index(axis) + 1 for axis in "3H"] + [0, axes.index("D") + 1]
    return list(qkv.reshape(T, *shape).transpose(order))


def with_axes(axes: str) -> object:
    """`multi_head` by somebody who thinks that the channels are in another order."""

    def mistaken(qkv: np.ndarray, num_heads: int) -> np.ndarray:
        sizes = {"H": num_heads, "D": qkv.shape[1] // 3 // num_heads}
        q, k, v = split_in_heads(qkv, axes, **sizes)
        return np.hstack([attention(*head) for head in zip(q, k, v, strict=True)])

    return mistaken


def heads_not_brought_back(qkv: np.ndarray, num_heads: int) -> np.ndarray:
    sizes = {"H": num_heads, "D": qkv.shape[1] // 3 // num_heads}
    q, k, v = split_in_heads(qkv, "3HD", **sizes)
    out = np.stack([attention(*head) for head in zip(q, k, v, strict=True)])  # (H, T, D)
    return out.reshape(len(qkv), -1)


def scaled_by_channels(qkv: np.ndarray, num_heads: int) -> np.ndarray:
    C = qkv.shape[1] // 3
    return multi_head(np.hstack([qkv[:, :C] / math.sqrt(num_heads), qkv[:, C:]]), num_heads)


def rows_for_channels(qkv: np.ndarray, num_heads: int) -> np.ndarray:
    """One reshape cuts the array anywhere: its parts are not those of a token."""
    T, C = len(qkv), qkv.shape[1] // 3
    q, k, v = qkv.reshape(3, num_heads, T, C // num_heads)
    return np.hstack([attention(*head) for head in zip(q, k, v, strict=True)])


def without_mask(qkv: np.ndarray, num_heads: int) -> np.ndarray:
    q, k, v = split_in_heads(qkv, "3HD", H=num_heads, D=qkv.shape[1] // 3 // num_heads)
    probs = softmax(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[2]))
    return np.hstack(list(probs @ v))


def without_scale(qkv: np.ndarray, num_heads: int) -> np.ndarray:
    C = qkv.shape[1] // 3
    return multi_head(np.hstack([qkv[:, :C] * math.sqrt(C / num_heads), qkv[:, C:]]), num_heads)


def score_cases() -> list[dict[str, np.ndarray]]:
    """The second case is large: exp of it overflows unless the largest score is taken away."""
    rng = np.random.default_rng(7)
    return [{"scores": rng.standard_normal((T, T)) + large} for T, large in ((5, 0), (7, 800))]


def head_cases() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(7)
    return [
        {name: rng.standard_normal((T, D)) for name in ("q", "k", "v")} for T, D in ((5, 3), (7, 2))
    ]


def qkv_cases() -> list[dict[str, object]]:
    rng = np.random.default_rng(7)
    return [
        {"qkv": rng.standard_normal((T, 3 * H * D)), "num_heads": H}
        for T, H, D in ((6, 2, 5), (4, 5, 2))
    ]


grade = Grader(
    Exercise(
        causal_softmax,
        score_cases(),
        ["probs"],
        mistakes={
            "You hide the future after the softmax: the rows no longer add up to 1, because the "
            "future had its share. Hide it before.": (
                lambda scores: np.where(future(len(scores)), 0, softmax(scores))
            ),
            "There is no mask: row 0 must be 1, 0, 0, ...": softmax,
            "You hid the past, and the future is there: turn the mask round.": (
                lambda scores: softmax(np.where(future(len(scores)).T, -np.inf, scores))
            ),
            "The softmax runs down the columns. A row is a query, and each query's "
            "probabilities add up to 1.": (
                lambda scores: softmax(np.where(future(len(scores)), -np.inf, scores), axis=0)
            ),
            "A hidden score of 0 is not hidden: exp(0) is 1. It has to be -inf.": (
                lambda scores: softmax(np.where(future(len(scores)), 0, scores))
            ),
        },
    ),
    Exercise(
        attention,
        head_cases(),
        ["out"],
        mistakes={
            "The scores are not divided by sqrt(D).": lambda q, k, v: causal_softmax(q @ k.T) @ v,
            "The scores are divided by D, and should be by its square root.": (
                lambda q, k, v: causal_softmax(q @ k.T / q.shape[1]) @ v
            ),
            "You divided the probabilities by sqrt(D). It belongs to the scores, before the "
            "softmax.": lambda q, k, v: causal_softmax(q @ k.T) / math.sqrt(q.shape[1]) @ v,
            "You took the square root of the number of positions: D is the size of a head, the "
            "last axis.": lambda q, k, v: causal_softmax(q @ k.T / math.sqrt(len(q))) @ v,
            "That mixes with the probabilities transposed: query t must use row t.": (
                lambda q, k, v: causal_softmax(q @ k.T / math.sqrt(q.shape[1])).T @ v
            ),
            "The scores are transposed: rows belong to queries, columns to keys.": (
                lambda q, k, v: causal_softmax(k @ q.T / math.sqrt(q.shape[1])) @ v
            ),
            "There is no mask: a query sees what comes after it.": (
                lambda q, k, v: softmax(q @ k.T / math.sqrt(q.shape[1])) @ v
            ),
        },
    ),
    Exercise(
        multi_head,
        qkv_cases(),
        ["out"],
        mistakes={
            "The heads' axis was not brought back before the last reshape: (H, T, D) has to "
            "become (T, H, D) first, so that a row is one token.": heads_not_brought_back,
            "You split the channels as (D, H). A head's D channels lie side by side: (H, D).": (
                with_axes("3DH")
            ),
            "You split the row as (H, 3, D). First come all queries, then all keys, then all "
            "values: (3, H, D).": with_axes("H3D"),
            "That reshape mixes tokens: first name the axes as they lie, (T, 3, H, D), then "
            "reorder them with transpose.": rows_for_channels,
            "There is no mask: a query sees what comes after it.": without_mask,
            "The scores are not divided by sqrt(D).": without_scale,
            "The scores are divided by sqrt(C). It is the size of a head that counts.": (
                scaled_by_channels
            ),
        },
    ),
    Exercise(
        by_distance,
        [{"probs": case} for case in map(causal_softmax, (c["scores"] for c in score_cases()))],
        ["means"],
        mistakes={
            "You divided every sum by T. Only T - d queries have a key that is d steps back.": (
                lambda probs: np.array(
                    [np.diagonal(probs, -d).sum() / len(probs) for d in range(len(probs))]
                )
            ),
            "Those are the sums. Far distances have fewer queries than near ones: take means.": (
                lambda probs: np.array([np.diagonal(probs, -d).sum() for d in range(len(probs))])
            ),
            "Those diagonals are above the main one, where the future is.": (
                lambda probs: np.array([np.diagonal(probs, d).mean() for d in range(len(probs))])
            ),
        },
    ),
)
