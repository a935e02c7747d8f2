"""Let a checkpoint speak.

    python sample.py runs/tiny --prompt "The for statement" --temperature 0.8

The sampler has no memory of its own: the keys and values of the positions so far lie where the
trainer's activations lie, and `GPT2.forward(tokens, start)` computes only what is new.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from checkpoint import find_checkpoint, load_arrays, read_meta
from errors import RunError, UserError, at_least, run_program
from gpt2 import GPT2, GPT2Config
from tokenizer import Tokenizer


def generate(
    model: GPT2, tokenizer: Tokenizer, prompt: str, max_tokens: int = 200, **settings: Any
) -> Iterator[str]:
    """Continue a prompt, piece of text by piece of text.

    Args:
        model: its activations serve as the cache, and are overwritten.
        tokenizer: the one that the model was trained with.
        prompt: what to continue; where it is empty, a new text begins.
        max_tokens: how many tokens to add at the most.
        settings: temperature, top_k, top_p and rng, see `generate_tokens`.

    Raises:
        UserError: the prompt is longer than the context, or a setting is out of its range.
    """
    tokens = prompt_tokens(tokenizer, prompt)
    return tokenizer.stream(
        generate_tokens(model, tokens, max_tokens, tokenizer.end_of_text, **settings)
    )


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a prompt; of an empty one, the token after which a text begins."""
    return tokenizer.encode(prompt) or [tokenizer.end_of_text]


def generate_tokens(
    model: GPT2,
    prompt: list[int],
    max_tokens: int,
    end_of_text: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    rng: np.random.Generator | None = None,
) -> Iterator[int]:
    """Continue a prompt, token by token, until `end_of_text` or `max_tokens`.

    When the context is full, its older half is forgotten and the rest entered again: one pass over
    half a context for every half a context of tokens.

    Args:
        model: its activations serve as the cache, and are overwritten.
        prompt: at least one token.
        max_tokens: how many tokens to add at the most.
        end_of_text: the token that ends the text; it is not returned.
        temperature: the logits are divided by it; 0 always takes the likeliest token.
        top_k: only the k likeliest tokens take part; 0 for all.
        top_p: only the likeliest tokens that together have this probability take part
            (Holtzman et al. 2020, arXiv 1904.09751, section 3.1); 1 for all.
        rng: where the chances come from; by default a generator seeded with 0.

    Raises:
        UserError: the prompt is longer than the context, or a setting is out of its range.
    """
    if not temperature >= 0:
        raise UserError(f"the temperature must be 0 or more, not {temperature}")
    if top_k < 0:
        raise UserError(f"top-k must be 1 or more, or 0 for all tokens, not {top_k}")
    if not 0 < top_p <= 1:
        raise UserError(f"top-p must be above 0 and at most 1, not {top_p}")
    if len(prompt) > model.seq_len:
        raise UserError(
            f"the prompt has {len(prompt)} tokens, but this model sees {model.seq_len}; shorten it"
        )
    rng = np.random.default_rng(0) if rng is None else rng

    def continuation() -> Iterator[int]:
        context, entered = list(prompt), 0
        for _ in range(max_tokens):
            logits = model.forward(np.array([context[entered:]]), start=entered)
            token = pick(logits[0, -1], temperature, top_k, top_p, rng)
            if token == end_of_text:
                return
            yield token
            entered = len(context)
            if entered == model.seq_len:
                context, entered = context[(model.seq_len + 1) // 2 :], 0
            context.append(token)

    return continuation()


def pick(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, rng: np.random.Generator
) -> int:
    """One token by chance, from the (V,) logits; the settings are those of `generate_tokens`.

    Raises:
        RunError: a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise RunError("the model's logits are not finite: its training has diverged")
    if temperature == 0:
        return int(logits.argmax())
    # float64, because the probabilities of 50,000 tokens have to add up to 1.
    probs = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    if 0 < top_k < len(probs):
        probs[probs < np.partition(probs, -top_k)[-top_k]] = 0
    probs /= probs.sum()
    if top_p < 1:
        order = np.argsort(-probs)
        of_likelier = np.cumsum(probs[order]) - probs[order]
        probs[order[of_likelier >= top_p]] = 0
        probs /= probs.sum()
    return int(rng.choice(len(probs), p=probs))


def load_gpt2(path: Path) -> tuple[GPT2, Tokenizer]:
    """The model and the tokenizer of a checkpoint, or of a run's folder.

    Raises:
        UserError: there is no checkpoint.
        FormatError: it is damaged.
    """
    path = find_checkpoint(path)
    meta = read_meta(path)
    # Positions that were never trained say nothing, so the context ends before them.
    model = GPT2(GPT2Config(**meta["config"]), seq_len=meta["positions"], seed=None)
    load_arrays(path, {"params": model.params.flat})
    return model, Tokenizer.from_text(meta["tokenizer"], path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Let a checkpoint speak.")
    parser.add_argument("checkpoint", type=Path, help="a run's folder, or a checkpoint in it")
    parser.add_argument("--prompt", default="", help="the text to continue (default: none)")
    parser.add_argument(
        "--max-tokens",
        type=at_least(1),
        default=200,
        help="how many tokens to add (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        help="0 always takes the likeliest token, 1 is the model's own distribution "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--top-k", type=int, default=0, help="choose among the k likeliest tokens (default: all)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=0.95,
        help="choose among the likeliest tokens that together have this probability "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=at_least(0),
        default=0,
        help="the same seed, the same text (default: %(default)s)",
    )
    args = parser.parse_args()

    model, tokenizer = load_gpt2(args.checkpoint)
    count = 0

    def counted(tokens: Iterable[int]) -> Iterator[int]:
        nonlocal count
        for token in tokens:
            count += 1
            yield token

    tokens = generate_tokens(
        model,
        prompt_tokens(tokenizer, args.prompt),
        args.max_tokens,
        tokenizer.end_of_text,
        args.temperature,
        args.top_k,
        args.top_p,
        np.random.default_rng(args.seed),
    )
    begin = time.perf_counter()
    print(args.prompt, end="", flush=True)
    for piece in tokenizer.stream(counted(tokens)):
        print(piece, end="", flush=True)
    seconds = time.perf_counter() - begin
    print()
    print(f"{count} tokens in {seconds:.2f} s, {count / seconds:.0f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    run_program(main)
