"""GPT-2 (Radford et al. 2019): its config, its table of shapes, its forward and backward pass.

Read `GPT2.forward` downwards and `GPT2.backward` upwards: the same layers in mirrored order.
Names and layout of the parameters are llm.c's. Shapes are written with

    B sequences   T positions   N = B T rows   C channels   H heads   L layers   V vocabulary
"""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from buffers import Shapes
from errors import UserError
from layers.attention import attention_backward, attention_forward
from layers.classifier import classifier_backward, classifier_forward, logit_rows
from layers.dropout import dropout_backward, dropout_forward
from layers.embedding import (
    embedding_backward,
    embedding_forward,
    position_backward,
    position_forward,
)
from layers.gelu import gelu_backward, gelu_forward
from layers.layernorm import layernorm_backward, layernorm_forward
from layers.linear import linear_backward, linear_forward
from models.model import (
    FORWARD_ONLY,
    NO_DROPOUT,
    Dropout,
    Model,
    check_counts,
    draw_normal,
    split_heads,
)
from models.parts import backward_in_parts, forward_in_parts


@dataclass(frozen=True)
class GPT2Config:
    """The numbers that make a GPT-2.

    Attributes:
        seq_len: positions, each with a learned vector of its own.
        vocab_size: V.
        num_layers: L, blocks.
        num_heads: H, of attention; must divide the channels.
        channels: C, the width of the residual stream.

    Raises:
        UserError: a number is not positive, or `num_heads` does not divide `channels`.
    """

    seq_len: int = 1024
    vocab_size: int = 50257
    num_layers: int = 12
    num_heads: int = 12
    channels: int = 768

    def __post_init__(self) -> None:
        check_counts(**vars(self))
        if self.channels % self.num_heads:
            raise UserError(
                f"{self.num_heads} heads do not divide {self.channels} channels; "
                "choose channels that are a multiple of the heads"
            )

    @property
    def padded_vocab_size(self) -> int:
        """vocab_size rounded up to a multiple of 128, which is how llm.c stores wte."""
        return -(-self.vocab_size // 128) * 128

    def param_shapes(self) -> Shapes:
        """The parameters, in the order of llm.c's checkpoints."""
        L, C = self.num_layers, self.channels
        return {
            "wte": (self.padded_vocab_size, C),
            "wpe": (self.seq_len, C),
            "ln1w": (L, C),
            "ln1b": (L, C),
            "qkvw": (L, 3 * C, C),
            "qkvb": (L, 3 * C),
            "attprojw": (L, C, C),
            "attprojb": (L, C),
            "ln2w": (L, C),
            "ln2b": (L, C),
            "fcw": (L, 4 * C, C),
            "fcb": (L, 4 * C),
            "fcprojw": (L, C, 4 * C),
            "fcprojb": (L, C),
            "lnfw": (C,),
            "lnfb": (C,),
        }

    def act_shapes(self, B: int, T: int, N: int | None = None, recompute: str = "none") -> Shapes:
        """The activations of a batch, and one layer's worth of their gradients.

        Only keys and values need a place for every position where a pass computes N rows at most.
        What the backward pass makes again has one place, which all layers share.
        """
        L, H, C, V = self.num_layers, self.num_heads, self.channels, self.vocab_size
        N = N or B * T
        cheap = L if recompute == "none" else 1
        other = 1 if recompute in ("blocks", FORWARD_ONLY) else L
        stream = 1 if recompute == FORWARD_ONLY else L + 1
        return {
            "residual": (stream, N, C),  # the stream: what enters layer l, and what leaves the last
            "ln1": (cheap, N, C),
            "ln1_mean": (L, N),
            "ln1_rstd": (L, N),
            "qkv": (L, B, T, 3 * C),  # k and v of it are the sampler's cache
            "att": (other, N, C),
            "lse": (L, B, H, T),
            "residual_mid": (other, N, C),  # the stream between attention and MLP
            "ln2": (cheap, N, C),
            "ln2_mean": (L, N),
            "ln2_rstd": (L, N),
            "fch": (other, N, 4 * C),
            "fch_gelu": (cheap, N, 4 * C),
            "lnf": (N, C),
            "lnf_mean": (N,),
            "lnf_rstd": (N,),
            "logits": (logit_rows(N, V), V),  # the backward pass turns them into their gradient
            "logits_lse": (N,),
            "losses": (N,),
            "dresidual": (N, C),
            "dbranch": (N, C),
            "dqkv": (N, 3 * C),
            "dfch": (N, 4 * C),
        }

    def step_flops(self, B: int, T: int) -> int:
        """Floating-point operations in the matrix products of one forward and backward pass.

        Each weight takes part in 2 per row forward and 4 backward. Attention, of which half is
        masked, has 2 products forward and 5 backward of 2 T (T / 2) C operations per sequence.
        """
        L, C, V = self.num_layers, self.channels, self.vocab_size
        return 6 * B * T * (12 * L * C * C + V * C) + 7 * L * B * T * T * C


PRESETS = {
    "tiny": GPT2Config(seq_len=128, vocab_size=2305, num_layers=3, num_heads=3, channels=192),
    "small": GPT2Config(seq_len=256, vocab_size=2305, num_layers=6, num_heads=6, channels=384),
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(num_layers=24, num_heads=16, channels=1024),
    "gpt2-large": GPT2Config(num_layers=36, num_heads=20, channels=1280),
    "gpt2-xl": GPT2Config(num_layers=48, num_heads=25, channels=1600),
}

# With so few numbers that gradcheck.py can check their gradients.
SMALL = (
    GPT2Config(seq_len=6, vocab_size=11, num_layers=2, num_heads=2, channels=24),
    GPT2Config(seq_len=4, vocab_size=130, num_layers=3, num_heads=1, channels=21),
)


class GPT2(Model):
    """A GPT-2 and every buffer it needs; the arguments are `Model`'s."""

    config: GPT2Config

    def init_params(self, rng: np.random.Generator) -> None:
        """GPT-2's initialisation (Radford et al. 2019, section 2.3).

        Normal with standard deviation 0.02; the projections back to the residual stream, of which
        there are 2L, scaled by 1/sqrt(2L); norms 1, biases 0, rows of the padding 0.
        """
        std = 0.02
        projection_std = std / math.sqrt(2 * self.config.num_layers)
        for name, tensor in self.params:
            if name in ("wte", "wpe", "qkvw", "fcw", "attprojw", "fcprojw"):
                draw_normal(tensor, rng, projection_std if name.endswith("projw") else std)
            else:
                tensor.fill(1 if name in ("ln1w", "ln2w", "lnfw") else 0)
        self.params.wte[self.config.vocab_size :] = 0

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
        """The loss with `targets`, the logits without.

        Args:
            tokens: (B, T) integers.
            targets: (B, T) integers, the token that follows each.
            start: the position of the first token. The earlier positions of the same sequences are
                those of previous calls, whose keys and values still lie in the buffer.
            padding: (B,), how many of each sequence's first positions hold nothing: so sequences
                of different lengths share a batch, aligned at their ends. None by default.
            last_only: return the logits of the last position only, and compute no others.
            drop: what to leave out of the embedding and of what each branch adds to the stream, as
                GPT and nanoGPT have it, to train; nothing by default. They also drop attention's
                probabilities, which here are never stored.

        Returns:
            The mean cross-entropy in nats; or the logits, (B, T, V) or (B, 1, V), a view of the
            buffer that the next call overwrites.

        Raises:
            UserError: the tokens do not fit the buffers, or are outside the vocabulary.
        """
        every_position = padding is None and not last_only
        B, T = self._start_forward(tokens, targets, start, every_position)
        p, a = self.params, self._views(B, T, start)

        x = a.residual[0]
        embedding_forward(x, tokens.ravel(), p.wte)
        position_forward(x.reshape(B, T, -1), p.wpe, start, padding)
        dropout_forward(x, x, *drop, 0)
        for i in range(self.config.num_layers):
            layernorm_forward(
                a.ln1[i], a.ln1_mean[i], a.ln1_rstd[i], a.residual[i], p.ln1w[i], p.ln1b[i]
            )
            linear_forward(a.qkv[i], a.ln1[i], p.qkvw[i], p.qkvb[i])
            out = a.att_heads[i]
            attention_forward(out, a.lse[i], a.q[i], a.k[i], a.v[i], start, padding)
            branch = a.residual_mid[i]
            linear_forward(branch, a.att[i], p.attprojw[i], p.attprojb[i])
            dropout_forward(branch, branch, *drop, 2 * i + 1)
            branch += a.residual[i]
            layernorm_forward(
                a.ln2[i], a.ln2_mean[i], a.ln2_rstd[i], a.residual_mid[i], p.ln2w[i], p.ln2b[i]
            )
            linear_forward(a.fch[i], a.ln2[i], p.fcw[i], p.fcb[i])
            gelu_forward(a.fch_gelu[i], a.fch[i])
            branch = a.residual[i + 1]
            linear_forward(branch, a.fch_gelu[i], p.fcprojw[i], p.fcprojb[i])
            dropout_forward(branch, branch, *drop, 2 * i + 2)
            branch += a.residual_mid[i]
        rows = slice(T - 1, None, T) if last_only else slice(None)  # each sequence's last, or all
        x = a.residual[-1][rows]
        layernorm_forward(a.lnf[rows], a.lnf_mean[rows], a.lnf_rstd[rows], x, p.lnfw, p.lnfb)
        wte = p.wte[: self.config.vocab_size]  # the embedding's own table, without the padding
        if targets is None:
            logits = self._logits(len(x))
            linear_forward(logits, a.lnf[rows], wte)
            return logits.reshape(B, -1, len(wte))

        classifier_forward(a.losses, a.logits_lse, a.logits, a.lnf, targets.ravel(), wte)
        self._remember(tokens, targets, start, drop)
        return float(a.losses.mean())

    @backward_in_parts
    def backward(self, dloss: float = 1.0) -> None:
        """Fill `grads` with the derivatives of the last forward pass's loss, or add to them.

        The first call after `zero_grad` fills them, every further one adds.

        Args:
            dloss: the derivative of what is minimised with respect to this loss: 1/n for the mean
                of n micro-batches.

        Raises:
            UserError: there was no forward pass with targets, or its activations are used up.
        """
        tokens, targets, drop, accumulate = self._start_backward()
        B, T = tokens.shape
        p, g, a = self.params, self.grads, self._views(B, T, start=0)
        H, V = self.config.num_heads, self.config.vocab_size
        dresidual = a.dresidual  # the residual stream's gradient, the one running sum
        dx, dfch, dqkv = a.dbranch, a.dfch, a.dqkv
        dq, dk, dv = self._split_qkv(dqkv.reshape(B, T, -1))

        wte, dwte, dlosses = p.wte[:V], g.wte[:V], dloss / (B * T)
        classifier_backward(
            dx, dwte, dlosses, a.logits, a.lnf, targets.ravel(), wte, a.logits_lse, accumulate
        )
        g.wte[V:] = 0  # the padding
        x = a.residual[-1]
        layernorm_backward(
            dresidual, g.lnfw, g.lnfb, dx, x, p.lnfw, a.lnf_mean, a.lnf_rstd, accumulate
        )
        # What a branch has added; in the place of lnf, which no layer needs any more.
        dbranch = a.lnf if drop.p else dresidual
        for i in reversed(range(self.config.num_layers)):
            self._recompute(a, i, drop)
            dropout_backward(dbranch, dresidual, *drop, 2 * i + 2)
            linear_backward(
                dfch, g.fcprojw[i], g.fcprojb[i], dbranch, a.fch_gelu[i], p.fcprojw[i], accumulate
            )
            gelu_backward(dfch, dfch, a.fch[i])
            linear_backward(dx, g.fcw[i], g.fcb[i], dfch, a.ln2[i], p.fcw[i], accumulate)
            x = a.residual_mid[i]
            layernorm_backward(
                dx, g.ln2w[i], g.ln2b[i], dx, x, p.ln2w[i], a.ln2_mean[i], a.ln2_rstd[i], accumulate
            )
            dresidual += dx
            dropout_backward(dbranch, dresidual, *drop, 2 * i + 1)
            linear_backward(
                dx, g.attprojw[i], g.attprojb[i], dbranch, a.att[i], p.attprojw[i], accumulate
            )
            out, dout = a.att_heads[i], split_heads(dx, B, H)
            attention_backward(dq, dk, dv, dout, a.q[i], a.k[i], a.v[i], out, a.lse[i])
            linear_backward(dx, g.qkvw[i], g.qkvb[i], dqkv, a.ln1[i], p.qkvw[i], accumulate)
            x = a.residual[i]
            layernorm_backward(
                dx, g.ln1w[i], g.ln1b[i], dx, x, p.ln1w[i], a.ln1_mean[i], a.ln1_rstd[i], accumulate
            )
            dresidual += dx
        dropout_backward(dresidual, dresidual, *drop, 0)
        position_backward(g.wpe, dresidual.reshape(B, T, -1), accumulate)
        # The classifier has written to wte's gradient already, so this always adds.
        embedding_backward(g.wte, dresidual, tokens.ravel(), accumulate=True)

    def _recompute(self, a: SimpleNamespace, i: int, drop: Dropout) -> None:
        """Make those activations of layer i again that have no place of their own."""
        if self.recompute == "none" or i == self.config.num_layers - 1:
            return  # all are still there
        p, whole_block = self.params, self.recompute == "blocks"
        layernorm_forward(
            a.ln1[i], a.ln1_mean[i], a.ln1_rstd[i], a.residual[i], p.ln1w[i], p.ln1b[i]
        )
        if whole_block:
            attention_forward(a.att_heads[i], a.lse[i], a.q[i], a.k[i], a.v[i])
            branch = a.residual_mid[i]
            linear_forward(branch, a.att[i], p.attprojw[i], p.attprojb[i])
            dropout_forward(branch, branch, *drop, 2 * i + 1)
            branch += a.residual[i]
        layernorm_forward(
            a.ln2[i], a.ln2_mean[i], a.ln2_rstd[i], a.residual_mid[i], p.ln2w[i], p.ln2b[i]
        )
        if whole_block:
            linear_forward(a.fch[i], a.ln2[i], p.fcw[i], p.fcb[i])
        gelu_forward(a.fch_gelu[i], a.fch[i])

    def _views(self, B: int, T: int, start: int) -> SimpleNamespace:
        """The activations of a batch; q is of its own positions, k and v reach back to 0."""
        a = self._cut(B, T)
        a.qkv, everything = self._cached("qkv", B, T, start)
        a.q, a.k, a.v = self._split_qkv(everything)
        a.q = a.q[:, :, start:]
        a.att_heads = split_heads(a.att, B, self.config.num_heads)
        return a

    def _split_qkv(self, qkv: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(..., 3C) -> q, k and v, each (..., H, D), views."""
        H, C = self.config.num_heads, self.config.channels
        split = qkv.reshape(*qkv.shape[:-1], 3, H, C // H)
        return split[..., 0, :, :], split[..., 1, :, :], split[..., 2, :, :]
