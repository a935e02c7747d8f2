"""AdamW over the flat arrays, and the learning-rate schedules.

Explained in lessons/11_adamw.ipynb.
"""

import math
from collections.abc import Callable, Collection

import numpy as np

import own_imports
from buffers import Buffer, extents
from errors import DivergedError
from layers.tiles import TILE, row_tiles, run_tiles, scratch, slices, tile_count

# Elements in a tile: measured with two threads, with half as many they take 1.2 times as long, as
# they wait for each other more often.
UPDATE_TILE = 2 * TILE


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2).

        m = beta1 m + (1 - beta1) g              v = beta2 v + (1 - beta2) g^2
        p = p - lr weight_decay p - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    as PyTorch's `torch.optim.AdamW` computes it. Matrices and embeddings decay; biases and the
    parameters of norms do not.

    Args:
        params: what to train.
        grads: their gradients, in the same layout.
        lr: the learning rate, unless `step` is given another.
        betas: the decay rates of the moments m and v.
        eps: added to the denominator.
        weight_decay: per unit of learning rate.
        part: the elements of the flat arrays that this optimiser updates; by default all. Several
            processes can share the work and the moments' memory, each with a part of its own
            (Rajbhandari et al. 2020, arXiv 1910.02054, section 5.1: ZeRO, stage 1).
        names: the tensors that this optimiser updates; by default all.
        total: makes one number, the same for all, of what each of those processes has found: the
            sum where each has a part, the mean where each has all.

    Attributes:
        m, v: the moments of what is updated, flat.
    """

    def __init__(
        self,
        params: Buffer,
        grads: Buffer,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        part: slice | None = None,
        names: Collection[str] | None = None,
        total: Callable[[float], float] = float,
    ) -> None:
        self.params, self.grads = params, grads
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.part, self.total = part or slice(0, params.flat.size), total
        self.num_steps = 0
        # Tensor by tensor, because some decay and some do not; the moments lie one after another.
        self._tiles, size = [], 0
        for name, (start, stop) in extents(params.shapes).items():
            start, stop = max(start, self.part.start), min(stop, self.part.stop)
            if start < stop and (names is None or name in names):
                for tile in slices(stop - start, tile_count(stop - start, most=UPDATE_TILE)):
                    own, moments = (slice(n + tile.start, n + tile.stop) for n in (start, size))
                    self._tiles.append((own, moments, decays(name)))
                size += stop - start
        self.m, self.v = (np.zeros(size, params.flat.dtype) for _ in range(2))

    @property
    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint needs besides the parameters, and the number of steps: by name."""
        return {"m": self.m, "v": self.v}

    def step(self, lr: float | None = None, max_norm: float = math.inf) -> float:
        """Update the parameters from the gradients, clipped to a global norm of `max_norm`.

        Args:
            lr: the learning rate of this step; by default the optimiser's.
            max_norm: gradients are scaled down so that their norm is not above this
                (Pascanu et al. 2013, arXiv 1211.5063, algorithm 1).

        Returns:
            The norm of the gradients before clipping.

        Raises:
            DivergedError: the norm is not finite. Nothing was changed.
        """
        norm = self.grad_norm()
        if not math.isfinite(norm):
            raise DivergedError(f"the gradient norm is {norm}")
        self.num_steps += 1
        self._update(self.lr if lr is None else lr, min(1.0, max_norm / (norm + 1e-6)))
        return norm

    def _update(self, lr: float, clip: float) -> None:
        """Update the parameters from `clip` times the gradients."""
        beta1, beta2 = self.betas
        # Both bias corrections, taken out of the loop over the elements.
        correction1 = 1 - beta1**self.num_steps
        correction2 = math.sqrt(1 - beta2**self.num_steps)

        def work(item: tuple[slice, slice, bool]) -> None:
            own, moments, decay = item
            p, g = self.params.flat[own], self.grads.flat[own]
            m, v = self.m[moments], self.v[moments]
            (x,) = scratch(p.dtype, p.shape)
            np.multiply(g, (1 - beta1) * clip, out=x)
            m *= beta1
            m += x
            np.multiply(g, g, out=x)
            x *= (1 - beta2) * clip**2
            v *= beta2
            v += x
            np.sqrt(v, out=x)
            x += self.eps * correction2
            np.divide(m, x, out=x)
            x *= lr * correction2 / correction1
            if decay:
                p *= 1 - lr * self.weight_decay
            p -= x

        run_tiles(work, self._tiles)

    def grad_norm(self) -> float:
        """The Euclidean norm of all gradients of the part together."""
        g = self.grads.flat[self.part]
        squares = run_tiles(lambda tile: float(np.dot(g[tile], g[tile])), row_tiles(g))
        return math.sqrt(self.total(sum(squares)))


def decays(name: str) -> bool:
    """Whether a tensor of this name decays: not biases (b..., ...b), not norms."""
    is_bias = name.startswith("b") or name.endswith("b")
    return not is_bias and not any(norm in name for norm in ("ln", "rms", "norm"))


def cosine_schedule(step: int, lr: float, min_lr: float, warmup: int, num_steps: int) -> float:
    """The learning rate of `step`: a linear warm-up to `lr`, then half a cosine down to `min_lr`.

    Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5.

    Args:
        step: from 0.
        lr: the highest rate, reached when `warmup` steps are done.
        min_lr: the floor, which the step after the last would have, and all later ones.
        warmup: how many steps the warm-up takes.
        num_steps: how many steps the whole schedule takes.
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2


def warmup_stable_decay(
    step: int, lr: float, min_lr: float, warmup: int, decay: int, num_steps: int
) -> float:
    """The learning rate of `step`: a linear warm-up to `lr`, level, and straight down to `min_lr`.

    Hu et al. 2024 (MiniCPM), arXiv 2404.06395, section 4; that the fall be straight: Hägele et al.
    2024, arXiv 2405.18392, section 3. How long the level part is need not be known before.

    Args:
        step: from 0.
        lr: the highest rate, reached when `warmup` steps are done.
        min_lr: the floor, which the step after the last would have, and all later ones.
        warmup: how many steps the warm-up takes.
        decay: how many steps the fall takes, the last of the schedule.
        num_steps: how many steps the whole schedule takes.
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    left = min(1.0, max(0, num_steps - step) / max(1, decay))
    return min_lr + (lr - min_lr) * left
