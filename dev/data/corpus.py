"""What the scripts in this folder share: from documents to the files that training reads.

A corpus is a folder of train_000000.bin, val_000000.bin (and further shards) and the tokenizer they
were encoded with: tokenizer.tiktoken, tokenizer.json, tokenizer.bin, tokenizer.spm or
characters.json. In front of each document stands the token that begins a text, as in llm.c's and
llama2.c's corpora, so that a model knows where a text begins and can be asked to begin one.

Documents are read anew whenever they are gone through, one by one, so that gigabytes of them need
little memory.
"""

import argparse
import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from dataloader import write_shard
from dev.download import download
from errors import UserError
from files import decode_text, making
from formats.tokenizer_files import FILES, KINDS
from load import tokenizer_of
from tokenizer import END_OF_TEXT, CharTokenizer, Tokenizer, train_bpe

DATA = Path(__file__).resolve().parents[2] / "data"
SHARD_TOKENS = 100_000_000
BPE_CHARACTERS = 20_000_000  # more text hardly changes the vocabulary, and takes longer
MOST_MERGES = 65536 - 257  # of a vocabulary made here: a token then takes 16 bits
BLOCK_BYTES = 1 << 20
END_MARKS = END_OF_TEXT, "</s>"  # which other programs put between documents


def add_options(parser: argparse.ArgumentParser, tokenizer: str, name: str) -> None:
    """The options that every script has, with their defaults for this one."""
    parser.add_argument(
        "--tokenizer",
        default=tokenizer,
        help=f"gpt2, bytes, a {FILES}, a model's file or folder, bpe:N to train N merges on the "
        "training split, or chars for the characters of the training split (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"folder for the corpus (default: data/{name}, with --tokenizer chars "
        f"data/{name}-chars)",
    )


def folder_of(name: str, arguments: argparse.Namespace) -> Path:
    """The folder for the corpus, which by default is called `name`."""
    suffix = "-chars" if arguments.tokenizer == "chars" else ""
    return arguments.out or DATA / f"{name}{suffix}"


def source_file(given: Path | None, url: str) -> Path:
    """The file to read: the one given, or else the one at `url`, downloaded once to data/downloads.

    Raises:
        UserError: the given file is not there.
        RunError: the download failed.
    """
    if given:
        if not given.is_file():
            raise UserError(f"there is no file {given}")
        return given
    path = DATA / "downloads" / url.rpartition("/")[2]
    if not path.exists():
        with making(path.parent):
            download(url, path, "get it elsewhere and use --from FILE")
    return path


def pieces(path: Path, separator: str) -> Iterator[str]:
    """The texts between separators in a file, which is read block by block.

    Raises:
        UserError: it is not UTF-8.
    """
    ends = rb"\r?\n".join(map(re.escape, separator.encode().split(b"\n")))
    offset, rest = 0, b""
    with path.open("rb") as file:
        # As much as was left without a separator, so that a long text is not searched too often.
        while block := file.read(max(BLOCK_BYTES, len(rest))):
            data, start = rest + block, 0
            for end in re.finditer(ends, data):
                yield decode_text(data[start : end.start()], path, offset + start)
                start = end.end()
            offset, rest = offset + start, data[start:]
    yield decode_text(rest, path, offset)


@dataclass(frozen=True)
class Kept:
    """The documents whose numbers, counted from 0, are kept."""

    documents: Iterable[str]
    keep: Callable[[int], bool]

    def __iter__(self) -> Iterator[str]:
        return (text for number, text in enumerate(self.documents) if self.keep(number))


def split_documents(documents: Iterable[str]) -> tuple[Iterable[str], Iterable[str]]:
    """Training and validation documents: one in ten is for validation.

    Of fewer than ten, the last tenth of each is, cut at a line end if there is one nearby.
    """
    first = list(islice(documents, 10))
    if len(first) == 10:
        return Kept(documents, lambda i: i % 10 != 5), Kept(documents, lambda i: i % 10 == 5)
    train, val = [], []
    for text in first:
        end = len(text) * 9 // 10
        cut = text.rfind("\n", end // 2, end) + 1 or end
        train.append(text[:cut])
        val.append(text[cut:])
    return train, val


def write_corpus(train: Iterable[str], val: Iterable[str], folder: Path, tokenizer: str) -> None:
    """Write the corpus into `folder`, in the place of one that was there, and say what it is.

    Args:
        train, val: the documents; `train` is gone through twice if a vocabulary is made of it.
        tokenizer: as in `--tokenizer`.

    Raises:
        UserError: a split has no text, or the tokenizer cannot be had.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder for the corpus")
    vocabulary = _make_tokenizer(tokenizer, train)
    left_out, marks = Counter(), Counter()
    train, val = (_encodable(split, vocabulary, left_out, marks) for split in (train, val))
    # A run that fails half-way leaves the corpus that was there before, and no new folder.
    with making(folder), tempfile.TemporaryDirectory(dir=folder) as name:
        temporary = Path(name)
        num_train = _write_shards(train, temporary, "train", vocabulary)
        num_val = _write_shards(val, temporary, "val", vocabulary)
        vocabulary.save(temporary / vocabulary.file_name)
        # A folder is a corpus once it has its tokenizer, which goes first and comes last.
        patterns = (*(kind.file_name for kind in KINDS), "train_*.bin", "val_*.bin")
        for pattern in patterns:
            for old in folder.glob(pattern):
                old.unlink()
        for pattern in reversed(patterns):
            for new in temporary.glob(pattern):
                new.replace(folder / new.name)
    print(
        f"{folder}: {num_train:,} tokens to train on, {num_val:,} to validate with, "
        f"vocabulary of {vocabulary.vocab_size:,}"
    )
    if left_out:
        shown = " ".join(repr(character) for character, _ in left_out.most_common(10))
        print(
            f"left out were {left_out.total():,} characters that the vocabulary has not: {shown}"
            + (" ..." if len(left_out) > 10 else "")
        )
    for mark, count in marks.items():
        print(
            f"the text has {mark} {count:,} times, which is learnt as plain text; textfile.py "
            f'--split-on "{mark}" makes documents of it'
        )


def _make_tokenizer(name: str, train: Iterable[str]) -> Tokenizer:
    if name == "chars":
        return CharTokenizer(_characters(train))
    return _train_bpe(name, train) if name.startswith("bpe:") else tokenizer_of(name)


def _train_bpe(name: str, train: Iterable[str]) -> Tokenizer:
    merges = name.removeprefix("bpe:")
    if not (merges.isdecimal() and int(merges) <= MOST_MERGES):
        raise UserError(f"{name} must be bpe: and a number of merges from 0 to {MOST_MERGES}")
    tokenizer = train_bpe(_first_characters(train, BPE_CHARACTERS), int(merges))
    if (made := tokenizer.vocab_size - 257) < int(merges):
        print(f"{name} became bpe:{made}, as after so many merges no pair of tokens occurs twice")
    return tokenizer


def _characters(texts: Iterable[str]) -> str:
    """All characters of the texts in order, and the line end after which a text begins."""
    characters = {"\n"}
    for text in texts:
        characters.update(text)
    return "".join(sorted(characters))


def _encodable(
    documents: Iterable[str], tokenizer: Tokenizer, left_out: Counter[str], marks: Counter[str]
) -> Iterator[str]:
    """The documents without the characters that the vocabulary cannot spell.

    Nothing could be said of those: no model that is trained on the one split has ever seen them.

    Args:
        left_out: counts them.
        marks: counts what looks as if it were to end a document.
    """
    for document in documents:
        for mark in END_MARKS:
            if count := document.count(mark):
                marks[mark] += count
        if unknown := tokenizer.unknown(document):
            left_out.update(character for character in document if character in unknown)
            document = document.translate(dict.fromkeys(map(ord, unknown)))
        yield document


def _first_characters(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        yield text[:limit]
        limit -= len(text)
        if limit <= 0:
            return


def _write_shards(documents: Iterable[str], folder: Path, name: str, tokenizer: Tokenizer) -> int:
    """Write `name`_000000.bin and so on; returns how many tokens that were."""
    shards, tokens = 0, array("H" if tokenizer.vocab_size <= 1 << 16 else "I")
    for document in tqdm(documents, desc=name, unit=" documents", disable=None, leave=False):
        if not document.strip():
            continue
        tokens.append(tokenizer.begin)
        tokens.extend(tokenizer.encode(document))
        while len(tokens) > SHARD_TOKENS:
            write_shard(folder / f"{name}_{shards:06d}.bin", tokens[:SHARD_TOKENS])
            shards, tokens = shards + 1, tokens[SHARD_TOKENS:]
    if not tokens:
        raise UserError(
            f"there is no text for {folder.parent / name}_000000.bin, or none with characters of "
            "the vocabulary; give more text, so that a part can be set aside for validation"
        )
    write_shard(folder / f"{name}_{shards:06d}.bin", tokens)
    return shards * SHARD_TOKENS + len(tokens)
