"""GELU as a gate: what it is, and what is easily written instead."""

import math
from collections.abc import Callable

import numpy as np

SCALE, CUBIC = math.sqrt(2 / math.pi), 0.044715
rng = np.random.default_rng(21)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(SCALE * (x + CUBIC * x**3)))


def geglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return gelu(gate) * up


def inner_slope(x):
    return SCALE * (1 + 3 * CUBIC * x**2)


def slope_with(
    half=0.5,
    first=lambda t: 1 + t,
    outer=lambda x: x,
    tanh_slope=lambda t: 1 - t**2,
    inner=inner_slope,
) -> Callable:
    """GELU's derivative with something else in the place of some of its parts."""

    def slope(x):
        t = np.tanh(SCALE * (x + CUBIC * x**3))
        return half * (first(t) + outer(x) * tanh_slope(t) * inner(x))

    return slope


gelu_slope = slope_with()


def silu_slope(x):
    s = (1 + np.tanh(x / 2)) / 2
    return s * (1 + x * (1 - s))


def geglu_with(
    slope=gelu_slope,
    gate_gets=lambda dout, up: dout * up,
    up_gets=lambda dout, gate: dout * gelu(gate),
    order=slice(None),
) -> Callable:
    """Its backward pass with another function in the place of some of its steps."""

    def backward(dout, gate, up):
        return (gate_gets(dout, up) * slope(gate), up_gets(dout, gate))[order]

    return backward


def geglu_backward(
    dout: np.ndarray, gate: np.ndarray, up: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return geglu_with()(dout, gate, up)


geglu_steps = {
    "slope": {
        "In dgate the slope is that of SiLU. Gemma's gate is a GELU: the one of lesson 05.": (
            silu_slope
        ),
        "In dgate the product's second term is missing: the gate is inside of the tanh, too.": (
            slope_with(tanh_slope=lambda t: 0)
        ),
        "In dgate only the way through the tanh is there. GELU is a product, gate times "
        "(1 + tanh u)/2, and has a product's two terms.": slope_with(first=lambda t: 0),
        "In dgate the inner derivative du/dgate is missing: u = sqrt(2/pi) (gate + 0.044715 "
        "gate^3).": slope_with(inner=lambda x: 1),
        "In du/dgate the 3 is missing: the derivative of gate^3 is 3 gate^2.": (
            slope_with(inner=lambda x: SCALE * (1 + CUBIC * x**2))
        ),
        "In du/dgate the derivative of gate^3 is 3 gate^2, not 3 gate.": (
            slope_with(inner=lambda x: SCALE * (1 + 3 * CUBIC * x))
        ),
        "In du/dgate the factor sqrt(2/pi) is missing.": (
            slope_with(inner=lambda x: 1 + 3 * CUBIC * x**2)
        ),
        "In du/dgate the 1 is missing, the derivative of gate itself.": (
            slope_with(inner=lambda x: SCALE * 3 * CUBIC * x**2)
        ),
        "The derivative of tanh u is 1 - tanh(u)^2; yours is 1 - tanh u.": (
            slope_with(tanh_slope=lambda t: 1 - t)
        ),
        "The derivative of tanh u is 1 - tanh(u)^2; yours has a plus.": (
            slope_with(tanh_slope=lambda t: 1 + t**2)
        ),
        "In dgate the 1/2 of GELU is missing.": slope_with(half=1),
        "In dgate there is GELU itself. It is its derivative that the chain rule asks for.": gelu,
        "In dgate nothing of GELU is left: that is a plain product's gradient.": (
            lambda x: np.ones_like(x)
        ),
        "In dgate the factor gate of the second term is missing: it is gate/2 times the derivative "
        "of the tanh.": slope_with(outer=lambda x: 1),
    },
    "gate_gets": {
        "dgate lacks `up`: what the gate's slope is worth depends on what it lets through.": (
            lambda dout, up: dout
        ),
        "dgate lacks `dout`.": lambda dout, up: up,
    },
    "up_gets": {
        "dup is dout times the gate as it came. It is GELU of the gate that multiplies up.": (
            lambda dout, gate: dout * gate
        ),
        "dup has SiLU of the gate. Gemma's gate is a GELU.": (
            lambda dout, gate: dout * gate * (1 + np.tanh(gate / 2)) / 2
        ),
        "dup has GELU's derivative. up enters the product as it is, so only GELU of the gate "
        "itself multiplies it.": lambda dout, gate: dout * gelu_slope(gate),
        "dup lacks `dout`.": lambda dout, gate: gelu(gate),
        "dup lacks GELU of the gate, by which up is multiplied.": lambda dout, gate: dout,
    },
    "order": {"They are swapped: dgate comes first, then dup.": slice(None, None, -1)},
}


def geglu_cases(*sizes: tuple[int, int]) -> list[dict[str, np.ndarray]]:
    return [
        {name: 1.5 * rng.standard_normal(size) for name in ("dout", "gate", "up")} for size in sizes
    ]
