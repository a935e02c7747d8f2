"""SentencePiece's .model: Llama's kind of tokenizer, and what is done to a text before it.

Handled are models of the type bpe that are laid out like Llama's: <unk>, <s> and </s>, then the
256 bytes, then pieces of texts, and control symbols such as <pad>. Other settings than Llama's may
be: no blank in front of a text (add_dummy_prefix), one blank for many (remove_extra_whitespaces),
and the rules by which characters are replaced (normalization_rule_name), for example wide letters
by narrow ones.
Refused by name: all else that gives other tokens, or another text of them.

Where SentencePiece differs: in a text, it takes the character "▁" for a blank, which is a character
like others here. Of tokens that no text becomes, it shows <unk> as " ⁇ ", and <pad> not at all; and
if it removes extra blanks, it drops those in front also where they are several tokens; we drop the
first one.

Sources of the format: SentencePiece, sentencepiece_model.proto and normalizer.cc.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

from errors import FormatError
from formats.charsmap import Charsmap
from formats.protobuf import Message, write_message
from tokenizer import BYTE_PIECES, FIRST_BYTE, FIRST_PIECE, SPECIAL_PIECES, LlamaTokenizer

BLANK = "▁".encode()  # how a piece spells it

# The fields that matter of sentencepiece_model.proto's messages, by their numbers.
MODEL = {1: "pieces", 2: "trainer_spec", 3: "normalizer_spec", 5: "denormalizer_spec"}
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
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
TYPES = {
    NORMAL: "piece",
    UNKNOWN: "unknown token",
    CONTROL: "control symbol",
    4: "user-defined symbol",
    5: "unused piece",
    BYTE: "byte",
}
LAYOUT = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]  # of the first tokens; all others are NORMAL


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
    """Llama's kind with other settings, which a .model can hold, and llama2.c's file cannot.

    Decoding gives the text as the settings have changed it.
    """

    file_name = "tokenizer.spm"  # not .model, for such a file in a corpus may be somebody's own

    def __init__(self, pieces: list[bytes], scores: list[float], settings: Settings):
        super().__init__(pieces, scores)
        self.settings = settings
        self.drops_blank = settings.add_dummy_prefix or settings.remove_extra_whitespaces
        self._rules = Charsmap(settings.charsmap) if settings.charsmap else None

    def normalise(self, text: str) -> str:
        if not text:
            return ""
        if self._rules:
            text = self._rules.replace(text)
        if self.settings.remove_extra_whitespaces:
            text = " ".join(filter(None, text.split(" ")))
            if not text:
                return ""
        return f" {text}" if self.settings.add_dummy_prefix else text

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and self.settings == other.settings

    def to_bytes(self) -> bytes:
        """A .model: what SentencePiece needs to do the same."""
        names = [piece.replace(b" ", BLANK) for piece in self.pieces]
        names[1:FIRST_BYTE] = b"<s>", b"</s>"
        special = (score == -math.inf for score in self.scores[FIRST_PIECE:])
        types = [*LAYOUT, *(CONTROL if each else NORMAL for each in special)]
        pieces = (
            write_message(PIECE, piece=name, score=score, type=kind)
            for name, score, kind in zip(names, self.scores, types, strict=True)
        )
        trainer = write_message(TRAINER, model_type=BPE, byte_fallback=1, unk_piece=names[0])
        normalizer = write_message(
            NORMALIZER,
            precompiled_charsmap=self.settings.charsmap,
            add_dummy_prefix=int(self.settings.add_dummy_prefix),
            remove_extra_whitespaces=int(self.settings.remove_extra_whitespaces),
        )
        return b"".join(
            [
                *(write_message(MODEL, pieces=piece) for piece in pieces),
                write_message(MODEL, trainer_spec=trainer, normalizer_spec=normalizer),
            ]
        )


def make_tokenizer(pieces: list[bytes], scores: list[float], settings: Settings) -> LlamaTokenizer:
    """The plain one, where that has these settings."""
    if settings == LLAMA:
        return LlamaTokenizer(pieces, scores)
    return SentencePieceTokenizer(pieces, scores, settings)


def settings_of(tokenizer: LlamaTokenizer) -> Settings:
    """What `make_tokenizer` was given."""
    return tokenizer.settings if isinstance(tokenizer, SentencePieceTokenizer) else LLAMA


def read(data: bytes, source: str | Path) -> tuple[list[bytes], list[float], Settings]:
    """What is needed to make the tokenizer of a .model.

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
        records = [Message(PIECE, record) for record in model.all("pieces", bytes)]
        names = [record.get("piece", b"") for record in records]
        types = [record.get("type", NORMAL) for record in records]
        scores = [struct.unpack("<f", record.get("score", bytes(4)))[0] for record in records]
        if len(set(names)) < len(names):
            raise ValueError("two of its pieces are the same")
        settings = Settings(
            bool(normalizer.get("add_dummy_prefix", 1)),
            bool(normalizer.get("remove_extra_whitespaces", 1)),
            normalizer.get("precompiled_charsmap", b""),
        )
        unlike = _unlike_rules(model, trainer, normalizer) or _unlike_pieces(names, types, trainer)
    except (ValueError, struct.error) as error:
        raise FormatError(
            f"{source} is a damaged SentencePiece model ({error}); fetch it again"
        ) from None
    if unlike:
        raise FormatError(
            f"{source} is a SentencePiece model {unlike}, which is not handled here; give one like "
            "Llama's: of the type bpe, with byte_fallback, and no tokens but <unk>, <s>, </s>, the "
            "bytes and pieces of texts, in this order"
        )
    pieces = [name.replace(BLANK, b" ") for name in names]
    pieces[1:FIRST_BYTE] = SPECIAL_PIECES[1:]
    for token in range(FIRST_PIECE, len(pieces)):
        if types[token] == CONTROL:
            scores[token] = -math.inf
    return pieces, scores, settings


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


def _unlike_pieces(names: list[bytes], types: list[int], trainer: Message) -> str | None:
    """The first token that is of another type, or has another name, than in Llama."""
    ends = trainer.get("bos_piece", b"<s>"), trainer.get("eos_piece", b"</s>")
    expected = list(zip([*names[:1], *ends, *BYTE_PIECES], LAYOUT, strict=False))
    expected += [(name, NORMAL) for name in names[len(LAYOUT) :]]
    for token, found in enumerate(zip(names, types, strict=True)):
        name, kind = found
        special = token >= FIRST_PIECE and kind == CONTROL
        if found != expected[token] and not special:
            shown = name[:40].decode(errors="replace")
            return f"with the {TYPES.get(kind, 'strange token')} {shown} as token {token}"
    return None
