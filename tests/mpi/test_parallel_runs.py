"""Many ranks train as one would, share Adam's moments, and stop and go on together."""

import csv
import re
import shutil
import signal

import numpy as np
import psutil
import pytest

from dataloader import write_shard
from files import alone_in
from formats.checkpoint import read_meta

STEPS = 20
SETTINGS = ["--preset", "tiny", "--seq-len", 16, "--warmup", 2, "--val-every", 10]
# Of the same sequences, however they are shared out, the same is dropped.
SETTINGS += ["--dropout", 0.2]
SETTINGS += ["--val-batches", 3, "--save-every", 10, "--sample-every", 20, "--log-every", 1]


def rows(folder):
    with (folder / "log.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def losses(folder):
    names = ("train_loss", "val_loss", "grad_norm", "learning_rate")
    return np.array([[float(row[name] or "nan") for name in names] for row in rows(folder)])


@pytest.fixture
def train(mpirun, corpus, tmp_path):
    """Train on so many ranks, into a folder of tmp_path: what was printed."""

    def run(num_ranks, name, *arguments):
        folder = tmp_path / name
        new = [*SETTINGS, "--data", corpus, "--out", folder, "--steps", STEPS]
        begin = ["--resume", folder] if folder.exists() else new
        process = mpirun(num_ranks, "gpt2_train.py", *begin, *arguments)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        return out

    return run


def arrays(path):
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files if name != "meta.json"}


def test_ranks_train_as_one_does(train, tmp_path):
    told = {
        "one": train(1, "one", "--batch-size", 4),
        "two": train(2, "two", "--batch-size", 2),
        "two zero": train(2, "two zero", "--batch-size", 2, "--zero"),
        "four": train(4, "four", "--batch-size", 1),
        "four zero": train(4, "four zero", "--batch-size", 1, "--zero"),
    }
    expected = losses(tmp_path / "one")
    assert len(expected) == STEPS
    for name in told:
        np.testing.assert_allclose(losses(tmp_path / name), expected, rtol=0, atol=1e-5)
    train(4, "again", "--batch-size", 1, "--zero")
    assert np.array_equal(losses(tmp_path / "again"), losses(tmp_path / "four zero"), True)

    # The moments that a rank keeps, and that all together have saved.
    m = {name: float(re.search(r"Adam's m ([\d.]+) MiB", text)[1]) for name, text in told.items()}
    # Both were rounded to a tenth.
    assert m["four zero"] == pytest.approx(m["four"] / 4, abs=0.05 + 0.05 / 4)
    metas = [read_meta(tmp_path / name / "checkpoint.npz") for name in told]
    for name in ("step", "batch_size", "loader"):
        assert len({str(meta[name]) for meta in metas}) == 1
    for file in ("checkpoint.npz", "best.npz"):
        saved = arrays(tmp_path / "one" / file)
        for name, array in arrays(tmp_path / "four zero" / file).items():
            scale = np.abs(saved[name]).max()  # of single elements Adam can double a round-off
            np.testing.assert_allclose(array, saved[name], rtol=0, atol=1e-3 * scale, err_msg=name)
    assert {read_meta(tmp_path / name / "best.npz")["best"]["step"] for name in told} == {STEPS}


def test_ranks_share_what_little_there_is_to_validate_with(mpirun, corpus, tmp_path):
    """Three windows: of two ranks one has one, of four one has none."""
    shutil.copytree(corpus, tmp_path / "little")
    val = tmp_path / "little" / "val_000000.bin"
    write_shard(val, np.fromfile(val, "<u2", offset=1024)[: 3 * 16 + 1])
    validated = {}
    for num_ranks in (1, 2, 4):
        arguments = [*SETTINGS, "--data", tmp_path / "little", "--out", tmp_path / f"{num_ranks}"]
        batch = ["--batch-size", 4 // num_ranks, "--steps", 2]
        process = mpirun(num_ranks, "gpt2_train.py", *arguments, *batch)
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        validated[num_ranks] = float(rows(tmp_path / f"{num_ranks}")[-1]["val_loss"])
    assert validated[2] == pytest.approx(validated[1], abs=1e-5)
    assert validated[4] == pytest.approx(validated[1], abs=1e-5)


def test_a_default_batch_is_lowered_for_all_ranks_together(mpirun, corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "little")
    train = tmp_path / "little" / "train_000000.bin"
    write_shard(train, np.fromfile(train, "<u2", offset=1024)[: 7 * 16 + 1])
    arguments = [*SETTINGS, "--data", tmp_path / "little", "--out", tmp_path / "run"]
    out, err = mpirun(2, "gpt2_train.py", *arguments, "--steps", 2).communicate(timeout=120)
    assert err == ""
    assert out.count("little is small: batches have 3 sequences, not 8") == 1
    assert read_meta(tmp_path / "run" / "checkpoint.npz")["batch_size"] == 6


def test_a_run_goes_on_with_another_number_of_ranks(train, tmp_path):
    train(2, "whole", "--batch-size", 2)
    train(4, "run", "--batch-size", 1, "--zero", "--steps", 8, "--checkpoint-async")
    train(2, "run", "--steps", 14)
    train(1, "run", "--no-zero", "--steps", STEPS)
    # Another number of steps is another schedule, so the whole run does the same.
    train(1, "parts", "--batch-size", 4, "--steps", 8)
    train(1, "parts", "--steps", 14)
    train(1, "parts", "--steps", STEPS)
    np.testing.assert_allclose(
        losses(tmp_path / "run"), losses(tmp_path / "parts"), rtol=0, atol=1e-5
    )
    assert [int(row["step"]) for row in rows(tmp_path / "run")] == list(range(1, STEPS + 1))


def test_a_batch_that_cannot_be_shared_is_refused(train, mpirun, tmp_path):
    train(1, "run", "--batch-size", 4, "--steps", 1)
    process = mpirun(3, "gpt2_train.py", "--resume", tmp_path / "run", "--steps", 2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.count("error: 3 ranks cannot share the 4 sequences") == 1


def children(process, count):
    """The ranks of an mpirun, in their order."""
    found = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "gpt2_train.py" in child.cmdline() and "mpirun" not in child.cmdline()[0]
    ]
    ranks = [child for child in found if "prterun" not in child.cmdline()[0]]
    assert len(ranks) == count
    return sorted(ranks, key=lambda child: int(child.environ()["OMPI_COMM_WORLD_RANK"]))


def until_step(process, step):
    for line in process.stdout:
        if line.startswith(f"step {step:>4}/"):
            return
    pytest.fail(process.stderr.read())


SLOW_DISK = """
import sys, time, gpt2_train
from training import ranks, run
from errors import run_program

def save_slowly(*arguments):
    time.sleep(2)
    save(*arguments)

ranks.PARTING = 0.2
save, run.save_checkpoint = run.save_checkpoint, save_slowly
sys.argv[0] = "gpt2_train.py"
run_program(gpt2_train.main)
"""


@pytest.mark.parametrize("background", [[], ["--checkpoint-async", "--zero"]])
def test_all_wait_for_a_slow_disk_before_they_part(mpirun, corpus, tmp_path, background):
    settings = [*SETTINGS, *background, "--data", corpus, "--out", tmp_path / "run"]
    process = mpirun(2, "-c", SLOW_DISK, *settings, "--steps", 99, "--save-every", 99)
    until_step(process, 3)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=60)
    done = read_meta(tmp_path / "run" / "checkpoint.npz")["step"]
    assert f"stopped after step {done}, which is saved; go on with: mpirun -n 2 " in err
    assert process.returncode == 130
    assert "has failed" not in err


