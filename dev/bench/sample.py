"""Time sampling: tokens per second of one text, and of many side by side, ours and others'.

    python dev/bench/sample.py                                a 15M Llama 2, and PyTorch's
    python dev/bench/sample.py --llama2c ../llama2.c/run      also llama2.c's
    python dev/bench/sample.py --preset stories110M --streams 8
    python dev/bench/sample.py --preset gpt2

What a model says does not matter to its speed, so the weights are random. All take turns, and the
medians are given, because on a shared machine one round says little. For each token of one text
all weights are read: how many tokens that allows follows from the speed of memory, measured in
every round, too. A model small enough to stay in a cache can do better.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
import math
import re
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from buffers import num_elements
from dev.bench.machine import (
    MIB,
    PRESETS,
    Worker,
    as_weights,
    has_torch,
    initial_weights,
    memory_bandwidth,
    take_turns,
)
from dev.download_starter_pack import STARTER
from errors import RunError, UserError, at_least
from formats import llama2_c
from formats.tokenizer_files import load_tokenizer
from models.llama2 import Llama2Config
from models.model import FORWARD_ONLY
from sampler import Cache, Settings, generate_tokens
from tokenizer import LlamaTokenizer

SCALE = 3  # of the weights: with the initial ones all logits are nearly alike
MEMORY = "memory"  # a contender that only reads

Speeds = tuple[float, float]  # in tokens per second: of the prompts, and of what follows them


def main() -> None:
    args = parse_args()
    fit(args)
    streams = {"llm.np": 1} | {f"llm.np, {n} streams": n for n in args.streams if n > 1}
    workers = {name: Worker(name, llm_np_step, args, n) for name, n in streams.items()}
    if has_torch() and not args.no_torch:
        workers["torch"] = Worker("torch", torch_step, args)
    contenders: dict[str, Callable[[], Speeds]] = {
        name: partial(measure, worker, streams.get(name, 1), args)
        for name, worker in workers.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        if args.llama2c:
            contenders["llama2.c"] = partial(measure_llama2c, llama2c_command(args, Path(folder)))
        rounds = take_turns(contenders | {MEMORY: memory_bandwidth}, args.rounds)
    peaks = {name: worker.finish()[1] for name, worker in workers.items()}
    report(args, rounds.results, peaks)
    print(rounds)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="stories15M")
    parser.add_argument(
        "--streams", type=at_least(1), nargs="+", default=[64], help="how many texts, besides one"
    )
    parser.add_argument("--prompt-tokens", type=at_least(1), default=1)
    parser.add_argument("--max-tokens", type=at_least(2), default=256)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-p", type=float, default=1.0, help="PyTorch's takes all tokens")
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument(
        "--no-torch",
        action="store_true",
        help="not PyTorch, which takes part where it is installed",
    )
    parser.add_argument(
        "--llama2c",
        type=Path,
        metavar="PATH",
        help="also llama2.c, for one text: its run, built; its prompt is always one token",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=STARTER / "llama2_tokenizer.bin",
        help="for llama2.c: a tokenizer.bin of as many tokens as the preset (default: %(default)s)",
    )
    return parser.parse_args()


def fit(args: argparse.Namespace) -> None:
    """Shorten the text to what the model sees.

    Raises:
        UserError: what is asked for cannot be done.
    """
    Settings(temperature=args.temperature, top_p=args.top_p)
    _, config = PRESETS[args.preset]
    if args.prompt_tokens >= config.seq_len:
        raise UserError(
            f"--prompt-tokens {args.prompt_tokens} leaves no room in the {config.seq_len} "
            f"positions of {args.preset}; lower it"
        )
    # The last token is never entered.
    args.max_tokens = min(args.max_tokens, config.seq_len - args.prompt_tokens + 1)
    if not args.llama2c:
        return
    if not isinstance(config, Llama2Config):
        raise UserError(f"llama2.c knows no {args.preset}; leave out --llama2c")
    if not args.llama2c.is_file():
        raise UserError(f"there is no program {args.llama2c}; give --llama2c the run of llama2.c")
    count = load_tokenizer(args.tokenizer).vocab_size
    if count != config.vocab_size:
        raise UserError(
            f"{args.tokenizer} has {count:,} tokens, and {args.preset} {config.vocab_size:,}; "
            "llama2.c needs a --tokenizer of as many"
        )


def report(
    args: argparse.Namespace,
    rounds: dict[str, list[Any]],
    peaks: dict[str, int],
) -> None:
    """Print the medians."""
    bandwidths = rounds.pop(MEMORY)
    _, config = PRESETS[args.preset]
    print(
        f"{args.preset}, {args.prompt_tokens} prompt and {args.max_tokens} new tokens, "
        f"temperature {args.temperature}, top-p {args.top_p}: medians of {args.rounds} rounds"
    )
    ours = [speed for _, speed in rounds["llm.np"]]
    for name, speeds in rounds.items():
        prompt, new = (statistics.median(each) for each in zip(*speeds, strict=True))
        ratio = statistics.median(a / b for a, (_, b) in zip(ours, speeds, strict=True))
        line = f"{name:<20} {new:8,.0f} tokens/s   {ratio:5.2f} x llm.np's time per token"
        if name in peaks:  # llama2.c does not tell of its prompt, nor of its memory
            line += f"   {prompt:8,.0f} prompt tokens/s   peak {peaks[name] / MIB:6.0f} MiB"
        print(line)

    size = bytes_per_token(config)
    limits = [1e9 * bandwidth / size for bandwidth in bandwidths]
    share = statistics.median(speed / limit for speed, limit in zip(ours, limits, strict=True))
    print(
        f"one text reads {size / 1e6:,.0f} MB of weights per token: at the "
        f"{statistics.median(bandwidths):.1f} GB/s of memory that allows "
        f"{statistics.median(limits):,.0f} tokens/s, of which llm.np reaches {share:.0%}"
    )


def bytes_per_token(config: Any) -> int:
    """The weights that a token reads: all but tables of which it looks up a row, and padding."""
    shapes = dict(config.param_shapes())
    shapes["wte"] = config.vocab_size, shapes["wte"][1]
    shapes.pop("wpe", None)
    if "wcls" in shapes:  # else the classifier reads wte
        del shapes["wte"]
    return num_elements(shapes) * np.dtype(np.float32).itemsize


def measure(worker: Worker, streams: int, args: argparse.Namespace) -> Speeds:
    """What a worker reaches whose steps are a prompt with its first token, and all the others."""
    prompt, rest = worker.step(), worker.step()
    return streams * args.prompt_tokens / prompt, streams * (args.max_tokens - 1) / rest


def llm_np_step(args: argparse.Namespace, streams: int) -> Callable[[], list[dict[int, int]]]:
    """Ours: the tokens of a prompt's step, then those of the rest, and so on with another text."""
    model_type, config = PRESETS[args.preset]
    positions = args.prompt_tokens + args.max_tokens - 1
    model = model_type(config, streams, positions, recompute=FORWARD_ONLY)
    model.params.flat *= SCALE
    settings = Settings(temperature=args.temperature, top_p=args.top_p)

    def texts() -> Iterator[list[dict[int, int]]]:
        while True:
            rng = np.random.default_rng(0)
            cache = Cache(model, rng.integers(0, config.vocab_size, (streams, args.prompt_tokens)))
            tokens = generate_tokens(cache, args.max_tokens, settings=settings, rng=rng)
            yield [next(tokens)]
            yield list(tokens)

    return partial(next, texts())


