"""Small runs, for the tests of training."""

import csv
import itertools
import os
import subprocess
import sys
from pathlib import Path

from formats.checkpoint import read_meta
from models import gpt2
from models.gpt2 import GPT2Config
from models.llama2 import Llama2Config

ROOT = Path(__file__).resolve().parents[2]
# A model and a batch so small that a step takes milliseconds.
SMALL = ["--preset", "nano", "--batch-size", 4, "--seq-len", 16]
NANO = GPT2Config(seq_len=32, num_layers=2, num_heads=2, channels=32)
LLAMA_NANO = Llama2Config(seq_len=32, num_layers=2, num_heads=4, num_kv_heads=2, dim=32)


def rows(folder):
    with (folder / "log.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def losses(folder):
    """What two runs must share to the bit."""
    same = ("step", "train_loss", "val_loss", "grad_norm", "learning_rate")
    return [[row[name] for name in same] for row in rows(folder)]


def start(*arguments, trainer="gpt2_train.py"):
    """The trainer in a process of its own; on one thread, which a busy machine slows down least."""
    return subprocess.Popen(
        [sys.executable, trainer, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def send_at_step(process, step, number):
    """Send the signal in the middle of a step after `step`, and wait for the end."""
    for line in process.stdout:
        if line.startswith(f"step {step:>4}/"):
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def checkpoints(folder):
    """The step of every checkpoint in a run's folder."""
    return {path.name: read_meta(path)["step"] for path in folder.glob("checkpoint*.npz")}


def refused(program, *arguments):
    """The sentence with which the trainer refuses."""
    status, _, err = program("gpt2_train", *arguments)
    assert status == 2
    assert "Traceback" not in err
    return err.splitlines()[-1]


def spoil(monkeypatch, steps, loss):
    """Let the training loss of the passes with these numbers be another."""
    forward, passes = gpt2.GPT2.forward, itertools.count(1)

    def spoilt(self, tokens, targets=None, **options):
        result = forward(self, tokens, targets, **options)
        # A validation drops nothing, and so gives no `drop`.
        return loss if "drop" in options and next(passes) in steps else result

    monkeypatch.setattr(gpt2.GPT2, "forward", spoilt)
