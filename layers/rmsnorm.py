"""Root mean square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4).

Derived in lessons/15_llama2.ipynb.
"""

import numpy as np

from layers.shapes import check_shapes
from layers.tiles import row_tiles, run_tiles, scratch


@check_shapes
def rmsnorm_forward(
    out: np.ndarray, rstd: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float
) -> None:
    """out = x rstd weight, where rstd = 1/sqrt(mean(x^2) + eps), for each row of x.

    Args:
        out: (N, C), written.
        rstd: (N,), written; saved for the backward pass.
        x: (N, C).
        weight: (C,).
        eps: keeps a row of zeros from being divided by zero.
    """
    C = x.shape[1]

    def work(rows: slice) -> None:
        xr, o, r = x[rows], out[rows], rstd[rows]
        np.vecdot(xr, xr, out=r)
        r /= C
        r += eps
        np.sqrt(r, out=r)
        np.reciprocal(r, out=r)
        np.multiply(xr, r[:, None], out=o)
        o *= weight

    run_tiles(work, row_tiles(x))


@check_shapes
def rmsnorm_backward(
    dx: np.ndarray,
    dweight: np.ndarray,
    dout: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    rstd: np.ndarray,
    accumulate: bool = False,
) -> None:
    """dx = rstd (dnorm - norm mean(dnorm norm)), where norm = x rstd and dnorm = dout weight.

    The second term is there because x moves its row's mean square; layernorm has a third one, for
    the mean that is not taken off here. dweight = sum over n of dout norm.

    Args:
        dx: (N, C), written; may be the same memory as `dout`.
        dweight: (C,), written; added to with `accumulate`.
        dout: (N, C).
        x: (N, C), the input of the forward pass.
        weight: (C,).
        rstd: (N,), saved by the forward pass.
        accumulate: add to `dweight` instead of starting afresh.
    """
    C = x.shape[1]

    def work(rows: slice) -> np.ndarray:
        do, d = dout[rows], dx[rows]
        norm, dnorm = scratch(x.dtype, d.shape, d.shape)
        np.multiply(x[rows], rstd[rows, None], out=norm)
        np.multiply(do, norm, out=dnorm)
        sums = dnorm.sum(axis=0)
        np.multiply(do, weight, out=dnorm)
        norm *= (np.vecdot(dnorm, norm) / C)[:, None]
        dnorm -= norm
        np.multiply(dnorm, rstd[rows, None], out=d)
        return sums

    dweights = run_tiles(work, row_tiles(x))
    np.add(dweight if accumulate else 0, sum(dweights), out=dweight)
