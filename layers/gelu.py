"""GELU, the tanh form that GPT-2 uses (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2).

u = sqrt(2/pi) (x + 0.044715 x^3)        y = x (1 + tanh(u)) / 2

The factor of x is close to the probability that a normal number is below x, the cdf, hence a name.

Derived in lessons/05_gelu.ipynb.
"""

import math

import numpy as np

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
        gelu_cdf(o, xr)
        o *= xr

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
    """out = (1 + tanh(u)) / 2, for one tile."""
    _tanh(out, x)
    out += 1
    out *= 0.5


def gelu_slope(slope: np.ndarray, cdf: np.ndarray, spare: np.ndarray, x: np.ndarray) -> None:
    """slope = dy/dx = cdf (1 + (1 - t) x du/dx), with cdf = (1 + t)/2 and t = tanh(u).

    For one tile. From dy/dx = (1 + t)/2 + x (1 - t^2)/2 du/dx, since 1 - t^2 = (1 + t)(1 - t);
    du/dx = SCALE (1 + 3 CUBIC x^2).

    Args:
        slope, cdf: written.
        spare: overwritten.
        x: as the others, of any shape.
    """
    t, x_du = cdf, spare
    _tanh(t, x)
    np.multiply(x, x, out=x_du)
    x_du *= 3 * SCALE * CUBIC
    x_du += SCALE
    x_du *= x
    np.subtract(1, t, out=slope)
    slope *= x_du
    slope += 1
    cdf += 1
    cdf *= 0.5
    slope *= cdf


def _tanh(out: np.ndarray, x: np.ndarray) -> None:
    """out = tanh(u)."""
    np.multiply(x, x, out=out)
    out *= SCALE * CUBIC
    out += SCALE
    out *= x
    np.tanh(out, out=out)
