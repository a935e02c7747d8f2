"""SwiGLU, the gated activation of Llama (Shazeer 2020, arXiv 2002.05202, section 2).

out = silu(gate) up        silu(x) = x sigmoid(x)        sigmoid(x) = 1 / (1 + exp(-x))

Derived in lessons/15_llama2.ipynb.
"""

import numpy as np

from layers.exp import unbounded_exp
from layers.shapes import check_shapes
from layers.tiles import row_tiles, run_tiles, scratch


@check_shapes
def swiglu_forward(out: np.ndarray, gate: np.ndarray, up: np.ndarray) -> None:
    """out = gate sigmoid(gate) up.

    Args:
        out: (N, F), written.
        gate: (N, F).
        up: (N, F).
    """

    def work(rows: slice) -> None:
        o, gr = out[rows], gate[rows]
        np.negative(gr, out=o)
        unbounded_exp(o)
        o += 1
        np.divide(gr, o, out=o)
        o *= up[rows]

    run_tiles(work, row_tiles(gate))


@check_shapes
def swiglu_backward(
    dgate: np.ndarray, dup: np.ndarray, dout: np.ndarray, gate: np.ndarray, up: np.ndarray
) -> None:
    """dup = dout silu(gate), dgate = dout up s (1 + gate (1 - s)), with s = sigmoid(gate).

    The last two factors are the derivative of silu: s + gate s (1 - s), since ds/dx = s (1 - s).

    Args:
        dgate: (N, F), written; may be the same memory as `dout`.
        dup: (N, F), written.
        dout: (N, F).
        gate: (N, F), an input of the forward pass.
        up: (N, F), the other one.
    """

    def work(rows: slice) -> None:
        gr, do, du = gate[rows], dout[rows], dup[rows]
        s, derivative = scratch(gate.dtype, gr.shape, gr.shape)
        np.negative(gr, out=s)
        unbounded_exp(s)
        s += 1
        np.reciprocal(s, out=s)
        np.subtract(1, s, out=derivative)
        derivative *= gr
        derivative += 1
        derivative *= s
        derivative *= up[rows]
        np.multiply(gr, s, out=du)
        du *= do
        np.multiply(do, derivative, out=dgate[rows])

    run_tiles(work, row_tiles(gate))
