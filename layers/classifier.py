"""The classifier: a linear layer to the logits and its cross-entropy, a few rows at a time.

A row of logits is as long as the vocabulary, and serves to find one loss and its gradient. So not
all rows need to exist at once: `logits` is an array for some of them, used again and again. If it
holds them all, nothing is computed twice; else the backward pass makes the logits again, by one
more matrix product beside its two.

Explained in lessons/17_fast.ipynb.
"""

import numpy as np

from layers.linear import linear_backward, linear_forward
from layers.shapes import check_shapes
from layers.softmax_crossentropy import (
    softmax_crossentropy_backward,
    softmax_crossentropy_forward,
)
from layers.tiles import slices

# The most logits to have at once: 256 MiB of float32.
LOGITS = 64 * 1024 * 1024


def logit_rows(N: int, V: int) -> int:
    """How many of N rows of V logits to have at once."""
    return min(N, max(1, LOGITS // V))


@check_shapes
def classifier_forward(
    losses: np.ndarray,
    lse: np.ndarray,
    logits: np.ndarray,
    x: np.ndarray,
    targets: np.ndarray,
    weight: np.ndarray,
) -> None:
    """losses[n] = -log softmax(weight x[n])[targets[n]], in nats.

    Args:
        losses: (N,), written.
        lse: (N,), written; log sum exp of each row's logits, saved for the backward pass.
        logits: (R, V), written, for R rows at once; saved for the backward pass.
        x: (N, C).
        targets: (N,) integers below V.
        weight: (V, C).
    """
    for rows, row_logits in _parts(logits, len(x)):
        linear_forward(row_logits, x[rows], weight)
        softmax_crossentropy_forward(losses[rows], lse[rows], row_logits, targets[rows])


@check_shapes
def classifier_backward(
    dx: np.ndarray,
    dweight: np.ndarray,
    dlosses: float,
    logits: np.ndarray,
    x: np.ndarray,
    targets: np.ndarray,
    weight: np.ndarray,
    lse: np.ndarray,
    accumulate: bool = False,
) -> None:
    """dx = dlogits weight, dweight = dlogits^T x, with softmax_crossentropy's dlogits.

    Args:
        dx: (N, C), written.
        dweight: (V, C), written; added to with `accumulate`.
        dlosses: the derivative with respect to every one of the N losses: 1/N for their mean.
        logits: (R, V), as the forward pass left them; overwritten by their gradient.
        x: (N, C), an input of the forward pass.
        targets: (N,) integers below V, the other one.
        weight: (V, C).
        lse: (N,), saved by the forward pass.
        accumulate: add to `dweight` instead of starting afresh.
    """
    for rows, row_logits in reversed(_parts(logits, len(x))):
        if rows.stop < len(x):  # the last rows' logits are still there
            linear_forward(row_logits, x[rows], weight)
        dlogits = row_logits
        softmax_crossentropy_backward(dlogits, dlosses, row_logits, targets[rows], lse[rows])
        linear_backward(dx[rows], dweight, None, dlogits, x[rows], weight, accumulate)
        accumulate = True


def _parts(logits: np.ndarray, N: int) -> list[tuple[slice, np.ndarray]]:
    """Slices of N rows, and for each the place of its logits."""
    parts = slices(N, -(-N // len(logits)))
    return [(rows, logits[: rows.stop - rows.start]) for rows in parts]
