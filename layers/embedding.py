"""Embeddings: rows of a table, picked by token or by position.

h0 = W_e[tokens] + W_p: Radford et al. 2018 (GPT), equation 2.

Derived in lessons/02_embedding.ipynb.
"""

import numpy as np

from errors import UserError
from layers.shapes import check_shapes


@check_shapes
def embedding_forward(out: np.ndarray, tokens: np.ndarray, weight: np.ndarray) -> None:
    """out[n] = weight[tokens[n]].

    Args:
        out: (N, C), written.
        tokens: (N,) integers below V. They are not checked here: a model does that once.
        weight: (V, C).
    """
    # mode="clip" writes straight into `out`; the default would make a copy of it first.
    np.take(weight, tokens, axis=0, out=out, mode="clip")


@check_shapes
def embedding_backward(
    dweight: np.ndarray, dout: np.ndarray, tokens: np.ndarray, accumulate: bool = False
) -> None:
    """dweight[v] = the sum of dout[n] over every n whose token is v: a scatter-add.

    Args:
        dweight: (V, C), written; added to with `accumulate`.
        dout: (N, C).
        tokens: (N,) integers below V.
        accumulate: add to `dweight` instead of starting afresh.
    """
    if not accumulate:
        dweight.fill(0)
    # A row at a time, because a token may come twice: dweight[tokens] += dout would keep only one.
    for token, row in zip(tokens, dout, strict=True):
        dweight[token] += row


@check_shapes
def position_forward(
    out: np.ndarray, weight: np.ndarray, start: int = 0, padding: np.ndarray | None = None
) -> None:
    """out[b, t] += weight[start + t - padding[b]].

    Args:
        out: (B, T, C), added to.
        weight: (maxT, C), maxT >= start + T.
        start: the position of the first of the T tokens.
        padding: (B,), how many of a sequence's first positions hold nothing; none by default.

    Raises:
        UserError: a shape is another, or maxT is too small.
    """
    stop = start + out.shape[1]
    if not 0 <= start <= stop <= len(weight):
        raise UserError(
            f"position_forward: positions {start} to {stop - 1} are outside the {len(weight)} "
            "that weight has"
        )
    if padding is None:
        out += weight[start:stop]
    else:
        # What the padding itself gets does not matter, as long as there is such a row.
        out += weight[np.maximum(np.arange(start, stop) - padding[:, None], 0)]


@check_shapes
def position_backward(dweight: np.ndarray, dout: np.ndarray, accumulate: bool = False) -> None:
    """dweight[t] = the sum of dout[b, t] over b; 0 for the positions after T.

    Args:
        dweight: (maxT, C), written; added to with `accumulate`.
        dout: (B, T, C).
        accumulate: add to `dweight` instead of starting afresh.
    """
    if not accumulate:
        dweight.fill(0)
    for sequence in dout:
        dweight[: len(sequence)] += sequence
