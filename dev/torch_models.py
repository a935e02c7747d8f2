"""Our models in PyTorch, for whoever compares with them: oracle tests and golden files.

transformers' models, and a training loop that drives them as it does any other PyTorch model. Both
names of a parameter are matched here and nowhere else.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from adam import decays
from models.gemma3 import Gemma3Config
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
    "self_attn.q_norm": "qnormw",
    "self_attn.k_norm": "knormw",
    "self_attn.o_proj": "wo",
    "post_attention_layernorm": "rms2w",
    "mlp.gate_proj": "w1",
    "mlp.down_proj": "w2",
    "mlp.up_proj": "w3",
    "norm": "rmsfw",
    "lm_head": "wcls",
}
# These are others in Gemma 3. And what its norms multiply by is 1 more than their weights.
GEMMA3 = {
    "post_attention_layernorm": "postrms1w",
    "pre_feedforward_layernorm": "rms2w",
    "post_feedforward_layernorm": "postrms2w",
}
BIASES = {"self_attn.q_proj": "bq", "self_attn.k_proj": "bk", "self_attn.v_proj": "bv"}
# Of these, the rows are those of several of ours.
FUSED = {"self_attn.qkv_proj": ("wq", "wk", "wv"), "mlp.gate_up_proj": ("w1", "w3")}
# The weights of these are ours transposed.
TRANSPOSED = {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
# What these of ours give is rotated in pairs. Our pairs are neighbours, as in llama2.c;
# transformers' are half a head apart.
ROTATED = {"wq", "wk", "bq", "bk", "qnormw", "knormw"}

Config = GPT2Config | Llama2Config | Gemma3Config


def huggingface(config: Config, attention: str = "eager") -> nn.Module:
    """transformers' model without dropout; tokens -> logits are its `.logits`."""
    make = {
        GPT2Config: huggingface_gpt2,
        Llama2Config: huggingface_llama2,
        Gemma3Config: huggingface_gemma3,
    }[type(config)]
    return make(config, bos_token_id=0, eos_token_id=0, attn_implementation=attention)


def fast_huggingface(config: Config) -> nn.Module:
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
    """transformers' model of the first family that has all that the config asks for."""
    import transformers

    name = family_of(config)
    if name == "Phi3":
        options["pad_token_id"] = None  # by default a token that a small vocabulary has not
    if name in ("Llama", "Mistral", "Qwen3"):  # the others derive it, whatever they are told
        options["head_dim"] = config.head_size
    if name in ("Qwen2", "Qwen3"):  # have it by layers, from one of them on
        options |= {"use_sliding_window": config.window is not None, "max_window_layers": 0}
    scaling = config.rope_scaling or {"rope_type": "default"}
    theirs = getattr(transformers, f"{name}Config")(
        original_max_position_embeddings=scaling.get("original_max_position_embeddings"),
        rope_parameters={"rope_theta": config.rope_theta, **scaling},
        tie_word_embeddings=config.tied,
        **shared_numbers(config),
        **options,
    )
    return in_its_own_type(getattr(transformers, f"{name}ForCausalLM"), theirs)


def huggingface_gemma3(config: Gemma3Config, **options: Any) -> nn.Module:
    """transformers' Gemma 3; it wants `dim` to be a multiple of the heads."""
    import transformers

    scaling = config.rope_scaling or {"rope_type": "default"}
    theirs = transformers.Gemma3TextConfig(
        head_dim=config.head_size,
        query_pre_attn_scalar=config.query_scalar,
        pad_token_id=None,  # by default 0, whose row of the embedding then gets no gradient
        layer_types=[f"{'sliding' if each else 'full'}_attention" for each in config.windows],
        rope_parameters={
            "full_attention": {"rope_theta": config.rope_theta, **scaling},
            "sliding_attention": {"rope_theta": config.rope_local_theta, "rope_type": "default"},
        },
        **shared_numbers(config),
        **options,
    )
    model = in_its_own_type(transformers.Gemma3ForCausalLM, theirs)
    model.model.embed_tokens.embed_scale = torch.tensor(math.sqrt(config.dim), dtype=torch.float64)
    return model


