"""Prove a backward pass: compare it with central differences, in float64.

    python gradcheck.py                          every layer, then the whole GPT-2
    python gradcheck.py attention                one of them
    python gradcheck.py layernorm --plot v.png   its error against the step size h

The derivative of f is close to (f(x + h) - f(x - h)) / 2h. The truncation error of this grows
with h^2, its round-off error with 1/h; between the two lies an h that leaves ten right digits.

From a notebook, with functions of your own:

    print_table(check(forward, backward, {"x": x, "weight": weight}))
    print_table(check_layer("attention", backward=my_attention_backward))
"""

import argparse
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from buffers import extents
from errors import RunError, UserError, run_program
from files import save_figure
from gpt2 import GPT2, GPT2Config
from layers import attention, embedding, gelu, layernorm, linear, softmax_crossentropy

STEP = 1e-5
LAYER_TOLERANCE = 1e-7
MODEL_TOLERANCE = 1e-6
# A tensor whose gradients are all smaller than this is compared absolutely: where the true gradient
# is 0 (the query's, at T = 1), finite differences leave nothing but round-off.
SMALLEST_SCALE = 1e-2

Gradients = dict[str, np.ndarray]


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


@dataclass
class Case:
    """A layer with inputs to try it on.

    Attributes:
        label: the shapes, for the table.
        inputs: the arrays to differentiate by; `forward` reads them where they lie.
        forward: returns the output for what is in `inputs` now.
        backward: (dout, d, accumulate) fills the gradients d[name], or adds to the parameters'.
        params: the names of the inputs whose gradients accumulate.
        dout: the derivative of the loss with respect to the output; random where not given.
    """

    label: str
    inputs: Mapping[str, np.ndarray]
    forward: Callable[[], np.ndarray]
    backward: Callable[[np.ndarray, Gradients, bool], None]
    params: tuple[str, ...] = ()
    dout: np.ndarray | None = None


def check(
    forward: Callable[..., np.ndarray],
    backward: Callable[..., Gradients],
    inputs: Mapping[str, np.ndarray],
    h: float = STEP,
    tolerance: float = LAYER_TOLERANCE,
) -> list[Result]:
    """Check a backward pass written as a plain function.

    Args:
        forward: `forward(**inputs)` returns the output.
        backward: `backward(dout, **inputs)` returns {name: derivative} for the inputs it knows.
        inputs: float64 arrays.
        h: the step of the central differences.
        tolerance: the largest relative error that passes.

    Returns:
        A result for each derivative.
    """
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
        forward: returns the output, a new array each time.
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
        above = forward()
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
        largest = max(np.abs(gradient).max(), np.abs(expected).max(), scale)
        errors.append(np.abs(gradient - expected).max() / largest)
    return Result(name, expected.size, float(np.max(errors)), tolerance)


def check_case(case: Case, h: float = STEP) -> list[Result]:
    """Check every element of every input and parameter of a layer, and the law of gradients.

    The gradients' memory is full of NaN before the first backward pass, which must assign; the
    second one must assign the inputs' gradients again and add to the parameters'.
    """
    out = case.forward()  # and the statistics that the backward pass reads
    dout = (
        case.dout if case.dout is not None else np.random.default_rng(0).standard_normal(out.shape)
    )
    d = {name: np.full(x.shape, np.nan) for name, x in case.inputs.items()}
    case.backward(dout, d, False)
    first = {name: gradient.copy() for name, gradient in d.items()}
    case.backward(dout, d, True)
    results = []
    for name, x in case.inputs.items():
        second = d[name] - first[name] if name in case.params else d[name]
        expected = differences(case.forward, x, dout, h)
        results.append(compare(name, (first[name], second), expected, LAYER_TOLERANCE))
    return results


# --- every layer, with shapes to try it on ---


def embedding_case(forward: Callable, backward: Callable, N: int, V: int, C: int) -> Case:
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, V, N)
    tokens[-1] = tokens[0]  # a token that comes twice
    weight = rng.standard_normal((V, C))

    def run() -> np.ndarray:
        out = np.empty((N, C))
        forward(out, tokens, weight)
        return out

    def run_backward(dout: np.ndarray, d: Gradients, accumulate: bool) -> None:
        backward(d["weight"], dout, tokens, accumulate)

    return Case(f"N={N} V={V} C={C}", {"weight": weight}, run, run_backward, ("weight",))


def position_case(
    forward: Callable, backward: Callable, B: int, T: int, C: int, max_T: int, start: int
) -> Case:
    weight = np.random.default_rng(1).standard_normal((max_T, C))

    def run() -> np.ndarray:
        out = np.ones((B, T, C))
        forward(out, weight, start)
        return out

    def run_backward(dout: np.ndarray, d: Gradients, accumulate: bool) -> None:
        backward(d["weight"], dout, accumulate)

    label = f"B={B} T={T} C={C} maxT={max_T}"
    return Case(label, {"weight": weight}, run, run_backward, ("weight",))


