"""What all models have in common: their buffers, and the bookkeeping around a pass.

What makes each of them itself, its table of shapes, `forward` and `backward`, is in the file of its
name beside this one. Shapes are written with

    B sequences   T positions   N = B T rows   V vocabulary
"""

import math
from functools import cached_property
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from buffers import Buffer, Shapes
from errors import UserError
from layers.views import reshape_view

# What is made again: nothing; the outputs of norms and activation functions, which cost next to
# nothing; or all of a block but its input and its queries, keys and values.
RECOMPUTE = "none", "norms", "blocks"
# To sample: nothing but keys and values is kept from one layer to the next, and no backward pass
# could be made of it.
FORWARD_ONLY = "forward only"


class Dropout(NamedTuple):
    """What a forward pass drops, but for the place in the model: see `layers.dropout`.

    Attributes:
        p: the probability that an element is dropped.
        seed: of all masks of a run.
        row: the number of the batch's first row, counted through all rows of the run.
    """

    p: float = 0.0
    seed: int = 0
    row: int = 0


NO_DROPOUT = Dropout()  # which costs nothing


def unpadded_shapes(config: Any) -> Shapes:
    """The shapes of a model's parameters, but with no more rows of wte than its vocab_size."""
    shapes = config.param_shapes()
    return shapes | {"wte": (config.vocab_size, *shapes["wte"][1:])}


