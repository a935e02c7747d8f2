"""SentencePiece's .model: Llama's kind of tokenizer, and what is done to a text before it.

Handled are models of the type bpe with a token for each of the 256 bytes, wherever these and the
control symbols such as <s> and <pad> are, and with user-defined symbols, which are looked for in a
text. Other settings than Llama's may be: no blank in front of a text (add_dummy_prefix), one blank
for many (remove_extra_whitespaces), and the rules by which characters are replaced
(normalization_rule_name), for example wide letters by narrow ones.
Refused by name: all else that gives other tokens, or another text of them.

Where SentencePiece differs: in a text, it takes the character "▁" for a blank, which is a character
like others here. The marks of a chat, such as Gemma's <start_of_turn>, are among its user-defined
symbols, and so it takes them out of what a person writes; here they are control tokens. Of tokens
that no text becomes, it shows <unk> as " ⁇ ", and <pad> not at all; and if it removes extra blanks,
it drops those in front also where they are several tokens; we drop the first one.

Sources of the format: SentencePiece, sentencepiece_model.proto and normalizer.cc.
"""

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from errors import FormatError
from formats.charsmap import Charsmap
from formats.protobuf import Message, write_message
from merging import longest_of
from tokenizer import (
    BYTE,
    BYTE_PIECES,
    CONTROL,
    CONTROL_NAME,
    LAYOUT,
    NORMAL,
    SPECIAL_PIECES,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    LlamaTokenizer,
    types_in_llama,
)

BLANK = "▁".encode()  # how a piece spells it

# The fields that matter of sentencepiece_model.proto's messages, by their numbers.
# Those from 200 on are for others than SentencePiece.
MODEL = {1: "pieces", 2: "trainer_spec", 3: "normalizer_spec", 5: "denormalizer_spec"}
MODEL |= {200: "adds_begin"}
PIECE = {1: "piece", 2: "score", 3: "type"}
TRAINER = {
    3: "model_type",
    24: "treat_whitespace_as_suffix",
    35: "byte_fallback",
    45: "unk_piece",
    46: "bos_piece",
    47: "eos_piece",
}
NORMALIZER = {
    2: "precompiled_charsmap",
    3: "add_dummy_prefix",
    4: "remove_extra_whitespaces",
    5: "escape_whitespaces",
}
UNIGRAM, BPE = 1, 2
MODEL_TYPES = {UNIGRAM: "unigram", BPE: "bpe", 3: "word", 4: "char"}
TYPES = [NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE]  # which are handled
LONGEST_PIECE = 4000  # bytes; to find the merges takes time with the square of it
# Bytes of user-defined tokens: Gemma's have 80,000, and each takes two microseconds to prepare.
MOST_SEARCHED = 200_000


@dataclass(frozen=True)
class Settings:
    """What is done to a text before it is encoded; by default as in Llama.

    Attributes:
        add_dummy_prefix: it gets a blank in front.
        remove_extra_whitespaces: blanks at its ends go, and of several in a row one stays.
        charsmap: the rules by which its characters are replaced, as `Charsmap` takes them.
    """

    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = False
    charsmap: bytes = b""


LLAMA = Settings()


