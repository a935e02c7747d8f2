"""Dropout: while a model is trained, some numbers are left out, others the next time.

out = x m / (1 - p)        each m is 0 with probability p, and else 1

Srivastava et al. 2014, JMLR 15, 1929-1958, section 4; the division, after which nothing has to be
scaled when the model is used, is in section 10.

The mask m is not kept for the backward pass but made again. Its element (n, c) comes from number
(row + n) C + c of a sequence of random numbers, of which any part can be had without those before
it: Philox, a counter that is enciphered (Salmon et al. 2011, SC'11, section 3). So it does not
depend on tiles, on threads, or on the ranks that share a batch, and a run that goes on after an
interruption goes on with the same masks.

Derived in lessons/13_training.ipynb.
"""

import numpy as np

from errors import UserError
from layers.shapes import check_shapes
from layers.tiles import row_tiles, run_tiles, scratch

# An element takes 16 bits of Philox, of which a count of its counter gives 256. From 8 bits, masks
# are made twice as fast, but p would be rounded to 1/256.
LEVELS, PER_COUNT = 1 << 16, 16


@check_shapes
def dropout_forward(
    out: np.ndarray, x: np.ndarray, p: float, seed: int = 0, row: int = 0, place: int = 0
) -> None:
    """out = x m / (1 - p).

    Args:
        out: (N, C), written; may be the same memory as `x`.
        x: (N, C).
        p: the probability of 0, at least 0 and below 1; rounded to a multiple of 2^-16.
        seed: of all masks of a run.
        row: the number of the first row, counted through all rows of the run.
        place: the number of this place in the model, each of which has masks of its own.

    Raises:
        UserError: a shape is another, or p is outside [0, 1).
    """
    _drop(out, x, p, seed, row, place)


@check_shapes
def dropout_backward(
    dx: np.ndarray, dout: np.ndarray, p: float, seed: int = 0, row: int = 0, place: int = 0
) -> None:
    """dx = dout m / (1 - p): the derivative of each element by itself is its factor.

    Args:
        dx: (N, C), written; may be the same memory as `dout`.
        dout: (N, C).
        p, seed, row, place: those of the forward pass, of which the same mask follows.
    """
    _drop(dx, dout, p, seed, row, place)


def _drop(out: np.ndarray, x: np.ndarray, p: float, seed: int, row: int, place: int) -> None:
    """out = x m / (1 - p): the same for numbers and for their derivatives."""
    if not 0 <= p < 1:
        raise UserError(f"dropout's p must be 0 or more and below 1, not {p}")
    if p == 0:
        if out is not x:
            np.copyto(out, x)
        return
    kept = max(1, round((1 - p) * LEVELS))  # of LEVELS

    def work(rows: slice) -> None:
        o = out[rows]
        (mask,) = scratch(np.dtype(bool), o.shape)
        first = (row + rows.start) * o.shape[1]
        np.less(_random_bits(seed, place, first, o.size).reshape(o.shape), kept, out=mask)
        np.multiply(x[rows], mask, out=o)
        o *= LEVELS / kept

    run_tiles(work, row_tiles(x))


def _random_bits(seed: int, place: int, first: int, count: int) -> np.ndarray:
    """`count` numbers below LEVELS, from number `first` on: (count,) uint16."""
    counter, skipped = divmod(first, PER_COUNT)
    philox = np.random.Philox(key=[seed % 2**64, place], counter=counter)
    words = philox.random_raw(-(-(skipped + count) // 4))
    return words.view(np.uint16)[skipped : skipped + count]
