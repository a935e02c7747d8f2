"""What a run says while it goes."""

import sys

import pytest

from training import progress
from training.progress import Progress, is_round


def test_lines_become_ever_fewer():
    said = [step for step in range(1, 1301) if is_round(step)]
    assert said == [*range(1, 11), *range(20, 101, 10), *range(200, 1301, 100)]


def test_the_last_step_is_always_said_and_others_as_often_as_asked():
    steps = Progress(steps=11, done=2, log_every=4, visible=False)
    said = []
    for step in range(3, 12):
        steps.at(step)
        said += [step] * steps.is_due()
    assert said == [4, 8, 11]


def test_the_time_that_is_left(monkeypatch):
    """Of a resumed run, it follows from the steps since."""
    clock = iter([0.0, 2.0, 90.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    steps = Progress(steps=1000, done=100, log_every=None, visible=False)
    steps.at(101)
    assert steps.left() == "29:58"
    steps.at(160)
    assert steps.left() == "21:00"


@pytest.mark.parametrize("visible", [True, False])
def test_a_bar_is_on_a_terminal_only(monkeypatch, capsys, visible):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    steps = Progress(steps=10, done=0, log_every=None, visible=visible)
    steps.at(7)
    steps.at(3)  # after a rollback
    steps.tell("a line", "another")
    steps.close()
    out, err = capsys.readouterr()
    assert out == "a line\nanother\n"
    assert ("0/10" in err) == visible