class SentencePieceTokenizer(LlamaTokenizer):
    """Llama's kind with what a .model can hold, and llama2.c's file cannot.

    Decoding gives the text as the settings have changed it.
    """

    file_name = "tokenizer.spm"  # not .model, for such a file in a corpus may be somebody's own

    def __init__(self, pieces: list[bytes], scores: list[float], settings: Settings, **layout: Any):
        super().__init__(pieces, scores, **layout)
        self.settings = settings
        self.drops_blank = settings.add_dummy_prefix or settings.remove_extra_whitespaces
        self._rules = Charsmap(settings.charsmap) if settings.charsmap else None
        # In a text, whose blanks are not yet those of pieces, none with a blank is found.
        kept = {text for text in self.added if " " not in text}
        self._kept = re.compile(longest_of(kept).encode())

    def normalise(self, text: str) -> str:
        if not text:
            return ""
        if self._rules:
            text = self._rules.replace(text, self._kept)
        if self.settings.remove_extra_whitespaces:
            text = " ".join(filter(None, text.split(" ")))
            if not text:
                return ""
        return f" {text}" if self.settings.add_dummy_prefix else text

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and settings_of(self) == settings_of(other)

    def to_bytes(self) -> bytes:
        """A .model: what SentencePiece needs to do the same."""
        names = spelled(self.pieces, self.types, b" ", BLANK)
        pieces = (
            write_message(PIECE, piece=name, score=score, type=kind)
            for name, score, kind in zip(names, self.scores, self.types, strict=True)
        )
        unknown = names[self.types.index(UNKNOWN)] if UNKNOWN in self.types else b"<unk>"
        trainer = write_message(
            TRAINER,
            model_type=BPE,
            byte_fallback=1,
            unk_piece=unknown,
            bos_piece=names[self.begin],
            eos_piece=names[self.end],
        )
        normalizer = write_message(
            NORMALIZER,
            precompiled_charsmap=self.settings.charsmap,
            add_dummy_prefix=int(self.settings.add_dummy_prefix),
            remove_extra_whitespaces=int(self.settings.remove_extra_whitespaces),
        )
        more = {} if self.adds_begin else {"adds_begin": 0}
        return b"".join(
            [
                *(write_message(MODEL, pieces=piece) for piece in pieces),
                write_message(MODEL, trainer_spec=trainer, normalizer_spec=normalizer, **more),
            ]
        )


def make_tokenizer(
    pieces: list[bytes],
    scores: list[float],
    settings: Settings = LLAMA,
    types: list[int] | None = None,
    begin: int = 1,
    end: int = 2,
    adds_begin: bool = True,
) -> LlamaTokenizer:
    """The plain one, where it can be that; see there for the arguments.

    A user-defined token that is the mark of a chat becomes a control token.
    """
    types = types_in_llama(scores) if types is None else types.copy()
    for token in (token for token, kind in enumerate(types) if kind == USER_DEFINED):
        if CONTROL_NAME.fullmatch(pieces[token].decode(errors="replace")):
            types[token] = CONTROL
    count = len(LAYOUT)
    if (
        (settings, begin, end, adds_begin) == (LLAMA, 1, 2, True)
        and pieces[1:3] == SPECIAL_PIECES[1:]
        and types[:count] == LAYOUT
        and {*types[count:]} <= {NORMAL, CONTROL}
    ):
        return LlamaTokenizer(pieces, scores, types)
    layout = {"types": types, "begin": begin, "end": end, "adds_begin": adds_begin}
    return SentencePieceTokenizer(pieces, scores, settings, **layout)


def settings_of(tokenizer: LlamaTokenizer) -> Settings:
    """What `make_tokenizer` was given."""
    return tokenizer.settings if isinstance(tokenizer, SentencePieceTokenizer) else LLAMA


def spelled(
    pieces: Iterable[bytes], types: list[int], old: bytes = BLANK, new: bytes = b" "
) -> list[bytes]:
    """The pieces with their blanks spelled in another way; those of texts alone have blanks."""
    pairs = zip(pieces, types, strict=True)
    return [
        each.replace(old, new) if kind in (NORMAL, USER_DEFINED) else each for each, kind in pairs
    ]


def unlike_pieces(pieces: list[bytes], types: list[int]) -> str | None:
    """What is among these pieces, or is not, so that they are no vocabulary to work with."""
    known = {piece for piece, kind in zip(pieces, types, strict=True) if kind == BYTE}
    for name in BYTE_PIECES:
        if name not in known:
            return f"no token {name.decode()} for that byte"
    # No set: for Gemma's it would need 16 MB, and glibc keeps as much of what is freed after it.
    if any(first == second for first, second in pairwise(sorted(pieces))):
        return "two tokens for the same text"
    longest = max(pieces, key=len)
    if len(longest) > LONGEST_PIECE:
        return f"a token of {len(longest):,} bytes, {longest[:20]!r}..."
    searched = sum(
        len(piece) for piece, kind in zip(pieces, types, strict=True) if kind == USER_DEFINED
    )
    if searched > MOST_SEARCHED:
        return f"user-defined tokens of {searched:,} bytes, to look for in every text"
    return None


