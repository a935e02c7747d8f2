"""Tokenizers' files, of every kind that tokenizer.py can use.

Handled: .tiktoken files, as tiktoken downloads GPT-2's and `train_bpe` makes them; llama2.c's
tokenizer.bin; SentencePiece's .model (sentencepiece_model.py); Hugging Face's tokenizer.json and
vocab.json (hf_tokenizer.py); our characters.json and nanoGPT's meta.pkl (characters.py).

Sources of the formats: tiktoken, load.py; llama2.c, tokenizer.py, export.
"""

import base64
import math
import os
import re
import struct
from pathlib import Path

import tiktoken

from errors import FormatError, UserError
from formats import characters, hf_tokenizer, sentencepiece_model
from formats.byte_level import ByteLevelTokenizer
from formats.sentencepiece_model import SentencePieceTokenizer, unlike_pieces
from tokenizer import (
    BYTE_PIECES,
    CONTROL,
    END_OF_TEXT,
    LAYOUT,
    SPECIAL_PIECES,
    BytePairTokenizer,
    CharTokenizer,
    LlamaTokenizer,
    Tokenizer,
    types_in_llama,
)

KINDS = (
    BytePairTokenizer,
    ByteLevelTokenizer,
    LlamaTokenizer,
    SentencePieceTokenizer,
    CharTokenizer,
)
FILES = ".tiktoken, tokenizer.bin, tokenizer.json, characters.json, meta.pkl or .model file"

STARTER_VOCABULARY = Path(__file__).resolve().parents[1] / "data" / "starter" / "tiktoken"
LARGEST_FILE = 40 << 20  # bytes; Gemma 3's tokenizer.json has 33 million
PADDING = re.compile(rb"\[PAD\d+\]")


def load_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer called "gpt2" or "bytes", or the one in the file of that name.

    Raises:
        UserError: there is no such tokenizer, or GPT-2's vocabulary cannot be had.
        FormatError: the file is not a tokenizer's; see `tokenizer_from_bytes`.
    """
    if name == "gpt2":
        return _load_gpt2()
    if name == "bytes":
        return BytePairTokenizer({bytes([byte]): byte for byte in range(256)})
    if not Path(name).is_file():
        raise UserError(f"there is no tokenizer {name}; give gpt2, bytes, or a {FILES}")
    if Path(name).stat().st_size > LARGEST_FILE:
        raise FormatError(
            f"{name} has more than {LARGEST_FILE:,} bytes; no vocabulary needs as many, so give "
            "another"
        )
    return tokenizer_from_bytes(Path(name).read_bytes(), name)


def padding(num_tokens: int, rows: int) -> list[str]:
    """What tokens are called that fill the rows of a model's table for which there is none.

    They are for formats that want a token for each row, and have the names of llama.cpp.
    """
    return [f"[PAD{row}]" for row in range(num_tokens, rows)]


def without_padding(tokens: list[bytes]) -> list[bytes]:
    """The tokens without those at the end that have such a name."""
    count = len(tokens)
    while count and PADDING.fullmatch(tokens[count - 1]):
        count -= 1
    return tokens[:count]


def padded(tokenizer: LlamaTokenizer, rows: int) -> tuple[list[bytes], list[float], list[int]]:
    """Its pieces, scores and types, one for each of so many rows."""
    names = [name.encode() for name in padding(tokenizer.vocab_size, rows)]
    return (
        [*tokenizer.pieces, *names],
        [*tokenizer.scores, *[-math.inf] * len(names)],
        [*tokenizer.types, *[CONTROL] * len(names)],
    )


def find_tokenizer(folder: Path) -> Path | None:
    """The file of a corpus's tokenizer in its folder, if it has one."""
    paths = (folder / kind.file_name for kind in KINDS)
    return next((path for path in paths if path.is_file()), None)


def tokenizer_from_bytes(data: bytes, source: str | Path) -> Tokenizer:
    """The tokenizer whose file has the content `data`, whatever the kind of file.

    Args:
        source: what error messages call it.

    Raises:
        FormatError: it is not a tokenizer's file, or a damaged one, or one of a kind that is not
            handled here.
    """
    # tokenizer.bin begins with the length of the longest token, of which the upper half is 0; a
    # .model is a protocol buffer, whose first field is a piece, whose first field is its text.
    if data[2:4] == b"\0\0":
        return _read_llama2_c(data, source)
    if data[0:3:2] == b"\n\n":
        return sentencepiece_model.read(data, source)
    if data.startswith(b"{"):
        return hf_tokenizer.read(data, source)
    if data.startswith(characters.STARTS):
        return CharTokenizer(characters.read(data, source))
    return _read_tiktoken(data, source)


