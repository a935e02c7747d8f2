"""Which corpus a run trains on, and how much of it a batch takes."""

import argparse
from pathlib import Path

from dataloader import count_tokens
from dev.data import pydocs
from errors import UserError
from formats.tokenizer_files import find_tokenizer

ROOT = Path(__file__).resolve().parents[1]
BATCH_SIZE, LONGEST_SEQUENCE = 8, 256  # unless others are asked for


def find_corpus(name: str | None) -> Path:
    """The folder of a corpus: the one named, else the one made last, else pydocs, made now.

    Raises:
        UserError: there is no corpus of that name.
    """
    if name:
        for folder in (Path(name), ROOT / "data" / name):
            if find_tokenizer(folder):
                return folder
            refuse_other_data(folder)
        raise UserError(
            f"there is no corpus {name}, neither as a folder nor in data/; make one with a script "
            "in dev/data, for example python dev/data/textfile.py MY.txt; where one has moved, "
            "--data says its new place"
        )
    made = [path for folder in (ROOT / "data").glob("*") if (path := find_tokenizer(folder))]
    if made:
        return max(made, key=lambda path: path.stat().st_mtime).parent
    print("no corpus is prepared: preparing Python's own documentation", flush=True)
    folder = ROOT / "data" / "pydocs"
    pydocs.prepare(folder)
    return folder


def refuse_other_data(path: Path) -> None:
    """Refuse a text, and tokens without their tokenizer, and say how to make a corpus of them."""
    folder = path.parent if path.is_file() else path
    if path.is_file() and find_tokenizer(folder):
        raise UserError(f"{path} is one file of a corpus; give its folder, {folder}")
    if path.is_file() and path.suffix != ".bin":
        raise UserError(
            f"{path} is no corpus yet; make one of it: python dev/data/textfile.py {path}"
        )
    if path.is_file() or (folder / "train.bin").is_file():
        kind = "chars" if (folder / "meta.pkl").is_file() else "gpt2"
        text = folder / "input.txt"  # as nanoGPT calls it
        raise UserError(
            f"{path} has tokens without a header or a tokenizer, as nanoGPT prepares them; prepare "
            f"the text: python dev/data/textfile.py {text} --tokenizer {kind}"
        )


def fit_to_text(args: argparse.Namespace, folder: Path, positions: int, num_ranks: int) -> None:
    """Set the length and the number of sequences in a batch, where they are not given.

    They are the usual ones, or, where a corpus is too small for those, less, which is told.
    """
    train, val = (count_tokens(folder / f"{split}_*.bin") for split in ("train", "val"))
    if args.seq_len is None:
        usual = min(positions, LONGEST_SEQUENCE)
        args.seq_len = max(1, min(usual, max(train) - 1, max(val) - 1))
        if args.seq_len < usual:
            print(f"{folder} is small: sequences have {args.seq_len} tokens instead of {usual}")
    if args.batch_size is None:
        windows = sum(max(0, count - 1) // args.seq_len for count in train)
        args.batch_size = max(1, min(BATCH_SIZE, windows // num_ranks))
        if args.batch_size < BATCH_SIZE:
            print(f"{folder} is small: batches have {args.batch_size} sequences, not {BATCH_SIZE}")