class Model:
    """A model and every buffer it needs.

    Args:
        config: its numbers; has `param_shapes`, `act_shapes`, `seq_len` and `vocab_size`.
        batch_size: B, the most sequences that `forward` takes at once.
        seq_len: T, the most positions; at most `config.seq_len`, which it is by default.
        dtype: float32 to train, float64 to check gradients.
        seed: of the initial weights; the same seed gives the same bits. None leaves them zero, for
            whoever is about to load them.
        rows: N, the most positions of all sequences together that one pass computes; by default
            B T. With fewer, all activations but keys and values are smaller: enough to sample.
        recompute: one of `RECOMPUTE`: which activations the backward pass makes again, instead of
            having kept them for every layer. Chen et al. 2016, arXiv 1604.06174, section 4. Or
            `FORWARD_ONLY`, for a model that only samples; some of its matrices lie in `params.flat`
            column by column, and so it is no checkpoint.

    Attributes:
        passes: how many forward passes there were. Who left something in the buffers can see from
            it whether it is still there.
        parts: the models that share the last batch, if several do; see models/parts.py.
        more_grads: their gradients, but the first one's.
        first_row: of the batch's N rows the first that this one has.

    Raises:
        UserError: `seq_len` above `config.seq_len`.
    """

    def __init__(
        self,
        config: Any,
        batch_size: int = 1,
        seq_len: int | None = None,
        dtype: Any = np.float32,
        seed: int | None = 0,
        rows: int | None = None,
        recompute: str = "none",
    ) -> None:
        if recompute not in (*RECOMPUTE, FORWARD_ONLY):
            raise UserError(f"recompute {recompute!r} must be one of {', '.join(RECOMPUTE)}")
        self.config = config
        self.batch_size = batch_size
        self.seq_len = config.seq_len if seq_len is None else seq_len
        if not 1 <= self.seq_len <= config.seq_len:
            raise UserError(
                f"a sequence length of {self.seq_len} is outside 1 to {config.seq_len}, "
                "the positions that this model has"
            )
        if batch_size < 1:
            raise UserError(
                f"a batch of {batch_size} sequences holds nothing; it must be 1 or more"
            )
        shapes = config.param_shapes()
        self.params = Buffer(shapes, dtype, _turned(shapes) if recompute == FORWARD_ONLY else ())
        self.rows = rows or batch_size * self.seq_len
        self.recompute = recompute
        self.acts = Buffer(config.act_shapes(batch_size, self.seq_len, self.rows, recompute), dtype)
        self.passes = self.first_row = 0
        self.parts: list[Model] = []
        self.more_grads: list[Buffer] = []
        self._cuts: dict[tuple[int, int], SimpleNamespace] = {}
        self._accumulate = False
        self._batch: tuple[np.ndarray, np.ndarray, Dropout] | None = None
        if seed is not None:
            self.init_params(np.random.default_rng(seed))

    @cached_property
    def grads(self) -> Buffer:
        """The gradients of the parameters; allocated when first used, so sampling never pays."""
        return self.params.like()

    def zero_grad(self) -> None:
        """The next `backward` starts the gradients afresh. No memory is written."""
        self._accumulate = False

    def _start_forward(
        self, tokens: np.ndarray, targets: np.ndarray | None, start: int, every_position: bool
    ) -> tuple[int, int]:
        """Refuse what does not fit the buffers or the vocabulary; B and T of what does."""
        self._check(tokens, start)
        if targets is not None:
            self._check(targets, start)
            if not every_position:
                raise UserError("a loss needs the logits of every position: leave out the targets")
            if targets.shape != tokens.shape:
                raise UserError(
                    f"targets of shape {targets.shape} do not belong to tokens of {tokens.shape}"
                )
        self._batch = None  # its activations are about to be overwritten
        self.passes += 1
        return tokens.shape

    def _remember(self, tokens: np.ndarray, targets: np.ndarray, start: int, drop: Dropout) -> None:
        """Allow a backward pass, where all its activations are there: from position 0 on."""
        if start == 0 and self.recompute != FORWARD_ONLY:
            self._batch = np.array(tokens), np.array(targets), drop

    def _start_backward(self) -> tuple[np.ndarray, np.ndarray, Dropout, bool]:
        """What the last forward pass was given, and whether to add to the gradients."""
        if self._batch is None:
            raise UserError(
                "backward needs a forward pass with targets and start=0 before it, "
                "one for each call, of a model that was not made to sample only"
            )
        tokens, targets, drop = self._batch
        self._batch = None  # the logits become their own gradient
        accumulate, self._accumulate = self._accumulate, True
        return tokens, targets, drop, accumulate

    def _cut(self, B: int, T: int) -> SimpleNamespace:
        """The activations cut to a batch of B sequences of T positions; the buffers may hold more.

        Rows are packed at the front of each tensor. What else a model sets on the result, it sets
        anew for every pass: a sampler asks for the same cut again and again, so the last is kept.
        """
        if (B, T) not in self._cuts:
            shapes = self.config.act_shapes(B, T, recompute=self.recompute)
            views = {n: self.acts[n][tuple(map(slice, shape))] for n, shape in shapes.items()}
            for name, view in views.items():
                if view.ndim > 2 and len(view) == 1:
                    # The stream leaves the last layer, too.
                    views[name] = _repeated(view[0], self.config.num_layers + (name == "residual"))
            self._cuts = {(B, T): SimpleNamespace(**views)}
        return self._cuts[B, T]

    def _logits(self, count: int) -> np.ndarray:
        """(count, V): in the buffer, or a new array if that was made for fewer rows at once."""
        logits = self.acts.logits
        if count <= len(logits):
            return logits[:count]
        return np.empty((count, self.config.vocab_size), logits.dtype)

    def _cached(self, name: str, B: int, T: int, start: int) -> tuple[np.ndarray, np.ndarray]:
        """The places in acts[name], (L, maxB, maxT, X), of T positions from `start` on.

        Returns:
            Those places, as (L, N, X) where the memory allows one matrix of N rows per layer, else
            (L, B, T, X); and all of the sequences up to there, (L, B, start + T, X).
        """
        everything = self.acts[name][:, :B, : start + T]
        new = everything[:, :, start:]
        if B == 1 or T in (1, self.seq_len):
            new = reshape_view(new, len(new), B * T, new.shape[-1])
        return new, everything

    def _head_views(self, B: int, T: int, start: int) -> SimpleNamespace:
        """`_cut` for models whose heads are rotated, with views head by head: (L, B, T, heads, D).

        `keys` and `values` reach back to position 0; all others begin at `start`. Where heads have
        no norms, their projections are written where they are rotated.
        """
        L, D = self.config.num_layers, self.config.head_size
        H, K = self.config.num_heads, self.config.num_kv_heads
        a = self._cut(B, T)
        a.k, keys = self._cached("k", B, T, start)
        a.v, values = self._cached("v", B, T, start)
        a.keys, a.values = split_heads(keys, B, K), split_heads(values, B, K)
        a.q_heads, a.k_heads = split_heads(a.q, B, H), split_heads(a.k, B, K)
        a.att_heads = split_heads(a.att, B, H)
        if hasattr(a, "q_norm"):
            a.q_rows, a.k_rows = a.q_proj.reshape(L, -1, D), a.k_proj.reshape(L, -1, D)
            a.q_unrotated = a.q_norm.reshape(a.q_heads.shape)
            a.k_unrotated = a.k_norm.reshape(a.k_heads.shape)
        else:
            a.q_proj, a.q_unrotated, a.k_proj, a.k_unrotated = a.q, a.q_heads, a.k, a.k_heads
        return a

    def _check(self, tokens: np.ndarray, start: int) -> None:
        """Refuse tokens that do not fit the buffers or the vocabulary."""
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or not tokens.size:
            raise UserError(
                f"tokens must be whole numbers of shape (B, T), not {tokens.dtype} {tokens.shape}"
            )
        B, T = tokens.shape
        if B > self.batch_size:
            raise UserError(
                f"{B} sequences are more than the {self.batch_size} this model was made for"
            )
        if B * T > self.rows:
            raise UserError(
                f"{B} times {T} positions are more than the {self.rows} that this model "
                "was made to compute at once"
            )
        if start < 0 or start + T > self.seq_len:
            raise UserError(
                f"positions {start} to {start + T - 1} are outside the {self.seq_len} "
                "this model was made for"
            )
        V = self.config.vocab_size
        if tokens.min() < 0 or tokens.max() >= V:
            bad = tokens[(tokens < 0) | (tokens >= V)][0]
            raise UserError(f"token {bad} is outside the vocabulary, 0 to {V - 1}")