def linear_case(
    forward: Callable, backward: Callable, N: int, inputs: int, outputs: int, bias: bool = True
) -> Case:
    rng = np.random.default_rng(1)
    tensors = {
        "x": rng.standard_normal((N, inputs)),
        "weight": rng.standard_normal((outputs, inputs)),
    }
    if bias:
        tensors["bias"] = rng.standard_normal(outputs)

    def run() -> np.ndarray:
        out = np.empty((N, outputs))
        forward(out, **tensors)
        return out

    def run_backward(dout: np.ndarray, d: Gradients, accumulate: bool) -> None:
        backward(
            d["x"], d["weight"], d.get("bias"), dout, tensors["x"], tensors["weight"], accumulate
        )

    label = f"N={N} I={inputs} O={outputs}" + ("" if bias else " no bias")
    return Case(label, tensors, run, run_backward, ("weight", "bias"))


def layernorm_case(forward: Callable, backward: Callable, N: int, C: int) -> Case:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((N, C)) + 0.5
    weight, bias = rng.standard_normal(C), rng.standard_normal(C)
    mean, rstd = np.empty(N), np.empty(N)

    def run() -> np.ndarray:
        out = np.empty((N, C))
        forward(out, mean, rstd, x, weight, bias)
        return out

    def run_backward(dout: np.ndarray, d: Gradients, accumulate: bool) -> None:
        backward(d["x"], d["weight"], d["bias"], dout, x, weight, mean, rstd, accumulate)

    tensors = {"x": x, "weight": weight, "bias": bias}
    return Case(f"N={N} C={C}", tensors, run, run_backward, ("weight", "bias"))


def attention_case(forward: Callable, backward: Callable, B: int, T: int, H: int, D: int) -> Case:
    rng = np.random.default_rng(1)
    # Strided views of one projection, as in the model.
    q, k, v = np.moveaxis(rng.standard_normal((B, T, 3, H, D)), 2, 0)
    out, lse = np.empty((B, T, H, D)), np.empty((B, H, T))

    def run() -> np.ndarray:
        forward(out, lse, q, k, v)
        return out.copy()

    def run_backward(dout: np.ndarray, d: Gradients, accumulate: bool) -> None:
        backward(d["q"], d["k"], d["v"], dout, q, k, v, out, lse)

    return Case(f"B={B} T={T} H={H} D={D}", {"q": q, "k": k, "v": v}, run, run_backward)


def gelu_case(forward: Callable, backward: Callable, N: int, C: int) -> Case:
    x = 2 * np.random.default_rng(1).standard_normal((N, C))

    def run() -> np.ndarray:
        out = np.empty((N, C))
        forward(out, x)
        return out

    def run_backward(dout: np.ndarray, d: Gradients, accumulate: bool) -> None:
        backward(d["x"], dout, x)

    return Case(f"N={N} C={C}", {"x": x}, run, run_backward)


def softmax_crossentropy_case(forward: Callable, backward: Callable, N: int, V: int) -> Case:
    rng = np.random.default_rng(1)
    logits, targets = 3 * rng.standard_normal((N, V)), rng.integers(0, V, N)
    lse = np.empty(N)

    def run() -> np.ndarray:
        losses = np.empty(N)
        forward(losses, lse, logits, targets)
        return losses

    def run_backward(dout: np.ndarray, d: Gradients, accumulate: bool) -> None:
        backward(d["logits"], dout[0], logits, targets, lse)

    return Case(f"N={N} V={V}", {"logits": logits}, run, run_backward, dout=np.full(N, 1 / N))


@dataclass(frozen=True)
class Layer:
    """A layer's two functions, how to make a case of them, and the shapes to try."""

    forward: Callable
    backward: Callable
    make_case: Callable[..., Case]
    shapes: tuple[tuple, ...]


