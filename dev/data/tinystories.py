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
from collections.abc import Callable, Iterator
from pathlib import Path

from dev.data.corpus import DATA, add_options, source_file, write_corpus
from files import decode_text

URL = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4"
SEPARATOR = b"<|endoftext|>"


class Stories:
    """The stories of a file, read anew whenever they are gone through.

    Args:
        path: stories separated by `<|endoftext|>`.
        keep: tells from a story's number, counted from 0, whether to take it.
    """

    def __init__(self, path: Path, keep: Callable[[int], bool] = lambda number: True):
        self.path, self.keep = path, keep

    def __iter__(self) -> Iterator[str]:
        offset = 0
        for number, story in enumerate(self._pieces()):
            if self.keep(number):
                yield decode_text(story, self.path, offset).strip()
            offset += len(story) + len(SEPARATOR)

    def _pieces(self) -> Iterator[bytes]:
        rest = b""
        with self.path.open("rb") as file:
            while block := file.read(1 << 20):
                *stories, rest = (rest + block).split(SEPARATOR)
                yield from stories
        yield rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, "bpe:4096", DATA / "tinystories")
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
        train = Stories(path, lambda number: number % 100 != 99)
        val = Stories(path, lambda number: number % 100 == 99)
    else:
        train = Stories(source_file(None, f"{URL}-train.txt"))
        val = Stories(source_file(None, f"{URL}-valid.txt"))
    write_corpus(train, val, arguments.out, arguments.tokenizer)