def _turned(shapes: Shapes) -> list[str]:
    """Of all layers' matrices, (L, O, I), those that `linear_forward` reads faster by columns.

    For one token they are read at the speed of memory, and this at best where what lies in one
    piece is long: 20 GB/s instead of 14 (one AVX2 core, SmolLM2-135M's (1536, 576)).
    """
    return [name for name, shape in shapes.items() if len(shape) == 3 and shape[1] >= shape[2]]


def draw_normal(tensor: np.ndarray, rng: np.random.Generator, std: float) -> None:
    """Fill a parameter with normal numbers: the same ones, whether or not it is turned."""
    if tensor.flags.c_contiguous:
        rng.standard_normal(out=tensor, dtype=tensor.dtype)
    else:
        for matrix in tensor:
            matrix[...] = rng.standard_normal(matrix.shape, tensor.dtype)
    tensor *= std


def _repeated(place: np.ndarray, count: int) -> np.ndarray:
    """(N, C) -> (count, N, C), all of them at the same place."""
    shape, strides = (count, *place.shape), (0, *place.strides)
    return np.lib.stride_tricks.as_strided(place, shape, strides)


def split_heads(x: np.ndarray, B: int, num_heads: int) -> np.ndarray:
    """(N, C) -> (B, T, H, D), or of all layers (L, N, C) -> (L, B, T, H, D).

    A view: only where axes are joined, and not split, may `reshape` have to make a copy.
    """
    layers = x.shape[:1] if x.ndim > 2 else ()
    return x.reshape(*layers, B, -1, num_heads, x.shape[-1] // num_heads)


def check_positive(**numbers: float) -> None:
    """Refuse constants of a config that cannot be.

    Raises:
        UserError: one is not a number above 0.
    """
    for name, value in numbers.items():
        if not (isinstance(value, float | int) and 0 < value < math.inf):
            raise UserError(f"{name} must be a number above 0, not {value!r}")


def check_heads(num_heads: int, num_kv_heads: int, head_size: int) -> None:
    """Refuse heads that cannot be rotated in pairs, or not be shared.

    Raises:
        UserError: the size is odd, or the query heads are no multiple of the others.
    """
    if head_size % 2:
        raise UserError(
            f"a head_size of {head_size} is odd, and heads are rotated in pairs; choose an even one"
        )
    if num_heads % num_kv_heads:
        raise UserError(
            f"{num_kv_heads} key/value heads cannot serve {num_heads} query heads in equal groups; "
            "choose a divisor"
        )


def check_counts(**numbers: int) -> None:
    """Refuse numbers of a config that count nothing.

    Raises:
        UserError: one is not a whole number of at least 1.
    """
    for name, value in numbers.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{name} must be a whole number of at least 1, not {value!r}")
