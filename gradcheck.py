"""Prove a backward pass: compare it with central differences, in float64.

    python gradcheck.py                          every layer, then both models whole
    python gradcheck.py attention                one of them
    python gradcheck.py layernorm --plot v.png   its error against the step size h

The derivative of f is close to (f(x + h) - f(x - h)) / 2h. The truncation error of this grows
with h^2, its round-off error with 1/h; between the two lies an h that leaves ten right digits.

From a notebook, with functions of your own:

    print_table(check(forward, backward, {"x": x, "weight": weight}))
    print_table(check_layer("attention", backward=my_attention_backward))
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import own_imports
from buffers import extents
from errors import RunError, UserError
from files import save_figure
from layers import (
    attention,
    classifier,
    embedding,
    gelu,
    layernorm,
    linear,
    rmsnorm,
    rope,
    softmax_crossentropy,
    swiglu,
)
from models.gpt2 import GPT2, GPT2Config
from models.llama2 import Llama2, Llama2Config

STEP = 1e-5
LAYER_TOLERANCE = 1e-7
MODEL_TOLERANCE = 1e-6
# A tensor whose gradients are all smaller than this is compared absolutely: where the true gradient
# is 0 (the query's, at T = 1), finite differences leave nothing but round-off.
SMALLEST_SCALE = 1e-2


@dataclass(frozen=True)
class Result:
    """What was found for one tensor: the largest |backward - differences| / largest gradient."""

    tensor: str
    elements: int
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error < self.tolerance  # not so for NaN


def check(
    forward: Callable[..., np.ndarray],
    backward: Callable[..., dict[str, np.ndarray]],
    inputs: Mapping[str, np.ndarray],
    h: float = STEP,
    tolerance: float = LAYER_TOLERANCE,
) -> list[Result]:
    """Check a backward pass written as a plain function.

    Args:
        forward: `forward(**inputs)` returns the output.
        backward: `backward(dout, **inputs)` returns {name: derivative} for the inputs it knows.
        inputs: arrays of numbers; float64 copies of them are used.
        h: the step of the central differences.
        tolerance: the largest relative error that passes.

    Returns:
        A result for each derivative.
    """
    inputs = {name: np.array(x, np.float64) for name, x in inputs.items()}
    dout = np.random.default_rng(0).standard_normal(np.shape(forward(**inputs)))
    gradients = backward(dout, **inputs)
    return [
        compare(
            name,
            [gradient],
            differences(lambda: forward(**inputs), inputs[name], dout, h),
            tolerance,
        )
        for name, gradient in gradients.items()
    ]


def differences(
    forward: Callable[[], np.ndarray],
    x: np.ndarray,
    dout: np.ndarray,
    h: float = STEP,
    elements: Iterable[int] | None = None,
) -> np.ndarray:
    """Central differences of sum(dout * forward()) by the elements of `x`, which `forward` reads.

    Args:
        forward: returns the output.
        x: any shape; each element is moved by h and put back.
        dout: the shape of the output.
        h: the step.
        elements: flat indices of the elements to move; all by default.

    Returns:
        One number for each element, in the shape of `x` for all of them.
    """
    shape = x.shape if elements is None else (-1,)
    result = []
    for i in range(x.size) if elements is None else elements:
        middle = x.flat[i]
        x.flat[i] = middle + h
        above = np.array(forward())  # a copy: it may write to the same array every time
        x.flat[i] = middle - h
        below = forward()
        x.flat[i] = middle
        result.append(np.sum(dout * (above - below)) / (2 * h))
    return np.array(result).reshape(shape)


def compare(
    name: str,
    gradients: Iterable[np.ndarray],
    expected: np.ndarray,
    tolerance: float,
    scale: float = SMALLEST_SCALE,
) -> Result:
    """The largest difference of any of `gradients`, relative to the largest element.

    Args:
        name: of the tensor.
        gradients: what backward passes found.
        expected: what finite differences found.
        tolerance: the largest relative error that passes.
        scale: differences are relative to at least this.

    Raises:
        UserError: a gradient has not the shape of what it is the gradient of.
    """
    errors = []
    for gradient in gradients:
        if np.shape(gradient) != expected.shape:
            raise UserError(
                f"the gradient of {name} has shape {np.shape(gradient)}, "
                f"but {name} itself has {expected.shape}"
            )
        largest = np.max([np.abs(gradient).max(), np.abs(expected).max(), scale])
        errors.append(np.abs(gradient - expected).max() / largest)
    return Result(name, expected.size, float(np.max(errors)), tolerance)


@dataclass(frozen=True)
class Layer:
    """A layer's two functions, and arguments to try them on.

    Attributes:
        forward: its first argument is its output.
        backward: an argument called dx is the derivative of the loss by x, and so on.
        arguments: (random generator, *shape) -> what `forward` takes, by name.
        shapes: for `arguments`.
    """

    forward: Callable
    backward: Callable
    arguments: Callable[..., dict[str, Any]]
    shapes: tuple[tuple[int, ...], ...]


def embedding_arguments(rng: np.random.Generator, N: int, V: int, C: int) -> dict[str, Any]:
    tokens = rng.integers(0, V, N)
    tokens[-1] = tokens[0]  # a token that comes twice
    return {"out": np.empty((N, C)), "tokens": tokens, "weight": rng.standard_normal((V, C))}


def position_arguments(
    rng: np.random.Generator, B: int, T: int, C: int, max_T: int
) -> dict[str, Any]:
    weight = rng.standard_normal((max_T, C))
    return {"out": np.ones((B, T, C)), "weight": weight, "start": 0, "padding": None}


def linear_arguments(
    rng: np.random.Generator, N: int, inputs: int, outputs: int, bias: bool = True
) -> dict[str, Any]:
    return {
        "out": np.empty((N, outputs)),
        "x": rng.standard_normal((N, inputs)),
        "weight": rng.standard_normal((outputs, inputs)),
        "bias": rng.standard_normal(outputs) if bias else None,
    }


def layernorm_arguments(rng: np.random.Generator, N: int, C: int) -> dict[str, Any]:
    return {
        "out": np.empty((N, C)),
        "mean": np.empty(N),
        "rstd": np.empty(N),
        "x": rng.standard_normal((N, C)) + 0.5,
        "weight": rng.standard_normal(C),
        "bias": rng.standard_normal(C),
    }


def rmsnorm_arguments(rng: np.random.Generator, N: int, C: int) -> dict[str, Any]:
    return {
        "out": np.empty((N, C)),
        "rstd": np.empty(N),
        "x": rng.standard_normal((N, C)) + 0.5,
        "weight": rng.standard_normal(C),
        "eps": 1e-5,
    }


def attention_arguments(
    rng: np.random.Generator, B: int, T: int, H: int, D: int, K: int | None = None
) -> dict[str, Any]:
    K = K or H
    # Strided views of one projection, as in GPT-2.
    q, k, v = np.split(rng.standard_normal((B, T, H + 2 * K, D)), (H, H + K), axis=2)
    out, lse = np.empty((B, T, H, D)), np.empty((B, H, T))
    return {"out": out, "lse": lse, "q": q, "k": k, "v": v, "start": 0, "padding": None}


def rope_arguments(rng: np.random.Generator, B: int, T: int, H: int, D: int) -> dict[str, Any]:
    x = rng.standard_normal((B, T, H, D))
    return {"out": np.empty_like(x), "x": x, "rotations": rope.rope_rotations(T, D, 100, x.dtype)}


def swiglu_arguments(rng: np.random.Generator, N: int, F: int) -> dict[str, Any]:
    gate, up = 2 * rng.standard_normal((2, N, F))
    return {"out": np.empty((N, F)), "gate": gate, "up": up}


def gelu_arguments(rng: np.random.Generator, N: int, C: int) -> dict[str, Any]:
    return {"out": np.empty((N, C)), "x": 2 * rng.standard_normal((N, C))}


def softmax_crossentropy_arguments(rng: np.random.Generator, N: int, V: int) -> dict[str, Any]:
    return {
        "losses": np.empty(N),
        "lse": np.empty(N),
        "logits": 3 * rng.standard_normal((N, V)),
        "targets": rng.integers(0, V, N),
        "dlosses": 1 / N,  # one number, for all of them
    }


def classifier_arguments(
    rng: np.random.Generator, N: int, C: int, V: int, rows: int
) -> dict[str, Any]:
    return {
        "losses": np.empty(N),
        "lse": np.empty(N),
        "logits": np.empty((rows, V)),
        "x": rng.standard_normal((N, C)),
        "targets": rng.integers(0, V, N),
        "weight": rng.standard_normal((V, C)),
        "dlosses": 1 / N,
    }


LAYERS = {
    "embedding": Layer(
        embedding.embedding_forward,
        embedding.embedding_backward,
        embedding_arguments,
        ((1, 1, 1), (7, 5, 3), (12, 4, 6)),
    ),
    "position": Layer(
        embedding.position_forward,
        embedding.position_backward,
        position_arguments,
        ((1, 1, 1, 1), (3, 5, 4, 7), (1, 5, 3, 5)),
    ),
    "linear": Layer(
        linear.linear_forward,
        linear.linear_backward,
        linear_arguments,
        ((1, 1, 1), (5, 7, 3), (6, 4, 4), (5, 3, 7, False)),
    ),
    "layernorm": Layer(
        layernorm.layernorm_forward,
        layernorm.layernorm_backward,
        layernorm_arguments,
        ((1, 2), (6, 7), (5, 16)),
    ),
    "rmsnorm": Layer(
        rmsnorm.rmsnorm_forward,
        rmsnorm.rmsnorm_backward,
        rmsnorm_arguments,
        ((1, 2), (6, 7), (5, 16)),
    ),
    "attention": Layer(
        attention.attention_forward,
        attention.attention_backward,
        attention_arguments,
        # One more than a block of queries, and than two, in the last ones.
        (
            *(
                (1, 1, 1, 1),
                (1, 7, 1, 5),
                (2, 5, 3, 4),
                (3, 1, 2, 3),
                (1, 65, 2, 2),
                (1, 129, 1, 1),
            ),
            # Query heads in groups that share a key/value head; the last, all of them.
            *((2, 5, 6, 3, 2), (1, 66, 4, 2, 2), (2, 3, 3, 2, 1)),
        ),
    ),
    "rope": Layer(
        rope.rope_forward, rope.rope_backward, rope_arguments, ((1, 1, 1, 2), (2, 5, 3, 4))
    ),
    "gelu": Layer(gelu.gelu_forward, gelu.gelu_backward, gelu_arguments, ((1, 1), (7, 9))),
    "swiglu": Layer(
        swiglu.swiglu_forward, swiglu.swiglu_backward, swiglu_arguments, ((1, 1), (7, 9))
    ),
    "softmax_crossentropy": Layer(
        softmax_crossentropy.softmax_crossentropy_forward,
        softmax_crossentropy.softmax_crossentropy_backward,
        softmax_crossentropy_arguments,
        ((1, 1), (1, 5), (6, 7)),
    ),
    "classifier": Layer(
        classifier.classifier_forward,
        classifier.classifier_backward,
        classifier_arguments,
        # All rows at once; in equal parts; the last part smaller; a row at a time.
        ((1, 1, 2, 1), (4, 3, 5, 4), (6, 3, 5, 2), (7, 2, 4, 3), (3, 2, 4, 1)),
    ),
}


def check_layer(
    name: str, forward: Callable | None = None, backward: Callable | None = None, h: float = STEP
) -> list[Result]:
    """Check a layer on all its shapes, with your own functions in the place of the project's.

    Args:
        name: one of `LAYERS`.
        forward: a function with the arguments of the layer's own, in the same order.
        backward: likewise.
        h: the step of the central differences.
    """
    layer = LAYERS[name]
    results = []
    for shape in layer.shapes:
        names = list(signature(layer.arguments).parameters)[1:]
        label = " ".join([name, *(f"{n}={size}" for n, size in zip(names, shape, strict=False))])
        for result in check_shape(layer, shape, forward, backward, h):
            results.append(replace(result, tensor=f"{label} {result.tensor}"))
    return results


def check_shape(
    layer: Layer,
    shape: tuple[int, ...],
    forward: Callable | None = None,
    backward: Callable | None = None,
    h: float = STEP,
) -> list[Result]:
    """Check every element of every input and parameter of a layer, and the law of gradients.

    The gradients' memory is full of NaN before the first backward pass, which must assign; the
    second one must assign the inputs' gradients again and add to the parameters'.
    """
    forward_names, backward_names = (
        list(signature(function).parameters) for function in (layer.forward, layer.backward)
    )
    rng = np.random.default_rng(1)
    values = layer.arguments(rng, *shape)
    output = forward_names[0]
    before = values[output].copy()  # position_forward adds to what is there

    def run() -> np.ndarray:
        values[output][...] = before
        (forward or layer.forward)(*(values[name] for name in forward_names))
        return values[output].copy()

    dout = values.setdefault(f"d{output}", rng.standard_normal(run().shape))
    inputs = [name for name in forward_names if f"d{name}" in backward_names and name != output]
    d = {
        name: None if values[name] is None else np.full_like(values[name], np.nan)
        for name in inputs
    }
    values |= {f"d{name}": gradient for name, gradient in d.items()}

    def run_backward(accumulate: bool) -> dict[str, np.ndarray]:
        run()  # what the backward pass reads, and may overwrite
        # A copy of dout, because a learner's function may compute in place.
        given = values | {"accumulate": accumulate, f"d{output}": np.array(dout)[()]}
        (backward or layer.backward)(*(given[name] for name in backward_names))
        return {name: gradient.copy() for name, gradient in d.items() if gradient is not None}

    first, second = run_backward(accumulate=False), run_backward(accumulate=True)
    results = []
    for name in first:
        if name in ("weight", "bias"):
            second[name] -= first[name]
        expected = differences(run, values[name], dout, h)
        gradients = first[name], second[name]
        results.append(compare(name, gradients, expected, LAYER_TOLERANCE))
    return results


# Each model on a batch of B sequences of T tokens.
MODELS = {
    "gpt2": (
        (GPT2Config(seq_len=6, vocab_size=11, num_layers=2, num_heads=2, channels=24), 2, 5),
        (GPT2Config(seq_len=4, vocab_size=130, num_layers=3, num_heads=1, channels=21), 1, 4),
    ),
    "llama2": (
        (Llama2Config(24, 31, 2, num_heads=4, num_kv_heads=2, vocab_size=11, seq_len=6), 2, 5),
        (Llama2Config(18, 7, 3, num_heads=3, vocab_size=23, seq_len=4, tied=False), 1, 4),
    ),
}


def check_model(
    config: GPT2Config | Llama2Config, B: int, T: int, elements: int = 24, h: float = STEP
) -> list[Result]:
    """Check the gradients of a whole model on `elements` random elements of every tensor, or all.

    The first backward pass must assign, the second add, as in `check_shape`.
    """
    model = (GPT2 if isinstance(config, GPT2Config) else Llama2)(config, B, T, np.float64, seed=1)
    rng = np.random.default_rng(1)
    # Larger than the initial weights: every layer then matters to the loss.
    model.params.flat += 0.3 * rng.standard_normal(model.params.flat.size)
    tokens, targets = rng.integers(0, config.vocab_size, (2, B, T))
    model.grads.flat.fill(np.nan)
    model.forward(tokens, targets)
    model.zero_grad()
    model.backward()
    first = model.grads.flat.copy()
    model.forward(tokens, targets)
    model.backward()
    results = []
    for name, (start, stop) in extents(model.params.shapes).items():
        chosen = rng.choice(stop - start, min(elements, stop - start), replace=False)
        expected = differences(
            lambda: np.array(model.forward(tokens, targets)),
            model.params[name],
            np.array(1.0),
            h,
            chosen,
        )
        gradients = [flat[start:stop][chosen] for flat in (first, model.grads.flat - first)]
        label = f"{type(model).__name__} L={config.num_layers} H={config.num_heads} {name}"
        scale = np.abs(first[start:stop]).max()  # NaN, and so wrong, if an element was left out
        results.append(compare(label, gradients, expected, MODEL_TOLERANCE, scale))
    return results


def print_table(results: Iterable[Result]) -> bool:
    """Print a row for each tensor; return whether all passed."""
    results = list(results)
    width = max(len(result.tensor) for result in results)
    print(f"{'tensor':<{width}} {'elements':>8} {'largest relative error':>23} {'tolerance':>10}")
    for result in results:
        verdict = "ok" if result.ok else "WRONG"
        print(
            f"{result.tensor:<{width}} {result.elements:>8} {result.error:>23.1e} "
            f"{result.tolerance:>10.0e}  {verdict}"
        )
    return all(result.ok for result in results)


def plot_step_sizes(name: str, path: Path) -> None:
    """Draw the error of a layer's gradients against the step size h: the V-shaped curve."""
    layer, steps = LAYERS[name], np.logspace(-12, -0.5, 47)
    results = [check_shape(layer, layer.shapes[1], h=h) for h in steps]
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    styles = itertools.cycle(["-", "--", ":"])
    for curve, style in zip(zip(*results, strict=True), styles, strict=False):
        # An error of exactly 0 has no logarithm.
        errors = [max(result.error, 1e-17) for result in curve]
        axes.loglog(steps, errors, style, color="black", label=curve[0].tensor)
    axes.axhline(LAYER_TOLERANCE, color="grey", linewidth=0.8)
    axes.annotate("tolerance", (steps[-1], LAYER_TOLERANCE), va="bottom", ha="right", color="grey")
    axes.annotate("round-off: grows as 1/h", (0.05, 0.93), xycoords="axes fraction")
    axes.annotate("truncation: grows as h²", (0.6, 0.93), xycoords="axes fraction")
    axes.set_xlabel("step size h")
    axes.set_ylabel("largest relative error")
    axes.set_title(f"{name}: central differences against the backward pass")
    axes.legend(title="gradient of", loc="lower left")
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Prove the backward passes by central differences in float64.",
        epilog=f"LAYER is one of: {', '.join([*LAYERS, *MODELS])}.",
    )
    parser.add_argument("what", nargs="*", metavar="LAYER", help="what to check; by default all")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw one layer's error against the step size"
    )
    args = parser.parse_args()
    known = [*LAYERS, *MODELS]
    for name in args.what:
        if name not in known:
            raise UserError(f"there is no layer {name!r} to check; choose from {', '.join(known)}")
    if args.plot:
        if len(args.what) != 1 or args.what[0] not in LAYERS:
            raise UserError(
                "--plot draws one layer: name it, as in gradcheck.py layernorm --plot v.png"
            )
        plot_step_sizes(args.what[0], args.plot)
        print(f"wrote {args.plot}")

    results = []
    for name in tqdm(args.what or known, desc="checking", disable=None, leave=False):
        if name in MODELS:
            results += [result for shape in MODELS[name] for result in check_model(*shape)]
        else:
            results += check_layer(name)
    if not print_table(results):
        wrong = sum(not result.ok for result in results)
        raise RunError(f"{wrong} of {len(results)} gradients are wrong")
    print(f"all {len(results)} gradients agree with central differences")
