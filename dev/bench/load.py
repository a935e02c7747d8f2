"""Time how a GGUF becomes a model that can speak, and measure the memory that it takes.

    python dev/bench/load.py SmolLM2-135M-Instruct.Q4_1.gguf

Two take turns, each in a process of its own: one only reads every tensor and makes it floats with
the library `gguf`; the other is ours, from the name of the file to a model. The peak is that of a
process that has then read a prompt and said some tokens, its Python and libraries included.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dev.bench.machine import MIB, Worker, take_turns
from errors import at_least
from formats.gguf_header import read_header
from load import open_model
from sampler import Cache, Settings, generate_tokens


def main() -> None:
    args = parse_args()
    speaker = Worker("llm.np", speak_step, args)
    workers = {
        "gguf": Worker("gguf", dequantize_step, args.model),
        "llm.np": Worker("llm.np", load_step, args.model),
    }
    rounds = take_turns({name: each.step for name, each in workers.items()}, args.rounds)
    for worker in workers.values():
        worker.finish()
    speaker.step()
    size, peak = speaker.finish()

    theirs, ours = (statistics.median(each) for each in rounds.results.values())
    ratio = statistics.median(b / a for a, b in zip(*rounds.results.values(), strict=True))
    print(f"{args.model.name}: medians of {args.rounds} rounds")
    print(f"reading and dequantising {theirs:6.2f} s")
    print(f"a model that can speak   {ours:6.2f} s   {ratio:.2f} x")
    print(
        f"peak of a process that has read {args.prompt_tokens} tokens and said {args.max_tokens}: "
        f"{peak / MIB:,.0f} MiB, the weights' {size / MIB:,.0f} and {(peak - size) / MIB:,.0f} more"
    )
    print(rounds)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument("--prompt-tokens", type=at_least(1), default=64)
    parser.add_argument("--max-tokens", type=at_least(1), default=64)
    return parser.parse_args()


def dequantize_step(path: Path) -> Callable[[], int]:
    """Reads the bytes of every tensor, and makes them floats; returns how many there were."""
    import gguf

    _, _, stored = read_header(path)
    kinds = {name: gguf.GGMLQuantizationType(each.kind) for name, each in stored.items()}
    shapes = {
        name: gguf.quant_shape_to_byte_shape(each.shape, kinds[name])
        for name, each in stored.items()
    }

    def step() -> int:
        count = 0
        for name, each in stored.items():
            size = int(np.prod(shapes[name]))
            data = np.fromfile(path, np.uint8, size, offset=each.offset)
            count += gguf.dequantize(data.reshape(shapes[name]), kinds[name]).size
        return count

    return step


def load_step(path: Path) -> Callable[[], int]:
    """Opens and loads the model as sample.py does it; returns how many parameters it has."""
    return lambda: open_model(path).load(seq_len=256).params.flat.size


def speak_step(args: argparse.Namespace) -> Callable[[], int]:
    """Lets it speak, and returns the bytes of its weights."""

    def step() -> int:
        model = open_model(args.model).load(seq_len=args.prompt_tokens + args.max_tokens)
        cache = Cache(model, [range(args.prompt_tokens)])
        list(generate_tokens(cache, args.max_tokens, settings=Settings(temperature=0)))
        return model.params.flat.nbytes

    return step
