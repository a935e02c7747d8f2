"""GELU, the tanh form that GPT-2 uses (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2).

u = sqrt(2/pi) (x + 0.044715 x^3)        y = x (1 + tanh(u)) / 2

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
        np.multiply(xr, xr, out=o)
        o *= SCALE * CUBIC
        o += SCALE
        o *= xr
        np.tanh(o, out=o)
        o += 1
        o *= xr
        o *= 0.5

    run_tiles(work, row_tiles(x))


@check_shapes
def gelu_backward(dx: np.ndarray, dout: np.ndarray, x: np.ndarray) -> None:
    """dx = dout dy/dx, with dy/dx = (1 + t)/2 (1 + (1 - t) x du/dx) and t = tanh(u).

    From dy/dx = (1 + t)/2 + x (1 - t^2)/2 du/dx, since 1 - t^2 = (1 + t)(1 - t);
    du/dx = SCALE (1 + 3 CUBIC x^2).

    Args:
        dx: (N, C), written; may be the same memory as `dout`.
        dout: (N, C).
        x: (N, C), the input of the forward pass.
    """

    def work(rows: slice) -> None:
        xr = x[rows]
        t, x_du, derivative = scratch(x.dtype, xr.shape, xr.shape, xr.shape)
        np.multiply(xr, xr, out=x_du)
        np.multiply(x_du, SCALE * CUBIC, out=t)
        t += SCALE
        t *= xr
        np.tanh(t, out=t)
        x_du *= 3 * SCALE * CUBIC
        x_du += SCALE
        x_du *= xr
        np.subtract(1, t, out=derivative)
        derivative *= x_du
        derivative += 1
        t += 1
        derivative *= t
        derivative *= 0.5
        np.multiply(dout[rows], derivative, out=dx[rows])

    run_tiles(work, row_tiles(x))
