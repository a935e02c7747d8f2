"""What the scripts in this folder share: from documents to the files that training reads.

A corpus is a folder of train_000000.bin, val_000000.bin (and further shards) and the tokenizer they
were encoded with, tokenizer.tiktoken or tokenizer.bin. In front of each document stands the token
that begins a text, as in llm.c's and llama2.c's corpora, so that a model knows where a text begins
and can be asked to begin one.
"""

import argparse
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from dataloader import write_shard
from dev.download import download
from errors import UserError
from load import tokenizer_of
from tokenizer import BytePairTokenizer, LlamaTokenizer, Tokenizer, train_bpe

DATA = Path(__file__).resolve().parents[2] / "data"
SHARD_TOKENS = 100_000_000
BPE_CHARACTERS = 20_000_000  # more text hardly changes the vocabulary, and takes longer


def add_options(parser: argparse.ArgumentParser, tokenizer: str, out: Path | None) -> None:
    """The options that every script has, with their defaults for this one."""
    parser.add_argument(
        "--tokenizer",
        default=tokenizer,
        help="gpt2, bytes, a .tiktoken, tokenizer.bin, .model or tokenizer.json file, a model's "
        "file or folder, or bpe:N to train N merges on the training split (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=out,
        metavar="DIR",
        help="folder for the corpus (default: "
        + ("%(default)s)" if out else "data/NAME, NAME being the first PATH's)"),
    )


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
        download(url, path, "get it elsewhere and use --from FILE")
    return path


def split_documents(documents: list[str]) -> tuple[list[str], list[str]]:
    """Training and validation documents: one in ten is for validation.

    Of fewer than ten, the last tenth of each is, cut at a line end if there is one nearby.
    """
    if len(documents) >= 10:
        return [text for i, text in enumerate(documents) if i % 10 != 5], documents[5::10]
    train, val = [], []
    for text in documents:
        end = len(text) * 9 // 10
        cut = text.rfind("\n", end // 2, end) + 1 or end
        train.append(text[:cut])
        val.append(text[cut:])
    return train, val


def write_corpus(train: Iterable[str], val: Iterable[str], folder: Path, tokenizer: str) -> None:
    """Write the corpus into `folder`, in the place of one that was there, and say so in one line.

    Args:
        train, val: the documents; `train` is gone through twice if a vocabulary is trained on it.
        tokenizer: as in `--tokenizer`.

    Raises:
        UserError: a split has no text, or the tokenizer cannot be had or is too large.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder for the corpus")
    vocabulary = _make_tokenizer(tokenizer, train)
    folder.mkdir(parents=True, exist_ok=True)
    # A run that fails half-way leaves the corpus that was there before.
    with tempfile.TemporaryDirectory(dir=folder) as name:
        temporary = Path(name)
        num_train = _write_shards(train, temporary, "train", vocabulary)
        num_val = _write_shards(val, temporary, "val", vocabulary)
        vocabulary.save(temporary / vocabulary.file_name)
        # A folder is a corpus once it has its tokenizer, which goes first and comes last.
        tokenizers = (BytePairTokenizer.file_name, LlamaTokenizer.file_name)
        patterns = (*tokenizers, "train_*.bin", "val_*.bin")
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


def _make_tokenizer(name: str, train: Iterable[str]) -> Tokenizer:
    kind, _, merges = name.partition(":")
    if kind != "bpe":
        tokenizer = tokenizer_of(name)
        if tokenizer.vocab_size > 65536:
            raise UserError(
                f"{name} has {tokenizer.vocab_size:,} tokens, and a token file can tell 65,536 "
                "apart; use a smaller vocabulary"
            )
        return tokenizer
    if not (merges.isdecimal() and int(merges) <= 65536 - 257):
        raise UserError(f"{name} must be bpe: and a number of merges from 0 to {65536 - 257}")
    return train_bpe(_first_characters(train, BPE_CHARACTERS), int(merges))


def _first_characters(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        yield text[:limit]
        limit -= len(text)
        if limit <= 0:
            return


def _write_shards(documents: Iterable[str], folder: Path, name: str, tokenizer: Tokenizer) -> int:
    """Write `name`_000000.bin and so on; returns how many tokens that were."""
    shards, tokens = 0, array("H")
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
            f"there is no text for {folder.parent / name}_000000.bin; "
            "give more text, so that a part of it can be set aside for validation"
        )
    write_shard(folder / f"{name}_{shards:06d}.bin", tokens)
    return shards * SHARD_TOKENS + len(tokens)
