"""The exercises of lesson 08, attention's backward pass."""

import math

import numpy as np

from exercises import Exercise, Grader


def hidden(R: int, S: int) -> np.ndarray:
    """(R, S): -inf where the key comes after the query; the queries are the last R positions."""
    return np.triu(np.full((R, S), -np.inf), k=S - R + 1)


def softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def make_scores(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """(R, S), masked."""
    return q @ k.T / math.sqrt(q.shape[1]) + hidden(len(q), len(k))


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return softmax(make_scores(q, k)) @ v


def mix(probs: np.ndarray, v: np.ndarray) -> np.ndarray:
    return probs @ v


def head_arrays(R: int, S: int, D: int) -> dict[str, np.ndarray]:
    """All arrays of one head: R queries, the last of S positions, with D numbers each."""
    rng = np.random.default_rng(8)
    # Scores of a size that makes some probabilities small and some large.
    q, dout = 1.5 * rng.standard_normal((R, D)), rng.standard_normal((R, D))
    k, v, dk, dv = rng.standard_normal((4, S, D))
    scores = make_scores(q, k)
    probs = softmax(scores)
    dprobs = dout @ v.T
    return {
        **{"q": q, "k": k, "v": v, "dout": dout, "dk": dk, "dv": dv},
        **{"probs": probs, "dprobs": dprobs, "out": probs @ v},
        "dscores": probs * (dprobs - (probs * dprobs).sum(axis=1, keepdims=True)),
        "lse": np.log(np.exp(scores).sum(axis=1)),
    }


WHOLE = [head_arrays(6, 6, 3), head_arrays(7, 7, 5)]  # every position is a query
BLOCKS = [head_arrays(3, 7, 5), head_arrays(4, 6, 3)]  # a block of queries and all that they see


def cases(heads: list[dict[str, np.ndarray]], names: str) -> list[dict[str, np.ndarray]]:
    return [{name: head[name] for name in names.split()} for head in heads]


def scale_factor(**arrays: np.ndarray) -> dict[str, float]:
    return {"1/sqrt(head_size)": 1 / math.sqrt(arrays["q"].shape[1])}


# --- what is to be written


def on_paper() -> np.ndarray:
    probs, v, dout = np.array([0.5, 0.25, 0.25]), np.array([[2, 0], [0, 4], [4, 0]]), [0, 2]
    return attention_dscores((v @ dout)[None], probs[None])[0]


def attention_dv(dout: np.ndarray, probs: np.ndarray, v: np.ndarray) -> np.ndarray:
    return probs.T @ dout


def attention_dprobs(dout: np.ndarray, probs: np.ndarray, v: np.ndarray) -> np.ndarray:
    return dout @ v.T


def attention_dscores(dprobs: np.ndarray, probs: np.ndarray) -> np.ndarray:
    return probs * (dprobs - (probs * dprobs).sum(axis=1, keepdims=True))


def attention_dq_dk(
    dscores: np.ndarray, q: np.ndarray, k: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    scale = 1 / math.sqrt(q.shape[1])
    return dscores @ k * scale, dscores.T @ q * scale


def attention_backward(
    dout: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    probs = softmax(make_scores(q, k))
    dscores = attention_dscores(attention_dprobs(dout, probs, v), probs)
    return *attention_dq_dk(dscores, q, k), attention_dv(dout, probs, v)


def row_sums(dout: np.ndarray, out: np.ndarray) -> np.ndarray:
    return (dout * out).sum(axis=1)


def block_backward(
    dk: np.ndarray,
    dv: np.ndarray,
    dout: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    lse: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    probs = np.exp(make_scores(q, k) - lse[:, None])
    dscores = probs * (dout @ v.T - row_sums(dout, out)[:, None])
    dq, dk_of_block = attention_dq_dk(dscores, q, k)
    return dq, dk + dk_of_block, dv + probs.T @ dout


# --- what is easily written instead


def backward_with(
    scores=make_scores,
    probs=softmax,
    dscores=attention_dscores,
    dq_dk=attention_dq_dk,
    dv=attention_dv,
):
    """The backward pass of a head with another function in the place of some of its steps."""

    def backward(dout, q, k, v):
        p = probs(scores(q, k))
        return *dq_dk(dscores(attention_dprobs(dout, p, v), p), q, k), dv(dout, p, v)

    return backward


def block_with(
    scores=make_scores,
    probs=lambda scores, lse: np.exp(scores - lse),
    row_sums=row_sums,
    scaled=True,
):
    """The backward pass of a block, likewise."""

    def backward(dk, dv, dout, q, k, v, out, lse):
        p = probs(scores(q, k), lse[:, None])
        dscores = p * (dout @ v.T - row_sums(dout, out)[:, None])
        scale = 1 / math.sqrt(q.shape[1]) if scaled else 1
        return dscores @ k * scale, dk + dscores.T @ q * scale, dv + p.T @ dout

    return backward


def without_mask(q, k):
    return q @ k.T / math.sqrt(q.shape[1])


def without_scale(q, k):
    return q @ k.T + hidden(len(q), len(k))


def only_first_term(dprobs, probs):
    return probs * dprobs


def over_queries(dprobs, probs):
    return probs * (dprobs - (probs * dprobs).sum(axis=0))


def along_keys(dprobs, probs):
    return probs * (dprobs - (probs * dprobs).sum(axis=1))


def swapped(dscores, q, k):
    return attention_dq_dk(dscores, q, k)[::-1]


def not_transposed(dscores, q, k):
    scale = 1 / math.sqrt(q.shape[1])
    return dscores @ k * scale, dscores @ q * scale


def dv_not_transposed(dout, probs, v):
    return probs @ dout


def only_diagonal(dprobs, probs):
    return probs * (1 - probs) * dprobs


def other_factor(dscores, q, k):
    scale = 1 / math.sqrt(q.shape[1])
    return dscores @ q * scale, dscores.T @ k * scale


FIRST_TERM = (
    "You forgot the second term of the softmax Jacobian: a score that grows takes probability from "
    "all other keys of its query. Subtract the row sum of probs * dprobs from dprobs first."
)
OVER_QUERIES = (
    "You took the row sum over the queries. Each query has a softmax of its own, so its sum runs "
    "over its keys: axis=1."
)
ALONG_KEYS = (
    "Your row sums are right, but (T, T) - (T,) subtracts the sum of query 0 from column 0, that "
    "of query 1 from column 1, ... They belong to rows: use keepdims=True."
)
DIAGONAL = (
    "You took only the Jacobian's diagonal, probs * (1 - probs): what a score does to its own "
    "probability. It takes from all other keys of its query, too."
)
OTHER_FACTOR = (
    "dq is made of keys, and dk of queries: in your products q and k have changed places."
)
SWAPPED = "You swapped dq and dk: dq is made of keys, and dk of queries."
DV = (
    "You mixed dout as the forward pass mixes values. There a query collects from its keys; in dv "
    "a key collects from its queries: probs has to be transposed."
)
DK = (
    "dk is not yet right: a key collects from the queries that look at it, so in dk the sum runs "
    "over the queries: dscores has to be transposed."
)
NO_MASK = (
    "You forgot the mask in the recomputed probabilities: without it, they are shared out among "
    "keys that the query has never seen."
)
NO_SCALE = (
    "You forgot 1/sqrt(head_size) in the recomputed scores: those are not the probabilities of the "
    "forward pass."
)

grade = Grader(
    Exercise(
        on_paper,
        [{}],
        ["dscores"],
        mistakes={
            FIRST_TERM: lambda: np.array([0.0, 2, 0]),
            "You subtracted the plain sum of dprobs. It is an average: each dprob counts with its "
            "probability.": lambda: np.array([-4.0, 0, -2]),
            "You subtracted the plain mean of dprobs. The average is one with weights: each dprob "
            "counts with its probability.": lambda: np.array([-4 / 3, 4 / 3, -2 / 3]),
            "You subtracted the average. The last step is missing: multiply by each p.": (
                lambda: np.array([-2.0, 6, -2])
            ),
            "Those are dprobs, or close to it: go one step further, through the softmax.": (
                lambda: np.array([0.0, 8, 0])
            ),
        },
    ),
    Exercise(
        attention_dv,
        cases(WHOLE, "dout probs v"),
        ["dv"],
        mix,
        mistakes={
            DV: dv_not_transposed,
            "You took the mean over the queries. A value serves every query that looks at it, so "
            "what they ask of it adds up: sum.": (
                lambda dout, probs, v: probs.T @ dout / len(dout)
            ),
        },
    ),
    Exercise(
        attention_dprobs,
        cases(WHOLE, "dout probs v"),
        ["dprobs"],
        mix,
        mistakes={
            "You set dprobs to 0 where the mask is. That does no harm later, but it is not the "
            "derivative of out = probs v, which knows no mask; and nobody needs it, because "
            "exercise 4 multiplies by a probability of 0.": (
                lambda dout, probs, v: np.tril(dout @ v.T)
            ),
            "You multiplied by probs already. That comes in exercise 4; dprobs is the derivative "
            "of a plain matrix product.": lambda dout, probs, v: probs * (dout @ v.T),
        },
    ),
    Exercise(
        attention_dscores,
        cases(WHOLE, "dprobs probs"),
        ["dscores"],
        mistakes={
            FIRST_TERM: only_first_term,
            OVER_QUERIES: over_queries,
            ALONG_KEYS: along_keys,
            DIAGONAL: only_diagonal,
            "You subtracted the row sums. The last step is missing: multiply by probs.": (
                lambda dprobs, probs: dprobs - (probs * dprobs).sum(axis=1, keepdims=True)
            ),
            "You subtracted the plain sum of dprobs. Each dprob counts with its probability: sum "
            "probs * dprobs.": (
                lambda dprobs, probs: probs * (dprobs - dprobs.sum(axis=1, keepdims=True))
            ),
            "You subtracted the mean of probs * dprobs. The probabilities are the weights already, "
            "and add up to 1: sum.": (
                lambda dprobs, probs: (
                    probs * (dprobs - (probs * dprobs).mean(axis=1, keepdims=True))
                )
            ),
            "You summed over the whole matrix. Each query has a softmax of its own: axis=1.": (
                lambda dprobs, probs: probs * (dprobs - (probs * dprobs).sum())
            ),
            "You subtracted the row sum after multiplying: it has to be multiplied by probs, "
            "too.": (
                lambda dprobs, probs: probs * dprobs - (probs * dprobs).sum(axis=1, keepdims=True)
            ),
        },
    ),
    Exercise(
        attention_dq_dk,
        cases(WHOLE, "dscores q k"),
        ["dq", "dk"],
        mistakes={
            SWAPPED: swapped,
            DK: not_transposed,
            OTHER_FACTOR: other_factor,
            "You divided by sqrt(T). The scale of the forward pass is 1/sqrt(head_size), and "
            "head_size is the length of a query.": lambda dscores, q, k: (
                dscores @ k / math.sqrt(len(k)),
                dscores.T @ q / math.sqrt(len(k)),
            ),
        },
        factors=scale_factor,
    ),
    Exercise(
        attention_backward,
        cases(WHOLE, "dout q k v"),
        ["dq", "dk", "dv"],
        attention,
        mistakes={
            NO_MASK: backward_with(scores=without_mask),
            NO_SCALE: backward_with(scores=without_scale),
            FIRST_TERM: backward_with(dscores=only_first_term),
            OVER_QUERIES: backward_with(dscores=over_queries),
            ALONG_KEYS: backward_with(dscores=along_keys),
            DIAGONAL: backward_with(dscores=only_diagonal),
            "probs and dprobs have changed places: attention_dscores takes dprobs first.": (
                backward_with(dscores=lambda dprobs, probs: attention_dscores(probs, dprobs))
            ),
            "You left out the softmax: dq and dk are made of dscores, not of dprobs.": (
                backward_with(dscores=lambda dprobs, probs: dprobs)
            ),
            SWAPPED: backward_with(dq_dk=swapped),
            DK: backward_with(dq_dk=not_transposed),
            OTHER_FACTOR: backward_with(dq_dk=other_factor),
            DV: backward_with(dv=dv_not_transposed),
        },
        factors=scale_factor,
    ),
    Exercise(
        row_sums,
        cases(WHOLE, "dout out"),
        ["row sums"],
        mistakes={
            "You summed over the queries. Each query has a row of its own, and so a sum: the sum "
            "runs over the elements of out, axis=1.": lambda dout, out: (dout * out).sum(axis=0),
            "Those are the products of each query's dout with every query's out. Only a query's "
            "own counts, which is the diagonal: multiply element by element, and sum.": (
                lambda dout, out: dout @ out.T
            ),
            "The numbers are right, but the shape is (T, 1). Leave keepdims out here: the row sums "
            "are one number for each query.": (
                lambda dout, out: (dout * out).sum(axis=1, keepdims=True)
            ),
        },
    ),
    Exercise(
        block_backward,
        cases(BLOCKS, "dk dv dout q k v out lse"),
        ["dq", "dk", "dv"],
        mistakes={
            "dk and dv are only this block's share: you assigned them. What the blocks before have "
            "written is lost; add to it, because keys are shared by all blocks.": (
                lambda dk, dv, **arrays: block_backward(0 * dk, 0 * dv, **arrays)
            ),
            NO_MASK: block_with(scores=without_mask),
            NO_SCALE: block_with(scores=without_scale),
            "The sign of lse is wrong: probs = exp(scores) / exp(lse) = exp(scores - lse).": (
                block_with(probs=lambda scores, lse: np.exp(scores + lse))
            ),
            "You subtracted each row's largest score. exp of that still has to be divided by its "
            "sum; lse, which the forward pass saved, does both at once.": (
                block_with(probs=lambda scores, _: np.exp(scores - scores.max(1, keepdims=True)))
            ),
            "You forgot to divide by the softmax's sum: subtract lse before exp.": (
                block_with(probs=lambda scores, _: np.exp(scores))
            ),
            FIRST_TERM: block_with(row_sums=lambda dout, out: np.zeros(len(dout))),
            "dv is right, but dq and dk lack a factor: 1/sqrt(head_size) is missing.": (
                block_with(scaled=False)
            ),
        },
        factors=scale_factor,
    ),
)
