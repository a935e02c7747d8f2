"""The linear layer: out = x weight^T + bias. Its backward pass is two more matrix products.

Each thread multiplies by its share of the weight's rows: no weight is read twice.

Derived in lessons/03_linear.ipynb.
"""

import numpy as np

from layers.shapes import check_shapes
from layers.tiles import (
    TILE,
    num_threads,
    row_tiles,
    run_products,
    run_tiles,
    scratch,
    shares,
    slices,
)

# With so few rows, reading the weights is what takes the time. A scalar product of each row of
# weights reads them at the speed of memory, where BLAS's matrix-vector product takes twice as long.
# But where weights lie in memory column by column, that is the fastest: it reads four long pieces
# of memory at once.
FEW_ROWS = 8

# One thread reads nearly as fast as two. Only of weights as many as this, 16 MiB, is it worth
# waking another one.
MANY_WEIGHTS = 32 * TILE


@check_shapes
def linear_forward(
    out: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None
) -> None:
    """out[n, o] = sum over i of x[n, i] weight[o, i], plus bias[o].

    Args:
        out: (N, O), written; or (B, T, O), where the N = B T rows are not one block of memory.
        x: (N, I).
        weight: (O, I), in memory row by row, or turned: column by column.
        bias: (O,), or None for none.
    """
    if out.ndim > 2:
        x = x.reshape(*out.shape[:-1], -1)
    few_rows = out.size < FEW_ROWS * len(weight)
    turned = weight.strides[1] > weight.strides[0]

    def work(o: slice) -> None:
        if few_rows and turned:
            np.matmul(x[..., None, :], weight[o].T, out=out[..., None, o])
        elif few_rows:
            np.vecdot(x[..., None, :], weight[o], out=out[..., o])
        else:
            np.matmul(x, weight[o].T, out=out[..., o])
        if bias is not None:
            out[..., o] += bias[o]

    if few_rows:
        run_tiles(work, slices(len(weight), num_threads() if weight.size > MANY_WEIGHTS else 1))
    else:
        run_products(work, shares(len(weight), out.size * weight.shape[1]))


@check_shapes
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
    multiplications = dout.size * weight.shape[1]

    def work_dx(n: slice) -> None:
        np.matmul(dout[n], weight, out=dx[n])

    def work_dweight(o: slice) -> None:
        if not accumulate:
            np.matmul(dout[:, o].T, x, out=dweight[o])
        else:  # matmul cannot add to what is there
            (product,) = scratch(x.dtype, dweight[o].shape)
            dweight[o] += np.matmul(dout[:, o].T, x, out=product)
        if dbias is not None:
            np.add(dbias[o] if accumulate else 0, dout[:, o].sum(axis=0), out=dbias[o])

    run_products(work_dx, shares(len(dx), multiplications))
    parts = row_tiles(dweight) if accumulate else shares(len(dweight), multiplications)
    run_products(work_dweight, parts)