STOPPED_EARLY = """
import sys, time, train
from errors import run_program

def prepare_slowly(*arguments):
    run = prepare(*arguments)
    print("prepared", flush=True)
    time.sleep(1)
    return run

prepare, train.prepare = train.prepare, prepare_slowly
run_program(lambda: train.main("gpt2"))
"""


def test_a_signal_before_the_first_step_ends_all_and_leaves_nothing(mpirun, corpus, tmp_path):
    arguments = [*SETTINGS, "--data", corpus, "--out", tmp_path / "run"]
    process = mpirun(2, "-c", STOPPED_EARLY, *arguments)
    assert "prepared\n" in process.stdout
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.count("stopped before the first step\n") == 1
    assert "has failed" not in err
    assert not (tmp_path / "run").exists()


def test_a_folder_in_which_a_run_is_going_on_is_refused_once(mpirun, corpus, tmp_path):
    arguments = [*SETTINGS, "--data", corpus, "--out", tmp_path / "run"]
    with alone_in(tmp_path / "run"):
        process = mpirun(2, "gpt2_train.py", *arguments)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.count("error: a run is going on in") == 1


OTHER_THREADS = """
import os, sys, zlib
os.environ["OMP_NUM_THREADS"] = str(1 + 2 * int(os.environ["OMPI_COMM_WORLD_RANK"]))
from training.ranks import find_ranks
from training.prepare import prepare
from train import take_step

with find_ranks() as ranks:
    run = prepare("gpt2", ranks)
    for _ in range(5):
        take_step(run, 1e-2)
    bits = zlib.crc32(run.model.params.flat)
    assert ranks.mean(bits) == bits
    print("the same")
"""


def test_ranks_with_other_threads_make_the_same_update(mpirun, corpus, tmp_path):
    settings = [*SETTINGS, "--data", corpus, "--out", tmp_path / "run"]
    out, err = mpirun(2, "-c", OTHER_THREADS, *settings).communicate(timeout=60)
    assert "the same" in out, err


@pytest.mark.parametrize(
    ("number", "zero"),
    [(signal.SIGTERM, ["--zero", "--checkpoint-async"]), (signal.SIGKILL, [])],
)
def test_a_signal_to_one_rank_stops_all_and_loses_nothing(
    train, mpirun, corpus, tmp_path, number, zero
):
    """Over TCP, as between two machines."""
    options = ["--mca", "btl", "tcp,self", "--mca", "pml", "ob1"]
    settings = [*SETTINGS, *zero, "--data", corpus, "--batch-size", 2]
    arguments = [*settings, "--out", tmp_path / "run", "--steps", 30]
    process = mpirun(2, "gpt2_train.py", *arguments, options=options)
    until_step(process, 13)
    children(process, 2)[1].send_signal(number)
    _, err = process.communicate(timeout=60)
    done = read_meta(tmp_path / "run" / "checkpoint.npz")["step"]
    if number == signal.SIGTERM:
        assert f"stopped after step {done}, which is saved" in err
        assert done >= 13
    else:
        # Whoever is faster says so: mpirun, or the other rank, which may have saved step 13 first.
        assert re.search(r"process rank 1 with PID|error: rank 1 on .* has died, so", err)
        assert done >= 10
    assert process.returncode != 0
    assert "Traceback" not in err

    train(2, "run")
    train(2, "whole", *zero, "--batch-size", 2, "--steps", 30)
    assert np.array_equal(losses(tmp_path / "run"), losses(tmp_path / "whole"), True)


def test_ranks_train_with_muon_as_one_does(train, tmp_path):
    for ranks in (1, 2):
        train(ranks, f"{ranks}", "--batch-size", 4 // ranks, "--optimizer", "muon")
    np.testing.assert_allclose(losses(tmp_path / "2"), losses(tmp_path / "1"), rtol=0, atol=1e-3)
