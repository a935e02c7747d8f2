"""llm.c's CPU trainer as a contender of train.py. For Linux and macOS: Windows stops no process."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dataloader import write_shard
from dev.bench.machine import Worker, as_weights, awake, initial_weights, peak_memory
from errors import RunError, UserError
from formats import llm_c
from models.gpt2 import GPT2, GPT2Config

STEP = re.compile(r"step \d+: train loss (\S+)")
SHARD = "dev/data/tinyshakespeare/tiny_shakespeare_{split}.bin"
BATCHES = 64  # in a shard: more than it takes, as some of its versions fail at a shard's end


class LlmC:
    """A run of llm.c's `train_gpt2` that does a step when told to; to be used as a `Worker` is.

    It trains on without a pause, so it is stopped whenever it has said that a step is over. Its
    optimizer's numbers are its own, and it does not clip.

    Args:
        path: the program.
        folder: where it finds its files.

    Raises:
        RunError: in `step`, if it has ended.
        UserError: in `step`, if it was built for batches of another size.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self._said, self._loss, self._peak = path, "nothing", float("nan"), 0
        reader, writer = pty.openpty()  # only to a terminal are lines printed at once
        self._lines = os.fdopen(reader, encoding="utf-8", errors="replace")
        # A stopped process in a group of its own is ended by the system if this one is killed.
        self._process = subprocess.Popen(
            path, cwd=folder, stdin=subprocess.DEVNULL, stdout=writer, process_group=0
        )
        os.close(writer)
        os.kill(self._process.pid, signal.SIGSTOP)

    def step(self) -> float:
        """The seconds that a step takes, without the validation that comes before some."""
        with awake(self._process.pid):
            return self._until_next_step()

    def _until_next_step(self) -> float:
        begin = time.perf_counter()
        while line := self._next_line():
            end, self._said = time.perf_counter(), line.strip()
            if found := STEP.match(line):
                self._loss = float(found[1])
                return end - begin
            begin = end
            if line.startswith("train dataset") and not line.endswith(f" {BATCHES}\n"):
                raise UserError(
                    f"{self.path} was built for another --batch-size and --seq-len: they are B and "
                    "T in its main function, 4 and 64 where nobody has changed them"
                )
        raise RunError(f"{self.path} ended early; the last that it printed: {self._said}")

    def finish(self) -> tuple[float, int]:
        """The loss of the last step, and the peak of resident memory in bytes; ends the program."""
        if self._process.returncode is None:
            os.kill(self._process.pid, signal.SIGKILL)
            _, status, usage = os.wait4(self._process.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self._lines.close()
            self._peak = peak_memory(usage)
        return self._loss, self._peak

    def _next_line(self) -> str:
        try:
            return self._lines.readline()
        except OSError:  # how Linux says that the other side of a terminal is closed
            return ""


@contextlib.contextmanager
def llm_c_contender(path: Path, config: GPT2Config, tokens: np.ndarray) -> Iterator[LlmC]:
    """A run of llm.c's on our weights and tokens, (B, T), that ends with the context.

    Raises:
        UserError: `path` is no program.
    """
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise UserError(f"{path} is no program; give --llmc the train_gpt2 that llm.c's make makes")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = Worker("the writer of llm.c's files", files_step, folder, config, tokens)
        files.step()
        files.finish()
        contender = LlmC(path.resolve(), folder)
        try:
            yield contender
        finally:
            contender.finish()


def files_step(folder: Path, config: GPT2Config, tokens: np.ndarray) -> Callable[[], None]:
    """What writes the files that llm.c looks for; every batch that it finds there is `tokens`."""

    def step() -> None:
        weights = as_weights("gpt2", config, initial_weights(GPT2, config))
        llm_c.write(folder / "gpt2_124M.bin", weights)
        # The last target of a batch is the first token of the next.
        shard = np.append(np.tile(tokens.ravel(), BATCHES), tokens.flat[0])
        for split in ("train", "val"):
            write_shard(folder / SHARD.format(split=split), shard)

    return step
