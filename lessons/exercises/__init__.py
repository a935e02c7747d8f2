"""Exercises that grade themselves: a learner's function against the truth, and in words that help.

A lesson's cell has a function whose body says `raise NotImplementedError`, and the next cell

    from exercises.lesson_03 import grade
    linear_backward = grade(linear_backward)

tells what is right and what is not, and returns the function if it is right; else the reference
takes its place, so that the rest of the lesson runs.
"""

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradcheck import differences, reason

TOLERANCE = 1e-6  # of float64 results, relative to the largest element


@dataclass(frozen=True)
class Exercise:
    """What a learner's function has to do.

    Attributes:
        reference: does it; its name is the name of the exercise.
        cases: arguments by name, for each of several calls. Sizes should all differ, so that none
            can stand in for another.
        outputs: what to call the things that it returns: one name, or one for each.
        forward: of a backward pass, the function whose derivative it is: its outputs are called
            d and the name of an argument, and are compared with central differences. `forward`
            takes the arguments that it knows, and `dout` is the derivative by what it returns.
        mistakes: wrong functions by what to tell whoever computes the same.
        apart: whether what is told of a mistake is true of each of its outputs by itself, whatever
            the others are.
        factors: from arguments, factors by what to call them, that are easily forgotten or doubled.
        tolerance: the largest relative error that passes.
    """

    reference: Callable
    cases: Sequence[Mapping[str, Any]]
    outputs: Sequence[str]
    forward: Callable | None = None
    mistakes: Mapping[str, Callable] = field(default_factory=dict)
    apart: bool = False
    factors: Callable[..., Mapping[str, float]] | None = None
    tolerance: float = TOLERANCE

    def expected(self, case: Mapping[str, Any]) -> list[Any]:
        """What it should return: of a backward pass by finite differences."""
        if not self.forward:
            return self.call(self.reference, case)
        names = self.forward.__code__.co_varnames[: self.forward.__code__.co_argcount]
        case = copy.deepcopy(dict(case))
        inputs = {name: case[name] for name in names}
        return [
            differences(lambda: self.forward(**inputs), inputs[name[1:]], case["dout"])
            for name in self.outputs
        ]

    def call(self, function: Callable, case: Mapping[str, Any]) -> Any:
        """What a function returns: if it is right, a sequence with one thing for each output."""
        result = function(**copy.deepcopy(dict(case)))
        return [result] if len(self.outputs) == 1 else result


class Grader:
    """Grades the functions of one lesson: `grade = Grader(Exercise(...), Exercise(...))`."""

    def __init__(self, *exercises: Exercise) -> None:
        self.exercises = {exercise.reference.__name__: exercise for exercise in exercises}

    def __call__(self, function: Callable) -> Callable:
        """Say how right a learner's function is; return it if it is, else the reference."""
        exercise = self.exercises[function.__name__]
        if function is exercise.reference:
            print(
                f"{function.__name__}: nothing new to grade. This is the reference, which has "
                "taken the place of your function: run the cell with yours again first."
            )
            return function
        verdict, right = judge(exercise, function)
        print(f"{function.__name__}: {verdict}")
        if not right:
            print("Until it is right, the reference takes its place below.")
        return function if right else exercise.reference


def judge(exercise: Exercise, function: Callable) -> tuple[str, bool]:
    """What to tell about a function, and whether it is right."""
    if misnamed := _misnamed(exercise, function):
        return misnamed, False
    wanted = [exercise.expected(case) for case in exercise.cases]
    try:
        given = [exercise.call(function, case) for case in exercise.cases]
    except NotImplementedError:
        return "not done yet.", False
    except Exception as error:  # whatever a learner's function can do
        return f"it stopped with {reason(error)}", False
    for results in given:
        if results is None:
            return "it returned None: is a `return` missing?", False
        if not _is_several(results) or len(results) != len(exercise.outputs):
            names = ", ".join(exercise.outputs)
            return f"it should return {names}; it returned {_kind(results)}.", False
    errors = [
        max(_error(got[i], want[i]) for got, want in zip(given, wanted, strict=True))
        for i in range(len(exercise.outputs))
    ]
    if max(errors) < exercise.tolerance:
        if max(errors) == 0:
            return "right!", True
        against = "central differences" if exercise.forward else "the reference"
        return f"right! Largest relative error against {against}: {max(errors):.1e}.", True
    return _explain(exercise, given, wanted, errors), False


def _misnamed(exercise: Exercise, function: Callable) -> str:
    """Words for arguments that are not called as they should be; none if all are."""
    case, signature = exercise.cases[0], inspect.signature(function)
    try:
        signature.bind(**case)
    except TypeError:
        yours = ", ".join(signature.parameters) or "none"
        return f"its arguments must be called {', '.join(case)}; yours are {yours}."
    return ""


def _is_several(result: Any) -> bool:
    """Whether it can be taken apart into several results."""
    return isinstance(result, tuple | list) or (isinstance(result, np.ndarray) and result.ndim > 0)


def _kind(result: Any) -> str:
    """Words for something that was returned in the place of several things."""
    if isinstance(result, tuple | list):
        return f"{len(result)} things"
    if isinstance(result, np.ndarray):
        return f"one array of shape {result.shape}"
    return f"a {type(result).__name__}"


