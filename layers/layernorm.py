"""Layer normalisation (Ba, Kiros and Hinton 2016, arXiv 1607.06450, equation 4).

Derived in lessons/04_layernorm.ipynb.
"""

import numpy as np

from layers.shapes import check_shapes
from layers.tiles import row_tiles, run_tiles, scratch

EPS = 1e-5


@check_shapes
def layernorm_forward(
    out: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
) -> None:
    """out = (x - mean) rstd weight + bias, where rstd = 1/sqrt(variance + EPS), for each row of x.

    Args:
        out: (N, C), written.
        mean: (N,), written; saved for the backward pass.
        rstd: (N,), written; saved for the backward pass.
        x: (N, C).
        weight: (C,).
        bias: (C,).
    """
    C = x.shape[1]

    def work(rows: slice) -> None:
        xr, o = x[rows], out[rows]
        np.add.reduce(xr, axis=1, out=mean[rows])
        mean[rows] /= C
        np.subtract(xr, mean[rows, None], out=o)
        variance = np.vecdot(o, o) / C
        rstd[rows] = 1 / np.sqrt(variance + EPS)
        o *= rstd[rows, None]
        o *= weight
        o += bias

    run_tiles(work, row_tiles(x))


@check_shapes
def layernorm_backward(
    dx: np.ndarray,
    dweight: np.ndarray,
    dbias: np.ndarray,
    dout: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    accumulate: bool = False,
) -> None:
    """dx = rstd (dnorm - mean(dnorm) - norm mean(dnorm norm)), where norm = (x - mean) rstd.

    dnorm = dout weight. The second term is there because x moves its row's mean, the third because
    it moves its row's variance. dweight = sum over n of dout norm; dbias = sum over n of dout.

    Args:
        dx: (N, C), written; may be the same memory as `dout`.
        dweight: (C,), written; added to with `accumulate`.
        dbias: (C,) likewise.
        dout: (N, C).
        x: (N, C), the input of the forward pass.
        weight: (C,).
        mean: (N,), saved by the forward pass.
        rstd: (N,), saved by the forward pass.
        accumulate: add to `dweight` and `dbias` instead of starting afresh.
    """
    C = x.shape[1]

    def work(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        do, d = dout[rows], dx[rows]
        norm, dnorm = scratch(x.dtype, d.shape, d.shape)
        np.subtract(x[rows], mean[rows, None], out=norm)
        norm *= rstd[rows, None]
        np.multiply(do, norm, out=dnorm)
        sums = dnorm.sum(axis=0), do.sum(axis=0)
        np.multiply(do, weight, out=dnorm)
        mean_dnorm = dnorm.mean(axis=1)
        mean_dnorm_norm = np.vecdot(dnorm, norm) / C
        dnorm -= mean_dnorm[:, None]
        norm *= mean_dnorm_norm[:, None]
        dnorm -= norm
        np.multiply(dnorm, rstd[rows, None], out=d)
        return sums

    dweights, dbiases = zip(*run_tiles(work, row_tiles(x)), strict=True)
    np.add(dweight if accumulate else 0, sum(dweights), out=dweight)
    np.add(dbias if accumulate else 0, sum(dbiases), out=dbias)
