"""The exercises of lesson 03, the linear layer."""

import numpy as np

from exercises import Exercise, Grader


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return x @ weight.T + bias


def cases(*sizes: tuple[int, int, int]) -> list[dict[str, np.ndarray]]:
    """Arguments for N rows, I inputs and O outputs."""
    rng = np.random.default_rng(3)
    shapes = {"dout": "NO", "x": "NI", "weight": "OI", "bias": "O"}
    return [
        {
            name: rng.standard_normal([dict(zip("NIO", size, strict=True))[axis] for axis in axes])
            for name, axes in shapes.items()
        }
        for size in sizes
    ]


def linear_dx(dout: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return dout @ weight


def linear_dweight(
    dout: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: np.ndarray
) -> np.ndarray:
    return dout.T @ x


def linear_dbias(
    dout: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: np.ndarray
) -> np.ndarray:
    return dout.sum(axis=0)


CASES = cases((4, 3, 5), (6, 2, 3))

grade = Grader(
    Exercise(linear_dx, CASES, ["dx"], linear),
    Exercise(
        linear_dweight,
        CASES,
        ["dweight"],
        linear,
        mistakes={
            "That is dweight transposed: its rows belong to the outputs, as weight's do.": (
                lambda dout, x, weight, bias: x.T @ dout
            ),
            "You took the mean over the rows. A weight serves every row, so what they ask of it "
            "adds up: sum.": lambda dout, x, weight, bias: dout.T @ x / len(x),
        },
    ),
    Exercise(
        linear_dbias,
        CASES,
        ["dbias"],
        linear,
        mistakes={
            "You took the mean over the rows. The bias is added to every row, so what they ask of "
            "it adds up: sum.": lambda dout, x, weight, bias: dout.mean(axis=0),
            "You summed over the outputs. Each output has a bias of its own; what they share is "
            "the rows.": lambda dout, x, weight, bias: dout.sum(axis=1),
        },
    ),
)
