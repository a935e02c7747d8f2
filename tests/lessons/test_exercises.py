"""Exercises accept what is right and explain what is wrong."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

LESSONS = Path(__file__).parents[2] / "lessons"
sys.path.insert(0, str(LESSONS))  # as in a notebook

from exercises import Exercise, Grader, judge  # noqa: E402

NUMBERS = sorted(path.stem[-2:] for path in LESSONS.glob("exercises/lesson_*.py"))
SOLUTIONS = {number: importlib.import_module(f"solutions_{number}") for number in NUMBERS}
GRADERS = {
    number: importlib.import_module(f"exercises.lesson_{number}").grade for number in NUMBERS
}
EXERCISES = [(number, name) for number in NUMBERS for name in GRADERS[number].exercises]


def test_every_lesson_has_three_exercises():
    assert all(len(grader.exercises) >= 3 for grader in GRADERS.values())


@pytest.mark.parametrize(("number", "name"), EXERCISES)
def test_a_solution_is_right(capsys, number, name):
    solution = getattr(SOLUTIONS[number], name)
    assert GRADERS[number](solution) is solution
    assert "right!" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "name"), EXERCISES)
def test_the_reference_is_right(number, name):
    """Else it would spoil the rest of the lesson for whoever skips an exercise."""
    exercise = GRADERS[number].exercises[name]
    assert judge(exercise, exercise.reference)[1]


@pytest.mark.parametrize(("number", "name"), EXERCISES)
def test_the_reference_is_no_answer(capsys, number, name):
    """A grading cell that is run again alone is given what it has put in the answer's place."""
    reference = GRADERS[number].exercises[name].reference
    assert GRADERS[number](reference) is reference
    out = capsys.readouterr().out
    assert "nothing new to grade" in out
    assert "right!" not in out


@pytest.mark.parametrize(
    ("number", "mistaken", "words"),
    [(number, *mistake) for number in NUMBERS for mistake in SOLUTIONS[number].MISTAKES],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_mistake_is_explained(capsys, number, mistaken, words):
    names = [n for n in GRADERS[number].exercises if mistaken.__name__.startswith(f"{n}_")]
    name = max(names, key=len)
    mistaken.__name__ = name
    assert GRADERS[number](mistaken) is GRADERS[number].exercises[name].reference
    out = capsys.readouterr().out
    assert words in out
    assert "right!" not in out


@pytest.mark.parametrize(("number", "name"), EXERCISES)
def test_what_is_not_done_is_replaced(capsys, number, name):
    def undone(**_):
        raise NotImplementedError

    undone.__name__ = name
    assert GRADERS[number](undone) is GRADERS[number].exercises[name].reference
    assert "not done yet" in capsys.readouterr().out


# --- what is said of any function


def double(x, n):
    return 2 * x


RNG = np.random.default_rng(0)
CASES = [{"x": RNG.standard_normal(shape), "n": n} for shape, n in (((3, 3), 5), ((4, 4), 7))]
GRADE = Grader(Exercise(double, CASES, ["y"], factors=lambda x, n: {"1/sqrt(n)": n**-0.5}))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda x, n: None, "is None: is a `return` missing?"),
        (lambda x, n: -2 * x, "right up to a factor of -1: look at the signs"),
        (lambda x, n: 6 * x, "right up to a factor of 3."),
        (lambda x, n: 2 * x / np.sqrt(n), "a factor 1/sqrt(n): did you apply it twice?"),
        (lambda x, n: 2 * x * np.sqrt(n), "right up to a factor: 1/sqrt(n) is missing."),
        (lambda x, n: 2 * x / n, "a factor, which differs from case to case: 0.2, 0.1429"),
        (lambda x, n: 2 * x.T, "is transposed"),
        (lambda x, n: 2 * x[:2], "has shape (2, 3), and should have (3, 3)"),
        (lambda x, n: x / 0 if x.any() else x, "is not finite"),
        (lambda x, n: 0 * x, "is zero everywhere"),
        (lambda x, n: np.where(np.eye(len(x)), 0, 2 * x), "wrong first at (0, 0)"),
        (lambda x, n: x**2, "is off by"),
        (lambda x, n: x**2 if n == 5 else x[:1], "is off by"),
        (lambda x, n: x[99], "it stopped with IndexError"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_is_wrong_is_described(capsys, wrong, words):
    wrong.__name__ = "double"
    assert GRADE(wrong) is double
    out = capsys.readouterr().out
    assert words in out
    assert "inf%" not in out


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda n: 2 * n, "right up to a factor of 2"),
        (lambda n: n + 1, "should be 4, and is 5"),
    ],
)
def test_a_single_number_is_a_multiple_only_if_it_always_is(capsys, wrong, words):
    def number(n):
        return n

    grade = Grader(Exercise(number, [{"n": 4}, {"n": 10}], ["the number"]))
    wrong.__name__ = "number"
    grade(wrong)
    out = capsys.readouterr().out
    assert words in out
    assert "differs from case" not in out


