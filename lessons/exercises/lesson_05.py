"""The exercises of lesson 05, GELU and the MLP."""

import math

import numpy as np

from exercises import Exercise, Grader

SCALE = math.sqrt(2 / math.pi)
CUBIC = 0.044715


def Phi(x: np.ndarray) -> np.ndarray:
    """The share of a standard normal distribution below x."""
    return (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def phi(x: np.ndarray) -> np.ndarray:
    """Its density, the derivative of `Phi`."""
    return np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def gelu_exact(x: np.ndarray) -> np.ndarray:
    return x * Phi(x)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + tanh_u(x)) / 2


def tanh_u(x: np.ndarray) -> np.ndarray:
    return np.tanh(SCALE * (x + CUBIC * x**3))


def slope(x: np.ndarray) -> np.ndarray:
    """The derivative of `gelu`."""
    t, du = tanh_u(x), SCALE * (1 + 3 * CUBIC * x**2)
    return (1 + t) / 2 + x * (1 - t**2) / 2 * du


def mlp(
    x: np.ndarray,
    fc_weight: np.ndarray,
    fc_bias: np.ndarray,
    proj_weight: np.ndarray,
    proj_bias: np.ndarray,
) -> np.ndarray:
    return gelu(x @ fc_weight.T + fc_bias) @ proj_weight.T + proj_bias


def gelu_exact_dx(dout: np.ndarray, x: np.ndarray) -> np.ndarray:
    return dout * (Phi(x) + x * phi(x))


def gelu_dx(dout: np.ndarray, x: np.ndarray) -> np.ndarray:
    return dout * slope(x)


def mlp_backward(
    dout: np.ndarray,
    x: np.ndarray,
    h: np.ndarray,
    a: np.ndarray,
    fc_weight: np.ndarray,
    fc_bias: np.ndarray,
    proj_weight: np.ndarray,
    proj_bias: np.ndarray,
) -> tuple[np.ndarray, ...]:
    return through(dout, x, a, fc_weight, proj_weight, slope(h))


def through(
    dout: np.ndarray,
    x: np.ndarray,
    a: np.ndarray,
    fc_weight: np.ndarray,
    proj_weight: np.ndarray,
    slopes: np.ndarray | float,
) -> tuple[np.ndarray, ...]:
    """The MLP's backward pass with given slopes of its GELU."""
    dh = dout @ proj_weight * slopes
    return dh @ fc_weight, dh.T @ x, dh.sum(axis=0), dout.T @ a, dout.sum(axis=0)


def mlp_counts(C: int) -> np.ndarray:
    return np.array([8 * C * C + 5 * C, 8 * C * C, 16 * C * C])


def arrays(*shapes: tuple[int, int]) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    return [
        {"dout": rng.standard_normal(shape), "x": 2 * rng.standard_normal(shape)}
        for shape in shapes
    ]


def mlps(*sizes: tuple[int, int, int]) -> list[dict[str, np.ndarray]]:
    """Arguments of `mlp_backward` for N rows of C channels and H hidden ones."""
    rng = np.random.default_rng(5)
    result = []
    for N, C, H in sizes:
        x, fc_weight = rng.standard_normal((N, C)), rng.standard_normal((H, C))
        fc_bias = rng.standard_normal(H)
        h = x @ fc_weight.T + fc_bias
        result.append(
            {
                "dout": rng.standard_normal((N, C)),
                "x": x,
                "h": h,
                "a": gelu(h),
                "fc_weight": fc_weight,
                "fc_bias": fc_bias,
                "proj_weight": rng.standard_normal((C, H)),
                "proj_bias": rng.standard_normal(C),
            }
        )
    return result


def with_slopes(dout, x, h, a, fc_weight, fc_bias, proj_weight, proj_bias, slopes):
    return through(dout, x, a, fc_weight, proj_weight, slopes(h, a))


def mistaken_slopes(slopes):
    """What someone computes whose GELU has other slopes."""
    return lambda **case: with_slopes(slopes=slopes, **case)


