"""Prove a backward pass: compare it with central differences, in float64.

    python gradcheck.py                          every layer, then every model whole
    python gradcheck.py attention                one of them
    python gradcheck.py layernorm --plot v.png   its error against the step size h

The derivative of f is close to (f(x + h) - f(x - h)) / 2h. The truncation error of this grows
with h^2, its round-off error with 1/h; between the two lies an h that leaves ten right digits.

From a notebook, with functions of your own:

    print_table(check(forward, backward, {"x": x, "weight": weight}))
    print_table(check_layer("attention", backward=my_attention_backward))
    print_table(check_layer("layernorm", x=x, weight=weight, bias=bias, dtype=np.float32))
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
import itertools
import math
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import own_imports
from buffers import extents
from errors import RunError, UserError
from files import save_figure
from layers.cases import Layer, describe, draw_arguments, find_layer, find_layers
from models import FAMILIES, Family
from models.model import NO_DROPOUT, Dropout

STEP = 1e-5
LAYER_TOLERANCES = {np.dtype(np.float64): 1e-7, np.dtype(np.float32): 1e-4}
MODEL_TOLERANCE = 1e-6

# A tensor whose gradients are all smaller than this is compared absolutely: where the true gradient
# is 0 (the query's, at T = 1), finite differences leave nothing but round-off.
SMALLEST_SCALE = 1e-2


@dataclass(frozen=True)
class Result:
    """What was found for one tensor: the largest |backward - differences| / largest gradient.

    Attributes:
        note: what else there is to say, as a sentence. Where no elements were compared, why.
    """

    tensor: str
    elements: int
    error: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.error < self.tolerance  # not so for NaN


def check(
    forward: Callable[..., np.ndarray],
    backward: Callable[..., dict[str, np.ndarray]],
    inputs: Mapping[str, np.ndarray],
    h: float = STEP,
    tolerance: float = LAYER_TOLERANCES[np.dtype(np.float64)],
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


class Stopped(Exception):
    """A function of somebody's own cannot do what it is called for; the message says why."""


def check_layer(
    name: str,
    forward: Callable | None = None,
    backward: Callable | None = None,
    h: float = STEP,
    dtype: Any = np.float64,
    **case: Any,
) -> list[Result]:
    """Check a layer, with your own functions in the place of the project's.

    Args:
        name: the layer's: "attention" is attention_forward and attention_backward.
        forward: a function with the arguments of the layer's own, in the same order; it need not
            have those at the end that have a default.
        backward: likewise.
        h: the step of the central differences.
        dtype: what the layer computes in, float32 or float64; the differences are always float64's.
        case: arrays by the names of arguments, x=x, or sizes by the letters of the docstrings, N=6;
            the rest is drawn. Without any, the layer is checked in several sizes.

    Returns:
        A result for each derivative in each case. Where your function cannot do a case, a result
        says so, and other cases of that kind are left out.

    Raises:
        UserError: there is no such layer, or it has no such case or type.
    """
    layer = find_layer(name)
    if np.dtype(dtype) not in LAYER_TOLERANCES:
        raise UserError(f"a layer is checked in float32 or float64, not in {np.dtype(dtype)}")
    results = []
    for kind, cases in ({"": [case]} if case else layer.cases).items():
        for each in cases:
            values = draw_arguments(layer, each, np.random.default_rng(1), dtype)
            label = f"{name} {describe(layer, values)}"
            try:
                found = check_case(layer, values, forward, backward, h)
            except Stopped as stopped:
                what = f"{name} with {kind} ({label})" if kind else label
                note = f"your function cannot do {what}: {stopped}"
                results.append(Result(label, 0, math.nan, 0, note))
                break
            results += [replace(result, tensor=f"{label} {result.tensor}") for result in found]
    return results


