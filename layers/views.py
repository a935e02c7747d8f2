"""Another shape for the same memory."""

import numpy as np


def reshape_view(x: np.ndarray, *shape: int) -> np.ndarray:
    """`x.reshape(shape)`, which is sure to be a view: what is written to it arrives in `x`.

    `reshape` itself makes a copy where it cannot, and says nothing; its argument `copy=False` is
    NumPy 2.1's, and not everybody has that.

    Raises:
        ValueError: no strides lead through the memory of `x` in that shape.
    """
    result = x.reshape(shape)
    if not np.may_share_memory(result, x):
        raise ValueError(f"an array of shape {x.shape} has no view of shape {shape}")
    return result
