"""What benchmarks measure with: contenders in processes of their own, and the machine's limits."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import psutil

from errors import RunError
from layers.tiles import num_threads, run_tiles, slices

MIB = 2**20


def use_threads(count: int | None) -> None:
    """Let workers use so many threads; None leaves it to the environment, by default every core."""
    if count:
        # Every BLAS and OpenMP reads these when it is loaded, which is in the workers.
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)


class Worker:
    """A contender in a process of its own, which does a step of its work when told to.

    It waits on a pipe for its turn: so each has its own peak of memory, and none shares a process
    with another's thread pool.

    Args:
        name: for whoever reads that it failed.
        make_step: `make_step(*args)` is called in the process and returns what does a step.

    Raises:
        RunError: in any call, if the process has ended early.
    """

    def __init__(self, name: str, make_step: Callable[..., Callable[[], Any]], *args: Any) -> None:
        # spawn, because a forked process would count this one's memory as its own
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, make_step, args), daemon=True)
        self._process.start()
        theirs.close()

    def step(self) -> float:
        """The seconds that a step takes."""
        return self._ask(True)

    def memory(self) -> int:
        """The memory that is resident now, in bytes."""
        return psutil.Process(self._process.pid).memory_info().rss

    def finish(self) -> tuple[Any, int]:
        """What the last step returned, and the peak of resident memory in bytes."""
        answer = self._ask(False)
        self._process.join()
        return answer

    def _ask(self, another_step: bool) -> Any:
        try:
            self._pipe.send(another_step)
            return self._pipe.recv()
        except (EOFError, OSError):
            raise RunError(f"{self.name} ended early; its own words are above") from None


def _work(pipe: Connection, make_step: Callable[..., Callable[[], Any]], args: tuple) -> None:
    """What a worker does: a step for every True, then its summary."""
    step, result = make_step(*args), None
    while pipe.recv():
        start = time.perf_counter()
        result = step()
        pipe.send(time.perf_counter() - start)
    pipe.send((result, peak_memory()))


def peak_memory() -> int:
    """The most resident memory that this process has had, in bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    # Bytes on macOS, KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
