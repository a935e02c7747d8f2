"""GPT-2 and Llama 2 in PyTorch, for whoever compares with them: oracle tests and golden files.

transformers' models, and a training loop that drives them as it does any other PyTorch model. Both
names of a parameter are matched here and nowhere else.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from models.gpt2 import GPT2Config
from models.llama2 import Llama2Config

# PyTorch's modules by our names: first those with a weight and a bias, which we tell apart by a
# letter, then those that are a weight.
WITH_BIAS = {
    "ln_1": "ln1",
    "attn.c_attn": "qkv",
    "attn.c_proj": "attproj",
    "ln_2": "ln2",
    "mlp.c_fc": "fc",
    "mlp.c_proj": "fcproj",
    "ln_f": "lnf",
}
WEIGHTS = {
    "wte": "wte",
    "wpe": "wpe",
    "embed_tokens": "wte",
    "input_layernorm": "rms1w",
    "self_attn.q_proj": "wq",
    "self_attn.k_proj": "wk",
    "self_attn.v_proj": "wv",
    "self_attn.o_proj": "wo",
    "post_attention_layernorm": "rms2w",
    "mlp.gate_proj": "w1",
    "mlp.down_proj": "w2",
    "mlp.up_proj": "w3",
    "norm": "rmsfw",
    "lm_head": "wcls",
}
# The weights of these are ours transposed.
TRANSPOSED = {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
# What these give is rotated in pairs. Our pairs are neighbours, as in llama2.c; transformers' are
# half a head apart.
ROTATED = {"self_attn.q_proj", "self_attn.k_proj"}


def huggingface(config: GPT2Config | Llama2Config, attention: str = "eager") -> nn.Module:
    """transformers' model without dropout; tokens -> logits are its `.logits`."""
    make = huggingface_gpt2 if isinstance(config, GPT2Config) else huggingface_llama2
    return make(config, bos_token_id=0, eos_token_id=0, attn_implementation=attention)


def fast_huggingface(config: GPT2Config | Llama2Config) -> nn.Module:
    """The same as people run it: with PyTorch's own attention, and no casts for oracle tests."""
    model = huggingface(config, "sdpa")
    vars(model).pop("forward", None)
    return model


def huggingface_gpt2(config: GPT2Config, **options: Any) -> nn.Module:
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
            **options,
        )
    )


def huggingface_llama2(config: Llama2Config, **options: Any) -> nn.Module:
    """transformers casts to float32 in its norms, its rotations and eager attention's softmax.

    Here, what it calls float32 is the model's own type: else nothing could be compared in float64.
    """
    import transformers

    def float32_as(dtype: torch.dtype) -> Any:
        return mock.patch.multiple(torch, float32=dtype, float=dtype)

    with float32_as(torch.float64):  # the frequencies of the rotations
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.dim,
                intermediate_size=config.hidden_dim,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_kv_heads,
                max_position_embeddings=config.seq_len,
                rms_norm_eps=config.norm_eps,
                rope_theta=config.rope_theta,
                tie_word_embeddings=config.tied,
                **options,
            )
        )
    forward = model.forward

    def forward_in_its_own_type(*args: Any, **kwargs: Any) -> Any:
        with float32_as(model.dtype):
            return forward(*args, **kwargs)

    model.forward = forward_in_its_own_type
    return model


def random_weights(config: GPT2Config | Llama2Config, seed: int = 0) -> dict[str, np.ndarray]:
    """float32 weights by our names, wte without padding, such that every tensor has its effect."""
    rng = np.random.default_rng(seed)
    shapes = config.param_shapes()
    shapes["wte"] = (config.vocab_size, *shapes["wte"][1:])
    weights = {name: 0.2 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    for name in weights:
        if name.startswith(("ln", "rms")) and name.endswith("w"):
            weights[name] += 1
    return weights


def load_weights(model: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Copy weights by our names, wte without padding, into a PyTorch model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            ours, layer, module = _place(name)
            array = weights[ours] if layer is None else weights[ours][layer]
            array = _reordered(array, model, module, to_ours=False)
            parameter.copy_(torch.from_numpy(array))


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    """The weights of a PyTorch model by our names."""
    return _by_our_names(model, dict(model.named_parameters()))


def grads_of(model: nn.Module) -> dict[str, np.ndarray]:
    """The gradients of a PyTorch model by our names."""
    return _by_our_names(model, {name: p.grad for name, p in model.named_parameters()})


def logits_of(model: nn.Module, tokens: np.ndarray) -> torch.Tensor:
    """The logits of a PyTorch model, (B, T, V)."""
    out = model(torch.from_numpy(tokens))
    return getattr(out, "logits", out)


def loss_of(model: nn.Module, tokens: np.ndarray, targets: np.ndarray) -> torch.Tensor:
    """The mean cross-entropy of a PyTorch model."""
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


def _place(name: str) -> tuple[str, int | None, str]:
    """Our name of PyTorch's parameter, its layer, and its module.

    For example transformer.h.3.attn.c_attn.weight, which is h.3.qkv.weight where modules have our
    names, or model.layers.3.self_attn.q_proj.weight.
    """
    layer, module, kind = re.fullmatch(
        r"(?:transformer\.|model\.)?(?:(?:h|layers)\.(\d+)\.)?(.+)\.(weight|bias)", name
    ).groups()
    ours = WEIGHTS.get(module) or WITH_BIAS.get(module, module) + kind[0]
    return ours, None if layer is None else int(layer), module


def _reordered(array: np.ndarray, model: nn.Module, module: str, to_ours: bool) -> np.ndarray:
    """A parameter of theirs in the order of ours, or one of ours in the order of theirs."""
    if module in TRANSPOSED:
        return array.T
    if module in ROTATED:
        half = model.config.head_dim // 2
        rows = (2, half) if to_ours else (half, 2)
        return array.reshape(-1, *rows, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
    return array


def _by_our_names(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Copies by our names; the layers, which come in order, in one array."""
    arrays: dict[str, Any] = {}
    for name, tensor in tensors.items():
        ours, layer, module = _place(name)
        array = _reordered(tensor.detach().numpy(), model, module, to_ours=True)
        if layer is None:
            arrays[ours] = array
        else:
            arrays.setdefault(ours, []).append(array)
    return {name: np.array(array) for name, array in arrays.items()}
