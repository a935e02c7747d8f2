"""The exercises of lesson 17, making it fast."""

import copy
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from exercises import Exercise, Grader


@dataclass(frozen=True)
class Frugal(Exercise):
    """Grades memory, too: the last of `outputs` says what a function took beside its results.

    Attributes:
        whole: from the arguments, the bytes of the array that must never exist.
        named: what to call it.
    """

    whole: Callable[..., int] = lambda **_: 0
    named: str = ""

    def call(self, function: Callable, case: Mapping[str, Any]) -> list[Any]:
        arguments = copy.deepcopy(dict(case))
        tracing = tracemalloc.is_tracing()
        if not tracing:
            tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            result = function(**arguments)
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            if not tracing:
                tracemalloc.stop()
        results = list(result) if isinstance(result, tuple) else [result]
        share = peak - sum(each.nbytes for each in results if isinstance(each, np.ndarray))
        share /= self.whole(**case)
        used = f"a part of {self.named}" if share < 0.5 else f"{share:.1f} times {self.named}"
        for name, value in case.items():
            if isinstance(value, np.ndarray) and not np.array_equal(arguments[name], value):
                used = f"{name} itself, which is overwritten now"
        return [*results, used]


class Cut(Exercise):
    """Grades slices by what they are good for: there are several ways to cut evenly."""

    def call(self, function: Callable, case: Mapping[str, Any]) -> list[Any]:
        parts = function(**case)
        if parts is None:
            return None
        numbers = range(case["length"])
        lengths = [len(numbers[part]) for part in parts]
        covered = [i for part in parts for i in numbers[part]]
        even = "equal, or 1 apart" if max(lengths) - min(lengths) <= 1 else f"{lengths}"
        return [covered, f"{len(parts)}", even]


def matmul_intensity(N: int, I: int, O: int, itemsize: int) -> float:  # noqa: E741
    return 2 * N * I * O / (itemsize * (N * I + I * O + N * O))


def layernorm_counts(N: int, C: int, itemsize: int) -> tuple[int, int, int]:
    return 7 * N * C, 12 * N * C * itemsize, 2 * N * C * itemsize


def roof(intensity: np.ndarray, peak: float, bandwidth: float) -> np.ndarray:
    return np.minimum(peak, bandwidth * intensity)


def in_tiles(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, size: int) -> np.ndarray:
    out = np.empty_like(x)
    for start in range(0, len(x), size):
        out[start : start + size] = function(x[start : start + size])
    return out


