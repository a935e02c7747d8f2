"""GEGLU, the gated activation of Gemma (Shazeer 2020, arXiv 2002.05202, section 2).

out = gelu(gate) up, where gelu is the tanh form, that of gelu.py.

Derived in lessons/19_six_years.ipynb.
"""

import numpy as np

from layers.gelu import gelu_cdf, gelu_slope
from layers.shapes import check_shapes
from layers.tiles import row_tiles, run_tiles, scratch


@check_shapes
def geglu_forward(out: np.ndarray, gate: np.ndarray, up: np.ndarray) -> None:
    """out = gelu(gate) up.

    Args:
        out: (N, F), written.
        gate: (N, F).
        up: (N, F).
    """

    def work(rows: slice) -> None:
        o, gr = out[rows], gate[rows]
        gelu_cdf(o, gr)
        o *= gr
        o *= up[rows]

    run_tiles(work, row_tiles(gate))


@check_shapes
def geglu_backward(
    dgate: np.ndarray, dup: np.ndarray, dout: np.ndarray, gate: np.ndarray, up: np.ndarray
) -> None:
    """dup = dout gelu(gate), dgate = dout up gelu'(gate).

    Args:
        dgate: (N, F), written; may be the same memory as `dout`.
        dup: (N, F), written.
        dout: (N, F).
        gate: (N, F), an input of the forward pass.
        up: (N, F), the other one.
    """

    def work(rows: slice) -> None:
        gr, do, du = gate[rows], dout[rows], dup[rows]
        cdf, slope, spare = scratch(gate.dtype, gr.shape, gr.shape, gr.shape)
        gelu_slope(slope, cdf, spare, gr)
        slope *= up[rows]
        np.multiply(gr, cdf, out=du)
        du *= do
        np.multiply(do, slope, out=dgate[rows])

    run_tiles(work, row_tiles(gate))
