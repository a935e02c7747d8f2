"""What benchmarks measure with: contenders that take turns, and the machine's limits."""

import argparse
import atexit
import contextlib
import importlib.util
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
from tqdm import tqdm

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


@contextlib.contextmanager
def awake(pid: int) -> Iterator[None]:
    """Let a process go on while the context is open, and stand still after it.

    One that only waits may cost as much as one that computes: PyTorch's threads spin while they do.
    """
    process = psutil.Process(pid)
    process.resume()
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended early
            process.suspend()


class Worker:
    """A contender in a process of its own, which does a step of its work when told to.

    Between its steps it is stopped. Each has its own peak of memory, and none shares a process with
    another's thread pool. Start it before this process takes memory: the system counts the peak
    that this one has had by then as the new one's, too.

    Args:
        name: for whoever reads that it failed.
        make_step: `make_step(*args)` is called in the process and returns what does a step, with
            the arguments of `step`.

    Attributes:
        result: what the last step has returned.

    Raises:
        RunError: here and in any call, if the process has ended early.
        UserError: here and in any call, if its work has raised one.
    """

    def __init__(self, name: str, make_step: Callable[..., Callable[..., Any]], *args: Any) -> None:
        # spawn, because a forked process would count this one's memory as its own
        context = multiprocessing.get_context("spawn")
        self.name, self.result = name, None
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, make_step, args), daemon=True)
        self._process.start()
        atexit.register(self._process.kill)  # what stands still does not end when asked to
        theirs.close()
        with awake(self._process.pid):
            self._receive()

    def step(self, *args: Any) -> float:
        """The seconds that a step with these arguments takes."""
        with awake(self._process.pid):
            self._send(args)
            seconds, self.result = self._receive()
        return seconds

    def memory(self) -> int:
        """The memory that is resident now, in bytes."""
        return psutil.Process(self._process.pid).memory_info().rss

    def finish(self) -> tuple[Any, int]:
        """What the last step returned, and the peak of resident memory in bytes."""
        psutil.Process(self._process.pid).resume()
        self._send(None)
        peak = self._receive()
        self._process.join()
        return self.result, peak

    def _send(self, order: tuple | None) -> None:
        with contextlib.suppress(OSError):  # nobody reads it: then nobody answers, either
            self._pipe.send(order)

    def _receive(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise RunError(f"{self.name} ended early; its own words are above") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _work(pipe: Connection, make_step: Callable[..., Callable[..., Any]], args: tuple) -> None:
    """What a worker does: a step for every tuple of arguments; at last it tells its peak."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the benchmark, and that the workers
    if hasattr(os, "setpgid"):
        # A stopped process in a group of its own is ended by the system if the benchmark is killed.
        os.setpgid(0, 0)
    with contextlib.suppress(EOFError, BrokenPipeError):  # the benchmark has ended early
        try:
            step = make_step(*args)
            pipe.send(None)
            while (order := pipe.recv()) is not None:
                start = time.perf_counter()
                result = step(*order)
                pipe.send((time.perf_counter() - start, result))
            pipe.send(peak_memory())
        except (UserError, RunError) as error:
            pipe.send(error)
            pipe.recv()  # who asks must find somebody there


class Watch:
    """Notes how much of the machine others take while the context is open.

    Others are all processes but this one and those that it has started. What a virtual machine's
    host takes away counts as theirs.

    Attributes:
        others: their CPU time, in seconds.
        disturbed: whether that is more than a tenth of what all cores have to give.
    """

    CLOCK_TICKS = 0.02  # seconds that the system's own counting may be wrong by: two of its ticks

    def __enter__(self) -> Self:
        psutil.cpu_percent()  # the next call tells of the time since this one
        self._begin, self._own = time.perf_counter(), own_cpu_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        available = psutil.cpu_count() * (time.perf_counter() - self._begin)
        busy = available * psutil.cpu_percent() / 100
        self.others = max(0.0, busy - (own_cpu_seconds() - self._own))
        self.disturbed = self.others > 0.1 * available + self.CLOCK_TICKS


def own_cpu_seconds() -> float:
    """The CPU time that this process and all that it has started have taken."""
    process = psutil.Process()
    times = [process.cpu_times()]
    seconds = times[0].children_user + times[0].children_system  # of those that have ended
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times.append(child.cpu_times())
    return seconds + sum(each.user + each.system for each in times)


@dataclass
class Rounds:
    """What contenders have reached in rounds that all of them have taken part in.

    Attributes:
        results: for every contender, what it has reached in each round that counts.
        repeated: how many rounds were taken again because somebody was disturbed.
        disturbed: how many rounds count although somebody was.
    """

    results: dict[str, list[Any]]
    repeated: int = 0
    disturbed: int = 0

    def __str__(self) -> str:
        return (
            f"other processes disturbed {self.repeated + self.disturbed} rounds, of which "
            f"{self.repeated} were repeated and {self.disturbed} count"
        )


def take_turns(
    contenders: Mapping[str, Callable[[], Any]], rounds: int, most: int | None = None
) -> Rounds:
    """Let all contenders take turns, and give what each has reached in every round.

    In its turn a contender does its work twice, and the second time counts: after a pause its
    threads are asleep, and caches are another's. A round in which others disturbed somebody is
    taken again, as long as `most` rounds allow that.

    Args:
        contenders: what does the work and returns what was reached, such as `Worker.step`.
        rounds: how many rounds count.
        most: how many are taken at most; by default twice as many.
    """
    taken = Rounds({name: [] for name in contenders})
    spare = (2 * rounds if most is None else most) - rounds
    for _ in tqdm(range(rounds), desc="rounds", disable=None, leave=False):
        reached, disturbed = _take_round(contenders)
        while disturbed and taken.repeated < spare:
            taken.repeated += 1
            reached, disturbed = _take_round(contenders)
        taken.disturbed += disturbed
        for name, each in reached.items():
            taken.results[name].append(each)
    return taken


def _take_round(contenders: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, Any], bool]:
    """What each has reached, and whether others disturbed somebody."""
    reached, disturbed = {}, False
    for name, work in contenders.items():
        work()
        with Watch() as watch:
            reached[name] = work()
        disturbed |= watch.disturbed
    return reached, disturbed


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
