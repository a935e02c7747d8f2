"""A run that was stopped goes on as if nothing had happened, whatever has become of its files."""

import functools
import shutil
import signal
import sys
import threading
import time

import numpy as np
import pytest

from dataloader import write_shard
from formats.checkpoint import read_meta, save_checkpoint
from runs import (
    SMALL,
    checkpoints,
    losses,
    refused,
    rows,
    send_at_step,
    start,
)

STOPPED = ["--batch-size", 4, "--seq-len", 16, "--grad-accum", 2, "--steps", 40, "--dropout", 0.2]
STOPPED += ["--log-every", 1, "--val-every", 7, "--sample-every", 40, "--save-every", 8]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals to send")
@pytest.mark.parametrize(
    ("trainer", "name"), [("gpt2_train.py", "SIGINT"), ("llama2_train.py", "SIGTERM")]
)
def test_a_run_that_was_stopped_resumes_to_the_bit(corpus, tmp_path, trainer, name):
    """Through epochs, accumulated batches and validations; its samples are the same too."""
    start_it = functools.partial(start, trainer=trainer)
    settings = ["--data", corpus, *STOPPED]
    run = tmp_path / "run"
    status, err = send_at_step(start_it(*settings, "--out", run), 19, getattr(signal, name))
    done = read_meta(run / "checkpoint.npz")["step"]
    assert status == 130
    assert f"step {done}, which is saved" in err
    assert f"train.py {trainer.removesuffix('_train.py')} --resume {run}" in err
    assert 19 <= done < 40

    resumed, err = start_it("--resume", run).communicate(timeout=60)
    assert err == ""
    whole, _ = start_it(*settings, "--out", tmp_path / "whole").communicate(timeout=60)
    assert losses(run) == losses(tmp_path / "whole")
    assert [int(row["step"]) for row in rows(run)] == list(range(1, 41))
    assert resumed.split("--- a sample ---")[1].split("---")[0] in whole


