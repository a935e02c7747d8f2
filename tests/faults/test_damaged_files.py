"""A full disk, a closed folder, a wrong bit: one sentence, and the run goes on to the same end."""

import shutil
import subprocess
import time

import pytest
from harness import SAVE_EVERY, Trainer, check_same, step_saved, steps_logged

from formats.checkpoint import list_checkpoints


@pytest.fixture
def disk(tmp_path):
    """A disk of 32 MB, which has room for a run."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder]
    result = subprocess.run(mount, capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"needs a small disk, which root may mount: {result.stderr}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)  # l: even if a failure has left it open


@pytest.mark.parametrize("background", [[], ["--checkpoint-async"]], ids=["", "async"])
def test_a_disk_that_fills_up(disk, corpus, whole, chance, background):
    run, ballast = disk / "run", disk / "ballast"
    checkpoint = (whole["gpt2"] / "checkpoint.npz").stat().st_size
    room = 0, chance.randrange(checkpoint), chance.randrange(checkpoint, 3 * checkpoint)
    for free in room:
        ballast.write_bytes(bytes(shutil.disk_usage(disk).free - free))
        check_failed(*Trainer(run, "--data", corpus, *background).end(), "No space left on device")
        assert steps_logged(run) - step_saved(run) <= SAVE_EVERY
        ballast.unlink()
        assert Trainer(run, "--data", corpus).end() == (0, "")
        check_same(run, whole["gpt2"])
        shutil.rmtree(run)


def check_failed(status, err, reason):
    # What a run can do without, a row of the log or the best parameters, it does not end for.
    *others, sentence = err.splitlines()
    assert all(line.startswith("cannot write ") for line in others), err
    assert status == 1
    assert sentence.startswith("error: cannot write "), err
    assert reason in sentence


def test_a_folder_that_is_closed_to_the_run(corpus, whole, tmp_path):
    run = tmp_path / "run"
    trainer = Trainer(run, "--data", corpus)
    while not list_checkpoints(run) and trainer.process.is_alive():
        time.sleep(0.001)
    run.chmod(0o555)
    check_failed(*trainer.end(), "Permission denied")
    assert 0 <= steps_logged(run) - step_saved(run) <= SAVE_EVERY
    left = contents(run)
    check_failed(*Trainer(run).end(), "Permission denied")
    assert contents(run) == left
    run.chmod(0o755)
    assert Trainer(run).end() == (0, "")
    check_same(run, whole["gpt2"])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def nearly_done(whole, tmp_path):
    """Makes the folder of a run that has a few steps to go, and two checkpoints."""

    def make():
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(whole["gpt2"], tmp_path / "run")
        (tmp_path / "run" / "checkpoint.npz").unlink()
        return tmp_path / "run"

    return make


def cut(data, chance):
    return data[: chance.randrange(len(data))]


def flip(data, chance, start=0):
    """Another bit at one place, from `start` on."""
    place = chance.randrange(start, len(data))
    return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_checkpoint(nearly_done, whole, chance, damage):
    for _ in range(4):
        run = nearly_done()
        newest, older = list_checkpoints(run)
        newest.write_bytes(damage(newest.read_bytes(), chance))
        status, err = Trainer(run).end()
        assert (status, err.count("\n")) == (0, 1), err
        assert err.startswith(f"passed over: {newest} is damaged")
        check_same(run, whole["gpt2"])

    run = nearly_done()
    newest, older = list_checkpoints(run)
    kept = older.read_bytes()
    for path in (newest, older):
        path.write_bytes(damage(path.read_bytes(), chance))
    status, err = Trainer(run).end()
    assert status == 2
    assert err.splitlines()[2:] == [f"error: there is no whole checkpoint in {run}"]
    older.write_bytes(kept)
    assert Trainer(run).end()[0] == 0
    check_same(run, whole["gpt2"])


def test_a_damaged_table_of_contents(nearly_done, whole, chance):
    """A checksum is not in every byte there: what is not seen must not matter."""
    for _ in range(6):
        run = nearly_done()
        newest, _ = list_checkpoints(run)
        data = newest.read_bytes()
        newest.write_bytes(flip(data, chance, len(data) - 300))
        status, err = Trainer(run).end()
        assert status == 0, err
        assert "Traceback" not in err
        check_same(run, whole["gpt2"])


def test_a_log_that_breaks_off(nearly_done, whole, chance):
    """As on a full disk, in the row of a step after the checkpoint."""
    for length in (1, *(chance.randrange(1, 60) for _ in range(3))):
        run = nearly_done()
        rows = (run / "log.csv").read_bytes().splitlines(keepends=True)
        (run / "log.csv").write_bytes(b"".join(rows[:-2]) + rows[-2][:length])
        assert Trainer(run).end() == (0, "")
        check_same(run, whole["gpt2"])


@pytest.mark.parametrize("name", ["train_000000.bin", "val_000000.bin"])
def test_a_damaged_shard(nearly_done, corpus, whole, chance, tmp_path, name):
    run = nearly_done()
    shutil.copytree(corpus, tmp_path / "corpus")
    shard = tmp_path / "corpus" / name
    data, left = shard.read_bytes(), contents(run)
    for damage in (cut, cut, lambda *args: flip(*args, start=1024)) * 2:
        shard.write_bytes(damage(data, chance))
        status, err = Trainer(run, "--data", tmp_path / "corpus").end()
        assert (status, err.count("\n")) == (2, 1), err
        assert err.startswith(f"error: {shard} ")
        assert contents(run) == left
    shard.write_bytes(data)
    assert Trainer(run, "--data", tmp_path / "corpus").end() == (0, "")
    check_same(run, whole["gpt2"])