def _read_tiktoken(data: bytes, source: str | Path) -> BytePairTokenizer:
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise FormatError(f"{source} is not a tokenizer; give a {FILES}") from None
    tokens, ranks, end = [], {}, END_OF_TEXT.encode()
    for number, line in enumerate(lines, start=1):
        try:
            token_base64, rank = line.split()
            token, rank = base64.b64decode(token_base64, validate=True), int(rank)
        except ValueError:
            raise FormatError(
                f"{source}, line {number}: {line[:60]!r} is not a token in base64 and its "
                "rank; give a .tiktoken file"
            ) from None
        if rank != len(tokens):
            raise FormatError(
                f"{source}, line {number}: rank {rank} where {len(tokens)} is next; "
                "the ranks must count up from 0, line by line"
            )
        if token in ranks and end not in ranks:
            raise FormatError(
                f"{source}, line {number}: the token {token!r} is already on line "
                f"{ranks[token] + 1}; train the vocabulary again"
            )
        tokens.append(token)
        ranks.setdefault(token, rank)
    if Path(source).suffix == ".model":  # as Meta calls Llama 3's, whose words are not GPT-2's
        raise FormatError(
            f"{source} is no SentencePiece model, but ranks alone, as Meta has them for Llama 3: "
            "how a text becomes words is not in it; give Hugging Face's tokenizer.json"
        )
    special = ranks.get(end, len(tokens))  # behind the vocabulary
    ranks = {token: rank for rank, token in enumerate(tokens[:special])}
    for byte in range(256):
        if bytes([byte]) not in ranks:
            raise FormatError(
                f"{source}: the byte {byte} has no rank, so not every text could be encoded; "
                "train the vocabulary again"
            )
    added = [token.decode(errors="replace") for token in tokens[special + 1 :]]
    return BytePairTokenizer(ranks, added)


def _read_llama2_c(data: bytes, source: str | Path) -> LlamaTokenizer:
    pieces, scores, position = [], [], 4
    while position < len(data):
        try:
            score, length = struct.unpack_from("<fI", data, position)
            (piece,) = struct.unpack_from(f"{length}s", data, position + 8)
        except struct.error:
            raise FormatError(
                f"{source} is not a tokenizer.bin, or a damaged one: it ends inside token "
                f"{len(pieces)}; give another"
            ) from None
        pieces.append(piece)
        scores.append(score)
        position += 8 + length
    (promised,) = struct.unpack_from("<I", data)
    longest = max(map(len, pieces), default=0)
    if longest != promised:
        raise FormatError(
            f"{source} is not a tokenizer.bin, or a damaged one: its longest token has {longest} "
            f"bytes instead of {promised}; give another"
        )
    pieces = without_padding(pieces)  # which run.c needs
    scores = scores[: len(pieces)]
    if pieces[len(SPECIAL_PIECES) : len(LAYOUT)] != BYTE_PIECES:
        raise FormatError(
            f"{source}: the tokens 3 to 258 are not the bytes <0x00> to <0xFF>, so not every text "
            "could be encoded; give a tokenizer like Llama's, with byte fallback"
        )
    pieces[1:3] = SPECIAL_PIECES[1:]  # which have line ends around them there
    types = types_in_llama(scores)
    if what := unlike_pieces(pieces, types):
        raise FormatError(f"{source} has {what}; no vocabulary needs such, so give another")
    return LlamaTokenizer(pieces, scores, types)


def _load_gpt2() -> Tokenizer:
    if STARTER_VOCABULARY.is_dir():
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(STARTER_VOCABULARY))
    try:
        return BytePairTokenizer(tiktoken.get_encoding("gpt2")._mergeable_ranks)
    except (OSError, ValueError) as error:  # no network, or something else sent in its place
        raise UserError(
            f"tiktoken cannot download GPT-2's vocabulary ({type(error).__name__}); set "
            "TIKTOKEN_CACHE_DIR to a folder that has it (dev/download_starter_pack.py makes "
            "data/starter/tiktoken), or use a vocabulary trained here, such as bpe:1024"
        ) from error