def test_more_steps_can_be_added(program, small, tmp_path):
    program("gpt2_train", *small, "--steps", 3)
    assert program("gpt2_train", "--resume", tmp_path / "run", "--steps", 5)[0] == 0
    assert [int(row["step"]) for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_what_more_steps_do_to_the_learning_rate_is_told(program, small, tmp_path):
    """It jumps up, unless the schedule is to end where it did."""
    program("gpt2_train", *small, "--steps", 4, "--warmup", 0, "--lr", 1e-3, "--min-lr", 1e-5)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    _, out, _ = program("gpt2_train", "--resume", tmp_path / "run", "--steps", 8)
    jumped = float(rows(tmp_path / "run")[4]["learning_rate"])
    assert f"goes on at {jumped:.2e}" in out
    assert jumped > 0.4e-3
    assert "4 it was 1.00e-05; --decay-steps 4 keeps" in out
    arguments = ["--resume", tmp_path / "other", "--steps", 8, "--decay-steps", 4]
    _, out, _ = program("gpt2_train", *arguments)
    assert "goes on at" not in out
    assert [float(row["learning_rate"]) for row in rows(tmp_path / "other")[4:]] == [1e-5] * 4


def test_a_level_learning_rate_stays_where_more_steps_are_added(program, small, tmp_path):
    """Until it falls nothing depends on how long the run is to be; the fall keeps its length."""
    options = ["--schedule", "wsd", "--warmup", 0, "--cooldown", 2, "--lr", 1e-3]
    program("gpt2_train", *small, "--steps", 8, *options)
    whole = losses(tmp_path / "run")
    short = [*small[:-1], tmp_path / "short"]
    program("gpt2_train", *short, "--steps", 6, "--save-every", 2, "--keep", 3, *options)
    assert losses(tmp_path / "short")[:5] == whole[:5]
    level = tmp_path / "short" / "checkpoint-00000004.npz"
    _, out, _ = program("gpt2_train", "--resume", level, "--steps", 8)
    assert "goes on at" not in out
    assert losses(tmp_path / "short") == whole
    rates = [float(row["learning_rate"]) for row in rows(tmp_path / "short")]
    assert rates == pytest.approx([1e-3] * 7 + [5e-4])


def test_a_fall_that_has_begun_is_told_where_more_steps_are_added(program, small, tmp_path):
    options = ["--schedule", "wsd", "--warmup", 0, "--cooldown", 2, "--lr", 1e-3]
    program("gpt2_train", *small, "--steps", 4, *options)
    _, out, _ = program("gpt2_train", "--resume", tmp_path / "run", "--steps", 8)
    assert "goes on at 1.00e-03" in out
    assert "4 it was 0.00e+00; --decay-steps 4 keeps" in out


def test_a_corpus_that_has_moved_can_be_named(program, small, corpus, tmp_path):
    moved = shutil.copytree(corpus, tmp_path / "data")
    program("gpt2_train", *small[:-3], moved, *small[-2:], "--steps", 1)
    moved = moved.rename(tmp_path / "elsewhere")
    resume = "--resume", tmp_path / "run", "--steps", 2
    assert "--data says its new place" in refused(program, *resume)
    assert program("gpt2_train", *resume, "--data", moved)[0] == 0


def test_an_earlier_copy_of_the_checkpoint_can_be_resumed(program, small, tmp_path):
    run = tmp_path / "run"
    program("gpt2_train", *small, "--steps", 6, "--save-every", 1, "--lr", 1e-2, "--warmup", 0)
    whole = losses(run)
    again = tmp_path / "again"
    arguments = [*small[:-1], again, "--steps", 6, "--save-every", 2, "--keep", 1]
    program("gpt2_train", *arguments, "--lr", 1e-2, "--warmup", 0)
    assert checkpoints(again) == {"checkpoint.npz": 6, "checkpoint-00000004.npz": 4}
    earlier = again / "checkpoint-00000004.npz"
    status, *_ = program("gpt2_train", "--resume", earlier, "--save-every", 1, "--keep", 2)
    assert status == 0
    assert losses(again) == whole
    # The steps after the earlier checkpoint are those of the new run only.
    assert checkpoints(again) == {f"checkpoint-{n:08}.npz": n for n in (4, 5)} | {
        "checkpoint.npz": 6
    }


def test_a_checkpoint_written_in_the_background_is_the_same(program, small, tmp_path, monkeypatch):
    """Slowly, so that only whoever waits before the next update leaves it as it was."""

    def save_slowly(path, meta, arrays, keep_as=None):
        before = [array.copy() for array in arrays.values()]
        time.sleep(0.1)
        assert all(map(np.array_equal, before, arrays.values()))
        saved_in.append((path.name, threading.current_thread()))
        save_checkpoint(path, meta, arrays, keep_as)

    saved_in = []
    arguments = ["--steps", 6, "--save-every", 2, "--val-every", 3]
    program("gpt2_train", *small, *arguments)
    monkeypatch.setattr("training.run.save_checkpoint", save_slowly)
    out = tmp_path / "async"
    status, _, err = program("gpt2_train", *small[:-1], out, *arguments, "--checkpoint-async")
    assert (status, err) == (0, "")
    names, threads = zip(*saved_in, strict=True)
    assert names == ("checkpoint.npz", "best.npz", "checkpoint.npz", "best.npz", "checkpoint.npz")
    assert threading.main_thread() not in threads
    assert losses(out) == losses(tmp_path / "run")
    assert checkpoints(out) == {"checkpoint.npz": 6, "checkpoint-00000004.npz": 4}
    with (
        np.load(out / "checkpoint.npz") as one,
        np.load(tmp_path / "run" / "checkpoint.npz") as two,
    ):
        assert all(np.array_equal(one[name], two[name]) for name in ("params", "m", "v"))
    with np.load(out / "best.npz") as one, np.load(tmp_path / "run" / "best.npz") as two:
        assert np.array_equal(one["params"], two["params"])


def test_a_run_that_was_stopped_before_its_first_checkpoint_can_be_begun_anew(program, small):
    run = small[-1]
    program("gpt2_train", *small, "--steps", 1)
    (run / "checkpoint.npz").unlink()
    assert f"no checkpoint yet; begin that run anew with --out {run}" in refused(
        program, "--resume", run
    )
    status, _, err = program("gpt2_train", *small, "--steps", 1)
    assert (status, err) == (0, "")


def test_a_damaged_log_is_named(program, small, tmp_path):
    program("gpt2_train", *small, "--steps", 1)
    log = tmp_path / "run" / "log.csv"
    whole = log.read_bytes()
    for damage in (b"\0\0\0\n", b"2,x,,,,,,\n", b",1,,,,,,\n", b"2,4.5\n"):
        log.write_bytes(whole + damage)
        sentence = refused(program, "--resume", tmp_path / "run", "--steps", 2)
        assert "log.csv is damaged" in sentence
    log.write_bytes(bytes(50))
    assert "log.csv is damaged" in refused(program, "--resume", tmp_path / "run", "--steps", 2)
    log.unlink()
    status, _, err = program("gpt2_train", "--resume", tmp_path / "run", "--steps", 2)
    assert (status, err) == (0, f"{log} lacks the rows of 1 steps\n")


def test_data_that_has_changed_is_noticed(program, small, corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "data")
    arguments = [*SMALL, "--data", tmp_path / "data", "--out", tmp_path / "run"]
    program("gpt2_train", *arguments, "--steps", 1)
    write_shard(tmp_path / "data" / "train_000000.bin", np.arange(2000) % 300)
    sentence = refused(program, "--resume", tmp_path / "run", "--steps", 2)
    assert "resume with the data" in sentence
    assert "--init-from" in sentence


def test_a_damaged_checkpoint_is_passed_over(program, small, tmp_path):
    run = tmp_path / "run"
    program("gpt2_train", *small, "--steps", 6, "--save-every", 2)
    whole = losses(run)
    path = run / "checkpoint.npz"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    status, out, err = program("gpt2_train", "--resume", run)
    assert status == 0
    assert f"passed over: {path} is damaged" in err
    assert "step    5/6" in out
    assert "step    4/6" not in out
    assert losses(run) == whole
    path.write_bytes(path.read_bytes()[:-100])
    (run / "checkpoint-00000004.npz").write_bytes(b"")
    assert "no whole checkpoint" in refused(program, "--resume", run, "--steps", 9)
    assert "checkpoint.npz is damaged" in refused(program, "--resume", path, "--steps", 9)


def test_without_its_newest_checkpoint_a_run_is_still_one(program, small, tmp_path):
    """As when the power fails between two renamings."""
    program("gpt2_train", *small, "--steps", 2, "--save-every", 1)
    (tmp_path / "run" / "checkpoint.npz").unlink()
    assert "holds a run already" in refused(program, *small)
    assert program("sample", tmp_path / "run", "--max-tokens", 3)[0] == 0
    assert program("gpt2_train", "--resume", tmp_path / "run", "--steps", 3)[0] == 0


@pytest.fixture
def stopped(program, small, tmp_path):
    """The folder of a run after two steps, and what changes the description in its checkpoint."""
    folder = tmp_path / "run"
    program("gpt2_train", *small, "--steps", 2)
    with np.load(folder / "checkpoint.npz") as archive:
        arrays = {name: archive[name] for name in ("params", "m", "v")}
    meta = read_meta(folder / "checkpoint.npz")

    def change(**changes):
        kept = {name: value for name, value in (meta | changes).items() if value is not None}
        save_checkpoint(folder / "checkpoint.npz", kept, arrays)

    return folder, change


def test_a_checkpoint_that_does_not_describe_a_run(program, stopped):
    folder, change = stopped
    sentences = "does not tell what a run needs", "is a model and no run", "cannot go on from"
    for name in ("step", "batch_size", "loader", "rng", "losses", "rollbacks", "settings"):
        for value in (None, "x", [[]]):
            change(**{name: value})
            err = refused(program, "--resume", folder, "--steps", 3)
            assert any(sentence in err for sentence in sentences), (name, value)


def test_saved_settings_are_looked_at_as_those_of_a_person(program, stopped):
    folder, change = stopped
    settings = read_meta(folder / "checkpoint.npz")["settings"]
    for name, value in (("seed", -1), ("lr", "fast"), ("log_every", [])):
        change(settings=settings | {name: value})
        err = refused(program, "--resume", folder, "--steps", 3)
        assert f"argument --{name.replace('_', '-')}: " in err


def test_a_best_loss_that_cannot_be_is_none(program, stopped):
    folder, _ = stopped
    for steps, best in enumerate((None, "x", {"step": float("inf"), "val_loss": 1.0}), start=3):
        save_checkpoint(folder / "best.npz", {"best": best}, {})
        status, out, err = program("gpt2_train", "--resume", folder, "--steps", steps)
        assert (status, err) == (0, "")
        assert f"at step {steps}" in out  # the last was validated, and so is the best


def test_muon_goes_on_to_the_bit(program, small, tmp_path):
    muon = [*small, "--optimizer", "muon", "--decay-steps", 6, "--warmup", 1, "--val-every", 3]
    program("gpt2_train", *muon, "--steps", 3)
    assert program("gpt2_train", "--resume", tmp_path / "run", "--steps", 6)[0] == 0
    program("gpt2_train", *muon, "--steps", 6, "--out", tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    program("gpt2_train", *small, "--steps", 6, "--val-every", 3, "--out", tmp_path / "adamw")
    assert losses(tmp_path / "run")[-1] != losses(tmp_path / "adamw")[-1]


def test_a_run_keeps_its_optimiser(program, small, tmp_path):
    program("gpt2_train", *small, "--steps", 2)
    said = refused(program, "--resume", tmp_path / "run", "--steps", 3, "--optimizer", "muon")
    assert "is a run of adamw, whose state it goes on with; leave out --optimizer" in said


def test_muon_needs_whole_matrices(program, small):
    assert "leave out one of them" in refused(program, *small, "--zero", "--optimizer", "muon")
