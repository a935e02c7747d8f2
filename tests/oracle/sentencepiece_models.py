"""Small models that SentencePiece's library trains, and strange texts, for the tests of these."""

import io
import random
from functools import cache
from pydoc_data.topics import topics

import pytest

from formats.tokenizer_files import tokenizer_from_bytes
from tokenizer import LlamaTokenizer

sentencepiece = pytest.importorskip("sentencepiece")

PARTS = [" ", " ", "  ", "   ", " " * 40, "\n", "\n\n", "\n" * 35, "\t", "\t\t", "\r\n", "\x00"]
PARTS += ["the", " The", "string", "str", "12", "3456", "it's", "naïve", "e\u0301", "ß", "İ", "½"]
PARTS += [
    "中文",
    "漢字かな",
    "한국어",
    "ไทย",
    "ﷺ",
    "😀",
    "👩‍👩‍👧",
    "𝔘",
    "\u00a0",
    "\u3000",
    "\u200b",
    "\ufeff",
]
PARTS += ["<", ">", "/", "</", "<<", "<h1>", "</h1>", "<h1", "h1>", "<table>", "</table>", "<td>"]
PARTS += ["> </", "<b><i>x</i></b>", "[x]", "[x", "<unk", "<0x41>", "<0x", "<|", "|>", "<pa", "d>"]


def odd_texts(count: int, parts: list[str] = PARTS) -> list[str]:
    """Texts of such parts and of any characters but "▁", which means more to the libraries."""
    rng = random.Random(0)
    places = [*range(1, 0x250), *range(0x250, 0x3000), *range(0x3000, 0xD7FF)]
    places += [*range(0xF900, 0xFFFF), *range(0x1F300, 0x1F700), *range(0x20000, 0x20100)]
    places.remove(ord("▁"))
    texts = ["", *parts]
    while len(texts) < count:
        pieces = rng.choices(parts, k=rng.randrange(1, 12))
        for place in rng.choices(places[: rng.choice([0x7F, 0x250, None])], k=rng.randrange(4)):
            pieces.insert(rng.randrange(len(pieces)), chr(place))
        texts.append("".join(pieces))
    return texts


@cache
def train(text: str = topics["string-methods"], **options) -> bytes:
    """A small .model of the type bpe with bytes; all other settings are the trainer's own."""
    model = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "vocab_size": 600,
        "byte_fallback": True,
        "character_coverage": 1.0,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()), model_writer=model, **settings | options
    )
    return model.getvalue()


@cache
def known(data: bytes) -> tuple[LlamaTokenizer, object]:
    """Our tokenizer and the library's of one .model."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    return tokenizer_from_bytes(data, "t.model"), processor


def check_that_they_agree(data: bytes, text: str) -> None:
    ours, theirs = known(data)
    tokens = theirs.encode(text)
    assert ours.encode(text) == tokens, text
    assert ours.decode(tokens) == theirs.decode(tokens), text