def thread_slices(length: int, count: int) -> list[slice]:
    edges = [length * i // count for i in range(count + 1)]
    return [slice(edges[i], edges[i + 1]) for i in range(count)]


def classifier_in_parts(
    x: np.ndarray, weight: np.ndarray, targets: np.ndarray, rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return _classifier(x, weight, targets, rows)


def _classifier(
    x: np.ndarray,
    weight: np.ndarray,
    targets: np.ndarray,
    rows: int,
    of_part: bool = False,
    of_sum: bool = False,
    add: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The classifier, or a mistaken one.

    Args:
        x: (N, C).
        weight: (V, C).
        targets: (N,).
        rows: how many rows of logits to have at once.
        of_part: whether gradients are those of the mean over a part's rows.
        of_sum: whether they are those of the sum over all rows.
        add: whether every part adds to dweight, instead of the last one being all of it.
    """
    losses, dx, dweight = np.empty(len(x)), np.empty_like(x), np.zeros_like(weight)
    for start in range(0, len(x), rows):
        n = slice(start, start + rows)
        logits = x[n] @ weight.T  # (R, C) @ (C, V) -> (R, V)
        logits -= logits.max(axis=1, keepdims=True)
        own = np.arange(len(logits)), targets[n]
        losses[n] = -logits[own]
        np.exp(logits, out=logits)
        total = logits.sum(axis=1, keepdims=True)  # (R, 1)
        losses[n] += np.log(total[:, 0])
        logits /= total
        logits[own] -= 1
        logits /= 1 if of_sum else len(logits) if of_part else len(x)
        dx[n] = logits @ weight  # (R, V) @ (V, C) -> (R, C)
        dweight = add * dweight + logits.T @ x[n]  # (V, R) @ (R, C) -> (V, C)
    return losses, dx, dweight


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3))) / 2


def classifier_cases(*sizes: tuple[int, int, int, int]) -> list[dict[str, Any]]:
    """Arguments for N rows of C channels, V tokens, and so many rows of logits at once."""
    rng = np.random.default_rng(17)
    return [
        {
            "x": rng.standard_normal((N, C)),
            "weight": rng.standard_normal((V, C)),
            "targets": rng.integers(0, V, N),
            "rows": rows,
        }
        for N, C, V, rows in sizes
    ]


PRODUCTS = [
    {"N": 64, "I": 48, "O": 80, "itemsize": 4},
    {"N": 7, "I": 300, "O": 50, "itemsize": 8},
]
VECTORS = [
    {"function": gelu, "x": np.random.default_rng(size).standard_normal(length), "size": size}
    for length, size in ((20_011, 512), (9_973, 100))
]
MEMORY = "the memory that it took beside them"

grade = Grader(
    Frugal(
        in_tiles,
        VECTORS,
        ["the result", MEMORY],
        mistakes={
            "The last tile is missing: where the size does not divide the length, a shorter one "
            "is left over at the end.": lambda function, x, size: _without_rest(function, x, size)
        },
        whole=lambda function, x, size: x.nbytes,
        named="x",
    ),
    Cut(
        thread_slices,
        [{"length": 23, "count": 9}, {"length": 11, "count": 4}, {"length": 12, "count": 3}],
        ["the list of numbers that they cover", "their count", "their lengths"],
        mistakes={
            "The remainder is lost: with length // count elements in every slice, the last "
            "length % count elements are in none.": lambda length, count: [
                slice(i * (length // count), (i + 1) * (length // count)) for i in range(count)
            ],
            "Everything is covered, but the last slice has taken the whole remainder, and all "
            "other threads wait for that one. No two lengths should differ by more than 1.": (
                lambda length, count: [
                    slice(
                        i * (length // count),
                        (i + 1) * (length // count) if i < count - 1 else length,
                    )
                    for i in range(count)
                ]
            ),
        },
    ),
    Exercise(
        matmul_intensity,
        PRODUCTS,
        ["the intensity"],
        mistakes={
            "You counted what is read, but the result has to be written, too.": (
                lambda N, I, O, itemsize: 2 * N * I * O / (itemsize * (N * I + I * O))  # noqa: E741
            ),
            "The bytes are what you divide by, all of them: parentheses are missing.": (
                lambda N, I, O, itemsize: 2 * N * I * O / itemsize * (N * I + I * O + N * O)  # noqa: E741
            ),
            "That is bytes per operation. Intensity is the other way round: operations per byte.": (
                lambda N, I, O, itemsize: 1 / matmul_intensity(N, I, O, itemsize)  # noqa: E741
            ),
        },
        factors=lambda N, I, O, itemsize: {  # noqa: E741
            "2 (for each product, a multiplication and an addition)": 2,
            "1/itemsize (bytes are counted, not numbers)": 1 / itemsize,
        },
    ),
    Exercise(
        layernorm_counts,
        [{"N": 6, "C": 10, "itemsize": 4}, {"N": 5, "C": 14, "itemsize": 8}],
        ["the number of operations", "the bytes that the passes move", "the bytes at best"],
        mistakes={
            "`centred * centred` has one array for both its factors, which is read once.": (
                lambda N, C, itemsize: (7 * N * C, 13 * N * C * itemsize, 2 * N * C * itemsize)
            ),
            "You counted what the passes read. Most of them write an array, too.": (
                lambda N, C, itemsize: (7 * N * C, 7 * N * C * itemsize, 2 * N * C * itemsize)
            ),
            "The two means are passes, too: each reads a whole array, though it writes only one "
            "number for each row.": (
                lambda N, C, itemsize: (7 * N * C, 10 * N * C * itemsize, 2 * N * C * itemsize)
            ),
        },
        factors=lambda N, C, itemsize: {"itemsize": itemsize},
    ),
    Exercise(
        roof,
        [
            {"intensity": np.geomspace(0.1, 90, 7), "peak": 80.0, "bandwidth": 11.0},
            {"intensity": np.geomspace(0.3, 700, 5), "peak": 900.0, "bandwidth": 35.0},
        ],
        ["the speed"],
        mistakes={
            "You took the larger of the two limits. Both hold, so the smaller one decides.": (
                lambda intensity, peak, bandwidth: np.maximum(peak, bandwidth * intensity)
            ),
            "Look at the units: (bytes per second) / (operations per byte) is no speed. What "
            "product of the two is one?": (
                lambda intensity, peak, bandwidth: np.minimum(peak, bandwidth / intensity)
            ),
        },
    ),
    Frugal(
        classifier_in_parts,
        classifier_cases((97, 3, 701, 5), (82, 4, 523, 4)),
        ["losses", "dx", "dweight", MEMORY],
        mistakes={
            "Each part's gradient was divided by that part's rows. The loss is the mean over all "
            "N rows, however they are cut: divide by N.": lambda x, weight, targets, rows: (
                _classifier(x, weight, targets, rows, of_part=True)
            ),
            "dweight is that of the last part only. A weight serves the rows of every part: add "
            "the parts up.": lambda x, weight, targets, rows: _classifier(
                x, weight, targets, rows, add=False
            ),
            "dx and dweight are those of the sum of the losses. Their mean is wanted: divide by "
            "N.": lambda x, weight, targets, rows: _classifier(
                x, weight, targets, rows, of_sum=True
            ),
        },
        whole=lambda x, weight, targets, rows: 8 * len(x) * len(weight),
        named="all logits",
    ),
)


def _without_rest(
    function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, size: int
) -> np.ndarray:
    """In tiles, mistaken: nothing is done for what is left over."""
    out = np.zeros_like(x)
    for start in range(0, len(x) - size + 1, size):
        out[start : start + size] = function(x[start : start + size])
    return out