grade = Grader(
    Exercise(
        gelu_exact_dx,
        arrays((2, 5), (4, 3)),
        ["dx"],
        gelu_exact,
        mistakes={
            "Phi(x) alone is half of the product rule: x stands in both factors of x Phi(x).": (
                lambda dout, x: dout * Phi(x)
            ),
            "x phi(x) alone is half of the product rule: x stands in both factors of x Phi(x).": (
                lambda dout, x: dout * x * phi(x)
            ),
            "That is the slope. By the chain rule, times dout.": lambda dout, x: (
                Phi(x) + x * phi(x)
            ),
            "Is that the derivative of Phi? It has no x in front: phi is Phi's derivative, and the "
            "product rule gives one x.": lambda dout, x: dout * (Phi(x) + phi(x)),
        },
    ),
    Exercise(
        gelu_dx,
        arrays((3, 5), (2, 7)),
        ["dx"],
        gelu,
        mistakes={
            "The derivative of u is missing: tanh(u) changes by 1 - t^2 times what u changes.": (
                lambda dout, x: dout * ((1 + tanh_u(x)) / 2 + x * (1 - tanh_u(x) ** 2) / 2)
            ),
            "sqrt(2/pi) is missing in the derivative of u: SCALE stands in front of its bracket.": (
                lambda dout, x: (
                    dout
                    * ((1 + tanh_u(x)) / 2 + x * (1 - tanh_u(x) ** 2) / 2 * (1 + 3 * CUBIC * x**2))
                )
            ),
            "The second term has lost its x: t moves, and x / 2 stands in front of it.": (
                lambda dout, x: (
                    dout
                    * (
                        (1 + tanh_u(x)) / 2
                        + (1 - tanh_u(x) ** 2) / 2 * SCALE * (1 + 3 * CUBIC * x**2)
                    )
                )
            ),
            "The 3 of the cubic term is missing: the derivative of x^3 is 3 x^2.": (
                lambda dout, x: (
                    dout
                    * (
                        (1 + tanh_u(x)) / 2
                        + x * (1 - tanh_u(x) ** 2) / 2 * SCALE * (1 + CUBIC * x**2)
                    )
                )
            ),
            "(1 + t) / 2 alone is half of the product rule: t depends on x, too.": (
                lambda dout, x: dout * (1 + tanh_u(x)) / 2
            ),
            "That is the slope. By the chain rule, times dout.": lambda dout, x: slope(x),
            "That is the derivative of the exact GELU. Here u and its tanh take the place of Phi: "
            "near enough for a model, too far for a proof.": gelu_exact_dx,
        },
    ),
    Exercise(
        mlp_backward,
        mlps((5, 3, 7), (4, 2, 6)),
        ["dx", "dfc_weight", "dfc_bias", "dproj_weight", "dproj_bias"],
        mlp,
        mistakes={
            "GELU is missing on the way down: dh is da times the slope of GELU.": (
                mistaken_slopes(lambda h, a: 1.0)
            ),
            "The slope of GELU is taken at a. It belongs to what went into it: h.": (
                mistaken_slopes(lambda h, a: slope(a))
            ),
            "You multiply by GELU itself, where its slope belongs.": (
                mistaken_slopes(lambda h, a: a)
            ),
        },
    ),
    Exercise(
        mlp_counts,
        [{"C": 5}, {"C": 768}],
        ["counts"],
        mistakes={
            "The biases are missing: 4C in the first layer and C in the second.": (
                lambda C: np.array([8 * C * C, 8 * C * C, 16 * C * C])
            ),
            "Backward has twice the multiplications of forward: two products for each one.": (
                lambda C: np.array([8 * C * C + 5 * C, 8 * C * C, 8 * C * C])
            ),
            "You have counted one of the two layers. Both have 4 C^2 weights.": (
                lambda C: np.array([4 * C * C + 4 * C, 4 * C * C, 8 * C * C])
            ),
        },
    ),
)