def torch_step(args: argparse.Namespace) -> Callable[[], list[int]]:
    """The same with transformers' model, for one text."""
    import torch

    from dev import torch_models

    _, config = PRESETS[args.preset]
    model = torch_models.fast_huggingface(config).eval()
    torch_models.load_weights(model, random_weights(args))
    prompt = torch.from_numpy(
        np.random.default_rng(0).integers(0, config.vocab_size, (1, args.prompt_tokens))
    )

    def pick(logits: torch.Tensor) -> torch.Tensor:
        if not args.temperature:
            return logits.argmax(-1, keepdim=True)
        return torch.multinomial(torch.softmax(logits / args.temperature, -1), 1)

    @torch.inference_mode()
    def texts() -> Iterator[list[int]]:
        while True:
            new, cache = prompt, None
            for count in (1, args.max_tokens - 1):
                tokens = []
                for _ in range(count):
                    out = model(new, cache=cache, use_cache=True, logits_to_keep=1)
                    new, cache = pick(out.logits[:, -1]), out.cache
                    tokens.append(new.item())
                yield tokens

    return partial(next, texts())


def random_weights(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """The weights that our model has, by our names."""
    return {name: SCALE * each for name, each in initial_weights(*PRESETS[args.preset]).items()}


def llama2c_command(args: argparse.Namespace, folder: Path) -> list[str]:
    """What starts llama2.c with the same weights."""
    _, config = PRESETS[args.preset]
    model, weights = folder / "model.bin", random_weights(args)
    # It ends a text at the token that begins one, and random weights like to say a token again.
    weights.get("wcls", weights["wte"])[LlamaTokenizer.begin] = 0
    llama2_c.write(model, as_weights("llama2", config, weights))
    positions = args.prompt_tokens + args.max_tokens - 1
    words = [args.llama2c.resolve(), model, "-z", args.tokenizer, "-n", positions]
    return [str(word) for word in (*words, "-t", args.temperature, "-p", args.top_p)]


def measure_llama2c(command: list[str]) -> Speeds:
    """What llama2.c says that it has reached; of its prompt it says nothing.

    Raises:
        RunError: it says nothing.
    """
    run = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    found = re.search(r"achieved tok/s: (\S+)", run.stderr)
    if not found:
        raise RunError(f"{command[0]} ended without its speed, and with: {run.stderr.strip()}")
    return math.nan, float(found[1])
