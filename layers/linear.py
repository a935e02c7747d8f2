"""The linear layer: out = x weight^T + bias. Its backward pass is two more matrix products."""

import numpy as np

from layers.tiles import TILE, num_threads, row_tiles, run_tiles, scratch, slices

# With so few rows, reading the weights is what takes the time. A scalar product of each row of
# weights reads them at the speed of memory, where BLAS's matrix-vector product takes twice as long.
FEW_ROWS = 8


def linear_forward(
    out: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None
) -> None:
    """out[n, o] = sum over i of x[n, i] weight[o, i], plus bias[o].

    Args:
        out: (N, O), written; or (B, T, O), where the N rows are not one block of memory.
        x: (N, I).
        weight: (O, I).
        bias: (O,), or None for none.
    """
    x = x.reshape(*out.shape[:-1], -1)
    if out.size < FEW_ROWS * len(weight):
        # Two threads read a large matrix faster than one, each its half.
        parts = slices(len(weight), num_threads() if weight.size > 8 * TILE else 1)
        run_tiles(lambda o: np.vecdot(x[..., None, :], weight[o], out=out[..., o]), parts)
    else:
        np.matmul(x, weight.T, out=out)
    if bias is None:
        return

    def work(rows: slice) -> None:
        out[rows] += bias

    run_tiles(work, row_tiles(out))


def linear_backward(
    dx: np.ndarray,
    dweight: np.ndarray,
    dbias: np.ndarray | None,
    dout: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    accumulate: bool = False,
) -> None:
    """dx = dout weight, dweight = dout^T x, dbias = the sum of dout over n.

    dx[n, i]      = sum over o of dout[n, o] weight[o, i]
    dweight[o, i] = sum over n of dout[n, o] x[n, i]
    dbias[o]      = sum over n of dout[n, o]

    Args:
        dx: (N, I), written.
        dweight: (O, I), written; added to with `accumulate`.
        dbias: (O,) likewise, or None for none.
        dout: (N, O).
        x: (N, I), the input of the forward pass.
        weight: (O, I).
        accumulate: add to `dweight` and `dbias` instead of starting afresh.
    """
    np.matmul(dout, weight, out=dx)
    if not accumulate:
        np.matmul(dout.T, x, out=dweight)
    else:
        # matmul cannot add to what is there: form the sum a tile at a time.
        def work(rows: slice) -> None:
            (product,) = scratch(x.dtype, dweight[rows].shape)
            np.matmul(dout[:, rows].T, x, out=product)
            dweight[rows] += product

        run_tiles(work, row_tiles(dweight), products=True)
    if dbias is not None:
        sums = run_tiles(lambda rows: dout[rows].sum(axis=0), row_tiles(dout))
        np.add(dbias if accumulate else 0, sum(sums), out=dbias)
