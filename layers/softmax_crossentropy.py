"""Softmax and cross-entropy in one layer (Goodfellow et al. 2016, Deep Learning, section 6.2.2.3).

The probabilities are never stored: loss = lse - logits[target], where lse = log sum exp(logits).

Derived in lessons/06_softmax_crossentropy.ipynb.
"""

import numpy as np

from layers.shapes import check_shapes
from layers.tiles import row_tiles, run_tiles, scratch


@check_shapes
def softmax_crossentropy_forward(
    losses: np.ndarray, lse: np.ndarray, logits: np.ndarray, targets: np.ndarray
) -> None:
    """losses[n] = -log softmax(logits[n])[targets[n]], in nats.

    Args:
        losses: (N,), written.
        lse: (N,), written; log sum exp of each row, saved for the backward pass.
        logits: (N, V).
        targets: (N,) integers below V.
    """

    def work(rows: slice) -> None:
        row_logits = logits[rows]
        largest = row_logits.max(axis=1)
        # exp of a difference that is never above 0 cannot overflow.
        (exps,) = scratch(logits.dtype, row_logits.shape)
        np.subtract(row_logits, largest[:, None], out=exps)
        np.exp(exps, out=exps)
        lse[rows] = largest + np.log(exps.sum(axis=1))
        losses[rows] = lse[rows] - row_logits[np.arange(len(row_logits)), targets[rows]]

    run_tiles(work, row_tiles(logits))


@check_shapes
def softmax_crossentropy_backward(
    dlogits: np.ndarray, dlosses: float, logits: np.ndarray, targets: np.ndarray, lse: np.ndarray
) -> None:
    """dlogits = dlosses (softmax(logits) - onehot(targets)).

    Because the derivative of lse by a logit is that logit's probability.

    Args:
        dlogits: (N, V), written; may be the same memory as `logits`.
        dlosses: the derivative with respect to every one of the N losses: 1/N for their mean.
        logits: (N, V).
        targets: (N,) integers below V.
        lse: (N,), saved by the forward pass.
    """

    def work(rows: slice) -> None:
        d = dlogits[rows]
        np.subtract(logits[rows], lse[rows, None], out=d)
        np.exp(d, out=d)
        d[np.arange(len(d)), targets[rows]] -= 1
        d *= dlosses

    run_tiles(work, row_tiles(logits))