LAYERS = {
    "embedding": Layer(
        embedding.embedding_forward,
        embedding.embedding_backward,
        embedding_case,
        ((1, 1, 1), (7, 5, 3), (12, 4, 6)),
    ),
    "position": Layer(
        embedding.position_forward,
        embedding.position_backward,
        position_case,
        ((1, 1, 1, 1, 0), (3, 5, 4, 7, 0), (1, 5, 3, 5, 0)),
    ),
    "linear": Layer(
        linear.linear_forward,
        linear.linear_backward,
        linear_case,
        ((1, 1, 1), (5, 7, 3), (6, 4, 4), (5, 3, 7, False)),
    ),
    "layernorm": Layer(
        layernorm.layernorm_forward,
        layernorm.layernorm_backward,
        layernorm_case,
        ((1, 2), (6, 7), (5, 16)),
    ),
    "attention": Layer(
        attention.attention_forward,
        attention.attention_backward,
        attention_case,
        # One more than a block of queries, and than two, in the last ones.
        ((1, 1, 1, 1), (1, 7, 1, 5), (2, 5, 3, 4), (3, 1, 2, 3), (1, 65, 2, 2), (1, 129, 1, 1)),
    ),
    "gelu": Layer(gelu.gelu_forward, gelu.gelu_backward, gelu_case, ((1, 1), (7, 9))),
    "softmax_crossentropy": Layer(
        softmax_crossentropy.softmax_crossentropy_forward,
        softmax_crossentropy.softmax_crossentropy_backward,
        softmax_crossentropy_case,
        ((1, 1), (1, 5), (6, 7)),
    ),
}


def check_layer(
    name: str, forward: Callable | None = None, backward: Callable | None = None, h: float = STEP
) -> list[Result]:
    """Check a layer on all its shapes, with your own functions in the place of the project's.

    Args:
        name: one of `LAYERS`.
        forward: a function with the arguments of the layer's own.
        backward: likewise.
        h: the step of the central differences.
    """
    layer = LAYERS[name]
    results = []
    for shape in layer.shapes:
        case = layer.make_case(forward or layer.forward, backward or layer.backward, *shape)
        for result in check_case(case, h):
            label = f"{name}.{result.tensor} {case.label}"
            results.append(Result(label, result.elements, result.error, result.tolerance))
    return results


MODEL_SHAPES = (
    (GPT2Config(seq_len=6, vocab_size=11, num_layers=2, num_heads=2, channels=24), 2, 5),
    (GPT2Config(seq_len=4, vocab_size=130, num_layers=3, num_heads=1, channels=21), 1, 4),
)


def check_model(
    config: GPT2Config, B: int, T: int, elements: int = 24, h: float = STEP
) -> list[Result]:
    """Check the gradients of a whole GPT-2 on `elements` random elements of every tensor, or all.

    The first backward pass must assign, the second add, as in `check_case`.
    """
    model = GPT2(config, B, T, dtype=np.float64, seed=1)
    rng = np.random.default_rng(1)
    # Larger than the initial weights: every layer then matters to the loss.
    model.params.flat += 0.3 * rng.standard_normal(model.params.flat.size)
    tokens, targets = rng.integers(0, config.vocab_size, (2, B, T))
    model.grads.flat.fill(np.nan)
    model.grads.wte[config.vocab_size :] = 0  # the padding, which nothing writes
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
        label = f"gpt2.{name} L={config.num_layers} H={config.num_heads} C={config.channels}"
        scale = np.abs(first[start:stop]).max()
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
    layer = LAYERS[name]
    case = layer.make_case(layer.forward, layer.backward, *layer.shapes[1])
    steps = np.logspace(-12, -0.5, 47)
    errors = np.array([[result.error for result in check_case(case, h)] for h in steps])
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    styles = itertools.cycle(["-", "--", ":"])
    for tensor, curve, style in zip(case.inputs, errors.T, styles, strict=False):
        # An error of exactly 0 has no logarithm.
        axes.loglog(steps, np.maximum(curve, 1e-17), style, color="black", label=tensor)
    axes.axhline(LAYER_TOLERANCE, color="grey", linewidth=0.8)
    axes.annotate("tolerance", (steps[-1], LAYER_TOLERANCE), va="bottom", ha="right", color="grey")
    axes.annotate("round-off: grows as 1/h", (0.05, 0.93), xycoords="axes fraction")
    axes.annotate("truncation: grows as h²", (0.6, 0.93), xycoords="axes fraction")
    axes.set_xlabel("step size h")
    axes.set_ylabel("largest relative error")
    axes.set_title(f"{name} ({case.label}): central differences against the backward pass")
    axes.legend(title="gradient of", loc="lower left")
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Prove the backward passes by central differences in float64.",
        epilog=f"LAYER is one of: {', '.join(LAYERS)}, gpt2.",
    )
    parser.add_argument("what", nargs="*", metavar="LAYER", help="what to check; by default all")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw one layer's error against the step size"
    )
    args = parser.parse_args()
    known = [*LAYERS, "gpt2"]
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
        if name == "gpt2":
            results += [result for shape in MODEL_SHAPES for result in check_model(*shape)]
        else:
            results += check_layer(name)
    if not print_table(results):
        wrong = sum(not result.ok for result in results)
        raise RunError(f"{wrong} of {len(results)} gradients are wrong")
    print(f"all {len(results)} gradients agree with central differences")


if __name__ == "__main__":
    run_program(main)
