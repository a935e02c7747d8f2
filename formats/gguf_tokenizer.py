"""Tokenizers in GGUF: keys of the header, a list of tokens with their types, scores and merges.

A file has a token for every row of the model's table. Rows for which there is none are called
[PAD32000], [PAD32001] and so on, as llama.cpp calls them; to read, such tokens at the end are left
out.

Handled: BPE on bytes (gguf_byte_level.py), and Llama's kind (gguf_sentencepiece.py).
Not handled: others, of which `read_tokenizer` says why.

Source of the format: ggml, docs/gguf.md; llama.cpp, src/llama-vocab.cpp and conversion/base.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError
from formats import gguf_byte_level, gguf_sentencepiece
from formats.gguf_header import damaged, get
from formats.tokenizer_files import without_padding
from formats.weights import Weights
from tokenizer import LAYOUT, NORMAL, UNUSED, CharTokenizer, LlamaTokenizer, Tokenizer

# Keys of tokens that end a text: the usual one, one that ends a turn, one that ends a message.
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


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
    types = value("token_type", np.ndarray, None)
    if types is None:
        types = np.full(rows, NORMAL)
        if model == "llama":
            types[: len(LAYOUT)] = LAYOUT[:rows]
    if len(types) != rows:
        raise damaged(path, f"types of {len(types)} tokens, and {rows} tokens")
    tokens, types = without_padding(tokens), types.tolist()
    ends = [end for key in ENDS if (end := value(key, int, None)) is not None]
    for end in ends:
        if not 0 <= end < len(tokens):
            raise damaged(path, f"a token {end} that ends texts, and {len(tokens)} tokens")
    if model == "gpt2":
        return gguf_byte_level.read(path, value, tokens, types, ends), ""
    tokenizer, reason = gguf_sentencepiece.read(path, value, tokens, types)
    if tokenizer:
        tokenizer.ends |= {*ends}
    return tokenizer, reason


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
    kind = gguf_sentencepiece if isinstance(tokenizer, LlamaTokenizer) else gguf_byte_level
    tokens, types = kind.add(writer, tokenizer, rows)
    if len(set(tokens)) < rows:  # llama.cpp would end itself
        raise UserError(f"cannot write {path}: two tokens of its tokenizer look the same")
    writer.add_token_list(tokens)
    writer.add_token_types([*types, *[UNUSED] * (rows - len(types))])
    writer.add_bos_token_id(tokenizer.begin)
    writer.add_eos_token_id(tokenizer.end)