def read(data: bytes, source: str | Path) -> LlamaTokenizer:
    """The tokenizer of a .model.

    Args:
        data: its content.
        source: what error messages call it.

    Raises:
        FormatError: it is damaged, or of a kind that is not handled.
    """
    try:
        model = Message(MODEL, data)
        trainer = model.part("trainer_spec", TRAINER)
        normalizer = model.part("normalizer_spec", NORMALIZER)
        names, types, scores = (list(each) for each in zip(*_pieces(model), strict=True))
        if len(set(names)) < len(names):
            raise ValueError("two of its pieces are the same")
        settings = Settings(
            bool(normalizer.get("add_dummy_prefix", 1)),
            bool(normalizer.get("remove_extra_whitespaces", 1)),
            normalizer.get("precompiled_charsmap", b""),
        )
        ends = trainer.get("bos_piece", b"<s>"), trainer.get("eos_piece", b"</s>")
        controls = {name: token for token, name in enumerate(names) if types[token] == CONTROL}
        unlike = _unlike_rules(model, trainer, normalizer) or _unlike_types(names, types)
        adds_begin = bool(model.get("adds_begin", 1))
    except (ValueError, struct.error) as error:
        raise FormatError(
            f"{source} is a damaged SentencePiece model ({error}); fetch it again"
        ) from None
    pieces = spelled(names, types)
    if not unlike and (what := unlike_pieces(pieces, types)):
        unlike = f"with {what}"
    missing = [name.decode(errors="replace") for name in ends if name not in controls]
    if missing:
        unlike = unlike or f"without the control symbol {missing[0]:.40}"
    if unlike:
        raise FormatError(
            f"{source} is a SentencePiece model {unlike}, which is not handled here; give one of "
            "the type bpe, with byte_fallback, and with control symbols that begin and end a text"
        )
    begin, end = (controls[name] for name in ends)
    return make_tokenizer(pieces, scores, settings, types, begin, end, adds_begin)


def _pieces(model: Message) -> Iterator[tuple[bytes, int, float]]:
    """The name, the type and the score of every piece."""
    for record in model.all("pieces", bytes):
        piece = Message(PIECE, record)
        (score,) = struct.unpack("<f", piece.get("score", bytes(4)))
        yield piece.get("piece", b""), piece.get("type", NORMAL), score


def _unlike_rules(model: Message, trainer: Message, normalizer: Message) -> str | None:
    """What is done to a text that is not handled."""
    if (kind := trainer.get("model_type", UNIGRAM)) != BPE:
        return f"of the type {MODEL_TYPES.get(kind, kind)}"
    if not trainer.get("byte_fallback", 0):
        return "without byte_fallback"
    if trainer.get("treat_whitespace_as_suffix", 0):
        return "with treat_whitespace_as_suffix"
    if not normalizer.get("escape_whitespaces", 1):
        return "without escape_whitespaces"
    if model.part("denormalizer_spec", NORMALIZER, b"").get("precompiled_charsmap", b""):
        return "with rules that change a decoded text"
    if charsmap := normalizer.get("precompiled_charsmap", b""):
        texts = Charsmap(charsmap).texts
        if BLANK in texts or b"  " in texts:
            return "with rules that make ▁ or several blanks of a character"
    return None


def _unlike_types(names: list[bytes], types: list[int]) -> str | None:
    """The first token of a type that is not handled, or that no text can become."""
    for token, (name, kind) in enumerate(zip(names, types, strict=True)):
        shown = name[:40].decode(errors="replace")
        if kind not in TYPES:
            which = "unused" if kind == UNUSED else "strange"
            return f"with the {which} piece {shown} as token {token}"
        if kind in (NORMAL, USER_DEFINED) and b" " in name:
            return f"with a blank that is not spelled ▁ in the piece {shown}"
    return None
