"""Time every layer's forward and backward pass beside PyTorch's, at the sizes that a model has.

    python dev/bench/layers.py
    python dev/bench/layers.py --preset small --batch-size 8

First the layers of GPT-2, then those that Llama 2 and Gemma 3 have in their place, in a model of as
many channels. Both libraries compute the same from the same numbers, each in a process of its own
and both in turn: on a shared machine only the ratio of neighbours means anything. It is PyTorch's
time divided by ours, the median over pairs of calls that ran one after the other.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import numpy as np
from tqdm import tqdm

from dev.bench.machine import Worker, has_torch, take_turns, use_threads
from errors import at_least
from layers.cases import draw_arguments, find_layer
from layers.classifier import logit_rows
from models.gpt2 import PRESETS
from models.llama2 import Llama2Config

DIRECTIONS = "forward", "backward"

# A layer, and the sizes of its arguments.
Case = tuple[str, Mapping[str, Any]]
# What calls a layer, by direction.
Calls = dict[str, Callable[[], Any]]
# The seconds that each contender took, by case and direction.
Times = dict[tuple[str, str], dict[str, list[float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument(
        "--no-torch", action="store_true", help="without PyTorch, which else runs where installed"
    )
    args = parser.parse_args()
    use_threads(args.threads)
    contenders = {"llm.np": our_calls}
    if has_torch() and not args.no_torch:
        contenders["PyTorch"] = torch_calls
    elif not args.no_torch:
        print("PyTorch is not installed (pip install -e .[oracle]): these are our times only")
    times = measure(gpt2_cases(args) | llama2_cases(args), contenders, args.pairs)

    print(f"{args.preset}, B={args.batch_size} T={args.seq_len}, medians of {args.pairs} calls")
    columns = "".join(f"{name + ' ms':>12}" for name in contenders)
    print(f"{'layer':<21} {'direction':<9}{columns}" + "   ratio" * (len(contenders) - 1))
    for (label, direction), seconds in times.items():
        row = "".join(f"{1000 * statistics.median(each):12.3f}" for each in seconds.values())
        if "PyTorch" in seconds:
            pairs = zip(*seconds.values(), strict=True)
            row += f"{statistics.median(theirs / ours for ours, theirs in pairs):8.2f}"
        print(f"{label:<21} {direction:<9}{row}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What to measure: also for whoever else measures layers."""
    parser.add_argument("--preset", choices=PRESETS, default="gpt2")
    parser.add_argument("--batch-size", type=at_least(1), default=4)
    parser.add_argument("--seq-len", type=at_least(1), default=256)
    parser.add_argument("--pairs", type=at_least(1), default=10, help="timed calls of each layer")
    parser.add_argument("--threads", type=at_least(1), help="default: every core")


