"""The exercises of lesson 00, the flat buffer and its views."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from exercises import Exercise, Grader


@dataclass(frozen=True)
class WithArguments(Exercise):
    """An exercise judged by what its function leaves in its arguments, as well as by its result.

    Attributes:
        observe: from the result and the arguments, what to compare: one thing for each output.
    """

    observe: Callable[..., list[Any]] = lambda result, **_: [result]

    def call(self, function: Callable, case: Mapping[str, Any]) -> list[Any]:
        arguments = {
            name: np.copy(x) if isinstance(x, np.ndarray) else x for name, x in case.items()
        }
        result = function(**arguments)
        if result is None:
            return None
        return self.observe(result, **arguments)


# --- strides


def element_strides(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def observe_strides(result: Any, shape: tuple[int, ...]) -> list[Any]:
    return [np.asarray(result)]


# --- views


def views(flat: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    result, start = {}, 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape)
        result[name] = flat[start:stop].reshape(shape)
        start = stop
    return result


def views_copied(flat: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return {name: view.copy() for name, view in views(flat, shapes).items()}


def views_from_the_start(
    flat: np.ndarray, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    return {name: flat[: math.prod(shape)].reshape(shape) for name, shape in shapes.items()}


def views_after_the_last_only(
    flat: np.ndarray, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    result, start = {}, 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape)
        result[name] = flat[start:stop].reshape(shape)
        start = math.prod(shape)
    return result


def observe_views(
    result: Mapping[str, np.ndarray], flat: np.ndarray, shapes: Mapping[str, tuple[int, ...]]
) -> list[Any]:
    """The shapes and the numbers of the views, and the flat array after each view was filled."""
    if not isinstance(result, Mapping):
        raise TypeError("views should return a dictionary, {name: array}")
    found = {name: np.shape(result[name]) for name in shapes}
    numbers = np.concatenate([np.ravel(result[name]) for name in shapes])
    for number, name in enumerate(shapes, start=1):
        result[name][...] = -number
    return [found, numbers, flat]


# --- clipping


def clip(flat: np.ndarray, max_norm: float) -> float:
    norm = math.sqrt(flat @ flat)
    if norm > max_norm:
        flat *= max_norm / norm
    return norm


def clip_a_new_array(flat: np.ndarray, max_norm: float) -> float:
    return math.sqrt(flat @ flat)


def clip_always(flat: np.ndarray, max_norm: float) -> float:
    norm = math.sqrt(flat @ flat)
    flat *= max_norm / norm
    return norm


def clip_each(flat: np.ndarray, max_norm: float) -> float:
    norm = math.sqrt(flat @ flat)
    np.clip(flat, -max_norm, max_norm, out=flat)
    return norm


def clip_to_length_one(flat: np.ndarray, max_norm: float) -> float:
    norm = math.sqrt(flat @ flat)
    if norm > max_norm:
        flat /= norm
    return norm


def clip_by_the_square(flat: np.ndarray, max_norm: float) -> float:
    square = float(flat @ flat)
    if square > max_norm:
        flat *= max_norm / square
    return square


def clip_and_measure_again(flat: np.ndarray, max_norm: float) -> float:
    clip(flat, max_norm)
    return math.sqrt(flat @ flat)


def observe_clip(result: Any, flat: np.ndarray, max_norm: float) -> list[Any]:
    return [result, flat]


# --- queries, keys and values


def split_qkv(qkv: np.ndarray, num_heads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    B, T, channels = qkv.shape
    parts = qkv.reshape(B, T, 3, num_heads, channels // (3 * num_heads))
    return parts[:, :, 0], parts[:, :, 1], parts[:, :, 2]


def split_qkv_heads_first(
    qkv: np.ndarray, num_heads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    B, T, channels = qkv.shape
    parts = qkv.reshape(B, T, num_heads, 3, channels // (3 * num_heads))
    return parts[:, :, :, 0], parts[:, :, :, 1], parts[:, :, :, 2]


def split_qkv_head_size_first(
    qkv: np.ndarray, num_heads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    B, T, channels = qkv.shape
    parts = qkv.reshape(B, T, 3, channels // (3 * num_heads), num_heads).swapaxes(-1, -2)
    return parts[:, :, 0], parts[:, :, 1], parts[:, :, 2]


def split_qkv_copied(qkv: np.ndarray, num_heads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    q, k, v = split_qkv(qkv, num_heads)
    return q.copy(), k.copy(), v.copy()


def observe_split(
    result: tuple[np.ndarray, np.ndarray, np.ndarray], qkv: np.ndarray, num_heads: int
) -> list[Any]:
    """q, k and v, and what the projection holds after they were filled."""
    if not isinstance(result, tuple | list) or len(result) != 3:
        raise TypeError("split_qkv should return three arrays: q, k, v")
    numbers = [np.array(part) for part in result]
    for number, part in enumerate(result, start=1):
        part[...] = -number
    return [*numbers, qkv]


TABLES = (
    {"wte": (5, 3), "wpe": (4, 3), "ln1w": (2, 3), "lnfb": (3,)},
    {"fcw": (2, 3, 4), "scale": (), "fcb": (7,)},
)
COPIES = (
    "The numbers are right, but they are copies: what is written to them does not arrive in the "
    "flat array. Slices and reshape of a slice are views; copy, concatenate, np.array and "
    "indexing with a list are not."
)
RNG = np.random.default_rng(0)

grade = Grader(
    WithArguments(
        element_strides,
        [{"shape": (3, 5, 2)}, {"shape": (7,)}, {"shape": (2, 3, 4, 5)}],
        ["strides"],
        observe=observe_strides,
        mistakes={
            "Those are the strides if the *first* index moved fastest, as in Fortran. Here the "
            "last one does: its stride is 1.": (
                lambda shape: [math.prod(shape[:axis]) for axis in range(len(shape))]
            ),
            "You included the axis' own size. A step along an axis passes over everything *behind* "
            "it, so its stride is the product of the later sizes only.": (
                lambda shape: [math.prod(shape[axis:]) for axis in range(len(shape))]
            ),
            "That is the size of the next axis. A step passes over the product of all later "
            "sizes.": lambda shape: [*shape[1:], 1],
        },
    ),
    WithArguments(
        views,
        [
            {"flat": np.arange(100.0, 100 + sum(map(math.prod, table.values()))), "shapes": table}
            for table in TABLES
        ],
        ["the shapes", "what is in the views", "the flat array, after the views were filled,"],
        observe=observe_views,
        mistakes={
            COPIES: views_copied,
            "Every tensor begins at the start of the flat array. Each has to begin where the one "
            "before it stops.": views_from_the_start,
            "The third tensor begins too early: add up the sizes of *all* tensors before it, not "
            "only of the last one.": views_after_the_last_only,
        },
    ),
    WithArguments(
        clip,
        [
            {"flat": 5 * RNG.standard_normal(6), "max_norm": 1.5},
            {"flat": 0.1 * RNG.standard_normal(9), "max_norm": 2.0},
        ],
        ["the norm", "the flat array afterwards"],
        observe=observe_clip,
        mistakes={
            "The norm is right, but the array is as long as before. `flat = flat * scale` gives "
            "the name to a new array, and nobody else sees it; `flat *= scale` writes into the "
            "array that was given.": clip_a_new_array,
            "An array that is shorter than max_norm was made longer. Leave it as it is: the scale "
            "is at most 1.": clip_always,
            "You cut each element by itself, which turns the arrow. One scale for all elements "
            "makes it shorter and keeps its direction.": clip_each,
            "You divided by the norm, which makes the array 1 long. Make it max_norm long.": (
                clip_to_length_one
            ),
            "You took the sum of the squares for the norm: its square root is missing.": (
                clip_by_the_square
            ),
            "The array is right. Return the norm from before clipping: a training run prints it to "
            "show how large the gradients were.": clip_and_measure_again,
        },
    ),
    WithArguments(
        split_qkv,
        [
            {"qkv": RNG.standard_normal((2, 5, 3 * 4 * 7)), "num_heads": 4},
            {"qkv": RNG.standard_normal((1, 3, 3 * 2 * 5)), "num_heads": 2},
        ],
        ["q", "k", "v", "the projection, after q, k and v were filled,"],
        observe=observe_split,
        mistakes={
            COPIES: split_qkv_copied,
            "You cut a row into heads first, and each head into q, k and v. A row holds all "
            "queries, then all keys, then all values: the axis of 3 comes before the heads.": (
                split_qkv_heads_first
            ),
            "The last two axes are mixed up. Channels of one head lie beside each other, so the "
            "head size is the last axis, the one with stride 1.": split_qkv_head_size_first,
        },
    ),
)
