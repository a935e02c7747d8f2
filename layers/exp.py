"""The exponential in a sigmoid, 1 / (1 + exp(-x)), which GELU and SwiGLU share."""

import numpy as np


def unbounded_exp(x: np.ndarray) -> None:
    """x = exp(x) in its place, for one tile; infinite where it is too large for its type.

    There a sigmoid rightly becomes 0. It can be had from tanh, too, which has bounds; but without
    AVX-512 NumPy's takes two to three times as long as its exp.
    """
    with np.errstate(over="ignore"):
        np.exp(x, out=x)
