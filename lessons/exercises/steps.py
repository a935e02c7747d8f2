"""Wrong functions made of right ones: some of their steps replaced."""

import itertools
from collections.abc import Callable, Mapping

Steps = Mapping[str, Mapping[str, Callable]]


def alone_and_in_pairs(build: Callable[..., Callable], steps: Steps) -> dict[str, Callable]:
    """Wrong functions, by what to say: one step of `build` replaced, then two different steps.

    `steps` has for each step what is easily written instead, by what to say of it.
    """
    single = [(step, *wrong) for step, choices in steps.items() for wrong in choices.items()]
    found = {words: build(**{step: wrong}) for step, words, wrong in single}
    for (step, words, wrong), (other, more, worse) in itertools.combinations(single, 2):
        if step != other:
            both = {step: wrong, other: worse}
            found[f"Two things. First: {words} Second: {more}"] = build(**both)
    return found
