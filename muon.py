"""Muon: matrices are updated by their momentum, all of whose singular values are made nearly one.

Explained in lessons/11_adamw.ipynb.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import own_imports
from adam import AdamW
from buffers import Buffer, Shapes
from errors import UserError
from layers.tiles import TILE, run_products, scratch, slices

# Jordan 2024, kellerjordan.github.io/posts/muon: the steepest of the polynomials that leave all
# singular values between about 0.7 and 1.2 after five rounds.
COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5
EPS = 1e-7  # of the norm that a matrix is divided by

# GPT-2's queries, keys and values are three matrices, though they lie in one tensor: each has a
# work of its own, and so an update of its own.
TOGETHER = {"qkvw": 3}


def matrix_scale(adjust_lr: str, rows: int, columns: int) -> float:
    """What the learning rate of a matrix is multiplied by.

    Args:
        adjust_lr: "match_rms_adamw", 0.2 sqrt(max(rows, columns)): its update is as large as AdamW
            makes them, so that learning rates and decay of AdamW hold (Liu et al. 2025, equation
            4). Or "original", sqrt(max(1, rows / columns)) (Jordan 2024).
        rows, columns: of the matrix; rows are outputs.

    Raises:
        UserError: `adjust_lr` is another word.
    """
    if adjust_lr == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    if adjust_lr == "original":
        return math.sqrt(max(1, rows / columns))
    raise UserError(f"adjust_lr must be match_rms_adamw or original, not {adjust_lr!r}")


class Muon(AdamW):
    """Muon (Jordan 2024; Liu et al. 2025, arXiv 2502.16982, section 2) for matrices.

        momentum = mu momentum + (1 - mu) g          update = (1 - mu) g + mu momentum
        p = p - lr weight_decay p - lr scale orthogonal(update)

    for the matrices that a layer multiplies with, as `torch.optim.Muon` computes it with Nesterov's
    momentum; embeddings, a classifier of its own, norms and biases are updated by AdamW, with the
    same learning rate. The gradients of matrices are used up: they become their updates.

    PyTorch makes these products in bfloat16, whose 8 bits change an update by about a hundredth of
    its norm (1.2 % of a random 128 x 512 matrix's); here they are in the type of the parameters.

    Args:
        params, grads, lr, betas, eps, weight_decay: as AdamW's.
        momentum: mu.
        adjust_lr: see `matrix_scale`.
        total: as AdamW's, the mean.

    Attributes:
        m, v: AdamW's moments of all that is no matrix, flat.
        momentum: of the matrices, a Buffer: one number for each parameter, where AdamW has two.
    """

    def __init__(
        self,
        params: Buffer,
        grads: Buffer,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adjust_lr: str = "match_rms_adamw",
        total: Callable[[float], float] = float,
    ) -> None:
        matrices, others = part_shapes(params.shapes)
        super().__init__(params, grads, lr, betas, eps, weight_decay, names=others, total=total)
        self.momentum = Buffer(matrices, params.flat.dtype)
        self.mu = momentum
        self._matrices = []
        for name in matrices:
            L, rows, columns = params[name].shape
            L, rows = L * TOGETHER.get(name, 1), rows // TOGETHER.get(name, 1)
            scale = matrix_scale(adjust_lr, rows, columns)
            p, g, m = (
                buffer[name].reshape(L, rows, columns) for buffer in (params, grads, self.momentum)
            )
            # As many at once as a tile has room for: small ones would be a call each.
            for some in slices(L, -(-L // max(1, TILE // (rows * columns)))):
                self._matrices.append((p[some], g[some], m[some], scale))
        # The largest first, so that no thread is left alone with one of them at the end.
        self._matrices.sort(key=lambda each: -each[0].size)

    @property
    def state(self) -> dict[str, np.ndarray]:
        """As AdamW's, with the matrices' momentum."""
        return super().state | {"momentum": self.momentum.flat}

    def _update(self, lr: float, clip: float) -> None:
        super()._update(lr, clip)

        def work(item: tuple[Any, ...]) -> None:
            p, g, m, scale = item
            g *= (1 - self.mu) * clip
            m *= self.mu
            m += g
            (mu_m,) = scratch(m.dtype, m.shape)
            g += np.multiply(m, self.mu, out=mu_m)
            newton_schulz(g)
            g *= lr * scale
            p *= 1 - lr * self.weight_decay
            p -= g

        run_products(work, self._matrices)


def part_shapes(shapes: Shapes) -> tuple[Shapes, Shapes]:
    """The matrices, which have one for each layer and so three axes, and all other tensors."""
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 3}
    return matrices, {name: shape for name, shape in shapes.items() if name not in matrices}


def newton_schulz(x: np.ndarray, rounds: int = ROUNDS) -> None:
    """Move the singular values of matrices next to 1, and keep their singular vectors.

    A round takes x = U S V^T to a x + b (x x^T) x + c (x x^T)^2 x = U (a S + b S^3 + c S^5) V^T,
    without ever knowing U, S and V (Jordan 2024). The products are made on the shorter side.

    Args:
        x: (n, R, C), overwritten; an x of zeros stays so.
        rounds: how often.
    """
    a, b, c = COEFFICIENTS
    n, R, C = x.shape
    tall, short = R > C, min(R, C)
    gram, polynomial, product = scratch(x.dtype, (n, short, short), (n, short, short), x.shape)
    # No singular value is above the square root of the sum of their squares.
    x /= np.maximum(np.sqrt(np.einsum("nij,nij->n", x, x)), EPS)[:, None, None]
    for _ in range(rounds):
        np.matmul(*((x.mT, x) if tall else (x, x.mT)), out=gram)
        np.matmul(gram, gram, out=polynomial)
        polynomial *= c
        gram *= b
        polynomial += gram
        np.matmul(*((x, polynomial) if tall else (polynomial, x)), out=product)
        x *= a
        x += product
