"""Prepare tinyshakespeare: one megabyte of Shakespeare's plays.

Each speech is a document, as in llm.c: the token that begins a text then comes often enough in so
small a corpus that a model learns to begin from it. The last tenth of the plays is for validation.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
from pathlib import Path

from dev.data.corpus import DATA, add_options, source_file, write_corpus
from files import decode_text

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, "gpt2", DATA / "tinyshakespeare")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="use this copy of the text instead of downloading it",
    )
    arguments = parser.parse_args()
    path = source_file(arguments.source, URL)
    speeches = [f"{speech}\n\n" for speech in decode_text(path.read_bytes(), path).split("\n\n")]
    cut = len(speeches) * 9 // 10
    write_corpus(speeches[:cut], speeches[cut:], arguments.out, arguments.tokenizer)
