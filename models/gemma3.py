"""Gemma 3 for text (Gemma Team 2025, arXiv 2503.19786): config, table of shapes, both passes.

Read `Gemma3.forward` downwards and `Gemma3.backward` upwards: the same layers in mirrored order.
What differs from Llama 2 (llama2.py):

    embedding      times sqrt(C): as large as what the layers add to it, with a table whose rows
                   are small enough for a classifier, which is always the same table
    norms          one after attention and one after the MLP, too, before each joins the stream; and
                   one of each query and key head before it is rotated, so that scores cannot grow
                   beyond all bounds
    MLP            the gate has a GELU
    attention      five of six layers see a window only, so that the cache could be small; every
                   sixth sees all. Each kind has its own base of rotations; heads have a size of
                   their own, and the scores a scale

transformers rounds sqrt(C) to the type of the weights: in a model that it has loaded in bfloat16,
640 channels are multiplied by 25.25, in float32 by 25.298, as here. Names of the parameters are
those of llama2.py; of norms, the weight is what is multiplied by. Shapes are written with

    B sequences   T positions   N = B T rows   C channels (dim)   F hidden_dim   L layers
    H query heads   K key/value heads   D head size   V vocabulary
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from buffers import Shapes
from layers.attention import attention_backward, attention_forward
from layers.classifier import classifier_backward, classifier_forward, logit_rows
from layers.dropout import dropout_backward, dropout_forward
from layers.embedding import embedding_backward, embedding_forward
from layers.geglu import geglu_backward, geglu_forward
from layers.linear import linear_backward, linear_forward
from layers.rmsnorm import rmsnorm_backward, rmsnorm_forward
from layers.rope import rope_backward, rope_forward
from models.model import (
    FORWARD_ONLY,
    NO_DROPOUT,
    Dropout,
    Model,
    check_counts,
    check_heads,
    check_positive,
    draw_normal,
    split_heads,
)
from models.parts import backward_in_parts, forward_in_parts
from models.rotations import check_scaling, make_rotations


@dataclass(frozen=True)
class Gemma3Config:
    """The numbers that make a Gemma 3; by default those of the smallest, of 270M parameters.

    Attributes:
        dim: C, the width of the residual stream.
        hidden_dim: F, the width of the MLP.
        num_layers: L, blocks.
        num_heads: H, of the queries.
        num_kv_heads: K, of keys and values, must divide the others.
        head_size: D, an even number.
        vocab_size: V.
        seq_len: positions that a text can have.
        norm_eps: the eps of every RMSNorm.
        rope_theta: the base of the rotations' frequencies in layers that see all.
        rope_local_theta: the same in those that see a window.
        window: how many positions these see, the own one counted.
        window_pattern: of so many layers each, the last one sees all.
        query_scalar: scores are divided by its square root; if not given, by that of head_size.
        rope_scaling: how the frequencies are scaled in layers that see all; see `models.rotations`.

    Raises:
        UserError: a number is not positive, the heads do not divide what they share or are odd, or
            the scaling is none that is known.
    """

    dim: int = 640
    hidden_dim: int = 2048
    num_layers: int = 18
    num_heads: int = 4
    num_kv_heads: int = 1
    head_size: int = 256
    vocab_size: int = 262144
    seq_len: int = 32768
    norm_eps: float = 1e-6
    rope_theta: float = 1e6
    rope_local_theta: float = 1e4
    window: int = 512
    window_pattern: int = 6
    query_scalar: int | None = None
    rope_scaling: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        # A frozen dataclass is written to in this way only.
        if self.query_scalar is None:
            object.__setattr__(self, "query_scalar", self.head_size)
        floats = ("norm_eps", "rope_theta", "rope_local_theta")
        counts = {name: value for name, value in vars(self).items() if name not in floats}
        scaling = counts.pop("rope_scaling")
        check_counts(**counts)
        check_positive(**{name: getattr(self, name) for name in floats})
        check_heads(self.num_heads, self.num_kv_heads, self.head_size)
        scaling = check_scaling(scaling, self.head_size, self.seq_len)
        object.__setattr__(self, "rope_scaling", scaling)

    @property
    def windows(self) -> list[int | None]:
        """Each layer's window; None where it sees all."""
        return [
            None if (i + 1) % self.window_pattern == 0 else self.window
            for i in range(self.num_layers)
        ]

    def param_shapes(self) -> Shapes:
        """The parameters, in the order of the forward pass."""
        L, C, F, V, D = self.num_layers, self.dim, self.hidden_dim, self.vocab_size, self.head_size
        HD, KD = self.num_heads * D, self.num_kv_heads * D
        return {
            "wte": (V, C),
            "rms1w": (L, C),  # before attention
            "wq": (L, HD, C),
            "wk": (L, KD, C),
            "wv": (L, KD, C),
            "qnormw": (L, D),
            "knormw": (L, D),
            "wo": (L, C, HD),
            "postrms1w": (L, C),  # after it
            "rms2w": (L, C),  # before the MLP
            "w1": (L, F, C),  # to the gate
            "w2": (L, C, F),  # back to the residual stream
            "w3": (L, F, C),  # to what is gated
            "postrms2w": (L, C),  # after it
            "rmsfw": (C,),
        }

    def act_shapes(self, B: int, T: int, N: int | None = None, recompute: str = "none") -> Shapes:
        """The activations of a batch, and one layer's worth of their gradients.

        Only keys and values need a place for every position where a pass computes N rows at most.
        What the backward pass makes again has one place, which all layers share.
        """
        L, C, F, V = self.num_layers, self.dim, self.hidden_dim, self.vocab_size
        H, K, D = self.num_heads, self.num_kv_heads, self.head_size
        HD, KD = H * D, K * D
        N = N or B * T
        cheap = L if recompute == "none" else 1
        other = 1 if recompute in ("blocks", FORWARD_ONLY) else L
        stream, queries = (1, 1) if recompute == FORWARD_ONLY else (L + 1, L)
        return {
            "residual": (stream, N, C),  # the stream: what enters layer l, and what leaves the last
            "rms1": (cheap, N, C),
            "rms1_rstd": (L, N),
            "q_proj": (other, N, HD),
            "q_rstd": (L, N * H),
            "q_norm": (1, N * H, D),
            "k_proj": (other, N, KD),
            "k_rstd": (L, N * K),
            "k_norm": (1, N * K, D),
            "q": (queries, N, HD),
            "k": (L, B, T, KD),  # k and v are the sampler's cache
            "v": (L, B, T, KD),
            "att": (other, N, HD),
            "lse": (L, B, H, T),
            "att_proj": (other, N, C),
            "postrms1_rstd": (L, N),
            "residual_mid": (other, N, C),  # the stream between attention and MLP
            "rms2": (cheap, N, C),
            "rms2_rstd": (L, N),
            "gate": (other, N, F),
            "up": (other, N, F),
            "geglu": (cheap, N, F),
            "mlp_proj": (other, N, C),
            "postrms2_rstd": (L, N),
            "rmsf": (N, C),
            "rmsf_rstd": (N,),
            "logits": (logit_rows(N, V), V),  # the backward pass turns them into their gradient
            "logits_lse": (N,),
            "losses": (N,),
            "dresidual": (N, C),
            "dbranch": (N, C),
            "dsummand": (N, C),  # where several products read the same input
            "datt": (N, HD),
            "dq": (N, HD),
            "dk": (N, KD),
            "dv": (N, KD),
            "dgate": (N, F),
            "dup": (N, F),
        }

    def step_flops(self, B: int, T: int) -> int:
        """Floating-point operations in the matrix products of one forward and backward pass.

        Counted as Llama 2's are, see `Llama2Config.step_flops`.
        """
        L, C, F, V = self.num_layers, self.dim, self.hidden_dim, self.vocab_size
        HD, KD = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        windows = [min(window or T, T) for window in self.windows]
        weights = L * (2 * C * HD + 2 * C * KD + 3 * C * F) + V * C
        return 6 * B * T * weights + sum(7 * B * W * (2 * T - W) * HD for W in windows)


