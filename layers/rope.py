"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864, section 3.2.2).

Two neighbouring numbers of a head, x[2i] and x[2i + 1], are a point in a plane, or one complex
number. At position t it is turned by the angle t theta^(-2i/D), and so is its partner in every key:
their scalar product then depends on how far apart the two positions are, and not on where they are.
A rotation has no parameters and keeps lengths; its derivative is the rotation back. Where an
amplitude makes all longer, the derivative does so, too.

Derived in lessons/15_llama2.ipynb.
"""

import functools

import numpy as np

from layers.shapes import check_shapes


def rope_rotations(
    num_positions: int,
    head_size: int,
    theta: float,
    dtype: np.typing.DTypeLike,
    factors: float | np.ndarray = 1.0,
    amplitude: float = 1.0,
) -> np.ndarray:
    """(T, D/2) complex: rotations[t, i] = amplitude exp(1j t theta^(-2i/D) / factors[i]).

    Args:
        num_positions: T.
        head_size: D, an even number.
        theta: the base of the frequencies; 10,000 in the paper.
        dtype: of the numbers that will be rotated; two of them make a complex one.
        factors: of each frequency, (D/2,), or of all: how many times as slowly the pairs turn. A
            model trained on short texts reads longer ones by it (Chen et al. 2023, arXiv
            2306.15595, section 2.3: one factor; Ding et al. 2024, arXiv 2402.13753: one for each).
        amplitude: the length of each number; 1 only turns.
    """
    frequencies = theta ** (-np.arange(0, head_size, 2) / head_size) / factors
    angles = np.outer(np.arange(num_positions), frequencies)
    return (amplitude * np.exp(1j * angles)).astype(_complex(np.dtype(dtype)))


@check_shapes
def rope_forward(out: np.ndarray, x: np.ndarray, rotations: np.ndarray) -> None:
    """out = x rotation, each pair of neighbours taken as a complex number.

    Args:
        out: (B, T, H, D), written; may be the same memory as `x`.
        x: (B, T, H, D); its last axis is contiguous.
        rotations: (T, D/2) complex, those of the positions of x.
    """
    np.multiply(_pairs(x), rotations[:, None], out=_pairs(out))


@check_shapes
def rope_backward(dx: np.ndarray, dout: np.ndarray, rotations: np.ndarray) -> None:
    """dx = dout conj(rotation): the transpose of a rotation turns back.

    Args:
        dx: (B, T, H, D), written; may be the same memory as `dout`.
        dout: (B, T, H, D).
        rotations: (T, D/2) complex, those of the forward pass.
    """
    np.multiply(_pairs(dout), rotations.conj()[:, None], out=_pairs(dx))


def _pairs(x: np.ndarray) -> np.ndarray:
    """(..., D) -> (..., D/2) complex, the same memory."""
    return x.view(_complex(x.dtype))


@functools.cache  # of a single token, finding it took longer than turning its pairs
def _complex(dtype: np.dtype) -> np.dtype:
    """The type of two such numbers."""
    return np.result_type(dtype, np.complex64)