def _explain(exercise: Exercise, given: list, wanted: list, errors: list[float]) -> str:
    """Words for what is wrong: those of a known mistake, else of each output by itself."""
    known = [""] * len(exercise.outputs)  # of each output, the first that makes it, too
    for words, mistaken in exercise.mistakes.items():
        results = [exercise.call(mistaken, case) for case in exercise.cases]
        same = [
            all(
                _error(got[i], result[i]) < exercise.tolerance
                for got, result in zip(given, results, strict=True)
            )
            for i in range(len(exercise.outputs))
        ]
        if all(same):
            return f"not yet. {words}"
        for i in np.flatnonzero(same):
            known[i] = known[i] or words
    if all(
        min(_error(g, w) for g in got) < exercise.tolerance
        for got, want in zip(given, wanted, strict=True)
        for w in want
    ):
        return f"not yet. All is right but the order: return {', '.join(exercise.outputs)}."
    lines = ["not yet."]
    for i, name in enumerate(exercise.outputs):
        if errors[i] < exercise.tolerance:
            lines.append(f"  {name} is right.")
        elif exercise.apart and known[i]:
            lines.append(f"  {name}: {known[i]}")
        else:
            pairs = [(got[i], want[i]) for got, want in zip(given, wanted, strict=True)]
            lines.append(f"  {name} {_describe(exercise, pairs)}")
    return "\n".join(lines)


def _describe(exercise: Exercise, pairs: list[tuple[Any, Any]]) -> str:
    """What is wrong with one output, from pairs of what was given and what was wanted."""
    got, want = next(pair for pair in pairs if not _error(*pair) < exercise.tolerance)
    if got is None:
        return "is None: is a `return` missing?"
    if not isinstance(want, np.ndarray | float | int | np.number):
        return f"should be {want!r}, and is {got!r}."
    if np.shape(got) != np.shape(want):
        if np.shape(got) == np.shape(want)[::-1]:
            return f"has shape {np.shape(got)} for {np.shape(want)}: is it transposed?"
        return f"has shape {np.shape(got)}, and should have {np.shape(want)}."
    if not all(np.isfinite(got).all() for got, _ in pairs):
        return "is not finite: is it divided by 0, the log of 0, or exp of something large?"
    if not any(np.any(got) for got, _ in pairs):
        return "is zero everywhere."
    same_shapes = all(np.shape(got) == np.shape(want) for got, want in pairs)
    comparable = pairs if same_shapes else []
    ratios = [float(np.vdot(got, want) / np.vdot(want, want)) for got, want in comparable]
    if ratios and all(
        _error(got, ratio * want) < exercise.tolerance
        for (got, want), ratio in zip(pairs, ratios, strict=True)
    ):
        factor = _name_factor(exercise, ratios)
        if not factor and np.size(want) > 1:  # any number is a multiple of any other
            factor = (
                ", which differs from case to case: " + ", ".join(f"{r:.4g}" for r in ratios) + "."
            )
        if factor:
            return f"is right up to a factor{factor}"
    if np.ndim(want) == 2 and _error(np.transpose(got), want) < exercise.tolerance:
        return "is transposed."
    right = np.isclose(got, want, rtol=exercise.tolerance, atol=1e-9)
    if right.mean() >= 0.25:
        first = tuple(int(i) for i in np.argwhere(~right)[0])
        share = int(100 * right.mean())
        return f"is right in {share}% of its elements, and wrong first at {first}."
    if np.ndim(want) == 0:
        return f"should be {want:.6g}, and is {got:.6g}."
    error = _error(got, want)
    if error > 10:
        return "is far too large."
    return f"is off by {100 * error:.4g}% of its largest element."


def _name_factor(exercise: Exercise, ratios: list[float]) -> str:
    """Words for the factor between what was given and what was wanted; none if cases differ."""
    factors = [exercise.factors(**case) if exercise.factors else {} for case in exercise.cases]

    def all_close(values: Sequence[float]) -> bool:
        return np.allclose(ratios, values, rtol=1e-5, atol=0)

    for name in factors[0]:
        values = [factor[name] for factor in factors]
        if all_close(values):
            return f" {name}: did you apply it twice?"
        if all_close([1 / value for value in values]):
            return f": {name} is missing."
    if all_close([-1] * len(ratios)):
        return " of -1: look at the signs."
    return f" of {ratios[0]:.4g}." if np.ptp(ratios) < 1e-5 else ""


def _error(got: Any, want: Any) -> float:
    """The largest difference, relative to the largest element; infinite where none can be taken."""
    if not isinstance(want, np.ndarray | float | int | np.number):
        return 0.0 if isinstance(got, type(want)) and got == want else math.inf
    try:
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    except (TypeError, ValueError):
        return math.inf
    if got.shape != want.shape:
        return math.inf
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return math.inf
    got, want = got[finite], want[finite]
    if not np.isfinite(got).all():
        return math.inf
    scale = max(float(np.max(np.abs(want), initial=0)), 1e-2)
    return float(np.max(np.abs(got - want), initial=0)) / scale
