"""Let a model speak.

    python sample.py runs/tiny --prompt "The for statement" --temperature 0.8
    python sample.py runs/tiny --best               as it was at its lowest validation loss
    python sample.py stories15M.bin --tokenizer tokenizer.bin --num-samples 8
    python sample.py stories15M.bin --prompts-file people.txt       a line for each
    python sample.py SmolLM2-135M-Instruct.Q4_1.gguf --chat --system "You are a pirate."

How it is done is in sampler.py and chat.py, which notebooks and games use, too.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from chat import Chat, find_template
from errors import UserError, at_least
from files import decode_text
from formats.checkpoint import BEST
from formats.tokenizer_files import FILES
from load import open_model, tell_spare_rows
from sampler import Settings, Stats, generate_many

LONGEST_CHAT = 4096  # tokens that are remembered; models of today have room for many times that


def converse(chat: Chat) -> None:
    """Answer messages from standard input, a line each, until it ends."""
    asks = sys.stdin.isatty()
    while True:
        if asks:
            print("> ", end="", flush=True)
        message = decode_text(sys.stdin.buffer.readline(), "standard input")
        if not message:
            return
        try:
            answer = chat.answer(message)
        except UserError as error:
            if not asks:
                raise
            print(error, file=sys.stderr)
            continue
        for piece in answer:
            print(piece, end="", flush=True)
        print(flush=True)


def read_prompts(args: argparse.Namespace) -> list[str | None]:
    """The prompts that were asked for, each as often as it was asked for.

    Raises:
        UserError: a file is not there, not UTF-8 or empty.
    """
    prompts = [args.prompt]
    if args.prompt_file:
        # The end of its last line is not meant to be part of it.
        prompts = [read_text(args.prompt_file).removesuffix("\n")]
    elif args.prompts_file:
        lines = read_text(args.prompts_file).split("\n")
        prompts = [line for line in lines if line.strip()]
        if not prompts:
            raise UserError(f"{args.prompts_file} has no prompts; give it a line for each")
    return [prompt for prompt in prompts for _ in range(args.num_samples)]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, or of standard input where the path is "-"."""
    if path == Path("-"):
        return decode_text(sys.stdin.buffer.read(), "standard input")
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    return decode_text(path.read_bytes(), path)


def main() -> None:
    args = make_parser().parse_args()
    if args.chat and args.num_samples > 1:
        raise UserError("a conversation is one; leave out --num-samples or --chat")
    if args.system and not args.chat:
        raise UserError("--system is for a conversation; add --chat")
    settings = {
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "repetition_penalty": args.repetition_penalty,
    }
    Settings(**settings)  # before anything is loaded
    if args.best:
        args.model /= BEST
        if not args.model.is_file():
            raise UserError(
                f"there is no {args.model}; --best is for the folder of a run that has it"
            )
    rng = np.random.default_rng(args.seed)
    source = open_model(args.model, args.tokenizer)
    tokenizer = source.tokenizer
    if tokenizer is None:
        raise UserError(
            f"{args.model} does not say how it writes text ({source.tokenizer_source}); give its "
            f"--tokenizer: gpt2, or a {FILES}"
        )
    tell_spare_rows(tokenizer, source.config.vocab_size)
    if args.chat:
        template = find_template(tokenizer, source.chat_template, args.system)
        model = source.load(seq_len=min(source.positions, LONGEST_CHAT))
        chat = Chat(model, tokenizer, template, args.max_tokens, rng, **settings)
        converse(chat)
        print(chat.stats, file=sys.stderr)
        return

    prompts = read_prompts(args)
    longest = max(len(tokenizer.encode_prompt(prompt)) for prompt in prompts)
    model = source.load(len(prompts), min(source.positions, longest + args.max_tokens))
    stats = Stats()
    pieces = generate_many(model, tokenizer, prompts, args.max_tokens, rng, stats, **settings)
    if len(prompts) == 1:
        print(prompts[0] or "", end="", flush=True)
        for _, piece in pieces:
            print(piece, end="", flush=True)
        print()
    else:
        print_many(prompts, pieces)
    print(stats, file=sys.stderr)


def print_many(prompts: Sequence[str | None], pieces: Iterator[tuple[int, str]]) -> None:
    """Collect the texts, which grow all at once, and print one after the other, even if stopped."""
    texts = [prompt or "" for prompt in prompts]
    try:
        for number, piece in tqdm(
            pieces, desc="writing", unit=" pieces", disable=None, leave=False
        ):
            texts[number] += piece
    finally:
        for number, text in enumerate(texts, start=1):
            print(f"--- {number} ---\n{text}")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Let a model speak.")
    default = "(default: %(default)s)"
    parser.add_argument("model", type=Path, help="a run, or a model's file or folder of any format")
    parser.add_argument(
        "--best",
        action="store_true",
        help="a run with the parameters of its lowest validation loss, not with its last",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="gpt2, or a file: .tiktoken, llama2.c's tokenizer.bin, SentencePiece's .model, "
        "Hugging Face's tokenizer.json, nanoGPT's meta.pkl, or another model (default: the one in "
        "the model's file or beside it)",
    )

    prompt = parser.add_argument_group("what to continue (default: begin a new text)")
    one = prompt.add_mutually_exclusive_group()
    one.add_argument("--prompt", metavar="TEXT", help="this text")
    one.add_argument(
        "--prompt-file", type=Path, metavar="FILE", help="a UTF-8 file; - for standard input"
    )
    one.add_argument(
        "--prompts-file",
        type=Path,
        metavar="FILE",
        help="every line of a UTF-8 file (- for standard input), all at once",
    )
    one.add_argument(
        "--chat",
        action="store_true",
        help="a conversation, a line from standard input for each message, in the model's own "
        "template: ChatML, Gemma, Llama 2 or 3, Phi-3 or Zephyr",
    )
    prompt.add_argument(
        "--system",
        metavar="TEXT",
        help="how --chat shall answer (default: what the model's template says)",
    )
    prompt.add_argument(
        "--num-samples",
        type=at_least(1),
        default=1,
        metavar="N",
        help=f"continue each prompt N times, all at once {default}",
    )

    choice = parser.add_argument_group("how to go on")
    choice.add_argument(
        "--max-tokens",
        type=at_least(1),
        default=200,
        metavar="N",
        help=f"how many tokens to add at the most {default}",
    )
    choice.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        help=f"0 always takes the likeliest token, 1 is the model's own distribution {default}",
    )
    choice.add_argument(
        "--top-k", type=int, default=0, help="choose among the k likeliest tokens (default: 0, all)"
    )
    choice.add_argument(
        "--top-p",
        type=float,
        default=0.95,
        help=f"choose among the likeliest tokens that together have this probability {default}",
    )
    choice.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help=f"above 1, what was said already becomes less likely {default}",
    )
    choice.add_argument(
        "--seed", type=at_least(0), default=0, help=f"the same seed, the same text {default}"
    )
    return parser
