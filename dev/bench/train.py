"""Time a training step of ours and of PyTorch in turn, and measure the peak memory of each.

    python dev/bench/train.py --batch-size 4 --seq-len 64
    python dev/bench/train.py --compile                  also torch.compile
    python dev/bench/train.py --growth                   does our memory grow over 20 steps?

Same weights, same batch, gradient clipping and AdamW included; the losses printed at the end show
that all did the same work. On a shared machine only the ratio of neighbours means anything: it is
the median over pairs of steps that ran one after the other.

Every contender is a process of its own, which waits on a pipe for its turn: so each has its own
peak of memory, and none shares a process with the other's thread pool. Steps in one process were
measured, too, and were neither slower nor faster.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import psutil

from adam import AdamW
from errors import RunError, run_program
from gpt2 import GPT2, PRESETS

OPTIONS = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "lr": 1e-4}
MAX_NORM = 1.0
MIB = 2**20


def main() -> None:
    args = parse_args()
    if args.threads:
        # Every BLAS and OpenMP reads these when it is loaded, which is in the workers.
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(args.threads)
    if args.growth:
        measure_growth(args)
    else:
        compare(args)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="gpt2")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=8, help="timed steps of each")
    parser.add_argument("--threads", type=int, help="default: every core")
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    parser.add_argument("--growth", action="store_true", help="only our memory over 20 steps")
    return parser.parse_args()


def compare(args: argparse.Namespace) -> None:
    """Let all contenders step in turn, and print what they took."""
    names = ["llm.np", "torch"] + ["torch.compile"] * args.compile
    workers = {name: Worker(name, args) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for worker in workers.values():
        worker.step()  # a warm-up: the first step pays for memory, and for compiling
    for _ in range(args.pairs):
        for name, worker in workers.items():
            seconds[name].append(worker.step())

    tokens = args.batch_size * args.seq_len
    print(f"{args.preset}, B={args.batch_size} T={args.seq_len}, median of {args.pairs} steps")
    for name, worker in workers.items():
        median = statistics.median(seconds[name])
        ratio = statistics.median(
            other / ours for ours, other in zip(seconds["llm.np"], seconds[name], strict=True)
        )
        loss, peak = worker.finish()
        print(
            f"{name:<14} {1000 * median:8.0f} ms {tokens / median:8.0f} tok/s   "
            f"{ratio:5.2f} x llm.np's time   peak {peak / MIB:6.0f} MiB   loss {loss:.5f}"
        )


def measure_growth(args: argparse.Namespace) -> None:
    """Print how much our resident memory grows over 20 steps after the first."""
    worker = Worker("llm.np", args)
    worker.step()
    process = psutil.Process(worker.process.pid)
    before = process.memory_info().rss
    for _ in range(20):
        worker.step()
    growth = process.memory_info().rss - before
    worker.finish()
    print(f"resident after the first step: {before / MIB:.0f} MiB; growth: {growth / MIB:+.2f} MiB")


class Worker:
    """A contender in a process of its own, which steps when told to."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        # spawn, because a forked process would count this one's memory as its own
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(name, args, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def step(self) -> float:
        """The seconds that a step takes."""
        return self._ask(True)

    def finish(self) -> tuple[float, int]:
        """The last step's loss and the peak of resident memory in bytes."""
        return self._ask(False)

    def _ask(self, another_step: bool) -> Any:
        try:
            self.pipe.send(another_step)
            return self.pipe.recv()
        except (EOFError, OSError):
            raise RunError(f"{self.name} ended early; its own words are above") from None


def work(name: str, args: argparse.Namespace, pipe: Connection) -> None:
    """What a worker does: a step for every True, then its summary."""
    step = llm_np_step(args) if name == "llm.np" else torch_step(args, name == "torch.compile")
    while pipe.recv():
        start = time.perf_counter()
        loss = step()
        pipe.send(time.perf_counter() - start)
    pipe.send((loss, peak_memory()))


def llm_np_step(args: argparse.Namespace) -> Callable[[], float]:
    """Our training step."""
    model = GPT2(PRESETS[args.preset], args.batch_size, args.seq_len)
    optimizer = AdamW(model.params, model.grads, **OPTIONS)
    tokens, targets = batch(args)

    def step() -> float:
        loss = model.forward(tokens, targets)
        model.zero_grad()
        model.backward()
        optimizer.step(max_norm=MAX_NORM)
        return loss

    return step


def torch_step(args: argparse.Namespace, compiled: bool) -> Callable[[], float]:
    """PyTorch's, with the same weights."""
    import torch

    from dev import torch_gpt2, torch_models

    if args.threads:
        torch.set_num_threads(args.threads)
    config = PRESETS[args.preset]
    model = torch_gpt2.TorchGPT2(config)
    weights = dict(GPT2(config, seq_len=1).params)
    weights["wte"] = weights["wte"][: config.vocab_size]
    torch_models.load_weights(model, weights)
    if compiled:
        model.compile()
    optimizer = torch_models.adamw(model, fused=True, **OPTIONS)
    tokens, targets = batch(args)
    return lambda: torch_models.train_step(model, optimizer, tokens, targets, MAX_NORM)


def batch(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    vocab_size = PRESETS[args.preset].vocab_size
    shape = 2, args.batch_size, args.seq_len
    return tuple(np.random.default_rng(0).integers(0, vocab_size, shape))


def peak_memory() -> int:
    """The most resident memory that this process has had, in bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    # Bytes on macOS, KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    run_program(main)
