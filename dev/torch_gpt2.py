"""GPT-2 in PyTorch, for whoever compares with it: oracle tests, golden files and the benchmark.

Two models, transformers' and a plain one, both driven by the same training loop. Both names of a
parameter are matched here and nowhere else.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from gpt2 import GPT2Config

# transformers' modules by our names. Their weights are our weights transposed.
HUGGINGFACE = {
    "ln_1": "ln1",
    "attn.c_attn": "qkv",
    "attn.c_proj": "attproj",
    "ln_2": "ln2",
    "mlp.c_fc": "fc",
    "mlp.c_proj": "fcproj",
    "ln_f": "lnf",
}


class Block(nn.Module):
    """One layer, as most people write it in PyTorch."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        C = config.channels
        self.num_heads = config.num_heads
        self.ln1, self.ln2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv, self.attproj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.fc, self.fcproj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        heads = self.qkv(self.ln1(x)).view(B, T, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attention = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.attproj(attention.transpose(1, 2).reshape(B, T, C))
        return x + self.fcproj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


class TorchGPT2(nn.Module):
    """GPT-2 in plain PyTorch; its modules have our names."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.channels)
        self.wpe = nn.Embedding(config.seq_len, config.channels)
        self.h = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.lnf = nn.LayerNorm(config.channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.h:
            x = block(x)
        return F.linear(self.lnf(x), self.wte.weight)


def huggingface_gpt2(config: GPT2Config, attention: str = "eager") -> nn.Module:
    """transformers' GPT-2 without dropout; tokens -> logits are its `.logits`."""
    import transformers

    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.seq_len,
            n_embd=config.channels,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation=attention,
        )
    )


def random_weights(config: GPT2Config, seed: int = 0) -> dict[str, np.ndarray]:
    """float32 weights by our names, wte without padding, such that every tensor has its effect."""
    rng = np.random.default_rng(seed)
    shapes = {**config.param_shapes(), "wte": (config.vocab_size, config.channels)}
    weights = {name: 0.2 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    for norm in ("ln1w", "ln2w", "lnfw"):
        weights[norm] += 1
    return weights


def load_weights(model: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Copy weights by our names, wte without padding, into either model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            ours, layer, transposed = _place(name)
            array = weights[ours] if layer is None else weights[ours][layer]
            parameter.copy_(torch.from_numpy(array.T if transposed else array))


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    """The weights of either model by our names."""
    return _by_our_names(dict(model.named_parameters()))


def grads_of(model: nn.Module) -> dict[str, np.ndarray]:
    """The gradients of either model by our names."""
    return _by_our_names({name: p.grad for name, p in model.named_parameters()})


def logits_of(model: nn.Module, tokens: np.ndarray) -> torch.Tensor:
    """The logits of either model, (B, T, V)."""
    out = model(torch.from_numpy(tokens))
    return getattr(out, "logits", out)


def loss_of(model: nn.Module, tokens: np.ndarray, targets: np.ndarray) -> torch.Tensor:
    """The mean cross-entropy of either model."""
    logits = logits_of(model, tokens)
    return F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())


def adamw(model: nn.Module, **options: Any) -> torch.optim.AdamW:
    """PyTorch's AdamW in the usual two groups: matrices and embeddings decay, nothing else."""
    weight_decay = options.pop("weight_decay")
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, **options)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens: np.ndarray,
    targets: np.ndarray,
    max_norm: float,
) -> float:
    """One step with clipping; returns the loss before it."""
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of(model, tokens, targets)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return loss.item()


def train_losses(
    model: nn.Module,
    tokens: np.ndarray,
    targets: np.ndarray,
    lrs: Sequence[float],
    max_norm: float,
    **options: Any,
) -> list[float]:
    """The losses of one AdamW step per learning rate, all on the same batch."""
    optimizer = adamw(model, lr=0.0, **options)
    losses = []
    for lr in lrs:
        for group in optimizer.param_groups:
            group["lr"] = lr
        losses.append(train_step(model, optimizer, tokens, targets, max_norm))
    return losses


def _place(name: str) -> tuple[str, int | None, bool]:
    """Our name of PyTorch's parameter, its layer, and whether it is transposed.

    For example transformer.h.3.attn.c_attn.weight, which is h.3.qkv.weight in the plain model.
    """
    layer, module, kind = re.fullmatch(
        r"(?:transformer\.)?(?:h\.(\d+)\.)?(.+)\.(weight|bias)", name
    ).groups()
    ours = HUGGINGFACE.get(module, module)
    tensor = ours if ours in ("wte", "wpe") else ours + kind[0]
    return tensor, None if layer is None else int(layer), module in HUGGINGFACE


def _by_our_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Copies by our names; the layers, which come in order, in one array."""
    arrays: dict[str, Any] = {}
    for name, tensor in tensors.items():
        ours, layer, transposed = _place(name)
        array = tensor.detach().numpy().T if transposed else tensor.detach().numpy()
        if layer is None:
            arrays[ours] = array
        else:
            arrays.setdefault(ours, []).append(array)
    return {name: np.array(array) for name, array in arrays.items()}
