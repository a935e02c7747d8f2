"""The exercises of lesson 01, derivatives and how to prove one."""

from collections.abc import Callable

import numpy as np

from exercises import Exercise, Grader

# --- one number in, one out


def central_difference(f: Callable[[float], float], x: float, h: float) -> float:
    return (f(x + h) - f(x - h)) / (2 * h)


# --- the best step


def best_step(eps: float, f: float, f3: float) -> float:
    return (3 * eps * abs(f) / (2 * abs(f3))) ** (1 / 3)


# --- many numbers in, many out


def numerical_gradient(
    f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, dout: np.ndarray, h: float
) -> np.ndarray:
    dx = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        middle = x[index]
        x[index] = middle + h
        above = f(x)
        x[index] = middle - h
        below = f(x)
        x[index] = middle
        dx[index] = (dout * (above - below)).sum() / (2 * h)
    return dx


def numerical_gradient_without_dout(
    f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, dout: np.ndarray, h: float
) -> np.ndarray:
    return numerical_gradient(f, x, np.ones_like(dout), h)


def numerical_gradient_forward(
    f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, dout: np.ndarray, h: float
) -> np.ndarray:
    dx, here = np.zeros_like(x), f(x)
    for index in np.ndindex(x.shape):
        moved = x.copy()
        moved[index] += h
        dx[index] = (dout * (f(moved) - here)).sum() / h
    return dx


def numerical_gradient_left_below(
    f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, dout: np.ndarray, h: float
) -> np.ndarray:
    dx = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        x[index] += h
        above = f(x)
        x[index] -= 2 * h
        dx[index] = (dout * (above - f(x))).sum() / (2 * h)
    return dx


def numerical_gradient_from_above(
    f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, dout: np.ndarray, h: float
) -> np.ndarray:
    """The second step is taken from where the first one ended: the difference is over h alone."""
    dx = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        middle = x[index]
        x[index] += h
        above = f(x)
        x[index] -= h
        dx[index] = (dout * (above - f(x))).sum() / (2 * h)
        x[index] = middle
    return dx


def numerical_gradient_by_rows(
    f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, dout: np.ndarray, h: float
) -> np.ndarray:
    dx = np.zeros_like(x)
    for i in range(len(x)):
        step = np.zeros_like(x)
        step[i] = h
        dx[i] = (dout * (f(x + step) - f(x - step))).sum() / (2 * h)
    return dx


def squashed(x: np.ndarray) -> np.ndarray:
    """A function in which every element of x reaches several outputs, and not in proportion."""
    return np.tanh(x @ x.T + x.sum())


# --- how far two gradients are apart


def relative_error(gradient: np.ndarray, expected: np.ndarray, floor: float = 1e-2) -> float:
    scale = max(np.abs(gradient).max(), np.abs(expected).max(), floor)
    return float(np.abs(gradient - expected).max() / scale)


# --- a small graph


