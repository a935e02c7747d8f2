"""Time a training step of ours and of PyTorch in turn, and measure the peak memory of each.

    python dev/bench/train.py --batch-size 4 --seq-len 64
    python dev/bench/train.py --compile                  also torch.compile
    python dev/bench/train.py --growth                   does our memory grow over 20 steps?

Same weights, same batch, gradient clipping and AdamW included; the losses printed at the end show
that all did the same work. On a shared machine only the ratio of neighbours means anything: it is
the median over pairs of steps that ran one after the other.

Steps of both in one process were measured, too, and were neither slower nor faster.
"""

import argparse
import statistics
from collections.abc import Callable

import numpy as np

from adam import AdamW
from dev.bench.machine import MIB, Worker, use_threads
from errors import run_program
from gpt2 import GPT2, PRESETS

OPTIONS = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "lr": 1e-4}
MAX_NORM = 1.0


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
    parser.add_argument("--pairs", type=int, default=8, help="timed steps of each")
    parser.add_argument("--threads", type=int, help="default: every core")
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    parser.add_argument("--growth", action="store_true", help="only our memory over 20 steps")
    return parser.parse_args()


def compare(args: argparse.Namespace) -> None:
    """Let all contenders step in turn, and print what they took."""
    steps = {"llm.np": (llm_np_step, args), "torch": (torch_step, args, False)}
    if args.compile:
        steps["torch.compile"] = (torch_step, args, True)
    workers = {name: Worker(name, *step) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
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


if __name__ == "__main__":
    run_program(main)
