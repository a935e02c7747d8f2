"""Prepare the default corpus: the reference documentation that comes with every Python.

It needs no download: `pydoc_data` is what `help("while")` prints from.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
import re
from pathlib import Path
from pydoc_data.topics import topics

from dev.data.corpus import DATA, add_options, folder_of, split_documents, write_corpus

DEFAULT_TOKENIZER = "bpe:2048"


def prepare(folder: Path = DATA / "pydocs", tokenizer: str = DEFAULT_TOKENIZER) -> None:
    """Write the corpus to `folder`."""
    train, val = split_documents(documents())
    write_corpus(train, val, folder, tokenizer)


def documents() -> list[str]:
    """The topics, longest first, so that one in ten is a fair sample of all lengths.

    Many topics are also a section of a longer one. Those are left out: else the model would be
    validated on what it was trained on. So are lines that only rule off headings and tables; and
    the lines of a paragraph become one, for a model should not have to learn where to break them.
    """
    kept, known = [], set()
    for topic in sorted(topics.values(), key=len, reverse=True):
        text = re.sub(r"^[ |+*=~-]{4,}\n", "", topic, flags=re.MULTILINE)
        text = re.sub(r"(?<=[^\s|])\n(?=[^\s|*])", " ", text)
        paragraphs = text.split("\n\n")
        repeated = sum(len(paragraph) for paragraph in paragraphs if paragraph in known)
        if repeated < len(text) / 2:
            kept.append(text)
            known.update(paragraphs)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, DEFAULT_TOKENIZER, "pydocs")
    arguments = parser.parse_args()
    prepare(folder_of("pydocs", arguments), arguments.tokenizer)
