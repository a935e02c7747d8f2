"""The exercises of lesson 19: what has changed from GPT-2 to Gemma 3."""

import numpy as np

from exercises import Exercise, Grader
from exercises.geglu import (
    geglu,
    geglu_backward,
    geglu_cases,
    geglu_steps,
    geglu_with,
    roles_exchanged,
    slope_of_up,
)
from exercises.head_norm import (
    dweight_of_x,
    dweight_unturned,
    norm_cases,
    norm_inputs_kept,
    norm_rotate,
    norm_rotate_backward,
    norm_rotate_with,
    norm_steps,
    of_rotated,
    only_first_scaled,
    other_order,
    weighed_before,
    x_turned,
)
from exercises.lesson_08 import attention_dscores
from exercises.steps import alone_and_in_pairs
from exercises.window import (
    NOT_ADDED_UP,
    VISIBLE,
    causal,
    dscores_of_infinite,
    everything,
    sees,
    window_attention,
    window_backward,
    window_backward_with,
    window_cases,
    window_steps,
)


def window_count(T: int, window: int) -> int:
    """How many scores one head makes of a text of T tokens."""
    window = min(T, window)
    return T * window - window * (window - 1) // 2


grade = Grader(
    Exercise(
        sees,
        [{"T": 6, "window": 3}, {"T": 5, "window": 1}, {"T": 4, "window": 9}],
        ["what is seen"],
        mistakes={
            **VISIBLE,
            "That is what is hidden. True is for what is seen.": lambda T, window: ~sees(T, window),
            "Rows are queries and columns are keys; in yours they have changed places.": (
                lambda T, window: sees(T, window).T
            ),
            "Those are numbers to add to scores, 0 and -inf. Here True and False are asked.": (
                lambda T, window: np.where(sees(T, window), 0, -np.inf)
            ),
        },
    ),
    Exercise(
        window_backward,
        window_cases((6, 3, 2), (8, 5, 3), (5, 2, 9)),
        ["dq", "dk", "dv"],
        window_attention,
        apart=True,
        mistakes={
            **alone_and_in_pairs(window_backward_with, window_steps),
            NOT_ADDED_UP: window_backward_with(visible=causal, cut="probs"),
            f"{NOT_ADDED_UP} And so with the keys after the query.": (
                window_backward_with(visible=everything, cut="probs")
            ),
            "You cut off dscores. The probabilities were wrong before that: hide the scores, with "
            "-inf.": window_backward_with(visible=causal, cut="dscores"),
            "You cut off dscores. The probabilities were wrong before that: hide the scores, with "
            "-inf, those of the keys after the query, too.": (
                window_backward_with(visible=everything, cut="dscores")
            ),
            "probs and dprobs have changed places in your dscores.": window_backward_with(
                dscores=lambda dprobs, probs: attention_dscores(probs, dprobs)
            ),
            "You masked dprobs with -inf. Only scores are hidden that way; a probability of 0 does "
            "the rest.": window_backward_with(dscores=dscores_of_infinite),
        },
    ),
    Exercise(
        window_count,
        [
            {"T": 10, "window": 3},
            {"T": 1024, "window": 256},
            {"T": 7, "window": 7},
            {"T": 5, "window": 8},
        ],
        ["the count"],
        mistakes={
            "That counts window keys for each query. The first window - 1 queries have fewer.": (
                lambda T, window: T * window
            ),
            "Right for a window that fits. One that is wider than the text has only T keys to "
            "offer: min(T, window).": (lambda T, window: T * window - window * (window - 1) // 2),
            "That is the whole triangle: the window is not in it.": (
                lambda T, window: T * (T + 1) // 2
            ),
            "That is the whole square.": lambda T, window: T * T,
            "Close: query 0 misses window - 1 keys, query 1 misses window - 2, ... so the missing "
            "ones add up to window (window - 1) / 2.": (
                lambda T, window: T * min(T, window) - min(T, window) * (min(T, window) + 1) // 2
            ),
            "Each query sees its own position, too: a query late in the text has window keys, not "
            "window - 1.": lambda T, window: window_count(T, window) - T,
            "A query late in the text has window keys, its own among them; yours has one more.": (
                lambda T, window: window_count(T, window + 1)
            ),
        },
    ),
    Exercise(
        norm_rotate_backward,
        norm_cases((2, 5, 3, 4), (1, 4, 2, 6)),
        ["dx", "dweight"],
        norm_rotate,
        apart=True,
        mistakes={
            **alone_and_in_pairs(norm_rotate_with, norm_steps),
            "The order: you went back through the norm first, and then through the rotation. The "
            "rotation came last, so the way back begins with it.": other_order,
            "That is the way back of the other order, rotation first and then norm. Here the norm "
            "comes first, and its weights do not turn.": of_rotated,
            "x is what the norm was given, before anything was turned: leave it as it is.": (
                x_turned
            ),
            "rstd multiplies the whole bracket of dx, the second term, too.": only_first_scaled,
            "`weight` multiplies before the rotation in the forward pass, so on the way back it "
            "comes after: turn first.": weighed_before,
            "dweight is made of x in yours. What multiplies the weight is the normalised row, x "
            "rstd.": dweight_of_x,
            "dweight, too, is made of the gradient that was turned back.": (dweight_unturned),
            "In dx you took x where the normalised row belongs: norm = x rstd.": norm_inputs_kept,
        },
    ),
    Exercise(
        geglu_backward,
        geglu_cases((4, 5), (3, 7)),
        ["dgate", "dup"],
        geglu,
        mistakes={
            **alone_and_in_pairs(geglu_with, geglu_steps),
            "Gate and up have changed places: it is the gate that GELU bends.": roles_exchanged,
            "In dgate GELU's slope is taken at `up`. Take it at the gate.": slope_of_up,
        },
        apart=True,
    ),
)
