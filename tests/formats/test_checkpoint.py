"""A checkpoint is whole or it is not there; what is damaged is refused by name."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from errors import FormatError, RunError, UserError
from formats.checkpoint import find_array, find_whole, load_arrays, read_meta, save_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(1000, dtype=np.float32) for name in ("params", "m")}


@pytest.fixture
def path(tmp_path, arrays):
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(path, {"step": 7, "text": "naïve ☃"}, arrays)
    return path


def empty_like(arrays):
    return {name: np.zeros_like(array) for name, array in arrays.items()}


def test_what_was_saved_comes_back(path, arrays):
    loaded = empty_like(arrays)
    load_arrays(path, loaded)
    assert all(np.array_equal(loaded[name], arrays[name]) for name in arrays)
    meta = read_meta(path)
    assert (meta["step"], meta["text"]) == (7, "naïve ☃")
    with np.load(path) as archive:  # NumPy alone can read it
        assert np.array_equal(archive["m"], arrays["m"])
    start = find_array(path, "m", 1000, np.float32)
    assert path.read_bytes()[start:][:4000] == arrays["m"].tobytes()


def test_a_truncated_file_is_refused(path, arrays):
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        for read in (lambda: read_meta(path), lambda: load_arrays(path, empty_like(arrays))):
            with pytest.raises(FormatError, match=r"checkpoint.npz is damaged"):
                read()


def test_a_flipped_bit_never_goes_unnoticed(path, arrays):
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    # Everywhere in the archive's structure, and here and there in the arrays.
    structure = [*range(400), *range(len(whole) - 400, len(whole))]
    noticed = 0
    for position in [*structure, *rng.integers(0, len(whole), 300)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.integers(8)
        path.unlink(missing_ok=True)  # a new file is written five times faster than an old one
        path.write_bytes(damaged)
        loaded = empty_like(arrays)
        try:
            meta = read_meta(path)
            load_arrays(path, loaded)
        except FormatError as error:
            assert str(path) in str(error)
            noticed += 1
            with pytest.raises(UserError, match="no whole checkpoint"):
                find_whole(path.parent)
            with pytest.raises(FormatError, match=re.escape(str(path))):
                read_meta(path)
                for name in arrays:
                    find_array(path, name, 1000, np.float32)
        else:
            # Harmless, as in a date: what is read is what was written.
            assert meta["step"] == 7
            assert all(np.array_equal(loaded[name], arrays[name]) for name in arrays)
    assert noticed > 500


def test_a_flipped_bit_behind_the_part_that_is_read_is_noticed(path, arrays):
    damaged = bytearray(path.read_bytes())
    damaged[find_array(path, "m", 1000, np.float32) + 3000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(FormatError, match="damaged"):
        load_arrays(path, {"m": np.empty(500, np.float32)}, 0, 1000)


def test_foreign_files_are_refused(tmp_path, path, arrays):
    (tmp_path / "text.npz").write_text("hello", encoding="utf-8")
    np.savez(tmp_path / "other.npz", params=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "meta.npz", "w") as archive:
        archive.writestr("meta.json", '{"format": "something else"}')
    for name in ("text", "other", "meta"):
        with pytest.raises(FormatError, match=f"{name}.npz"):
            read_meta(tmp_path / f"{name}.npz")
    with pytest.raises(UserError, match=r"no checkpoint .*nowhere.npz"):
        read_meta(tmp_path / "nowhere.npz")
    with pytest.raises(FormatError, match=r"params has .*1000.* elements"):
        load_arrays(path, {"params": np.zeros(999, np.float32)})
    with pytest.raises(FormatError, match=r"params has .*1000.* elements"):
        find_array(path, "params", 1001, np.float32)
    np.savez_compressed(tmp_path / "small.npz", params=np.zeros(1000, np.float32))
    with pytest.raises(FormatError, match=r"small.npz was compressed"):
        find_array(tmp_path / "small.npz", "params", 1000, np.float32)
    with pytest.raises(FormatError, match="float64"):
        load_arrays(path, {"params": np.zeros(1000, np.float64)})
    with zipfile.ZipFile(tmp_path / "meta.npz", "w") as archive:
        archive.writestr("meta.json", '{"format": "llm.np checkpoint", "version": 99}')
    with pytest.raises(FormatError, match="version 99"):
        read_meta(tmp_path / "meta.npz")


def test_a_full_disk_leaves_the_previous_checkpoint(path, arrays, monkeypatch):
    before = path.read_bytes()

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"checkpoint.npz: No space left"):
        save_checkpoint(path, {}, arrays)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.npz"]


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """A process saves again and again, and is killed at ten random instants."""
    path = tmp_path / "checkpoint.npz"
    code = (
        "import numpy as np, itertools, pathlib, sys\n"
        "from formats.checkpoint import save_checkpoint\n"
        "for i in itertools.count():\n"
        "    save_checkpoint(pathlib.Path(sys.argv[1]), {'step': i},"
        " {'params': np.full(300_000, i, np.float32)})"
    )
    rng = np.random.default_rng()
    for _ in range(10):
        path.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
        while not path.exists():
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        params = np.empty(300_000, np.float32)
        load_arrays(path, {"params": params})
        assert (params == read_meta(path)["step"]).all()