def shared_numbers(config: Llama2Config | Gemma3Config) -> dict[str, Any]:
    """Those that transformers calls alike in all descendants of Llama."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.seq_len,
        "rms_norm_eps": config.norm_eps,
        "sliding_window": config.window,
    }


def in_its_own_type(model_class: Callable[[Any], nn.Module], config: Any) -> nn.Module:
    """A model of transformers, which computes in no other type than that of its weights.

    transformers casts to float32 in its norms, its rotations and eager attention's softmax. Here,
    what it calls float32 is the model's own type: else nothing could be compared in float64.
    """
    with in_float32s_place(torch.float64):  # the frequencies of the rotations
        model = model_class(config)
    forward = model.forward

    def forward_in_its_own_type(*args: Any, **kwargs: Any) -> Any:
        with in_float32s_place(model.dtype):
            return forward(*args, **kwargs)

    model.forward = forward_in_its_own_type
    return model


def family_of(config: Llama2Config) -> str:
    """What transformers calls it."""
    if config.qk_norm or config.qkv_bias:
        assert not (config.qk_norm and config.qkv_bias)  # no family has both
        return "Qwen3" if config.qk_norm else "Qwen2"
    if config.rope_scaling and config.rope_scaling["rope_type"] == "longrope":
        return "Phi3"
    return "Mistral" if config.window else "Llama"


@contextmanager
def in_float32s_place(dtype: torch.dtype) -> Iterator[None]:
    """Let all that asks for float32 have another type."""
    with (
        mock.patch.multiple(torch, float32=dtype, float=dtype),
        mock.patch.object(torch.Tensor, "float", lambda x: x.to(dtype)),
    ):
        yield


def random_weights(config: Config, seed: int = 0) -> dict[str, np.ndarray]:
    """float32 weights by our names, wte without padding, such that every tensor has its effect."""
    rng = np.random.default_rng(seed)
    shapes = config.param_shapes()
    shapes["wte"] = (config.vocab_size, *shapes["wte"][1:])
    weights = {name: 0.2 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    for name in weights:
        if name.endswith("w") and not decays(name):  # of a norm
            weights[name] += 1
    return weights


def load_weights(model: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Copy weights by our names, wte without padding, into a PyTorch model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            layer, module, ours = _place(name, model)
            arrays = [weights[each] if layer is None else weights[each][layer] for each in ours]
            arrays = [
                _reordered(array, model, module, each, to_ours=False)
                for array, each in zip(arrays, ours, strict=True)
            ]
            offset = _offset(ours[0], model)
            theirs = np.subtract(np.concatenate(arrays), offset, dtype=np.float64)
            parameter.copy_(torch.from_numpy(theirs))


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    """The weights of a PyTorch model by our names."""
    weights = _by_our_names(model, dict(model.named_parameters()))
    return {name: weight + _offset(name, model) for name, weight in weights.items()}


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


def _place(name: str, model: nn.Module) -> tuple[int | None, str, tuple[str, ...]]:
    """The layer of PyTorch's parameter, its module, and what it is of ours, in the order of rows.

    For example transformer.h.3.attn.c_attn.weight, which is h.3.qkv.weight where modules have our
    names, or model.layers.3.self_attn.q_proj.weight.
    """
    layer, module, kind = re.fullmatch(
        r"(?:transformer\.|model\.)?(?:(?:h|layers)\.(\d+)\.)?(.+)\.(weight|bias)", name
    ).groups()
    names = WEIGHTS | (GEMMA3 if _is_gemma3(model) else {}) if kind == "weight" else BIASES
    ours = names.get(module) or WITH_BIAS.get(module, module) + kind[0]
    return None if layer is None else int(layer), module, FUSED.get(module, (ours,))


def _is_gemma3(model: nn.Module) -> bool:
    return type(model).__name__ == "Gemma3ForCausalLM"


def _offset(ours: str, model: nn.Module) -> int:
    """How much more a parameter of ours is than theirs."""
    return 1 if _is_gemma3(model) and not decays(ours) else 0  # only norms do not decay


def _reordered(
    array: np.ndarray, model: nn.Module, module: str, ours: str, to_ours: bool
) -> np.ndarray:
    """A parameter of theirs in the order of ours, or one of ours in the order of theirs."""
    if module in TRANSPOSED:
        return array.T
    if ours in ROTATED:
        half = _head_size(model) // 2
        rows = (2, half) if to_ours else (half, 2)
        return array.reshape(-1, *rows, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    return array


def _head_size(model: nn.Module) -> int:
    config = model.config
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _parted(array: np.ndarray, model: nn.Module, ours: Sequence[str]) -> list[np.ndarray]:
    """The rows of a parameter of theirs that are those of several of ours."""
    if len(ours) < 3:
        return np.split(array, len(ours))
    heads = model.config.num_attention_heads, model.config.num_key_value_heads
    return np.split(array, np.cumsum(heads) * _head_size(model))


def _by_our_names(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Copies by our names; the layers, which come in order, in one array."""
    arrays: dict[str, Any] = {}
    for name, tensor in tensors.items():
        layer, module, ours = _place(name, model)
        parts = _parted(tensor.detach().numpy(), model, ours)
        for each, part in zip(ours, parts, strict=True):
            array = _reordered(part, model, module, each, to_ours=True)
            if layer is None:
                arrays[each] = array
            else:
                arrays.setdefault(each, []).append(array)
    return {name: np.array(array) for name, array in arrays.items()}
