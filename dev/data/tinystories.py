"""Prepare TinyStories: two gigabytes of short stories in words a child knows, written by GPT-4.

The vocabulary is small and trained on the stories themselves, for a large one would be most of a
small model: of the 15.2 million parameters of llama2.c's stories15M, whose vocabulary is Llama's,
the embedding table of 32,000 tokens takes 9.2 million. For 4,353 tokens it takes 1.3 million, and
the rest can become layers. The stories get no longer by it, as llama2.c's author found: few words
occur in them.

Source: Eldan and Li 2023 (arXiv 2305.07759); llama2.c, README, "custom tokenizers". The stories are
read one by one, never all at once.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dev.data.corpus import Kept, add_options, folder_of, pieces, source_file, write_corpus
from tokenizer import END_OF_TEXT

URL = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4"


@dataclass(frozen=True)
class Stories:
    """The stories of a file, in which `<|endoftext|>` separates them."""

    path: Path

    def __iter__(self) -> Iterator[str]:
        return (story.strip() for story in pieces(self.path, END_OF_TEXT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, "bpe:4096", "tinystories")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="use this file, of stories separated by <|endoftext|>, instead of downloading; every "
        "hundredth is for validation",
    )
    arguments = parser.parse_args()
    if arguments.source:
        path = source_file(arguments.source, URL)
        train = Kept(Stories(path), lambda number: number % 100 != 99)
        val = Kept(Stories(path), lambda number: number % 100 == 99)
    else:
        train = Stories(source_file(None, f"{URL}-train.txt"))
        val = Stories(source_file(None, f"{URL}-valid.txt"))
    write_corpus(train, val, folder_of("tinystories", arguments), arguments.tokenizer)
