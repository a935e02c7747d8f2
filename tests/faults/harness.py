"""Trainers to try faults on: they start in a moment, save all the time, and compare to the bit."""

import csv
import ctypes
import functools
import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import train
from errors import run_program
from formats import checkpoint
from formats.checkpoint import list_checkpoints, read_meta
from models import gpt2, llama2
from models.gpt2 import GPT2Config
from models.llama2 import Llama2Config
from training import timing

KILLS = int(os.environ.get("KILLS", 6))
SEED = int(os.environ.get("SEED", time.time_ns() % 10**6))

STEPS, SAVE_EVERY = 40, 2
# What is to be the same in two runs at their end, beside all numbers in a file.
SAME = {"checkpoint.npz": ("step", "loader", "rng", "losses"), "best.npz": ("best",)}
# A step takes a few milliseconds, and a checkpoint a little longer.
SMALL = ["--preset", "nano", "--batch-size", 2, "--seq-len", 16, "--steps", STEPS]
SMALL += ["--save-every", SAVE_EVERY, "--keep", 2, "--sample-every", 25]
SMALL += ["--val-every", 7, "--val-batches", 2]

# A new process is a copy of one that has imported everything: that leaves 0.1 s of the 2 s that a
# trainer takes to start.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["gpt2_train", "llama2_train"])


def train_small(kind: str, arguments: list[str]) -> None:
    """Be a trainer that knows the preset nano, has a slow disk, and leaves out what takes long."""
    gpt2.PRESETS["nano"] = GPT2Config(seq_len=32, num_layers=2, num_heads=2, channels=128)
    llama2.PRESETS["nano"] = Llama2Config(128, None, 2, num_heads=2, seq_len=32)
    threadpool_limits(1)
    checkpoint._write_array = functools.partial(write_slowly, checkpoint._write_array)
    timing.matmul_peak = lambda: 1.0
    train.draw = lambda _: None
    sys.argv = [f"{kind}_train.py", *arguments]
    run_program(importlib.import_module(f"{kind}_train").main)


def write_slowly(write: Callable[..., None], *arguments: Any) -> None:
    """Write an array after the time of a step, which would overtake it if it did not wait."""
    time.sleep(0.006)
    write(*arguments)


class Trainer:
    """A trainer in a process of its own, which goes on with the run in a folder, or begins it.

    Args:
        folder: of the run.
        *arguments: for the trainer.
        kind: "gpt2" or "llama2".
    """

    def __init__(self, folder: Path, *arguments: object, kind: str = "gpt2") -> None:
        self.folder = folder
        self._said, stderr = PROCESSES.Pipe(duplex=False)
        arguments = kind, run_arguments(folder, *arguments), stderr
        self.process = PROCESSES.Process(target=_train, args=arguments)
        self.process.start()
        stderr.close()

    def end(self) -> tuple[int, str]:
        """Its exit status, and what it has said on stderr."""
        self.process.join(60)
        assert self.process.exitcode is not None, "the trainer did not end"
        with self._said:
            return self.process.exitcode, os.read(self._said.fileno(), 65536).decode()


def _train(kind: str, arguments: list[str], stderr: Connection) -> None:
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(stderr.fileno(), "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.platform == "linux":
        # Without any capability, permissions bind root as everybody else: capset(2).
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        ctypes.CDLL(None).capset(header, none)
    train_small(kind, arguments)


def run_arguments(folder: Path, *arguments: object) -> list[str]:
    """What to tell a trainer: to go on with the run in a folder, or to begin it."""
    begin = ["--resume", folder] if list_checkpoints(folder) else [*SMALL, "--out", folder]
    return [str(argument) for argument in [*begin, *arguments]]


def losses(folder: Path) -> list[list[str]]:
    """What the log of two runs must share to the bit: a list for each step, the step first."""
    same = ("step", "train_loss", "val_loss", "grad_norm", "learning_rate")
    if not (folder / "log.csv").is_file():
        return []
    with (folder / "log.csv").open(encoding="utf-8", newline="") as file:
        return [[row[name] for name in same] for row in csv.DictReader(file)]


def steps_logged(folder: Path) -> int:
    return int(losses(folder)[-1][0]) if losses(folder) else 0


def step_saved(folder: Path) -> int:
    """The step of the newest checkpoint, after a look at every bit of it; 0 if there is none."""
    if not list_checkpoints(folder):
        return 0
    newest = list_checkpoints(folder)[0]
    contents(newest)
    return read_meta(newest)["step"]


def contents(path: Path) -> dict[str, bytes]:
    """The arrays of a checkpoint, checksums compared."""
    with np.load(path) as archive:
        return {name: archive[name].tobytes() for name in archive.files if name != "meta.json"}


def check_same(run: Path, whole: Path) -> None:
    """Two runs that have come to their end have had the same losses, and are the same."""
    assert losses(run) == losses(whole)
    assert steps_logged(run) == step_saved(run)
    for name, states in SAME.items():
        ends = run / name, whole / name
        one, other = (contents(path) for path in ends)
        assert one == other
        for state in states:
            assert read_meta(ends[0])[state] == read_meta(ends[1])[state], state
    assert not list(run.glob("*.tmp"))


if __name__ == "__main__":
    train_small(sys.argv[1], sys.argv[2:])
