"""GELU as a gate: what it is, and what is easily written instead."""

import math
from collections.abc import Callable

import numpy as np

SCALE, CUBIC = math.sqrt(2 / math.pi), 0.044715
rng = np.random.default_rng(21)


def tanh_of(x, constant=CUBIC):
    return np.tanh(SCALE * (x + constant * x**3))


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + tanh_of(x))


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
        t = tanh_of(x)
        return half * (first(t) + outer(x) * tanh_slope(t) * inner(x))

    return slope


gelu_slope = slope_with()


def slope_with_constant(constant):
    """GELU's derivative with another number in the place of 0.044715."""

    def slope(x):
        t, inner = tanh_of(x, constant), SCALE * (1 + 3 * constant * x**2)
        return 0.5 * (1 + t + x * (1 - t**2) * inner)

    return slope


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
        "The derivative of tanh u is 1 - tanh(u)^2; yours is tanh(u)^2.": (
            slope_with(tanh_slope=lambda t: t**2)
        ),
        "The derivative of tanh u is 1 - tanh(u)^2; yours is the root of that.": (
            slope_with(tanh_slope=lambda t: np.sqrt(1 - t**2))
        ),
        "The sign of the second term of dgate is wrong: both are added.": (
            slope_with(tanh_slope=lambda t: t**2 - 1)
        ),
        "The derivative of the tanh is taken at the gate in yours. It is 1 - tanh(u)^2.": (
            lambda x: gelu_slope(x) + x / 2 * inner_slope(x) * (tanh_of(x) ** 2 - np.tanh(x) ** 2)
        ),
        "In du/dgate sqrt(2/pi) multiplies both terms: parentheses are missing.": (
            slope_with(inner=lambda x: SCALE + 3 * CUBIC * x**2)
        ),
        "In dgate the 1/2 of GELU is missing.": slope_with(half=1),
        "In dgate the 1/2 of GELU is missing in the second term.": slope_with(
            outer=lambda x: 2 * x
        ),
        "In dgate the 1/2 of GELU is missing in the first term.": (
            slope_with(first=lambda t: 2 * (1 + t))
        ),
        "In dgate the first term is GELU in yours. The product rule leaves its factor "
        "(1 + tanh u)/2 there, without the gate.": lambda x: (
            gelu(x) + slope_with(first=lambda t: 0)(x)
        ),
        "dgate is multiplied by GELU in yours. It is dout times up times GELU's derivative.": (
            lambda x: gelu(x) * gelu_slope(x)
        ),
        "The slope in dgate is that of another approximation, x sigmoid(1.702 x). Gemma's is the "
        "tanh form.": lambda x: silu_slope(1.702 * x),
        "The constant is 0.044715; yours is 0.44715, at least in dgate.": slope_with_constant(
            10 * CUBIC
        ),
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
        "dup has another approximation, x sigmoid(1.702 x). Gemma's GELU is the tanh form.": (
            lambda dout, gate: dout * gate * (1 + np.tanh(0.851 * gate)) / 2
        ),
        "The constant is 0.044715; yours is 0.44715 in dup.": (
            lambda dout, gate: dout * 0.5 * gate * (1 + tanh_of(gate, 10 * CUBIC))
        ),
        "In dup the 1/2 of GELU is missing.": lambda dout, gate: 2 * dout * gelu(gate),
        "dup lacks `dout`.": lambda dout, gate: gelu(gate),
        "dup lacks GELU of the gate, by which up is multiplied.": lambda dout, gate: dout,
    },
    "order": {"They are swapped: dgate comes first, then dup.": slice(None, None, -1)},
}


def roles_exchanged(dout, gate, up):
    """The gradients of gate GELU(up)."""
    return geglu_backward(dout, up, gate)[::-1]


def slope_of_up(dout, gate, up):
    return dout * up * gelu_slope(up), dout * gelu(gate)


def geglu_cases(*sizes: tuple[int, int]) -> list[dict[str, np.ndarray]]:
    return [
        {name: 1.5 * rng.standard_normal(size) for name in ("dout", "gate", "up")} for size in sizes
    ]
