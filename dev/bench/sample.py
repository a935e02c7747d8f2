"""Time sampling: tokens per second of one text, and of many side by side.

    python dev/bench/sample.py                             a 15M Llama 2 with random weights
    python dev/bench/sample.py --preset stories110M --streams 1 8
    python dev/bench/sample.py --preset gpt2

What a model says does not matter to its speed, so the weights are random. The numbers of streams
take turns, and the medians are given, because on a shared machine one round says little.
"""

import argparse
import statistics
import time

import numpy as np
from tqdm import tqdm

from errors import at_least, run_program
from load import FAMILIES
from model import Model
from sampler import Cache, Settings, generate_tokens

PRESETS = {
    name: (family.model, config)
    for family in FAMILIES.values()
    for name, config in family.presets.items()
}


def main() -> None:
    args = parse_args()
    model_type, config = PRESETS[args.preset]
    seq_len = min(config.seq_len, args.prompt_tokens + args.max_tokens)
    # Larger than initial weights, so that the logits are not all alike.
    weights = model_type(config, seq_len=1).params
    weights.flat *= 3
    models = {}
    for streams in args.streams:
        models[streams] = model_type(config, streams, seq_len, seed=None)
        models[streams].params = weights
    rounds: dict[int, list[tuple[float, float]]] = {streams: [] for streams in args.streams}
    for number in tqdm(range(args.rounds + 1), desc="rounds", disable=None, leave=False):
        for streams, model in models.items():
            speeds = measure(model, streams, args)
            if number:  # the first one pays for memory
                rounds[streams].append(speeds)

    print(
        f"{args.preset}, {weights.flat.size:,} parameters, {args.prompt_tokens} prompt tokens and "
        f"{args.max_tokens} more, temperature {args.temperature}, top-p {args.top_p}: "
        f"medians of {args.rounds}"
    )
    for streams, speeds in rounds.items():
        prompt, new = (statistics.median(each) for each in zip(*speeds, strict=True))
        print(f"{streams:>5} streams  {new:>8,.0f} tokens/s  {prompt:>8,.0f} prompt tokens/s")


def measure(model: Model, streams: int, args: argparse.Namespace) -> tuple[float, float]:
    """Tokens per second of the prompt, and of what follows it."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, model.config.vocab_size, (streams, args.prompt_tokens))
    cache = Cache(model, prompts)
    settings = Settings(temperature=args.temperature, top_p=args.top_p)
    tokens = generate_tokens(cache, args.max_tokens, settings=settings, rng=rng)
    begin = time.perf_counter()
    next(tokens)
    after_prompt = time.perf_counter()
    steps = sum(1 for _ in tokens)
    end = time.perf_counter()
    return prompts.size / (after_prompt - begin), steps * streams / (end - after_prompt)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="stories15M")
    parser.add_argument("--streams", type=at_least(1), nargs="+", default=[1, 64])
    parser.add_argument("--prompt-tokens", type=at_least(1), default=1)
    parser.add_argument("--max-tokens", type=at_least(2), default=256)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--rounds", type=at_least(1), default=5)
    return parser.parse_args()


if __name__ == "__main__":
    run_program(main)
