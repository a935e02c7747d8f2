"""Prepare a corpus from text of your own: files, or folders of .txt and .md files.

Each file is a document. One in ten is for validation; of fewer than ten, the last tenth of each.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
from pathlib import Path

from dev.data.corpus import DATA, add_options, split_documents, write_corpus
from errors import UserError
from files import decode_text


def read_documents(paths: list[Path]) -> list[str]:
    """The text of every file, and of every .txt and .md file anywhere in a folder.

    Raises:
        UserError: a path does not exist, a file is not UTF-8, or there is no text.
    """
    documents = [decode_text(file.read_bytes(), file) for path in paths for file in _files(path)]
    documents = [text for text in documents if text.strip()]
    if not documents:
        raise UserError(f"there is no text in {', '.join(map(str, paths))}")
    return documents


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    if path.is_file():
        return [path]
    inside = (file for file in path.rglob("*.*") if file.is_file())
    return sorted(file for file in inside if file.suffix.lower() in (".txt", ".md"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="a file or folder")
    add_options(parser, "bpe:1024", None)
    arguments = parser.parse_args()
    train, val = split_documents(read_documents(arguments.paths))
    out = arguments.out or DATA / arguments.paths[0].resolve().stem
    write_corpus(train, val, out, arguments.tokenizer)