PRESETS = {
    "gemma3-tiny": Gemma3Config(
        dim=192,
        hidden_dim=512,
        num_layers=3,
        num_heads=3,
        num_kv_heads=1,
        head_size=64,
        vocab_size=2305,
        seq_len=128,
        window=32,
        window_pattern=3,
    ),
    "gemma3-270m": Gemma3Config(),
    "gemma3-1b": Gemma3Config(dim=1152, hidden_dim=6912, num_layers=26),
}

# With so few numbers that gradcheck.py can check their gradients.
SMALL = (
    Gemma3Config(*(12, 9, 2, 4, 2, 6, 13, 7), window=3, window_pattern=2, query_scalar=5),
    Gemma3Config(*(10, 7, 3, 3, 1, 4, 11, 6), window=2, window_pattern=2, rope_local_theta=3.0),
)


class Gemma3(Model):
    """A Gemma 3 and every buffer it needs; the arguments are `Model`'s."""

    config: Gemma3Config

    def __init__(self, config: Gemma3Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        T, D, dtype = self.seq_len, config.head_size, self.params.flat.dtype
        everywhere = make_rotations(T, D, config.rope_theta, dtype, config.rope_scaling)
        nearby = make_rotations(T, D, config.rope_local_theta, dtype)
        self._windows = config.windows
        self._rotations = [nearby if window else everywhere for window in self._windows]
        self._embedding_scale = math.sqrt(config.dim)
        self._query_scale = 1 / math.sqrt(config.query_scalar)

    def init_params(self, rng: np.random.Generator) -> None:
        """Normal with standard deviation 0.02; norms 1, but 1/sqrt(2L) before they join the stream.

        GPT-2 makes the 2L projections back to the stream so much smaller (Radford et al. 2019,
        section 2.3). Here a norm would undo that, and so is scaled itself. transformers begins with
        1: gemma3-tiny's validation loss after 400 steps is then 4.49, and so 4.34.
        """
        for name, tensor in self.params:
            if name.startswith("postrms"):
                tensor.fill(1 / math.sqrt(2 * self.config.num_layers))
            elif "rms" in name or "norm" in name:
                tensor.fill(1)
            else:
                draw_normal(tensor, rng, 0.02)

    @forward_in_parts
    def forward(
        self,
        tokens: np.ndarray,
        targets: np.ndarray | None = None,
        start: int = 0,
        padding: np.ndarray | None = None,
        last_only: bool = False,
        drop: Dropout = NO_DROPOUT,
    ) -> float | np.ndarray:
        """The loss with `targets`, the logits without: see `GPT2.forward`, which takes the same.

        Only the distance of two positions matters to rotated queries and keys, and to a window, so
        `padding` concerns nothing but attention.
        """
        every_position = padding is None and not last_only
        B, T = self._start_forward(tokens, targets, start, every_position)
        p, a, eps = self.params, self._head_views(B, T, start), self.config.norm_eps

        x = a.residual[0]
        embedding_forward(x, tokens.ravel(), p.wte)
        x *= self._embedding_scale
        dropout_forward(x, x, *drop, 0)
        for i in range(self.config.num_layers):
            rmsnorm_forward(a.rms1[i], a.rms1_rstd[i], a.residual[i], p.rms1w[i], eps)
            linear_forward(a.q_proj[i], a.rms1[i], p.wq[i])
            linear_forward(a.k_proj[i], a.rms1[i], p.wk[i])
            linear_forward(a.v[i], a.rms1[i], p.wv[i])
            rmsnorm_forward(a.q_norm[i], a.q_rstd[i], a.q_rows[i], p.qnormw[i], eps)
            rmsnorm_forward(a.k_norm[i], a.k_rstd[i], a.k_rows[i], p.knormw[i], eps)
            rotations = self._rotations[i][start : start + T]
            rope_forward(a.q_heads[i], a.q_unrotated[i], rotations)
            rope_forward(a.k_heads[i], a.k_unrotated[i], rotations)
            q, k, v, out = a.q_heads[i], a.keys[i], a.values[i], a.att_heads[i]
            window, scale = self._windows[i], self._query_scale
            attention_forward(out, a.lse[i], q, k, v, start, padding, window, scale)
            linear_forward(a.att_proj[i], a.att[i], p.wo[i])
            x, rstd, branch = a.att_proj[i], a.postrms1_rstd[i], a.residual_mid[i]
            rmsnorm_forward(branch, rstd, x, p.postrms1w[i], eps)
            dropout_forward(branch, branch, *drop, 2 * i + 1)
            branch += a.residual[i]
            rmsnorm_forward(a.rms2[i], a.rms2_rstd[i], a.residual_mid[i], p.rms2w[i], eps)
            linear_forward(a.gate[i], a.rms2[i], p.w1[i])
            linear_forward(a.up[i], a.rms2[i], p.w3[i])
            geglu_forward(a.geglu[i], a.gate[i], a.up[i])
            linear_forward(a.mlp_proj[i], a.geglu[i], p.w2[i])
            x, rstd, branch = a.mlp_proj[i], a.postrms2_rstd[i], a.residual[i + 1]
            rmsnorm_forward(branch, rstd, x, p.postrms2w[i], eps)
            dropout_forward(branch, branch, *drop, 2 * i + 2)
            branch += a.residual_mid[i]
        rows = slice(T - 1, None, T) if last_only else slice(None)  # each sequence's last, or all
        x = a.residual[-1][rows]
        rmsnorm_forward(a.rmsf[rows], a.rmsf_rstd[rows], x, p.rmsfw, eps)
        if targets is None:
            logits = self._logits(len(x))
            linear_forward(logits, a.rmsf[rows], p.wte)
            return logits.reshape(B, -1, len(p.wte))

        classifier_forward(a.losses, a.logits_lse, a.logits, a.rmsf, targets.ravel(), p.wte)
        self._remember(tokens, targets, start, drop)
        return float(a.losses.mean())

    @backward_in_parts
    def backward(self, dloss: float = 1.0) -> None:
        """Fill `grads` with the derivatives of the last forward pass's loss, or add to them.

        As `GPT2.backward`: the first call after `zero_grad` fills them, every further one adds.

        Args:
            dloss: the derivative of what is minimised with respect to this loss: 1/n for the mean
                of n micro-batches.

        Raises:
            UserError: there was no forward pass with targets, or its activations are used up.
        """
        tokens, targets, drop, accumulate = self._start_backward()
        B, T = tokens.shape
        p, g, a = self.params, self.grads, self._head_views(B, T, start=0)
        H, K, D = self.config.num_heads, self.config.num_kv_heads, self.config.head_size
        dresidual = a.dresidual  # the residual stream's gradient, the one running sum
        dx, dsummand = a.dbranch, a.dsummand
        dgate, dup = a.dgate, a.dup
        dq, dk, dv = split_heads(a.dq, B, H), split_heads(a.dk, B, K), split_heads(a.dv, B, K)
        dq_rows, dk_rows = a.dq.reshape(-1, D), a.dk.reshape(-1, D)
        datt = split_heads(a.datt, B, H)

        lse, dlosses = a.logits_lse, dloss / (B * T)
        classifier_backward(
            dx, g.wte, dlosses, a.logits, a.rmsf, targets.ravel(), p.wte, lse, accumulate
        )
        rmsnorm_backward(dresidual, g.rmsfw, dx, a.residual[-1], p.rmsfw, a.rmsf_rstd, accumulate)
        # What a branch has added; in the place of rmsf, which no layer needs any more.
        dbranch = a.rmsf if drop.p else dresidual
        for i in reversed(range(self.config.num_layers)):
            self._recompute(a, i, drop)
            dropout_backward(dbranch, dresidual, *drop, 2 * i + 2)
            x, w, rstd = a.mlp_proj[i], p.postrms2w[i], a.postrms2_rstd[i]
            rmsnorm_backward(dx, g.postrms2w[i], dbranch, x, w, rstd, accumulate)
            linear_backward(dgate, g.w2[i], None, dx, a.geglu[i], p.w2[i], accumulate)
            geglu_backward(dgate, dup, dgate, a.gate[i], a.up[i])
            linear_backward(dx, g.w3[i], None, dup, a.rms2[i], p.w3[i], accumulate)
            linear_backward(dsummand, g.w1[i], None, dgate, a.rms2[i], p.w1[i], accumulate)
            dx += dsummand
            x = a.residual_mid[i]
            rmsnorm_backward(dx, g.rms2w[i], dx, x, p.rms2w[i], a.rms2_rstd[i], accumulate)
            dresidual += dx
            dropout_backward(dbranch, dresidual, *drop, 2 * i + 1)
            x, w, rstd = a.att_proj[i], p.postrms1w[i], a.postrms1_rstd[i]
            rmsnorm_backward(dx, g.postrms1w[i], dbranch, x, w, rstd, accumulate)
            linear_backward(a.datt, g.wo[i], None, dx, a.att[i], p.wo[i], accumulate)
            q, k, v, out = a.q_heads[i], a.keys[i], a.values[i], a.att_heads[i]
            window, scale = self._windows[i], self._query_scale
            attention_backward(dq, dk, dv, datt, q, k, v, out, a.lse[i], window, scale)
            rope_backward(dk, dk, self._rotations[i][:T])
            rope_backward(dq, dq, self._rotations[i][:T])
            x, w, rstd = a.k_rows[i], p.knormw[i], a.k_rstd[i]
            rmsnorm_backward(dk_rows, g.knormw[i], dk_rows, x, w, rstd, accumulate)
            x, w, rstd = a.q_rows[i], p.qnormw[i], a.q_rstd[i]
            rmsnorm_backward(dq_rows, g.qnormw[i], dq_rows, x, w, rstd, accumulate)
            linear_backward(dx, g.wv[i], None, a.dv, a.rms1[i], p.wv[i], accumulate)
            linear_backward(dsummand, g.wk[i], None, a.dk, a.rms1[i], p.wk[i], accumulate)
            dx += dsummand
            linear_backward(dsummand, g.wq[i], None, a.dq, a.rms1[i], p.wq[i], accumulate)
            dx += dsummand
            x = a.residual[i]
            rmsnorm_backward(dx, g.rms1w[i], dx, x, p.rms1w[i], a.rms1_rstd[i], accumulate)
            dresidual += dx
        dropout_backward(dresidual, dresidual, *drop, 0)
        dresidual *= self._embedding_scale
        # The classifier has written to the table's gradient already, so this always adds.
        embedding_backward(g.wte, dresidual, tokens.ravel(), accumulate=True)

    def _recompute(self, a: SimpleNamespace, i: int, drop: Dropout) -> None:
        """Make those activations of layer i again that have no place of their own."""
        if self.recompute == "none" or i == self.config.num_layers - 1:
            return  # all are still there
        p, eps, whole_block = self.params, self.config.norm_eps, self.recompute == "blocks"
        rmsnorm_forward(a.rms1[i], a.rms1_rstd[i], a.residual[i], p.rms1w[i], eps)
        if whole_block:
            linear_forward(a.q_proj[i], a.rms1[i], p.wq[i])
            linear_forward(a.k_proj[i], a.rms1[i], p.wk[i])
            q, k, v, out = a.q_heads[i], a.keys[i], a.values[i], a.att_heads[i]
            window, scale = self._windows[i], self._query_scale
            attention_forward(out, a.lse[i], q, k, v, window=window, scale=scale)
            linear_forward(a.att_proj[i], a.att[i], p.wo[i])
            x, rstd, branch = a.att_proj[i], a.postrms1_rstd[i], a.residual_mid[i]
            rmsnorm_forward(branch, rstd, x, p.postrms1w[i], eps)
            dropout_forward(branch, branch, *drop, 2 * i + 1)
            branch += a.residual[i]
        rmsnorm_forward(a.rms2[i], a.rms2_rstd[i], a.residual_mid[i], p.rms2w[i], eps)
        if whole_block:
            linear_forward(a.gate[i], a.rms2[i], p.w1[i])
            linear_forward(a.up[i], a.rms2[i], p.w3[i])
        geglu_forward(a.geglu[i], a.gate[i], a.up[i])
        if whole_block:
            linear_forward(a.mlp_proj[i], a.geglu[i], p.w2[i])
