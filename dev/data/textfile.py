"""Prepare a corpus from text of your own: files, or folders of .txt, .md and .jsonl files.

Each file is a document, unless `--split-on` or `--lines` says what is one, and so is each line of a
.jsonl file. One in ten is for validation; of fewer than ten, the last tenth of each.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dev.data.corpus import add_options, folder_of, pieces, split_documents, write_corpus
from errors import UserError
from files import decode_text, without_surrogates


@dataclass(frozen=True)
class Documents:
    """The documents in files that have text, read anew whenever they are gone through.

    Attributes:
        files: .jsonl files, of which each line is a document, and texts.
        separator: what stands between the documents of a text; None if it is one.
        field: what a line of a .jsonl file calls its text.

    Raises:
        UserError: on the way, if a file is not UTF-8, or a line not what it should be.
    """

    files: list[Path]
    separator: str | None = None
    field: str = "text"

    def __iter__(self) -> Iterator[str]:
        return (text for file in self.files for text in self._texts(file) if text.strip())

    def _texts(self, file: Path) -> Iterable[str]:
        if file.suffix.lower() == ".jsonl":
            return texts_of_lines(file, self.field)
        if self.separator:
            return (text.strip("\n") for text in pieces(file, self.separator))
        return [decode_text(file.read_bytes(), file)]


def texts_of_lines(path: Path, field: str) -> Iterator[str]:
    """What each line of a .jsonl file has as `field`.

    Raises:
        UserError: a line is not JSON, or has no such text.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{path}, line {number}: this is not JSON ({error}); mend or delete it"
                ) from None
            names = list(entry) if isinstance(entry, dict) else []
            if field not in names or not isinstance(entry[field], str):
                raise UserError(
                    f'{path}, line {number}: there is no text called "{field}", but '
                    f"{', '.join(names[:20]) or 'nothing with a name'}; choose by --field"
                )
            yield without_surrogates(entry[field])


def find_files(paths: list[Path]) -> list[Path]:
    """Every file, and every .txt, .md and .jsonl file anywhere in a folder.

    Raises:
        UserError: a path does not exist.
    """
    return [file for path in paths for file in _files(path)]


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    if path.is_file():
        return [path]
    inside = (file for file in path.rglob("*.*") if file.is_file())
    return sorted(file for file in inside if file.suffix.lower() in (".txt", ".md", ".jsonl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="a file or folder; the corpus gets the NAME of the first",
    )
    split = parser.add_mutually_exclusive_group()
    split.add_argument(
        "--split-on",
        type=line_ends,
        dest="separator",
        metavar="TEXT",
        help="what separates the documents in a file, such as <|endoftext|>; \\n is a line end, so "
        "that \\n---\\n is a line of its own, and \\n\\n an empty one",
    )
    split.add_argument(
        "--lines",
        action="store_const",
        const="\n",
        dest="separator",
        help="every line of a file is a document",
    )
    parser.add_argument(
        "--field",
        default="text",
        metavar="NAME",
        help="what .jsonl files call the text of a line (default: %(default)s)",
    )
    add_options(parser, "bpe:1024", "NAME")
    arguments = parser.parse_args()
    paths = arguments.paths
    documents = Documents(find_files(paths), arguments.separator, arguments.field)
    if not any(documents):
        raise UserError(f"there is no text in {', '.join(map(str, paths))}")
    train, val = split_documents(documents)
    write_corpus(train, val, folder_of(paths[0].resolve().stem, arguments), arguments.tokenizer)


def line_ends(text: str) -> str:
    """A text in which \\n stands for a line end, which is hard to type in a command."""
    if not text:
        raise argparse.ArgumentTypeError("must be some text")
    return text.replace("\\n", "\n")
