"""Time a training step of ours and of others in turn, and measure the peak memory of each.

    python dev/bench/train.py --batch-size 4 --seq-len 64
    python dev/bench/train.py --preset smollm2-135m --batch-size 2 --seq-len 256
    python dev/bench/train.py --compile                     also torch.compile
    python dev/bench/train.py --llmc ../llm.c/train_gpt2    also llm.c
    python dev/bench/train.py --one-thread                  also ours on one thread
    python dev/bench/train.py --busy                        beside one busy process
    python dev/bench/train.py --growth                      does our memory grow over 20 steps?

PyTorch's GPT-2 is the one in dev/torch_gpt2.py, and every other model transformers'. Same weights,
same batch, gradient clipping and AdamW included; the losses printed at the end show
that all did the same work (llm.c's trainer does not clip, and its optimizer's numbers are its own:
its loss is a little different). Who waits is stopped, and the first step after that does not count.
On a shared machine only the ratio of neighbours means anything: it is the median over pairs of
steps that ran one after the other. How often other processes disturbed them is printed below.

Steps of both in one process were measured, too, and were neither slower nor faster.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
import contextlib
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from adam import AdamW
from dev.bench.machine import (
    MIB,
    PRESETS,
    Worker,
    has_torch,
    initial_weights,
    take_turns,
    use_threads,
)
from errors import UserError, at_least
from models.gpt2 import GPT2Config
from models.model import RECOMPUTE

OPTIONS = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "lr": 1e-4}
MAX_NORM = 1.0
# Before its step 20 llm.c samples a text, for which it would want a tokenizer; a turn takes two.
LLM_C_ROUNDS = 9


def main() -> None:
    args = parse_args()
    use_threads(args.threads)
    if args.growth:
        measure_growth(args)
    else:
        compare(args)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="gpt2")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--pairs", type=at_least(1), default=8, help="timed steps of each")
    parser.add_argument("--threads", type=int, help="default: every core")
    parser.add_argument(
        "--recompute", choices=RECOMPUTE, default="none", help="ours: as gpt2_train.py has it"
    )
    parser.add_argument(
        "--no-torch",
        action="store_true",
        help="not PyTorch, which takes part where it is installed",
    )
    parser.add_argument("--one-thread", action="store_true", help="also ours on one thread")
    parser.add_argument(
        "--busy", action="store_true", help="beside a process that keeps one core busy"
    )
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    parser.add_argument(
        "--llmc",
        type=Path,
        metavar="PATH",
        help="also llm.c: its train_gpt2, built; on Linux and macOS only, and at most 9 pairs",
    )
    parser.add_argument("--growth", action="store_true", help="only our memory over 20 steps")
    return parser.parse_args()


def compare(args: argparse.Namespace) -> None:
    """Let all contenders step in turn, and print what they took."""
    with llm_c(args) as others:
        steps = {"llm.np": (llm_np_step, args)}
        if has_torch() and not args.no_torch:
            steps["torch"] = torch_step, args, False
            if args.compile:
                steps["torch.compile"] = torch_step, args, True
        workers = {name: Worker(name, *step) for name, step in steps.items()} | others
        if args.one_thread:
            use_threads(1)
            workers["one thread"] = Worker("llm.np on one thread", llm_np_step, args)
        if args.busy:
            multiprocessing.get_context("spawn").Process(target=keep_busy, daemon=True).start()
        steps = {name: worker.step for name, worker in workers.items()}
        rounds = take_turns(steps, args.pairs, LLM_C_ROUNDS if args.llmc else None)
        summaries = {name: worker.finish() for name, worker in workers.items()}

    seconds = rounds.results
    tokens = args.batch_size * args.seq_len
    print(f"{args.preset}, B={args.batch_size} T={args.seq_len}, median of {args.pairs} steps")
    for name, (loss, peak) in summaries.items():
        median = statistics.median(seconds[name])
        ratio = statistics.median(
            other / ours for ours, other in zip(seconds["llm.np"], seconds[name], strict=True)
        )
        print(
            f"{name:<14} {1000 * median:8.0f} ms {tokens / median:8.0f} tok/s   "
            f"{ratio:5.2f} x llm.np's time   peak {peak / MIB:6.0f} MiB   loss {loss:.5f}"
        )
    print(rounds)


def keep_busy() -> None:
    """Compute for ever, on one core."""
    while True:
        pass


@contextlib.contextmanager
def llm_c(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """llm.c's trainer by its name, if --llmc asks for it.

    Raises:
        UserError: it cannot run here, or not as often.
    """
    if not args.llmc:
        yield {}
        return
    _, config = PRESETS[args.preset]
    if not isinstance(config, GPT2Config):
        raise UserError(f"llm.c knows no {args.preset}; leave out --llmc")
    if sys.platform == "win32":
        raise UserError("--llmc needs Linux or macOS, where a process can be stopped; leave it out")
    from dev.bench.llmc import llm_c_contender  # not on Windows

    if args.pairs > LLM_C_ROUNDS:
        raise UserError(
            f"llm.c takes {2 * LLM_C_ROUNDS + 1} steps on end and no more; lower --pairs to "
            f"{LLM_C_ROUNDS}"
        )
    with llm_c_contender(args.llmc, config, batch(args)[0]) as contender:
        yield {"llm.c": contender}


def measure_growth(args: argparse.Namespace) -> None:
    """Print how much our resident memory grows over 20 steps after the first."""
    worker = Worker("llm.np", llm_np_step, args)
    worker.step()
    before = worker.memory()
    for _ in range(20):
        worker.step()
    growth = worker.memory() - before
    worker.finish()
    print(f"resident after the first step: {before / MIB:.0f} MiB; growth: {growth / MIB:+.2f} MiB")


def llm_np_step(args: argparse.Namespace) -> Callable[[], float]:
    """Our training step."""
    model_type, config = PRESETS[args.preset]
    model = model_type(config, args.batch_size, args.seq_len, recompute=args.recompute)
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
    model_type, config = PRESETS[args.preset]
    if isinstance(config, GPT2Config):
        model = torch_gpt2.TorchGPT2(config)
    else:
        model = torch_models.fast_huggingface(config)
    torch_models.load_weights(model, initial_weights(model_type, config))
    if compiled:
        model.compile()
    optimizer = torch_models.adamw(model, fused=True, **OPTIONS)
    tokens, targets = batch(args)
    return lambda: torch_models.train_step(model, optimizer, tokens, targets, MAX_NORM)


def batch(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets, (B, T): the tokens again and again, as from a shard that repeats them."""
    vocab_size = PRESETS[args.preset][1].vocab_size
    tokens = np.random.default_rng(0).integers(0, vocab_size, (args.batch_size, args.seq_len))
    return tokens, np.roll(tokens, -1)
