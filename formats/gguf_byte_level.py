"""BPE on bytes in GGUF: tokens with their types, merges, and a name for how a text becomes words.

Source of the format: llama.cpp, src/llama-vocab.cpp.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from errors import UserError
from formats.byte_level import (
    WORDS,
    ByteLevelTokenizer,
    Words,
    make_tokenizer,
    of_ranks,
    spelling,
)
from formats.gguf_header import damaged
from formats.tokenizer_files import padding
from formats.tokenizer_json import read_pairs
from tokenizer import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, BytePairTokenizer

SAME_WORDS = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}


def words_of(pre: str) -> Words | None:
    """How a text becomes words, by the name that the file has for it; None if that is unknown."""
    return WORDS.get(SAME_WORDS.get(pre, pre))


def read(
    path: Path, value: Callable[..., Any], tokens: list[bytes], types: list[int], ends: list[int]
) -> BytePairTokenizer | ByteLevelTokenizer:
    """A file's tokenizer, if `words_of` knows how it makes words of a text.

    Args:
        path: what error messages call the file.
        value: gives the value of a key, which is of a type, or a default.
        tokens: without padding.
        types: of these, and maybe of padding.
        ends: the tokens that end a text, the usual one first.

    Raises:
        FormatError: it is damaged.
    """
    words = words_of(value("pre", str, "default"))
    names = [token.decode(errors="replace") for token in tokens]
    ids = {name: id_ for id_, name in enumerate(names)}
    if len(ids) < len(names) or "" in ids:
        raise damaged(path, "a token twice, or an empty one")
    merges = (merge.decode(errors="replace") for merge in value("merges", list, []) if merge)
    pairs = read_pairs(merges, names, path)
    begin = value("bos_token_id", int, None)
    if begin is not None and not 0 <= begin < len(names):
        raise damaged(path, f"a token {begin} that begins texts, and {len(names)} tokens")
    for id_ in ends if begin is None else [begin, *ends]:
        types[id_] = CONTROL
    # Padding has types, too.
    special = {name: id_ for name, id_ in ids.items() if types[id_] in (UNKNOWN, CONTROL, UNUSED)}
    added = {name: id_ for name, id_ in ids.items() if types[id_] == USER_DEFINED}
    # What llama.cpp does where the file does not say.
    adds_begin = value("add_bos_token", bool, words == WORDS["llama-bpe"])
    return make_tokenizer(names, pairs, words, special, added, begin, adds_begin, ends, path)


def add(
    writer: Any, tokenizer: BytePairTokenizer | ByteLevelTokenizer, rows: int
) -> tuple[list[str], list[int]]:
    """Add what this kind has alone; a token for each row, and the types of those in use.

    Raises:
        UserError: the file cannot say how the tokenizer makes words of a text.
    """
    if isinstance(tokenizer, BytePairTokenizer):
        tokenizer = of_ranks(tokenizer)
    name = next((name for name, words in WORDS.items() if words == tokenizer.words), None)
    if name is None:
        raise UserError(
            "a GGUF cannot say how this tokenizer makes words of a text; choose another format"
        )
    tokens, pairs = spelling(tokenizer)
    types = [NORMAL] * len(tokens)
    for kind, ids in (CONTROL, tokenizer.special), (USER_DEFINED, tokenizer.added):
        for id_ in ids.values():
            types[id_] = kind
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    # llama.cpp wants a list, and the library writes no empty one; an empty merge joins nothing.
    writer.add_token_merges([" ".join(pair) for pair in pairs] or [""])
    writer.add_add_bos_token(tokenizer.adds_begin)
    return [*tokens, *padding(len(tokens), rows)], types