def check_case(
    layer: Layer,
    values: Mapping[str, Any],
    forward: Callable | None = None,
    backward: Callable | None = None,
    h: float = STEP,
) -> list[Result]:
    """Check every element of every input and parameter of a layer, and the law of gradients.

    The gradients' memory is full of NaN before the first backward pass, which must assign; the
    second one must assign the inputs' gradients again and add to the parameters'.

    Raises:
        Stopped: `forward` or `backward` cannot do it.
    """
    output, before = layer.output, values[layer.output].copy()  # position_forward adds to it
    dout = values[f"d{output}"]
    exact = {name: in_float64(value) for name, value in values.items()}
    d = {
        name: None if values[name] is None else np.full_like(values[name], np.nan)
        for name in layer.inputs
    }

    def run(values: Mapping[str, Any]) -> np.ndarray:
        values[output][...] = before
        call(layer.forward, forward, values)
        return values[output].copy()

    def run_backward(accumulate: bool) -> dict[str, np.ndarray]:
        run(values)  # what the backward pass reads, and may overwrite
        given = {**values, **{f"d{name}": gradient for name, gradient in d.items()}}
        # A copy of dout, because a learner's function may compute in place.
        given |= {"accumulate": accumulate, f"d{output}": np.array(dout)[()]}
        call(layer.backward, backward, given)
        return {name: gradient.copy() for name, gradient in d.items() if gradient is not None}

    first = run_backward(accumulate=False)
    adds = takes(backward or layer.backward, layer.backward, "accumulate")
    second = run_backward(accumulate=adds)
    results = []
    for name in first:
        note = ""
        if layer.is_parameter(name) and adds:
            second[name] -= first[name]
        elif layer.is_parameter(name):
            note = "your function takes no `accumulate`: whether it can add up was not checked"
        if np.isnan(first[name]).all():
            note = f"nothing was written to d{name}: assign its elements, as in d{name}[...] = ..."
        expected = differences(lambda: run(exact), exact[name], dout, h)
        tolerance = LAYER_TOLERANCES[before.dtype]
        result = compare(name, [first[name], second[name]], expected, tolerance)
        results.append(replace(result, note=note))
    return results


def call(ours: Callable, theirs: Callable | None, values: Mapping[str, Any]) -> None:
    """Call a layer's function, or one in its place, which may lack arguments that have a default.

    Raises:
        Stopped: `theirs` lacks an argument that matters here, or raised something.
    """
    parameters = signature(ours).parameters
    if theirs is None:
        ours(*(values[name] for name in parameters))
        return
    taken = [name for name in parameters if takes(theirs, ours, name)]
    for name, parameter in parameters.items():
        if name not in taken and values[name] is not parameter.default:
            raise Stopped(f"it takes no `{name}`")
    try:
        theirs(*(values[name] for name in taken))
    except Exception as error:  # whatever a learner's function can do
        raise Stopped(f"it stopped with {reason(error)}") from error


def takes(theirs: Callable, ours: Callable, name: str) -> bool:
    """Whether a function in the place of ours has an argument where ours has `name`."""
    names = list(signature(ours).parameters)
    kinds = [parameter.kind for parameter in signature(theirs).parameters.values()]
    return name in (names if Parameter.VAR_POSITIONAL in kinds else names[: len(kinds)])


def reason(error: Exception) -> str:
    """What a learner's function stopped with, and where."""
    line = traceback.extract_tb(error.__traceback__)[-1]
    where = f" (in {line.name}, at: {line.line})" if line.line else ""
    return f"{type(error).__name__}: {error}{where}"


