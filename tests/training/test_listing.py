"""The table of runs: what each of them is and how far it is, whatever has become of its files."""

import os
import re
import shutil
from pathlib import Path

import pytest

from formats.checkpoint import save_checkpoint
from models import FAMILIES
from training.listing import HEADINGS

NEW, OLD, COPY = (str(Path("runs", name)) for name in ("new", "old", "copy"))


@pytest.fixture
def runs(program, small, tmp_path, tmp_path_factory, monkeypatch):
    """A folder with two runs in runs/, which are trained once for all tests."""
    trained = tmp_path_factory.getbasetemp() / "runs"
    if not trained.exists():
        for age, trainer, name, options in (
            (1, "gpt2_train", "new", ["--val-every", 2, "--steps", 6]),
            (2, "llama2_train", "old", ["--val-every", 0, "--steps", 3]),
        ):
            assert program(trainer, *small[:-1], trained / name, *options)[0] == 0
            os.utime(trained / name / "log.csv", (10**9 - 3600 * age,) * 2)
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(trained, tmp_path / "runs")


def cells(line):
    return dict(zip(HEADINGS, re.split(r" {2,}", line), strict=True))


def contents(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime) for path in folder.rglob("*.*")}


def test_a_line_for_each_run_the_last_at_the_end(program, runs, corpus):
    before = contents(runs)
    status, out, err = program("train", "--list")
    assert (status, err) == (0, "")
    assert contents(runs) == before
    headings, *lines = out.splitlines()
    assert re.split(r" {2,}", headings) == list(HEADINGS)
    assert max(map(len, out.splitlines())) <= 100
    old, new = map(cells, lines)
    # Of a table of 357 tokens, rounded up, 16 positions and 2 layers of 32 channels.
    size = 384 * 32 + 16 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32
    assert (new["model"], new["size"]) == ("GPT-2 2x32", f"{size / 1000:.1f}k")
    assert old["model"] == "Llama 2x32"
    assert new["corpus"] == old["corpus"] == corpus.name
    assert (new["steps"], old["steps"]) == ("6/6", "3/3")
    assert (new["run"], old["run"]) == (NEW, OLD)
    log = (runs / "new" / "log.csv").read_text(encoding="utf-8").splitlines()[1:]
    losses = {step: float(loss) for step, _, loss, *_ in (row.split(",") for row in log) if loss}
    assert list(losses) == ["2", "4", "6"]
    assert new["best loss"] == f"{min(losses.values()):.4f}"
    assert losses[new["step"]] == min(losses.values())
    assert old["best loss"] == old["step"] == "-"
    assert new["last written"] > old["last written"]


def test_of_a_checkpoint_only_the_description_is_read(program, runs):
    path = runs / "new" / "checkpoint.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert NEW in program("train", "--list", NEW)[1]
    assert "passed over" in program("gpt2_train", "--resume", NEW, "--steps", 7)[2]


def test_a_run_that_is_going_on(program, runs):
    """Its log ends in the middle of a row, and nothing is saved yet; or no log is there yet."""
    for path in runs.glob("new/*.npz"):
        path.unlink()
    with (runs / "new" / "log.csv").open("a", encoding="utf-8") as file:
        file.write("7,3.14")
    (runs / "old" / "log.csv").unlink()
    status, out, _ = program("train", "--list", NEW, OLD)
    assert status == 0
    new, old = sorted(map(cells, out.splitlines()[1:]), key=lambda each: each["run"])
    assert (new["model"], new["steps"]) == ("not saved yet", "6/?")
    assert (old["model"], old["steps"]) == ("Llama 2x32", "3/3")


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"model": "gpt5", "config": {}},
        {"model": [], "config": {}},
        {"model": "gpt2", "config": 3},
        {"model": "gpt2", "config": {"channels": 0}},
        {"model": "gpt2", "config": {"wings": 2}},
        {"model": "gpt2", "config": {"channels": 12 * 10**400}},
        {"model": "gpt2", "config": {}, "settings": 3},
        {"model": "gpt2", "config": {}, "settings": {"steps": 3}},
        {"model": "gpt2", "config": {}, "settings": {"steps": 3, "data": None}},
    ],
)
def test_a_run_that_is_damaged_is_a_line(program, runs, meta):
    path = runs / "new" / "checkpoint.npz"
    save_checkpoint(path, meta, {})
    (runs / "old" / "log.csv").write_text("step,loss\n", encoding="utf-8")
    status, out, err = program("train", "--list", "--plot", "losses.png")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 4
    assert any(f"{OLD}{os.sep}log.csv is damaged" in line for line in lines)
    assert any(f"{NEW}{os.sep}checkpoint.npz describes no model" in line for line in lines)
    assert lines[-1] == "wrote losses.png"  # of what has a log


def test_what_a_forged_file_says_moves_no_cursor_and_fills_no_screen(program, runs):
    settings = {"steps": [[9] * 1000], "data": "\x1b[2J" + "x" * 1000}
    meta = {"model": "gpt2", "config": {"num_layers": 10**30}, "settings": settings}
    save_checkpoint(runs / "new" / "checkpoint.npz", meta, {})
    (runs / "old" / "checkpoint.npz").write_bytes(b"GIF89a" * 99)
    status, out, _ = program("train", "--list", "runs")
    assert status == 0
    assert "\x1b" not in out
    assert "?[2Jxx" in out
    assert max(map(len, out.splitlines()[:-1])) < 150


def test_losses_of_several_runs_in_one_picture(program, runs, monkeypatch):
    drawn = []
    monkeypatch.setattr("training.listing.compare_losses", lambda *args: drawn.append(args))
    shutil.copytree(runs / "new", runs / "copy")
    status, out, _ = program("train", "--list", COPY, "--plot", "x.png", "runs", NEW)
    assert status == 0
    ((logs, path),) = drawn
    assert str(path) == "x.png"
    assert set(logs) == {COPY, NEW, OLD}
    assert [len(rows) for rows in logs.values()] == [3, 6, 6]
    assert out.count(NEW) == 1


def test_there_are_no_runs(program, tmp_path, monkeypatch, runs):
    for arguments in ([runs / "nowhere"], [runs, runs.parent / "text.txt"]):
        status, out, err = program("train", "--list", *arguments)
        assert (status, out) == (2, "")
        assert err.startswith(f"error: there is no run in {arguments[-1]}; ")
        assert err.count("\n") == 1
    (runs / "old" / "log.csv").unlink()
    status, _, err = program("train", "--list", OLD, "--plot", "x.png")
    assert (status, err.count("\n")) == (2, 1)
    assert "nothing to plot" in err
    monkeypatch.chdir(tmp_path / "runs" / "new")
    assert "there is no run in runs; " in program("train", "--list")[2]


def test_the_first_word_is_told(program):
    status, _, err = program("train", "runs")
    assert status == 2
    assert f"one of {', '.join(FAMILIES)}, or --list" in err
    status, out, _ = program("train", "--list", "--help")
    assert status == 0
    assert out.startswith("usage: train.py --list ")
