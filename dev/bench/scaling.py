"""Draw how time and memory of a training step grow with B, T, layers and channels.

    python dev/bench/scaling.py --out docs/scaling.png
    python dev/bench/scaling.py --preset tiny --batch-size 2 --seq-len 128

One of the four varies, the others stay as in a base. A step is forward, backward and AdamW; every
size has a process of its own, for the peak of its memory. Thin lines show what to expect. For time:
the base's, times how many more operations there are in matrix products. For memory: the flat
buffers, in which nothing grows faster than T; Python itself and tiles come on top.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from adam import AdamW
from dev.bench.machine import MIB, Worker, picture, use_threads
from errors import at_least
from files import save_figure
from models.gpt2 import GPT2, PRESETS, GPT2Config

# What the base is multiplied by; channels less, because operations grow with their square.
FACTORS = 1 / 4, 1 / 2, 1, 2, 4
CHANNEL_FACTORS = FACTORS[:-1]


@dataclass(frozen=True)
class Size:
    """A model of `seq_len` positions, and a batch of so many sequences of that length."""

    config: GPT2Config
    batch_size: int


@dataclass(frozen=True)
class Cost:
    """What a step of a size takes: the median of its times, its peak of memory, the buffers."""

    seconds: float
    peak: int
    buffers: int


def main() -> None:
    args = parse_args()
    use_threads(args.threads)
    base = Size(replace(PRESETS[args.preset], seq_len=args.seq_len), args.batch_size)
    panels = vary(base)
    sizes = dict.fromkeys([base, *(size for panel in panels.values() for size in panel.values())])
    progress = tqdm(sizes, desc="measuring", unit="sizes", disable=None, leave=False)
    costs = {size: measure(size, args.steps) for size in progress}

    print(f"{'varied':<14}{'ms per step':>12}{'tokens/s':>10}{'peak MiB':>10}{'buffers MiB':>13}")
    for name, panel in panels.items():
        for value, size in panel.items():
            cost = costs[size]
            tokens = size.batch_size * size.config.seq_len
            print(
                f"{name:<9}{value:>5}{1000 * cost.seconds:>12.1f}{tokens / cost.seconds:>10.0f}"
                f"{cost.peak / MIB:>10.0f}{cost.buffers / MIB:>13.0f}"
            )
    title = (
        f"A training step around {args.preset}, B={args.batch_size} T={args.seq_len} "
        f"layers={base.config.num_layers} channels={base.config.channels}, float32"
    )
    draw(base, panels, costs, title, args.out)
    print(f"wrote {args.out}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="small", help="of the base")
    parser.add_argument("--batch-size", type=at_least(1), default=4, help="of the base")
    parser.add_argument("--seq-len", type=at_least(1), default=256, help="of the base")
    parser.add_argument("--steps", type=at_least(1), default=5, help="timed steps of each size")
    parser.add_argument("--threads", type=at_least(1), help="default: every core")
    parser.add_argument("--out", type=picture, default=Path("docs/scaling.png"))
    return parser.parse_args()


def vary(base: Size) -> dict[str, dict[int, Size]]:
    """Sizes that differ from the base in one quantity each, by its name and value."""
    config, H = base.config, base.config.num_heads

    def values(middle: int, factors: tuple[float, ...] = FACTORS) -> list[int]:
        return [value for factor in factors if (value := int(factor * middle))]

    def models(field: str, values: list[int]) -> dict[int, Size]:
        return {v: replace(base, config=replace(config, **{field: v})) for v in values}

    head_sizes = values(config.channels // H, CHANNEL_FACTORS)
    return {
        "B": {B: replace(base, batch_size=B) for B in values(base.batch_size)},
        "T": models("seq_len", values(config.seq_len)),
        "layers": models("num_layers", values(config.num_layers)),
        "channels": models("channels", [H * head_size for head_size in head_sizes]),
    }


def measure(size: Size, steps: int) -> Cost:
    """Time steps of a size in a process of its own."""
    worker = Worker(f"the step of {size}", training_step, size)
    worker.step()  # a warm-up: the first step pays for memory
    seconds = statistics.median(worker.step() for _ in range(steps))
    buffers, peak = worker.finish()
    return Cost(seconds, peak, buffers)


def training_step(size: Size) -> Callable[[], int]:
    """For a worker: a training step, which returns the bytes of all flat buffers."""
    model = GPT2(size.config, size.batch_size)
    optimizer = AdamW(model.params, model.grads)
    shape = 2, size.batch_size, size.config.seq_len
    tokens, targets = np.random.default_rng(0).integers(0, size.config.vocab_size, shape)
    buffers = model.params.flat, model.grads.flat, optimizer.m, optimizer.v, model.acts.flat

    def step() -> int:
        model.forward(tokens, targets)
        model.zero_grad()
        model.backward()
        optimizer.step(max_norm=1.0)
        return sum(buffer.nbytes for buffer in buffers)

    return step


def draw(
    base: Size,
    panels: Mapping[str, Mapping[int, Size]],
    costs: Mapping[Size, Cost],
    title: str,
    path: Path,
) -> None:
    """For each quantity that varies a panel for time, and below it one for memory."""
    from matplotlib.figure import Figure  # here, so that it takes no memory in the workers

    figure = Figure(figsize=(13, 6), layout="constrained")
    figure.suptitle(title)
    rows = figure.subplots(2, len(panels), sharex="col")
    second_per_flop = costs[base].seconds / step_flops(base)
    for (name, sizes), (time_axes, memory_axes) in zip(panels.items(), rows.T, strict=True):
        for axes, measured, expected in (
            (
                time_axes,
                {value: costs[size].seconds for value, size in sizes.items()},
                {value: step_flops(size) * second_per_flop for value, size in sizes.items()},
            ),
            (
                memory_axes,
                {value: costs[size].peak / MIB for value, size in sizes.items()},
                {value: costs[size].buffers / MIB for value, size in sizes.items()},
            ),
        ):
            axes.plot(*zip(*expected.items(), strict=True), color="0.5", linewidth=0.8)
            axes.plot(*zip(*measured.items(), strict=True), "o", color="black")
            axes.set(xlim=(0, None), ylim=(0, None))
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
        memory_axes.set_xlabel(name)
    rows[0, 0].set_ylabel("seconds per step")
    rows[1, 0].set_ylabel("peak memory (MiB)")
    rows[0, 0].legend(["by operations", "measured"])
    rows[1, 0].legend(["flat buffers", "measured"])
    save_figure(figure, path)


def step_flops(size: Size) -> int:
    return size.config.step_flops(size.batch_size, size.config.seq_len)