def in_float64(value: Any) -> Any:
    """A copy of an array, its numbers in float64 if they are not whole; all else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    return value.astype(np.result_type(value, np.float64) if value.dtype.kind in "fc" else int)


def check_model(
    family: Family,
    config: Any,
    elements: int = 24,
    h: float = STEP,
    drop: Dropout = NO_DROPOUT,
) -> list[Result]:
    """Check the gradients of a whole model on `elements` random elements of every tensor, or all.

    The first backward pass must assign, the second add, as in `check_case`. The batch has two
    sequences, one position shorter than they might be.

    Args:
        family: the model's.
        config: a small one: each element takes two forward passes.
        elements: how many to move in each tensor.
        h: the step of the central differences.
        drop: what every forward pass drops.
    """
    B, T = 2, config.seq_len - 1
    model = family.model(config, B, T, np.float64, seed=1)
    rng = np.random.default_rng(1)
    # Larger than the initial weights: every layer then matters to the loss.
    model.params.flat += 0.3 * rng.standard_normal(model.params.flat.size)
    tokens, targets = rng.integers(0, config.vocab_size, (2, B, T))
    model.grads.flat.fill(np.nan)
    model.forward(tokens, targets, drop=drop)
    model.zero_grad()
    model.backward()
    first = model.grads.flat.copy()
    model.forward(tokens, targets, drop=drop)
    model.backward()
    results = []
    for name, (start, stop) in extents(model.params.shapes).items():
        chosen = rng.choice(stop - start, min(elements, stop - start), replace=False)
        expected = differences(
            lambda: np.array(model.forward(tokens, targets, drop=drop)),
            model.params[name],
            np.array(1.0),
            h,
            chosen,
        )
        gradients = [flat[start:stop][chosen] for flat in (first, model.grads.flat - first)]
        label = f"{family.title} L={config.num_layers} {name}"
        scale = np.abs(first[start:stop]).max()  # NaN, and so wrong, if an element was left out
        results.append(compare(label, gradients, expected, MODEL_TOLERANCE, scale))
    return results


def print_table(results: Iterable[Result]) -> bool:
    """Print a row for each tensor and what it all comes to; return whether all passed."""
    results = list(results)
    width = max((len(result.tensor) for result in results), default=0)
    print(f"{'tensor':<{width}} {'elements':>8} {'largest relative error':>23} {'tolerance':>10}")
    for result in results:
        found = f"{result.elements:>8} {result.error:>23.1e} {result.tolerance:>10.0e}"
        word = "ok" if result.ok else "WRONG"
        if not result.elements:
            found, word = " " * len(found), "NOT DONE"
        print(f"{result.tensor:<{width}} {found}  {word}")
    for note in dict.fromkeys(result.note for result in results if result.note):
        print(note)
    print(verdict(results))
    return all(result.ok for result in results)


def verdict(results: list[Result]) -> str:
    """What a table comes to, in one line."""
    compared = [result for result in results if result.elements]
    wrong = [result.tensor for result in compared if not result.ok]
    if wrong:
        names = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
        return f"{len(wrong)} of {len(compared)} gradients are wrong: {names}"
    if len(compared) < len(results):
        return f"{len(compared)} gradients agree with central differences, and not all could be had"
    return f"all {len(compared)} gradients agree with central differences"


def plot_step_sizes(layer: Layer, path: Path) -> None:
    """Draw the error of a layer's gradients against the step size h: the V-shaped curve."""
    steps, case = np.logspace(-12, -0.5, 47), list(itertools.chain(*layer.cases.values()))[1]
    values = draw_arguments(layer, case, np.random.default_rng(1))
    results = [check_case(layer, values, h=h) for h in steps]
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    styles = itertools.cycle(["-", "--", ":"])
    for curve, style in zip(zip(*results, strict=True), styles, strict=False):
        # An error of exactly 0 has no logarithm.
        errors = [max(result.error, 1e-17) for result in curve]
        axes.loglog(steps, errors, style, color="black", label=curve[0].tensor)
    tolerance = results[0][0].tolerance
    axes.axhline(tolerance, color="grey", linewidth=0.8)
    axes.annotate("tolerance", (steps[-1], tolerance), va="bottom", ha="right", color="grey")
    axes.annotate("round-off: grows as 1/h", (0.05, 0.93), xycoords="axes fraction")
    axes.annotate("truncation: grows as h²", (0.6, 0.93), xycoords="axes fraction")
    axes.set_xlabel("step size h")
    axes.set_ylabel("largest relative error")
    axes.set_title(f"{layer.name}: central differences against the backward pass")
    axes.legend(title="gradient of", loc="lower left")
    save_figure(figure, path)


def main() -> None:
    layers = find_layers()
    known = [*layers, *FAMILIES]
    parser = argparse.ArgumentParser(
        description="Prove the backward passes by central differences in float64.",
        epilog=f"LAYER is one of: {', '.join(known)}.",
    )
    parser.add_argument("what", nargs="*", metavar="LAYER", help="what to check; by default all")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw one layer's error against the step size"
    )
    args = parser.parse_args()
    for name in args.what:
        if name not in known:
            raise UserError(f"there is no layer {name!r} to check; choose from {', '.join(known)}")
    if args.plot:
        if len(args.what) != 1 or args.what[0] not in layers:
            raise UserError(
                "--plot draws one layer: name it, as in gradcheck.py layernorm --plot v.png"
            )
        plot_step_sizes(layers[args.what[0]], args.plot)
        print(f"wrote {args.plot}")

    results = []
    for name in tqdm(args.what or known, desc="checking", disable=None, leave=False):
        if name in layers:
            results += check_layer(name)
        else:
            family = FAMILIES[name]
            results += [result for config in family.small for result in check_model(family, config)]
    if not print_table(results):
        wrong = sum(not result.ok for result in results)
        raise RunError(f"{wrong} of {len(results)} gradients are wrong")
