"""Small models that SentencePiece's library trains, for the tests of these."""

import io
from functools import cache
from pydoc_data.topics import topics

import pytest

from formats.tokenizer_files import tokenizer_from_bytes
from tokenizer import LlamaTokenizer

sentencepiece = pytest.importorskip("sentencepiece")

# Beside those in a vocabulary, what looks like its tokens.
MARKS = [
    "<h1>",
    "<h1",
    "</h1>",
    "<table>",
    "<td",
    "> </",
    "<<",
    "[x",
    "<unk",
    "<0x41>",
    "<0x",
    "<|",
]
MARKS += ["<unk>", "<s>", "</s>", "<pad>", "\n" * 35, "\t\t\t", " " * 40, "string", " The str"]


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
