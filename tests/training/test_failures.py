"""What goes wrong beside the training: a file that is held, a failure that ends the run."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

import files
import train
from adam import AdamW
from errors import FormatError
from formats.checkpoint import read_meta
from load import open_model
from models import gpt2
from runs import SMALL, checkpoints, losses, rows, start
from training import timing
from training.report import Log
from training.run import Run

pytestmark = pytest.mark.usefixtures("quick")

DRAW = train.draw
STEPS = ["--steps", 12, "--val-every", 5, "--save-every", 4, "--sample-every", 3]


@pytest.fixture
def whole(program, corpus, tmp_path):
    """The folder of a run that nothing has disturbed."""
    folder = tmp_path / "whole"
    arguments = [*SMALL, "--data", corpus, "--out", folder, *STEPS]
    assert program("gpt2_train", *arguments)[0] == 0
    return folder


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """How long files were waited for, which takes no time here."""
    waited = []
    monkeypatch.setattr(files.time, "sleep", waited.append)
    return waited


def check_same(run, whole):
    assert losses(run) == losses(whole)
    ends = [folder / "checkpoint.npz" for folder in (run, whole)]
    with np.load(ends[0]) as one, np.load(ends[1]) as two:
        assert all(np.array_equal(one[name], two[name]) for name in ("params", "m", "v"))
    for state in ("step", "loader", "losses"):
        assert read_meta(ends[0])[state] == read_meta(ends[1])[state], state
    assert not list(run.glob("*.tmp"))


def between_steps(monkeypatch, **actions):
    """Do something at the end of steps: `step_3=function`."""
    end_step = Run.end_step

    def end(self, *figures):
        row = end_step(self, *figures)
        if action := actions.get(f"step_{self.step}"):
            action()
        return row

    monkeypatch.setattr(Run, "end_step", end)


class Held:
    """Files of this name cannot be opened to write, as where Excel has one open on Windows."""

    def __init__(self, name):
        self.name, self.patch = name, pytest.MonkeyPatch()

    def begin(self):
        opened = Path.open

        def refuse(path, mode="r", *args, **kwargs):
            if path.name == self.name and mode[0] in "aw":
                raise PermissionError(13, "Permission denied", str(path))
            return opened(path, mode, *args, **kwargs)

        self.patch.setattr(Path, "open", refuse)

    def end(self):
        self.patch.undo()


@pytest.fixture
def log_is_held():
    held = Held("log.csv")
    yield held
    held.end()


def test_rows_that_cannot_be_written_are_written_with_the_next(
    program, small, whole, tmp_path, monkeypatch, log_is_held, pauses
):
    between_steps(monkeypatch, step_3=log_is_held.begin, step_9=log_is_held.end)
    status, _, err = program("gpt2_train", *small, *STEPS)
    log = tmp_path / "run" / "log.csv"
    assert status == 0
    assert err == f"cannot write {log}: Permission denied; its rows are kept for later\n"
    assert not pauses
    check_same(tmp_path / "run", whole)


def test_a_checkpoint_takes_the_rows_along_that_the_log_lacks(
    program, small, whole, tmp_path, monkeypatch, log_is_held
):
    """From a run that ends without a word, as at a power cut, to the end."""

    def power_cut():
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        between_steps(patch, step_3=log_is_held.begin, step_10=power_cut)
        assert program("gpt2_train", *small, *STEPS)[0] == 130
    log_is_held.end()
    assert [int(row["step"]) for row in rows(run)] == [1, 2]
    assert [row["step"] for row in read_meta(run / "checkpoint.npz")["unlogged"]] == [
        3,
        4,
        5,
        6,
        7,
        8,
    ]
    assert program("gpt2_train", "--resume", run)[::2] == (0, "")
    check_same(run, whole)


def test_a_log_that_is_held_to_the_end(
    program, small, whole, tmp_path, monkeypatch, log_is_held, pauses
):
    with monkeypatch.context() as patch:
        between_steps(patch, step_9=log_is_held.begin)
        status, _, err = program("gpt2_train", *small, *STEPS)
    log_is_held.end()
    assert status == 1
    assert "log.csv: Permission denied; the checkpoint has the rows that it lacks" in err
    assert 5 < sum(pauses) < 10
    assert len(rows(tmp_path / "run")) == 8
    assert program("gpt2_train", "--resume", tmp_path / "run", "--steps", 13)[::2] == (0, "")
    assert losses(tmp_path / "run")[:12] == losses(whole)


def test_a_disk_that_is_full_for_a_while_leaves_no_part_of_a_row(
    program, small, whole, tmp_path, monkeypatch
):
    write, full = Log._lines, []

    def half(self, new):
        lines = write(self, new)
        if full and len(new) < len(self.rows):
            with self.path.open("ab") as file:
                file.write(lines[: len(lines) // 2])
            raise OSError(28, "No space left on device")
        return lines

    monkeypatch.setattr(Log, "_lines", half)
    between_steps(monkeypatch, step_6=lambda: full.append(1), step_7=full.clear)
    status, _, err = program("gpt2_train", *small, *STEPS)
    assert (status, err.count("No space left")) == (0, 1)
    check_same(tmp_path / "run", whole)


def test_a_log_that_is_taken_away_or_changed_is_written_anew(
    program, small, whole, tmp_path, monkeypatch
):
    log = tmp_path / "run" / "log.csv"
    actions = {
        "step_3": log.unlink,
        "step_5": lambda: log.write_text("step;train_loss\n", encoding="utf-8"),
        "step_7": lambda: (log.unlink(), log.mkdir()),
        "step_11": log.rmdir,
    }
    between_steps(monkeypatch, **actions)
    status, _, err = program("gpt2_train", *small, *STEPS)
    assert status == 0
    assert "Is a directory" in err
    check_same(tmp_path / "run", whole)


def test_a_picture_that_cannot_be_drawn_is_a_line(program, small, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "draw", DRAW)
    picture = tmp_path / "run" / "loss.png"
    picture.mkdir(parents=True)
    status, _, err = program("gpt2_train", *small, *STEPS)
    assert status == 0
    assert err.count(f"without a new picture: cannot write {picture}") == 3
    (tmp_path / "run" / "loss.png.tmp").unlink()
    check_same(tmp_path / "run", whole)


def hold_checkpoint(monkeypatch, times):
    """Refuse to rename the new checkpoint so many times."""
    replace, left = Path.replace, [times]

    def refuse(self, target):
        if self.name == "checkpoint.npz.tmp" and left[0]:
            left[0] -= 1
            raise PermissionError(13, "Permission denied", str(self))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)


@pytest.mark.parametrize("background", [[], ["--checkpoint-async"]], ids=["", "async"])
def test_a_checkpoint_that_is_held_for_a_moment(
    program, small, whole, tmp_path, monkeypatch, background, pauses
):
    hold_checkpoint(monkeypatch, 4)
    assert program("gpt2_train", *small, *STEPS, *background)[::2] == (0, "")
    assert len(pauses) == 4
    check_same(tmp_path / "run", whole)
    assert checkpoints(tmp_path / "run") == checkpoints(whole)


def test_a_checkpoint_that_stays_held_is_whole_under_another_name(
    program, small, whole, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        between_steps(patch, step_8=lambda: hold_checkpoint(patch, 99))
        status, _, err = program("gpt2_train", *small, *STEPS)
    new = run / "checkpoint.npz.tmp"
    assert (status, err.count("\n")) == (1, 1)
    assert err.endswith(f"what was there before is unharmed, and the new one is {new}\n")
    assert checkpoints(run) == {"checkpoint.npz": 4}
    assert read_meta(new)["step"] == 8
    assert program("gpt2_train", "--resume", new)[::2] == (0, "")
    check_same(run, whole)


def fail_in(monkeypatch, place, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(*place, fail)


@pytest.mark.parametrize("background", [[], ["--checkpoint-async"]], ids=["", "async"])
@pytest.mark.parametrize(
    ("begin", "place", "error", "saved", "status"),
    [
        (6, (Run, "speak"), MemoryError("no room to speak"), 6, 1),
        (9, (Run, "validate"), FormatError("the validation split is damaged"), 10, 2),
        (6, (gpt2.GPT2, "backward"), OSError(5, "Input/output error"), 6, 1),
        (9, (AdamW, "grad_norm"), MemoryError("no room for a norm"), 9, 1),
    ],
)
def test_what_is_done_is_saved_before_a_failure_ends_the_run(
    program, small, whole, tmp_path, monkeypatch, begin, place, error, saved, status, background
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        between_steps(patch, **{f"step_{begin}": lambda: fail_in(patch, place, error)})
        got, _, err = program("gpt2_train", *small, *STEPS, *background)
    assert got == status
    told, sentence = err.splitlines()
    assert told.startswith(f"step {saved} is saved; go on with: ")
    assert told.endswith(f"train.py gpt2 --resume {run}")
    assert sentence.startswith("error: ")
    assert str(error.args[-1]) in sentence
    assert read_meta(run / "checkpoint.npz")["step"] == saved == len(rows(run))
    assert program("gpt2_train", "--resume", run)[::2] == (0, "")
    row = losses(whole)
    if saved == 10:
        row[9][2] = ""  # the validation that has failed
    assert losses(run) == row


def test_what_is_half_done_is_not_saved(program, small, whole, tmp_path, monkeypatch):
    update = AdamW.step

    def update_some(self, *arguments):
        update(self, *arguments)
        raise MemoryError("no room for the rest")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        between_steps(patch, step_6=lambda: patch.setattr(AdamW, "step", update_some))
        status, _, err = program("gpt2_train", *small, *STEPS)
    assert (status, err) == (1, "error: out of memory: no room for the rest\n")
    assert checkpoints(run) == {"checkpoint.npz": 4}
    assert program("gpt2_train", "--resume", run)[::2] == (0, "")
    check_same(run, whole)


def test_parameters_that_are_no_numbers_are_not_saved(program, small, tmp_path, monkeypatch):
    def ruin(self):
        self.model.params.flat[-1] = np.nan
        raise MemoryError("no room to speak")

    monkeypatch.setattr(Run, "speak", ruin)
    status, _, err = program("gpt2_train", *small, *STEPS)
    assert (status, err.count("\n")) == (1, 1)
    assert not checkpoints(tmp_path / "run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_an_output_that_takes_no_more_stops_the_run(program, small, tmp_path, monkeypatch):
    with Path("/dev/full").open("w", encoding="utf-8") as full, monkeypatch.context() as patch:
        between_steps(patch, step_3=lambda: patch.setattr("sys.stdout", full))
        status, _, err = program("gpt2_train", *small, *STEPS)
    assert status == 130
    assert err.startswith("stopped after step 4, which is saved; go on with: ")
    assert checkpoints(tmp_path / "run") == {"checkpoint.npz": 4}


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals to send")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_before_the_first_step_ends_at_once(program, small, monkeypatch, name):
    number = getattr(signal, name)
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("runs under nohup")
    monkeypatch.setattr(timing, "matmul_peak", lambda: os.kill(os.getpid(), number))
    status, _, err = program("gpt2_train", *small, *STEPS)
    assert (status, err) == (130, "interrupted\n")
    monkeypatch.setattr(timing, "matmul_peak", lambda: 1.0)
    assert program("gpt2_train", *small, "--steps", 1)[::2] == (0, "")


def test_a_second_run_in_a_folder_is_refused(program, small, corpus, whole, tmp_path, monkeypatch):
    """Whether it is to begin there or to go on; whoever only reads is let in."""
    run, others, models = tmp_path / "run", [], []
    second = ["--data", corpus, "--out", run, "--batch-size", 4, "--seq-len", 16]

    def read():
        others.append(start("--resume", run, "--steps", 20).communicate(timeout=60))
        models.append(open_model(run).load())

    def begin():
        others.append(start(*second).communicate(timeout=60))

    between_steps(monkeypatch, step_3=begin, step_5=read)
    assert program("gpt2_train", *small, *STEPS)[::2] == (0, "")
    for _, err in others:
        assert err == f"error: a run is going on in {run}; wait for its end, or stop it first\n"
    assert (len(others), len(models)) == (2, 1)
    check_same(run, whole)
