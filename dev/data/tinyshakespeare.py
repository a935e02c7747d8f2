"""Prepare tinyshakespeare: one megabyte of Shakespeare's plays.

Each speech is a document, as in llm.c: the token that begins a text then comes often enough in so
small a corpus that a model learns to begin from it. The last tenth of the plays is for validation.

With `--tokenizer chars` it is nanoGPT's shakespeare_char instead, so that losses can be compared:
all is one text, and the last tenth of its characters is for validation. Only the line end in front
of each of the two, from which a text begins here, is not in nanoGPT's.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
from pathlib import Path

from dev.data.corpus import add_options, folder_of, source_file, write_corpus
from files import decode_text

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, "gpt2", "tinyshakespeare")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="use this copy of the text instead of downloading it",
    )
    arguments = parser.parse_args()
    path = source_file(arguments.source, URL)
    text = decode_text(path.read_bytes(), path)
    if arguments.tokenizer == "chars":
        cut = len(text) * 9 // 10
        train, val = [text[:cut]], [text[cut:]]
    else:
        speeches = [f"{speech}\n\n" for speech in text.split("\n\n")]
        cut = len(speeches) * 9 // 10
        train, val = speeches[:cut], speeches[cut:]
    write_corpus(train, val, folder_of("tinyshakespeare", arguments), arguments.tokenizer)
