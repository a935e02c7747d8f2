"""Tokenizers in GGUF: keys of the header, a list of tokens with their types, scores and merges.

A file has a token for every row of the model's table. Rows for which there is none are called
[PAD32000], [PAD32001] and so on, as llama.cpp calls them; to read, such tokens at the end are left
out.

Handled: BPE on bytes (gguf_byte_level.py), and Llama's kind, with special tokens behind its
vocabulary.
Not handled: tokenizers that are not laid out like ours, of which `read_tokenizer` says why; tokens
behind the vocabulary that llama.cpp looks for in every text ("user-defined"), unless they are in
brackets, as <pad> is: for years its converter made user-defined tokens of special ones.

Source of the format: ggml, docs/gguf.md; llama.cpp, src/llama-vocab.cpp and conversion/base.py.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError
from formats import gguf_byte_level
from formats.gguf_byte_level import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from formats.gguf_header import MAX_NAME_BYTES, damaged, get
from formats.sentencepiece_model import BLANK, Settings, make_tokenizer, settings_of
from formats.tokenizer_files import padded, without_padding
from formats.weights import Weights
from tokenizer import (
    BYTE_PIECES,
    FIRST_BYTE,
    FIRST_PIECE,
    SPECIAL_PIECES,
    CharTokenizer,
    LlamaTokenizer,
    Tokenizer,
)

IN_BRACKETS = re.compile(rb"<.+>|\[.+\]")


def read_tokenizer(
    path: Path, values: Mapping[str, Any], rows: int
) -> tuple[Tokenizer | None, str]:
    """A model's tokenizer, or None and why there is none.

    Args:
        path: what error messages call the file.
        values: of the header.
        rows: of the model's table.

    Raises:
        FormatError: it is damaged.
    """

    def value(name: str, kind: type, default: Any) -> Any:
        return get(path, values, f"tokenizer.ggml.{name}", kind, default)

    model, tokens = value("model", str, None), value("tokens", list, [])
    if model is None:
        return None, ""
    if model not in ("llama", "gpt2"):
        return None, f"its tokenizer is of the kind {model!r:.60}, which is not known here"
    pre = value("pre", str, "default")
    if model == "gpt2" and not gguf_byte_level.words_of(pre):
        return None, f"its tokenizer splits a text into words as {pre!r:.60}, which is unknown here"
    if len(tokens) != rows:
        raise damaged(path, f"{len(tokens)} tokens, but embeddings of {rows}")
    types = value("token_type", np.ndarray, np.full(rows, NORMAL))
    if len(types) != rows:
        raise damaged(path, f"types of {len(types)} tokens, and {rows} tokens")
    if model == "gpt2":
        return gguf_byte_level.read(path, value, without_padding(tokens), types.tolist()), ""
    for token, kind in zip(tokens, types, strict=True):
        if kind == USER_DEFINED and not IN_BRACKETS.fullmatch(token):
            name = token.decode(errors="replace")
            return None, f"its tokenizer looks for {name!r:.60} in a text, which is not done here"
    tokens = without_padding(tokens)
    scores = value("scores", np.ndarray, np.empty(0))
    if len(scores) != rows:
        raise damaged(path, f"{len(scores)} scores of {rows} tokens")
    if max(map(len, tokens)) > MAX_NAME_BYTES:  # a token is cut in two in every way
        raise damaged(path, f"a token of more than {MAX_NAME_BYTES} bytes")
    ends = value("bos_token_id", int, 1), value("eos_token_id", int, 2)
    own_ends = LlamaTokenizer.begin, LlamaTokenizer.end
    if ends != own_ends or tokens[FIRST_BYTE:FIRST_PIECE] != BYTE_PIECES:
        return None, "its tokenizer has not <s>, </s> and the bytes as tokens 1 to 258"
    special = np.isin(types, (CONTROL, USER_DEFINED, UNUSED))
    special[:FIRST_PIECE] = False  # which LlamaTokenizer knows
    scores = np.where(special, -math.inf, scores)[: len(tokens)]
    pieces = [token.replace(BLANK, b" ") for token in tokens]
    pieces[1:FIRST_BYTE] = SPECIAL_PIECES[1:]
    # For this model, llama.cpp looks at no other setting.
    settings = Settings(add_dummy_prefix=value("add_space_prefix", bool, True))
    return make_tokenizer(pieces, scores.tolist(), settings), ""


def add_tokenizer(writer: Any, path: Path, weights: Weights) -> None:
    """Let a `gguf.GGUFWriter` write a model's tokenizer.

    Raises:
        UserError: the model has none, or one with more tokens than its table has rows, or with two
            tokens that are spelled the same.
    """
    tokenizer, rows = weights.tokenizer, weights.config["vocab_size"]
    if tokenizer is None:
        raise UserError(f"cannot write {path} without the model's tokenizer; add --tokenizer")
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"cannot write {path}: the tokenizer has {tokenizer.vocab_size:,} tokens, but the "
            f"model {rows:,}; give the --tokenizer that it was trained with"
        )
    if isinstance(tokenizer, CharTokenizer):
        raise UserError(
            f"cannot write {path}: no tokenizer of GGUF's has characters as its tokens; write a "
            "folder for Hugging Face, or .npz"
        )
    add = _add_llama if isinstance(tokenizer, LlamaTokenizer) else gguf_byte_level.add
    tokens, types = add(writer, tokenizer, rows)
    if len(set(tokens)) < rows:  # llama.cpp would end itself
        raise UserError(f"cannot write {path}: two tokens of its tokenizer look the same")
    writer.add_token_list(tokens)
    writer.add_token_types([*types, *[UNUSED] * (rows - len(types))])
    writer.add_bos_token_id(tokenizer.begin)
    writer.add_eos_token_id(tokenizer.end)


def _add_llama(writer: Any, tokenizer: LlamaTokenizer, rows: int) -> tuple[list[bytes], list[int]]:
    """Add what Llama's kind has alone; a token for each row, and the types of those in use."""
    settings = settings_of(tokenizer)
    if settings.remove_extra_whitespaces or settings.charsmap:
        raise UserError(
            "a GGUF cannot say that this tokenizer replaces characters or removes blanks, for with "
            "its kind llama.cpp does neither; choose another format"
        )
    pieces, scores = padded(tokenizer, rows)
    pieces = [piece.replace(b" ", BLANK) for piece in pieces]
    types = [CONTROL if score == -math.inf else NORMAL for score in tokenizer.scores]
    types[:FIRST_PIECE] = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores(scores)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(settings.add_dummy_prefix)
    return [pieces[0], b"<s>", b"</s>", *pieces[FIRST_BYTE:]], types
