"""Llama's kind of tokenizer in GGUF: tokens with their scores and types.

For this kind llama.cpp knows one setting of SentencePiece's, whether a text gets a blank in front.
Where it does, so does what follows each user-defined token, which nothing else does. In files of
that sort there are none but by mistake: for years llama.cpp's converter made user-defined tokens
of special ones. In brackets, as <pad> is, they are read as control tokens; others are refused.

Source of the format: llama.cpp, src/llama-vocab.cpp and conversion/base.py.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError
from formats.gguf_header import MAX_NAME_BYTES, damaged
from formats.sentencepiece_model import (
    BLANK,
    TYPES,
    Settings,
    make_tokenizer,
    settings_of,
    spelled,
    unlike_pieces,
)
from formats.tokenizer_files import padded
from tokenizer import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, LlamaTokenizer

IN_BRACKETS = re.compile(rb"<.+>|\[.+\]")


def read(
    path: Path, value: Callable[..., Any], tokens: list[bytes], types: list[int]
) -> tuple[LlamaTokenizer | None, str]:
    """A file's tokenizer, or None and why there is none.

    Args:
        path: what error messages call the file.
        value: gives the value of a key, which is of a type, or a default.
        tokens: without padding.
        types: of these, and maybe of padding.

    Raises:
        FormatError: it is damaged.
    """
    count, scores = len(tokens), value("scores", np.ndarray, np.empty(0))
    if len(scores) != len(types):
        raise damaged(path, f"{len(scores)} scores of {len(types)} tokens")
    if max(map(len, tokens), default=0) > MAX_NAME_BYTES:
        raise damaged(path, f"a token of more than {MAX_NAME_BYTES} bytes")
    begin, end = value("bos_token_id", int, 1), value("eos_token_id", int, 2)
    unknown = value("unknown_token_id", int, 0)
    for token in (begin, end, unknown):
        if not 0 <= token < count:
            raise damaged(path, f"a special token {token}, and {count} tokens")
    if not {*types} <= {*TYPES, UNUSED}:
        raise damaged(path, "a token of a type that there is not")
    types = [CONTROL if kind == UNUSED else kind for kind in types[:count]]
    types[begin] = types[end] = CONTROL
    if UNKNOWN not in types and unknown not in (begin, end):
        types[unknown] = UNKNOWN
    settings = Settings(add_dummy_prefix=value("add_space_prefix", bool, True))
    for token, kind in enumerate(types):
        if kind == USER_DEFINED and settings.add_dummy_prefix:
            if not IN_BRACKETS.fullmatch(tokens[token]):
                name = tokens[token].decode(errors="replace")
                return None, f"its tokenizer looks for {name!r:.60} in a text with a blank in front"
            types[token] = CONTROL
    pieces = spelled(tokens, types)
    if what := unlike_pieces(pieces, types):
        return None, f"its tokenizer has {what}"
    adds_begin = value("add_bos_token", bool, True)
    return make_tokenizer(pieces, scores[:count], settings, types, begin, end, adds_begin), ""


def add(writer: Any, tokenizer: LlamaTokenizer, rows: int) -> tuple[list[bytes], list[int]]:
    """Add what this kind has alone; a token for each row, and the types of those in use.

    Raises:
        UserError: the file cannot say what the tokenizer does to a text.
    """
    settings = settings_of(tokenizer)
    if settings.remove_extra_whitespaces or settings.charsmap:
        raise UserError(
            "a GGUF cannot say that this tokenizer replaces characters or removes blanks, for with "
            "its kind llama.cpp does neither; choose another format"
        )
    if USER_DEFINED in tokenizer.types and settings.add_dummy_prefix:
        token = tokenizer.pieces[tokenizer.types.index(USER_DEFINED)]
        raise UserError(
            f"a GGUF cannot say that this tokenizer looks for {token!r} in a text, and puts a "
            "blank in front of that alone, for llama.cpp puts one behind each such token, too; "
            "choose another format"
        )
    pieces, scores, types = padded(tokenizer, rows)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores(scores)
    if UNKNOWN in types:
        writer.add_unk_token_id(types.index(UNKNOWN))
    writer.add_add_bos_token(tokenizer.adds_begin)
    writer.add_add_space_prefix(settings.add_dummy_prefix)
    # It looks for user-defined tokens in a text whose blanks are not yet spelled like those here.
    names = [
        piece.replace(b" ", BLANK) if kind == NORMAL else piece
        for piece, kind in zip(pieces, types, strict=True)
    ]
    return names, types[: tokenizer.vocab_size]
