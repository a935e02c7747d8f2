"""Scripts that make corpora, and what is in one, for the tests of both."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

from formats.tokenizer_files import find_tokenizer, load_tokenizer


def call(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    module.main()


def read_tokens(path: Path) -> list[int]:
    return np.fromfile(path, "<u2", offset=1024).tolist()


def read_documents(folder: Path, split: str) -> list[str]:
    """The documents of one split, back from its tokens."""
    tokenizer = load_tokenizer(find_tokenizer(folder))
    tokens = [t for path in sorted(folder.glob(f"{split}_*.bin")) for t in read_tokens(path)]
    assert tokens[0] == tokenizer.begin
    bounds = [i for i, t in enumerate(tokens) if t == tokenizer.begin] + [len(tokens)]
    return [tokenizer.decode(tokens[start + 1 : end]) for start, end in pairwise(bounds)]