def graph(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x * np.tanh(x * y)


def graph_backward(dout: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    t = np.tanh(x * y)
    du = dout * x * (1 - t * t)
    return dout * t + du * y, du * x


def graph_backward_one_path(
    dout: np.ndarray, x: np.ndarray, y: np.ndarray, direct: bool
) -> tuple[np.ndarray, np.ndarray]:
    t = np.tanh(x * y)
    du = dout * x * (1 - t * t)
    return dout * t if direct else du * y, du * x


def graph_backward_no_squash(
    dout: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return dout * np.tanh(x * y) + dout * x * y, dout * x * x


def graph_backward_factors_swapped(
    dout: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    t = np.tanh(x * y)
    du = dout * x * (1 - t * t)
    return dout * t + du * x, du * y


def graph_backward_without_dout(
    dout: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return graph_backward(np.ones_like(dout), x, y)


def cubic(x: float) -> float:
    return x**3 - 2 * x


def wave(x: float) -> float:
    return float(np.sin(2 * x))


RNG = np.random.default_rng(1)
X = [RNG.standard_normal(shape) for shape in ((2, 3), (3, 4))]
GRADIENTS = [
    (RNG.standard_normal((3, 5)), RNG.standard_normal((3, 5))),
    (RNG.standard_normal(7), 3 * RNG.standard_normal(7)),
    (1e-8 * RNG.standard_normal(4), np.zeros(4)),
]

grade = Grader(
    Exercise(
        central_difference,
        [{"f": cubic, "x": 1.5, "h": 0.25}, {"f": wave, "x": -0.4, "h": 0.125}],
        ["the slope"],
        mistakes={
            "That is the forward difference: it looks to one side only. Take a step to both.": (
                lambda f, x, h: (f(x + h) - f(x)) / h
            ),
            "That is the backward difference: it looks to one side only. Take a step to both.": (
                lambda f, x, h: (f(x) - f(x - h)) / h
            ),
            "The two points are 2h apart, and you divided by h.": (
                lambda f, x, h: (f(x + h) - f(x - h)) / h
            ),
            "Your points are h/2 to the left and to the right. Go h to each side.": (
                lambda f, x, h: (f(x + h / 2) - f(x - h / 2)) / h
            ),
            "You wrote `/ 2 * h`, which divides by 2 and multiplies by h. Brackets: `/ (2 * h)`.": (
                lambda f, x, h: (f(x + h) - f(x - h)) / 2 * h
            ),
        },
    ),
    Exercise(
        best_step,
        [
            {"eps": 2.0**-52, "f": 0.8, "f3": -0.5},
            {"eps": 2.0**-23, "f": -30.0, "f3": 7.0},
        ],
        ["the step"],
        mistakes={
            "There the two parts of the error are equal. Their sum is smallest where their "
            "*slopes* cancel, and those differ by a factor of 2.": (
                lambda eps, f, f3: (3 * eps * abs(f) / abs(f3)) ** (1 / 3)
            ),
            "A square root belongs to the forward difference. Here one part falls as 1/h and the "
            "other grows as h^2: h^3 is what you find.": (
                lambda eps, f, f3: (3 * eps * abs(f) / (2 * abs(f3))) ** (1 / 2)
            ),
            "You stopped at h^3: take the third root.": (
                lambda eps, f, f3: 3 * eps * abs(f) / (2 * abs(f3))
            ),
        },
    ),
    Exercise(
        numerical_gradient,
        [
            {"f": squashed, "x": x, "dout": RNG.standard_normal((len(x), len(x))), "h": h}
            for x, h in zip(X, (0.05, 0.1), strict=True)
        ],
        ["dx"],
        mistakes={
            "You summed the outputs as they are. Each belongs to the loss with its own weight: "
            "multiply by dout before the sum.": numerical_gradient_without_dout,
            "That is the forward difference. It is right only to the first order in h; take a "
            "step to both sides.": numerical_gradient_forward,
            "Each element is left where its second step took it, and spoils the elements that "
            "follow. Keep its number, and put it back.": numerical_gradient_left_below,
            "You stepped up by h and back down by h: the second point is the middle. From above, "
            "the lower point is 2h away.": numerical_gradient_from_above,
            "You moved whole rows at once: `range(len(x))` counts rows. Each element needs its own "
            "step.": numerical_gradient_by_rows,
        },
        factors=lambda f, x, dout, h: {"1/2": 0.5, "1/h": 1 / h},
    ),
    Exercise(
        relative_error,
        [
            {"gradient": gradient, "expected": expected, "floor": 1e-2}
            for gradient, expected in GRADIENTS
        ],
        ["the error"],
        mistakes={
            "You divided element by element. Where the true derivative happens to be near 0, "
            "round-off alone makes that huge. Divide the largest difference by the largest "
            "element.": (
                lambda gradient, expected, floor: (
                    np.abs(gradient - expected)
                    / np.maximum(np.maximum(np.abs(gradient), np.abs(expected)), floor)
                ).max()
            ),
            "`floor` is missing: where both gradients are nothing but round-off, there is nothing "
            "to be relative to.": (
                lambda gradient, expected, floor: (
                    np.abs(gradient - expected).max()
                    / max(np.abs(gradient).max(), np.abs(expected).max())
                )
            ),
            "That is the difference itself. It means something only beside the size of what is "
            "compared: divide by the largest element.": (
                lambda gradient, expected, floor: np.abs(gradient - expected).max()
            ),
            "You looked for the largest element in `expected` only. Take that of both arrays.": (
                lambda gradient, expected, floor: (
                    np.abs(gradient - expected).max() / max(np.abs(expected).max(), floor)
                )
            ),
            "You took the mean of the differences. One wrong element among a million would hide in "
            "it; take the largest.": (
                lambda gradient, expected, floor: (
                    np.abs(gradient - expected).mean()
                    / max(np.abs(gradient).max(), np.abs(expected).max(), floor)
                )
            ),
            "A difference of -5 is as bad as one of +5: take absolute values first, then the "
            "largest.": (
                lambda gradient, expected, floor: (
                    (gradient - expected).max()
                    / max(np.abs(gradient).max(), np.abs(expected).max(), floor)
                )
            ),
        },
    ),
    Exercise(
        graph_backward,
        [
            {
                "dout": RNG.standard_normal(n),
                "x": RNG.standard_normal(n),
                "y": RNG.standard_normal(n),
            }
            for n in (5, 8)
        ],
        ["dx", "dy"],
        graph,
        mistakes={
            "dx has only its direct path. x reaches the output a second time, by u: add what comes "
            "back from there.": lambda dout, x, y: graph_backward_one_path(dout, x, y, True),
            "dx has only the path by u. x is also the left factor of the output itself: add what "
            "comes back from there.": lambda dout, x, y: graph_backward_one_path(dout, x, y, False),
            "The slope of tanh is missing: on the way from t back to u, multiply by 1 - t^2.": (
                graph_backward_no_squash
            ),
            "The slope of x y by x is y, and by y it is x: you have them the other way round.": (
                graph_backward_factors_swapped
            ),
            "dout is missing: both derivatives begin with it.": graph_backward_without_dout,
        },
    ),
)