def test_results_and_known_mistakes_may_be_infinite(capsys):
    def logarithm(x):
        return np.log(x)

    cases = [{"x": np.array([0.0, 1.0, 2.0])}]
    grade = Grader(
        Exercise(logarithm, cases, ["y"], mistakes={"A root.": lambda x: np.sqrt(x - 1)})
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        assert grade(logarithm) is logarithm
        grade(named(lambda x: np.log(x + 1e-12), "logarithm"))
        grade(named(lambda x: (x - 1) ** 0.5, "logarithm"))
    out = capsys.readouterr().out
    assert "is right in 66%" in out
    assert "A root." in out


def named(function, name):
    function.__name__ = name
    return function


def test_a_function_that_should_return_two_things_and_returns_none(capsys):
    grade = Grader(
        Exercise(
            named(lambda x, y: (x // y, x % y), "both"), [{"x": 7, "y": 2}], ["quotient", "rest"]
        )
    )
    grade(named(lambda x, y: None, "both"))
    assert "it returned None: is a `return` missing?" in capsys.readouterr().out
    grade(named(lambda x, y: (x % y, x // y), "both"))
    assert "All is right but the order: return quotient, rest." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda x, y: {"quotient": x // y, "rest": x % y}, "it returned a dict."),
        (lambda x, y: (x // y, x % y, x), "it returned 3 things."),
        (lambda x, y: x / y, "it returned a float."),
        (lambda x, y: np.zeros((3, 2)), "it returned one array of shape (3, 2)."),
    ],
)
def test_another_number_of_things_is_named(capsys, wrong, words):
    both = named(lambda x, y: (x // y, x % y), "both")
    Grader(Exercise(both, [{"x": 7, "y": 2}], ["quotient", "rest"]))(named(wrong, "both"))
    assert f"it should return quotient, rest; {words}" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [lambda y, n: 2 * y, lambda x: 2 * x, lambda x, n, more: 2 * x])
def test_other_arguments_are_named(capsys, wrong):
    assert GRADE(named(wrong, "double")) is double
    out = capsys.readouterr().out
    assert "its arguments must be called x, n; yours are " in out
    assert "TypeError" not in out


def test_an_output_alone_may_have_a_known_mistake(capsys):
    def both(x):
        return 2 * x, 3 * x

    cases, mistakes = [{"x": np.array([1.0, 2, 5])}], {"A square.": lambda x: (x**2, x**2)}
    for apart in (True, False):
        exercise = Exercise(both, cases, ["a", "b"], mistakes=mistakes, apart=apart)
        Grader(exercise)(named(lambda x: (x**2, 3 * x), "both"))
        out = capsys.readouterr().out
        assert ("  a: A square.\n" in out) == apart
        assert "  b is right." in out


def test_more_arguments_may_have_defaults(capsys):
    def double(x, n, factor=2):
        return factor * x

    assert GRADE(double) is double


def test_the_case_that_is_wrong_is_shown(capsys):
    def digits(n):
        return str(n)

    grade = Grader(Exercise(lambda n: f"{n:x}", [{"n": 4}, {"n": 10}], ["digits"]))
    digits.__name__ = "<lambda>"
    assert grade(digits) is not digits
    assert "digits should be 'a', and is '10'" in capsys.readouterr().out


def test_a_function_may_not_change_the_next_ones_arguments(capsys):
    def double(x, n):
        x *= 2
        return x

    assert GRADE(double) is double
    assert "right!" in capsys.readouterr().out
