"""What benchmarks measure with: contenders in processes of their own, and the machine's limits."""

import argparse
import contextlib
import importlib.util
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from errors import RunError, UserError
from formats.weights import Parts, Weights
from layers.tiles import num_threads, run_tiles, slices
from models import FAMILIES
from models.model import Model
from tokenizer import Tokenizer

MIB = 2**20

# The class and the config of every size that has a name.
PRESETS = {
    name: (family.model, config)
    for family in FAMILIES.values()
    for name, config in family.presets.items()
}


def use_threads(count: int | None) -> None:
    """Let workers use so many threads; None leaves it to the environment, by default every core."""
    if count:
        # Every BLAS and OpenMP reads these when it is loaded, which is in the workers.
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)


def picture(text: str) -> Path:
    """For argparse: the file of a picture, refused before minutes of measuring."""
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"must end in .png, not {text}")
    return Path(text)


class Worker:
    """A contender in a process of its own, which does a step of its work when told to.

    It waits on a pipe for its turn: so each has its own peak of memory, and none shares a process
    with another's thread pool. Start it before this process takes memory: the system counts the
    peak that this one has had by then as the new one's, too.

    Args:
        name: for whoever reads that it failed.
        make_step: `make_step(*args)` is called in the process and returns what does a step, with
            the arguments of `step`.

    Raises:
        RunError: in any call, if the process has ended early.
        UserError: in any call, if its work has raised one.
    """

    def __init__(self, name: str, make_step: Callable[..., Callable[..., Any]], *args: Any) -> None:
        # spawn, because a forked process would count this one's memory as its own
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, make_step, args), daemon=True)
        self._process.start()
        theirs.close()

    def step(self, *args: Any) -> float:
        """The seconds that a step with these arguments takes."""
        return self._ask(args)

    def memory(self) -> int:
        """The memory that is resident now, in bytes."""
        return psutil.Process(self._process.pid).memory_info().rss

    def finish(self) -> tuple[Any, int]:
        """What the last step returned, and the peak of resident memory in bytes."""
        answer = self._ask(None)
        self._process.join()
        return answer

    def _ask(self, order: tuple | None) -> Any:
        try:
            self._pipe.send(order)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise RunError(f"{self.name} ended early; its own words are above") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _work(pipe: Connection, make_step: Callable[..., Callable[..., Any]], args: tuple) -> None:
    """What a worker does: a step for every tuple of arguments, then its summary."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the benchmark, and that the workers
    with contextlib.suppress(EOFError, BrokenPipeError):  # the benchmark has ended early
        try:
            step, result = make_step(*args), None
            while (order := pipe.recv()) is not None:
                start = time.perf_counter()
                result = step(*order)
                pipe.send(time.perf_counter() - start)
            pipe.send((result, peak_memory()))
        except (UserError, RunError) as error:
            pipe.send(error)
            pipe.recv()  # who asks must find somebody there


def peak_memory(usage: Any = None) -> int:
    """The most resident memory that this process has had, in bytes.

    Args:
        usage: another process's, as `os.wait4` returns it.
    """
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    usage = usage or resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # KiB but on macOS


def has_torch() -> bool:
    """Whether PyTorch is installed, and transformers, which the `oracle` extra brings along."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def initial_weights(model_type: type[Model], config: Any) -> dict[str, np.ndarray]:
    """A model's initial weights by our names, wte without padding: what its rivals begin with."""
    params = model_type(config, seq_len=1).params
    return dict(params) | {"wte": params.wte[: config.vocab_size]}


def as_weights(
    kind: str,
    config: Any,
    tensors: Mapping[str, np.ndarray],
    tokenizer: Tokenizer | None = None,
) -> Weights:
    """Weights by our names, wte without padding, as the formats of other systems write them."""
    parts = {name: Parts.of(name, tensor) for name, tensor in tensors.items()}
    return Weights("memory", kind, asdict(config), parts, tokenizer)


def memory_bandwidth(size: int = 2**26, repeats: int = 8) -> float:
    """The fastest that all threads together read float32 numbers from memory, in GB/s.

    Args:
        size: how many numbers; far more than any cache holds.
        repeats: the best of so many counts.
    """
    x = np.ones(size, np.float32)
    parts = slices(size, 8 * num_threads())
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run_tiles(lambda part: np.vdot(x[part], x[part]), parts)
        seconds.append(time.perf_counter() - begin)
    return x.nbytes / min(seconds) / 1e9
