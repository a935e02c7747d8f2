"""GELU, the tanh form that GPT-2 uses (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2).

u = sqrt(2/pi) (x + 0.044715 x^3)        y = x (1 + tanh(u)) / 2

The factor of x is close to the probability that a normal number is below x, the cdf, hence a name.

Derived in lessons/05_gelu.ipynb.
"""

import math

import numpy as np

from layers.exp import unbounded_exp
from layers.shapes import check_shapes
from layers.tiles import row_tiles, run_tiles, scratch

SCALE = math.sqrt(2 / math.pi)
CUBIC = 0.044715


@check_shapes
def gelu_forward(out: np.ndarray, x: np.ndarray) -> None:
    """out = x (1 + tanh(u)) / 2, with u = SCALE (x + CUBIC x^3).

    Args:
        out: (N, C), written.
        x: (N, C).
    """

    def work(rows: slice) -> None:
        o, xr = out[rows], x[rows]
        _exp(o, xr)
        o += 1
        np.divide(xr, o, out=o)

    run_tiles(work, row_tiles(x))


@check_shapes
def gelu_backward(dx: np.ndarray, dout: np.ndarray, x: np.ndarray) -> None:
    """dx = dout dy/dx: see `gelu_slope`.

    Args:
        dx: (N, C), written; may be the same memory as `dout`.
        dout: (N, C).
        x: (N, C), the input of the forward pass.
    """

    def work(rows: slice) -> None:
        xr = x[rows]
        slope, cdf, spare = scratch(x.dtype, xr.shape, xr.shape, xr.shape)
        gelu_slope(slope, cdf, spare, xr)
        np.multiply(dout[rows], slope, out=dx[rows])

    run_tiles(work, row_tiles(x))


def gelu_cdf(out: np.ndarray, x: np.ndarray) -> None:
    """out = (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), for one tile."""
    _exp(out, x)
    out += 1
    np.reciprocal(out, out=out)


def gelu_slope(slope: np.ndarray, cdf: np.ndarray, spare: np.ndarray, x: np.ndarray) -> None:
    """slope = dy/dx = cdf (1 + (1 - cdf) x 2 du/dx), for one tile.

    The cdf is sigmoid(2u), and sigmoid' = sigmoid (1 - sigmoid); du/dx = SCALE (1 + 3 CUBIC x^2).

    Args:
        slope, cdf: written.
        spare: overwritten.
        x: as the others, of any shape.
    """
    exp, x_du = slope, spare
    _exp(exp, x)
    np.clip(exp, 0, 1e30, out=exp)  # infinity times a cdf of 0 would be no number
    np.add(exp, 1, out=cdf)
    np.reciprocal(cdf, out=cdf)
    np.multiply(x, x, out=x_du)
    x_du *= 6 * SCALE * CUBIC
    x_du += 2 * SCALE
    x_du *= x
    np.multiply(exp, cdf, out=slope)  # 1 - cdf, but exact where the cdf is nearly 1
    slope *= x_du
    slope += 1
    slope *= cdf


def _exp(out: np.ndarray, x: np.ndarray) -> None:
    """out = exp(-2u), for one tile."""
    np.multiply(x, x, out=out)
    out *= -2 * SCALE * CUBIC
    out -= 2 * SCALE
    out *= x
    unbounded_exp(out)
