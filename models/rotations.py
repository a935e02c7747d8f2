"""Rotations for texts longer than those a model was trained on, as its `rope_scaling` has them.

From each position to the next, a pair of numbers of a head turns by its frequency theta^(-2i/D)
(layers/rope.py). Behind the last position of the training the slow pairs come to angles that the
model has never met. So it is trained a little more, with frequencies that are divided by factors:

    linear    all by `factor`: as if positions lay closer. Chen et al. 2023, arXiv 2306.15595,
              equation 4.
    llama3    those that made fewer turns in the training's positions than `low_freq_factor`, by
              `factor`; those that made more than `high_freq_factor`, by 1; a frequency in between
              becomes a mean of both, weighted by where its turns lie. Llama 3.1's; Meta's
              llama-models, models/llama3/model.py, `apply_scaling`.
    longrope  each by a number of its own that a search has found, in one of two lists; and queries
              and keys are multiplied by `attention_factor`: if not given, sqrt(1 + ln s / ln n),
              where n positions have become s times as many. Ding et al. 2024, arXiv 2402.13753,
              and transformers, modeling_rope_utils.py.

Which of its lists longrope takes is decided once, by how many positions the model is made for: the
long one for more than `original_max_position_embeddings`. transformers decides in each pass, by its
last position: there a token beyond that border changes the logits of all before it, and what has
been cached is of no more use. Here neither happens.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from errors import UserError
from layers.rope import rope_rotations

ORIGINAL = "original_max_position_embeddings"  # of the training before the scaling
NUMBERS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
    "longrope": (ORIGINAL, "attention_factor"),
}
LISTS = {"longrope": ("short_factor", "long_factor")}


def make_rotations(
    num_positions: int,
    head_size: int,
    theta: float,
    dtype: np.typing.DTypeLike,
    scaling: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """(T, D/2) complex, for a model that is made for T positions: `rope_rotations`, scaled.

    Args:
        num_positions: T.
        head_size: D.
        theta: the base of the frequencies.
        dtype: of the numbers that will be rotated.
        scaling: as `check_scaling` returns it.
    """
    factors, amplitude = np.ones(head_size // 2), 1.0
    rope_type = scaling["rope_type"] if scaling else None
    if rope_type == "linear":
        factors *= scaling["factor"]
    elif rope_type == "llama3":
        factors = llama3_factors(scaling, head_size, theta)
    elif rope_type == "longrope":
        is_long = num_positions > scaling[ORIGINAL]
        factors = np.array(scaling["long_factor" if is_long else "short_factor"])
        amplitude = scaling["attention_factor"]
    return rope_rotations(num_positions, head_size, theta, dtype, factors, amplitude)


def llama3_factors(scaling: Mapping[str, Any], head_size: int, theta: float) -> np.ndarray:
    """(D/2,), what each frequency is divided by in a scaling of the type llama3."""
    frequencies = theta ** (-np.arange(0, head_size, 2) / head_size)
    turns = scaling[ORIGINAL] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / (kept + (1 - kept) / scaling["factor"])


def usual_amplitude(growth: float, original: int) -> float | None:
    """Longrope's `attention_factor`, if it is not given: n positions became `growth` times as many.

    None where n is 1, as in no model.
    """
    if original <= 1:
        return None
    return math.sqrt(1 + math.log(max(growth, 1)) / math.log(original))


def check_scaling(
    scaling: Mapping[str, Any] | None, head_size: int, seq_len: int
) -> dict[str, Any] | None:
    """A config's `rope_scaling`, a copy with all its numbers.

    Args:
        scaling: in Hugging Face's terms; of longrope's, `attention_factor` may be missing.
        head_size: D; longrope's lists have a number for each of D/2 pairs.
        seq_len: the positions of the model that is scaled.

    Raises:
        UserError: it is of an unknown type, or a number is missing, unknown, or cannot be.
    """
    if scaling is None:
        return None
    if not isinstance(scaling, Mapping) or scaling.get("rope_type") not in list(NUMBERS):
        raise UserError(
            f"rope_scaling must have a rope_type of {', '.join(NUMBERS)}, and is {scaling!r:.60}"
        )
    scaling, rope_type = dict(scaling), scaling["rope_type"]
    lists = LISTS.get(rope_type, ())
    for name in scaling.keys() - {"rope_type", *NUMBERS[rope_type], *lists}:
        raise UserError(f"rope_scaling of the type {rope_type} knows no {name!r:.60}")
    for name in lists:
        scaling[name] = _checked_list(name, scaling.get(name), head_size)
    if rope_type == "longrope" and scaling.get("attention_factor") is None:
        original = _checked(ORIGINAL, scaling.get(ORIGINAL), above=1)
        scaling["attention_factor"] = usual_amplitude(seq_len / original, original)
    for name in NUMBERS[rope_type]:
        _checked(name, scaling.get(name))
    if rope_type == "llama3":
        _checked("high_freq_factor", scaling["high_freq_factor"], scaling["low_freq_factor"])
    return scaling


def _checked(name: str, value: Any, above: float = 0) -> float:
    # An int may be too large for a float.
    if type(value) not in (int, float) or not above < value <= sys.float_info.max:
        raise UserError(f"rope_scaling's {name} must be a number above {above}, not {value!r:.60}")
    return value


def _checked_list(name: str, values: Any, head_size: int) -> list[float]:
    if not isinstance(values, Sequence) or len(values) != head_size // 2:
        found = f"{len(values)}" if isinstance(values, Sequence) else f"{values!r:.60}"
        raise UserError(
            f"rope_scaling's {name} must be {head_size // 2} numbers, one for each pair of a head "
            f"of {head_size}, not {found}"
        )
    return [float(_checked(name, value)) for value in values]