def gpt2_cases(args: argparse.Namespace) -> dict[str, Case]:
    """The layers of a GPT-2, by what it calls them."""
    config, B, T = PRESETS[args.preset], args.batch_size, args.seq_len
    N, C, H, V = B * T, config.channels, config.num_heads, config.vocab_size
    return {
        "embedding": ("embedding", {"N": N, "V": V, "C": C}),
        "position": ("position", {"B": B, "T": T, "C": C, "maxT": T}),
        "layernorm": ("layernorm", {"N": N, "C": C}),
        "linear qkv": ("linear", {"N": N, "I": C, "O": 3 * C}),
        "attention": ("attention", {"B": B, "T": T, "H": H, "K": H, "D": C // H}),
        "linear attproj": ("linear", {"N": N, "I": C, "O": C}),
        "linear fc": ("linear", {"N": N, "I": C, "O": 4 * C}),
        "gelu": ("gelu", {"N": N, "C": 4 * C}),
        "linear fcproj": ("linear", {"N": N, "I": 4 * C, "O": C}),
        "dropout": ("dropout", {"N": N, "C": C, "p": 0.1}),
        "linear classifier": ("linear", {"N": N, "I": C, "O": V, "bias": None}),
        "softmax_crossentropy": ("softmax_crossentropy", {"N": N, "V": V}),
        # The last two in one.
        "classifier": ("classifier", {"N": N, "C": C, "V": V, "R": logit_rows(N, V)}),
    }


def llama2_cases(args: argparse.Namespace) -> dict[str, Case]:
    """What a Llama 2 or a Gemma 3 of as many channels and heads has that GPT-2 has not."""
    like, B, T = PRESETS[args.preset], args.batch_size, args.seq_len
    config = Llama2Config(like.channels, num_heads=like.num_heads)
    H, D = config.num_heads, config.head_size
    return {
        "rmsnorm": ("rmsnorm", {"N": B * T, "C": config.dim}),
        "rope": ("rope", {"B": B, "T": T, "H": H, "D": D}),
        "attention in groups": ("attention", {"B": B, "T": T, "H": H, "K": math.gcd(H, 4), "D": D}),
        "swiglu": ("swiglu", {"N": B * T, "F": config.hidden_dim}),
        "attention in a window": (
            "attention",
            {"B": B, "T": T, "H": H, "K": math.gcd(H, 4), "D": D, "window": max(1, T // 8)},
        ),
        "geglu": ("geglu", {"N": B * T, "F": config.hidden_dim}),
    }


def measure(
    cases: dict[str, Case], contenders: dict[str, Callable[..., Calls]], pairs: int
) -> Times:
    """Let all contenders take turns, in every direction of every case.

    Args:
        cases: layers and sizes, by label.
        contenders: what makes the calls of a case, by name.
        pairs: how often each is timed.
    """
    workers = {
        name: Worker(name, layer_step, make_calls, cases) for name, make_calls in contenders.items()
    }
    times: Times = {}
    labels = list(itertools.product(cases, DIRECTIONS))
    for order in tqdm(labels, desc="measuring", unit="layers", disable=None, leave=False):
        calls = {name: functools.partial(worker.step, *order) for name, worker in workers.items()}
        times[order] = take_turns(calls, pairs).results
    for worker in workers.values():
        worker.finish()
    return times


def layer_step(
    make_calls: Callable[..., Calls], cases: dict[str, Case]
) -> Callable[[str, str], None]:
    """For a worker: step(label, direction) calls that layer once."""
    held: dict[str, Calls] = {}

    def step(label: str, direction: str) -> None:
        if label not in held:
            held.clear()  # first, because some need half a gigabyte
            held[label] = make_calls(*cases[label])
        held[label][direction]()

    return step


def our_calls(name: str, sizes: Mapping[str, Any]) -> Calls:
    """Our layer; gradients of parameters are assigned. Backward reads what forward has saved."""
    layer, values = find_layer(name), arguments(name, sizes)

    def bind(function: Callable) -> Callable[[], Any]:
        names = signature(function).parameters
        return functools.partial(function, *(values[each] for each in names))

    return {"forward": bind(layer.forward), "backward": bind(layer.backward)}


def torch_calls(name: str, sizes: Mapping[str, Any]) -> Calls:
    """PyTorch's; its forward pass saves what a backward pass needs, as in training."""
    import torch

    layer = find_layer(name)
    values = {
        each: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for each, value in arguments(name, sizes).items()
    }
    output, *others = signature(layer.forward).parameters
    inputs = [
        values[each].requires_grad_() for each in others if values.get(f"d{each}") is not None
    ]
    forward = functools.partial(torch_functions()[name], **values)
    out = forward()
    dout = values[f"d{output}"] if out.ndim else None  # a mean has none
    backward = functools.partial(torch.autograd.grad, out, inputs, dout, retain_graph=True)
    return {"forward": forward, "backward": backward}


def torch_functions() -> dict[str, Callable]:
    """PyTorch's layers by our names, each of which takes our arguments by name."""
    import torch
    from torch.nn import functional as F

    @functools.cache
    def visible(T: int, window: int) -> torch.Tensor:
        return torch.ones(T, T, dtype=torch.bool).tril().triu(1 - window)

    def attention(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        window: int | None,
        scale: float | None,
        **_: Any,
    ) -> torch.Tensor:
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        mask = None if window is None else visible(q.shape[1], window)
        return F.scaled_dot_product_attention(
            *heads_first, mask, is_causal=mask is None, scale=scale, enable_gqa=True
        ).transpose(1, 2)

    def rope(x: torch.Tensor, rotations: torch.Tensor, **_: Any) -> torch.Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * rotations[:, None]).flatten(-2)

    return {
        "embedding": lambda tokens, weight, **_: F.embedding(tokens, weight),
        "position": lambda out, weight, **_: out + weight[: out.shape[1]],
        "linear": lambda x, weight, bias, **_: F.linear(x, weight, bias),
        "layernorm": lambda x, weight, bias, **_: F.layer_norm(x, weight.shape, weight, bias),
        "rmsnorm": lambda x, weight, eps, **_: F.rms_norm(x, weight.shape, weight, eps),
        "attention": attention,
        "rope": rope,
        "gelu": lambda x, **_: F.gelu(x, approximate="tanh"),
        "swiglu": lambda gate, up, **_: F.silu(gate) * up,
        "geglu": lambda gate, up, **_: F.gelu(gate, approximate="tanh") * up,
        "dropout": lambda x, p, **_: F.dropout(x, p),
        "softmax_crossentropy": lambda logits, targets, **_: F.cross_entropy(logits, targets),
        "classifier": lambda x, targets, weight, **_: F.cross_entropy(F.linear(x, weight), targets),
    }


def arguments(name: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """What both functions of a layer take, in float32 and by name; the same on every call."""
    layer = find_layer(name)
    if "dlosses" in layer.parameters:
        sizes = {"dlosses": 1 / sizes["N"], **sizes}  # PyTorch's loss is the mean
    values = draw_arguments(layer, sizes, np.random.default_rng(0), np.float32)
    for each in layer.inputs:
        values[f"d{each}"] = None if values[each] is None else np.ones_like(values[each])
    return values
