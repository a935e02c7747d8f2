"""Llama 2 (Touvron et al. 2023): its config, its table of shapes, its forward and backward pass.

Read `Llama2.forward` downwards and `Llama2.backward` upwards: the same layers in mirrored order.
What differs from GPT-2: RMSNorm for LayerNorm, rotated queries and keys for learned positions, a
gated MLP, fewer heads for keys and values than for queries, no biases, and a classifier that may
be a table of its own. Names and layout of the parameters are llama2.c's, and its files' order.

Its descendants differ from it in little, and are the same class with other numbers: see llama3.py,
mistral.py, qwen2.py, qwen3.py and phi3.py. What a Llama 2 has not is behind an `if`, or is None.
Shapes are written with

    B sequences   T positions   N = B T rows   C channels (dim)   F hidden_dim   L layers
    H query heads   K key/value heads   D head size, in Llama 2 C / H   V vocabulary
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from buffers import Buffer, Shapes
from errors import UserError
from layers.attention import attention_backward, attention_forward
from layers.classifier import classifier_backward, classifier_forward, logit_rows
from layers.dropout import dropout_backward, dropout_forward
from layers.embedding import embedding_backward, embedding_forward
from layers.linear import linear_backward, linear_forward
from layers.rmsnorm import rmsnorm_backward, rmsnorm_forward
from layers.rope import rope_backward, rope_forward
from layers.swiglu import swiglu_backward, swiglu_forward
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
class Llama2Config:
    """The numbers that make a Llama 2.

    Attributes:
        dim: C, the width of the residual stream.
        hidden_dim: F, the width of the MLP; if not given, 8/3 dim rounded up to a multiple of 32,
            as llama2.c's trainer does it, so that its three matrices cost what GPT-2's two of
            4 dim do.
        num_layers: L, blocks.
        num_heads: H, of the queries.
        num_kv_heads: K, of keys and values, must divide the others; if not given, as many.
        vocab_size: V.
        seq_len: positions that a text can have.
        norm_eps: the eps of every RMSNorm.
        rope_theta: the base of the rotations' frequencies.
        tied: whether the classifier is the embedding's table, or one of its own.
        head_size: D, an even number; if not given, dim / num_heads.
        qkv_bias: whether queries, keys and values have biases.
        qk_norm: whether each head of the queries and keys has an RMSNorm before it is rotated.
        window: how many positions a query sees, its own and those before it; if not given, all.
        rope_scaling: how the rotations' frequencies are scaled; see `models.rotations`.

    Raises:
        UserError: a number is not positive, the heads do not divide what they share or are odd, or
            the scaling is none that is known.
    """

    dim: int = 4096
    hidden_dim: int | None = None
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int | None = None
    vocab_size: int = 32000
    seq_len: int = 2048
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tied: bool = True
    head_size: int | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    window: int | None = None
    rope_scaling: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_positive(norm_eps=self.norm_eps, rope_theta=self.rope_theta)
        check_counts(dim=self.dim, num_heads=self.num_heads)
        # A frozen dataclass is written to in this way only.
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.hidden_dim is None:
            object.__setattr__(self, "hidden_dim", -(-(8 * self.dim // 3) // 32) * 32)
        if self.head_size is None and self.dim % (2 * self.num_heads):
            raise UserError(
                f"{self.num_heads} heads do not divide {self.dim} channels into even parts, which "
                "can be rotated in pairs; choose a dim that is a multiple of twice the heads"
            )
        if self.head_size is None:
            object.__setattr__(self, "head_size", self.dim // self.num_heads)
        others = ("hidden_dim", "num_layers", "num_kv_heads", "vocab_size", "seq_len", "head_size")
        check_counts(**{name: getattr(self, name) for name in others})
        check_heads(self.num_heads, self.num_kv_heads, self.head_size)
        if self.window is not None:
            check_counts(window=self.window)
        scaling = check_scaling(self.rope_scaling, self.head_size, self.seq_len)
        object.__setattr__(self, "rope_scaling", scaling)

    def param_shapes(self) -> Shapes:
        """The parameters, in the order of llama2.c's files."""
        L, C, F, V, D = self.num_layers, self.dim, self.hidden_dim, self.vocab_size, self.head_size
        HD, KD = self.num_heads * D, self.num_kv_heads * D
        biases = {"bq": (L, HD), "bk": (L, KD), "bv": (L, KD)}
        return {
            "wte": (V, C),
            "rms1w": (L, C),
            "wq": (L, HD, C),
            "wk": (L, KD, C),
            "wv": (L, KD, C),
            **(biases if self.qkv_bias else {}),
            **({"qnormw": (L, D), "knormw": (L, D)} if self.qk_norm else {}),
            "wo": (L, C, HD),
            "rms2w": (L, C),
            "w1": (L, F, C),  # to the gate
            "w2": (L, C, F),  # back to the residual stream
            "w3": (L, F, C),  # to what is gated
            "rmsfw": (C,),
            **({} if self.tied else {"wcls": (V, C)}),
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
        head_norms = {  # what enters them, their statistics, and what leaves them to be rotated
            "q_proj": (other, N, HD),
            "q_rstd": (L, N * H),
            "q_norm": (1, N * H, D),
            "k_proj": (other, N, KD),
            "k_rstd": (L, N * K),
            "k_norm": (1, N * K, D),
        }
        return {
            "residual": (stream, N, C),  # the stream: what enters layer l, and what leaves the last
            "rms1": (cheap, N, C),
            "rms1_rstd": (L, N),
            **(head_norms if self.qk_norm else {}),
            "q": (queries, N, HD),
            "k": (L, B, T, KD),  # k and v are the sampler's cache
            "v": (L, B, T, KD),
            "att": (other, N, HD),
            "lse": (L, B, H, T),
            "residual_mid": (other, N, C),  # the stream between attention and MLP
            "rms2": (cheap, N, C),
            "rms2_rstd": (L, N),
            "gate": (other, N, F),
            "up": (other, N, F),
            "swiglu": (cheap, N, F),
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

        Counted as GPT-2's are, see `GPT2Config.step_flops`; but with a window of W positions, of
        the T T / 2 scores that are not masked, only W (T - W / 2) are in it.
        """
        L, C, F, V = self.num_layers, self.dim, self.hidden_dim, self.vocab_size
        HD, KD = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        W = min(self.window or T, T)
        weights = L * (2 * C * HD + 2 * C * KD + 3 * C * F) + V * C
        return 6 * B * T * weights + 7 * L * B * W * (2 * T - W) * HD


PRESETS = {
    "llama-tiny": Llama2Config(dim=192, num_layers=3, num_heads=3, vocab_size=2305, seq_len=128),
    "stories260K": Llama2Config(
        dim=64,
        hidden_dim=172,
        num_layers=5,
        num_heads=8,
        num_kv_heads=4,
        vocab_size=512,
        seq_len=512,
    ),
    "stories15M": Llama2Config(dim=288, num_layers=6, num_heads=6, seq_len=256),
    "stories42M": Llama2Config(dim=512, num_layers=8, num_heads=8, seq_len=1024),
    "stories110M": Llama2Config(dim=768, num_layers=12, num_heads=12, seq_len=1024),
    "llama2-7b": Llama2Config(hidden_dim=11008, seq_len=4096, tied=False),
}

# With so few numbers that gradcheck.py can check their gradients.
SMALL = (
    Llama2Config(24, 31, 2, num_heads=4, num_kv_heads=2, vocab_size=11, seq_len=6),
    Llama2Config(18, 7, 3, num_heads=3, vocab_size=23, seq_len=4, tied=False),
)


class Llama2(Model):
    """A Llama 2 and every buffer it needs; the arguments are `Model`'s."""

    config: Llama2Config

    def __init__(self, config: Llama2Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        D, dtype = config.head_size, self.params.flat.dtype
        self._rotations = make_rotations(
            self.seq_len, D, config.rope_theta, dtype, config.rope_scaling
        )

    def init_params(self, rng: np.random.Generator) -> None:
        """GPT-2's initialisation (Radford et al. 2019, section 2.3).

        Normal with standard deviation 0.02; the projections back to the residual stream, of which
        there are 2L, scaled by 1/sqrt(2L); norms 1, biases 0. llama2.c scales w3 in the place of
        w2.
        """
        std = 0.02
        projection_std = std / math.sqrt(2 * self.config.num_layers)
        for name, tensor in self.params:
            if name.startswith("rms") or name.endswith("normw"):
                tensor.fill(1)
            elif not name.startswith("b"):
                draw_normal(tensor, rng, projection_std if name in ("wo", "w2") else std)

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

        Only the distance of two positions matters to rotated queries and keys, so `padding`
        concerns nothing but attention.
        """
        every_position = padding is None and not last_only
        B, T = self._start_forward(tokens, targets, start, every_position)
        p, a = self.params, self._head_views(B, T, start)
        eps, rotations = self.config.norm_eps, self._rotations[start : start + T]
        window = self.config.window
        bq, bk, bv = self._biases(p)

        x = a.residual[0]
        embedding_forward(x, tokens.ravel(), p.wte)
        dropout_forward(x, x, *drop, 0)
        for i in range(self.config.num_layers):
            rmsnorm_forward(a.rms1[i], a.rms1_rstd[i], a.residual[i], p.rms1w[i], eps)
            linear_forward(a.q_proj[i], a.rms1[i], p.wq[i], bq[i])
            linear_forward(a.k_proj[i], a.rms1[i], p.wk[i], bk[i])
            linear_forward(a.v[i], a.rms1[i], p.wv[i], bv[i])
            if self.config.qk_norm:
                rmsnorm_forward(a.q_norm[i], a.q_rstd[i], a.q_rows[i], p.qnormw[i], eps)
                rmsnorm_forward(a.k_norm[i], a.k_rstd[i], a.k_rows[i], p.knormw[i], eps)
            q, out = a.q_heads[i], a.att_heads[i]
            rope_forward(q, a.q_unrotated[i], rotations)
            rope_forward(a.k_heads[i], a.k_unrotated[i], rotations)
            attention_forward(out, a.lse[i], q, a.keys[i], a.values[i], start, padding, window)
            branch = a.residual_mid[i]
            linear_forward(branch, a.att[i], p.wo[i])
            dropout_forward(branch, branch, *drop, 2 * i + 1)
            branch += a.residual[i]
            rmsnorm_forward(a.rms2[i], a.rms2_rstd[i], a.residual_mid[i], p.rms2w[i], eps)
            linear_forward(a.gate[i], a.rms2[i], p.w1[i])
            linear_forward(a.up[i], a.rms2[i], p.w3[i])
            swiglu_forward(a.swiglu[i], a.gate[i], a.up[i])
            branch = a.residual[i + 1]
            linear_forward(branch, a.swiglu[i], p.w2[i])
            dropout_forward(branch, branch, *drop, 2 * i + 2)
            branch += a.residual_mid[i]
        rows = slice(T - 1, None, T) if last_only else slice(None)  # each sequence's last, or all
        x = a.residual[-1][rows]
        rmsnorm_forward(a.rmsf[rows], a.rmsf_rstd[rows], x, p.rmsfw, eps)
        wcls = p.wte if self.config.tied else p.wcls
        if targets is None:
            logits = self._logits(len(x))
            linear_forward(logits, a.rmsf[rows], wcls)
            return logits.reshape(B, -1, len(wcls))

        classifier_forward(a.losses, a.logits_lse, a.logits, a.rmsf, targets.ravel(), wcls)
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
        rotations, window = self._rotations[:T], self.config.window
        dresidual = a.dresidual  # the residual stream's gradient, the one running sum
        dx, dsummand = a.dbranch, a.dsummand
        dgate, dup = a.dgate, a.dup
        dq, dk, dv = split_heads(a.dq, B, H), split_heads(a.dk, B, K), split_heads(a.dv, B, K)
        dbq, dbk, dbv = self._biases(g)

        wcls, dwcls = (p.wte, g.wte) if self.config.tied else (p.wcls, g.wcls)
        dlosses = dloss / (B * T)
        classifier_backward(
            dx, dwcls, dlosses, a.logits, a.rmsf, targets.ravel(), wcls, a.logits_lse, accumulate
        )
        rmsnorm_backward(dresidual, g.rmsfw, dx, a.residual[-1], p.rmsfw, a.rmsf_rstd, accumulate)
        # What a branch has added; in the place of rmsf, which no layer needs any more.
        dbranch = a.rmsf if drop.p else dresidual
        for i in reversed(range(self.config.num_layers)):
            self._recompute(a, i, drop)
            dropout_backward(dbranch, dresidual, *drop, 2 * i + 2)
            linear_backward(dgate, g.w2[i], None, dbranch, a.swiglu[i], p.w2[i], accumulate)
            swiglu_backward(dgate, dup, dgate, a.gate[i], a.up[i])
            linear_backward(dx, g.w3[i], None, dup, a.rms2[i], p.w3[i], accumulate)
            linear_backward(dsummand, g.w1[i], None, dgate, a.rms2[i], p.w1[i], accumulate)
            dx += dsummand
            x = a.residual_mid[i]
            rmsnorm_backward(dx, g.rms2w[i], dx, x, p.rms2w[i], a.rms2_rstd[i], accumulate)
            dresidual += dx
            dropout_backward(dbranch, dresidual, *drop, 2 * i + 1)
            linear_backward(a.datt, g.wo[i], None, dbranch, a.att[i], p.wo[i], accumulate)
            q, out, dout = a.q_heads[i], a.att_heads[i], split_heads(a.datt, B, H)
            attention_backward(dq, dk, dv, dout, q, a.keys[i], a.values[i], out, a.lse[i], window)
            rope_backward(dk, dk, rotations)
            rope_backward(dq, dq, rotations)
            if self.config.qk_norm:
                d, x, w = a.dk.reshape(-1, D), a.k_rows[i], p.knormw[i]
                rmsnorm_backward(d, g.knormw[i], d, x, w, a.k_rstd[i], accumulate)
                d, x, w = a.dq.reshape(-1, D), a.q_rows[i], p.qnormw[i]
                rmsnorm_backward(d, g.qnormw[i], d, x, w, a.q_rstd[i], accumulate)
            linear_backward(dx, g.wv[i], dbv[i], a.dv, a.rms1[i], p.wv[i], accumulate)
            linear_backward(dsummand, g.wk[i], dbk[i], a.dk, a.rms1[i], p.wk[i], accumulate)
            dx += dsummand
            linear_backward(dsummand, g.wq[i], dbq[i], a.dq, a.rms1[i], p.wq[i], accumulate)
            dx += dsummand
            x = a.residual[i]
            rmsnorm_backward(dx, g.rms1w[i], dx, x, p.rms1w[i], a.rms1_rstd[i], accumulate)
            dresidual += dx
        dropout_backward(dresidual, dresidual, *drop, 0)
        # A classifier that is the embedding's table has written to its gradient already.
        embedding_backward(g.wte, dresidual, tokens.ravel(), accumulate or self.config.tied)

    def _recompute(self, a: SimpleNamespace, i: int, drop: Dropout) -> None:
        """Make those activations of layer i again that have no place of their own."""
        if self.recompute == "none" or i == self.config.num_layers - 1:
            return  # all are still there
        p, eps, whole_block = self.params, self.config.norm_eps, self.recompute == "blocks"
        rmsnorm_forward(a.rms1[i], a.rms1_rstd[i], a.residual[i], p.rms1w[i], eps)
        if whole_block:
            if self.config.qk_norm:
                bq, bk, _ = self._biases(p)
                linear_forward(a.q_proj[i], a.rms1[i], p.wq[i], bq[i])
                linear_forward(a.k_proj[i], a.rms1[i], p.wk[i], bk[i])
            out, q, k, v = a.att_heads[i], a.q_heads[i], a.keys[i], a.values[i]
            attention_forward(out, a.lse[i], q, k, v, window=self.config.window)
            branch = a.residual_mid[i]
            linear_forward(branch, a.att[i], p.wo[i])
            dropout_forward(branch, branch, *drop, 2 * i + 1)
            branch += a.residual[i]
        rmsnorm_forward(a.rms2[i], a.rms2_rstd[i], a.residual_mid[i], p.rms2w[i], eps)
        if whole_block:
            linear_forward(a.gate[i], a.rms2[i], p.w1[i])
            linear_forward(a.up[i], a.rms2[i], p.w3[i])
        swiglu_forward(a.swiglu[i], a.gate[i], a.up[i])

    def _biases(self, buffer: Buffer) -> Sequence[Sequence[np.ndarray | None]]:
        """Those of queries, keys and values by layers, out of `params` or `grads`."""
        if self.config.qkv_bias:
            return buffer.bq, buffer.bk, buffer.bv
        return 3 * [self.config.num_layers * [None]]
