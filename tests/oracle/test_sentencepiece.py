"""Llama's kind of tokenizer against the library that trains such tokenizers."""

import io
from functools import cache
from pydoc_data.topics import topics

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from errors import FormatError
from formats.tokenizer_files import load_tokenizer, tokenizer_from_bytes
from tokenizer import LlamaTokenizer

sentencepiece = pytest.importorskip("sentencepiece")

# The library takes ▁ for a blank, which run.c does not.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"))


def train(**options) -> bytes:
    """A .model, trained as llama2.c's tinystories.py does."""
    model = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "vocab_size": 600,
        "byte_fallback": True,
        "character_coverage": 1.0,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(topics["string-methods"].splitlines()),
        model_writer=model,
        **settings | options,
    )
    return model.getvalue()


@cache
def known(data: bytes) -> tuple[LlamaTokenizer, object]:
    """Our tokenizer and the library's of one .model."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    return tokenizer_from_bytes(data, "t.model"), processor


@pytest.fixture(scope="module")
def trained() -> bytes:
    return train()


@pytest.fixture(scope="module")
def llama2(starter) -> bytes:
    return (starter / "llama2_tokenizer.model").read_bytes()


def test_llamas_model_is_llama2_c_s_tokenizer_bin(starter):
    tokenizer = load_tokenizer(starter / "llama2_tokenizer.model")
    assert tokenizer.to_bytes() == (starter / "llama2_tokenizer.bin").read_bytes()


@given(text=TEXTS)
@example(text="  It's 1,234   “words”\n\n\t中文 and 😀.  ")
@example(text="<s> <0x41> </s><unk>")
def test_llamas_tokenizer_encodes_as_the_library_does(llama2, text):
    ours, theirs = known(llama2)
    tokens = theirs.encode(text)
    assert ours.encode(text) == tokens
    assert ours.decode(tokens) == theirs.decode(tokens)


@given(text=TEXTS)
@example(text="  str.format()   “words”\n\n\t中文 and 😀.  ")
def test_a_trained_tokenizer_encodes_as_the_library_does(trained, text):
    ours, theirs = known(trained)
    tokens = theirs.encode(text)
    assert ours.encode(text) == tokens
    assert ours.decode(tokens) == theirs.decode(tokens)


def test_long_texts_are_encoded_as_the_library_does(llama2, trained):
    for data in (llama2, trained):
        ours, theirs = known(data)
        for text in topics.values():
            assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("model_type", ["unigram", "char", "word"])
def test_other_types_of_model_are_refused(model_type):
    data = train(model_type=model_type, vocab_size=400, hard_vocab_limit=False)
    with pytest.raises(FormatError, match=r"t\.model is .* unlike Llama's: .* type bpe"):
        tokenizer_from_bytes(data, "t.model")


# A model without one of them has the bytes at other places too.
@pytest.mark.parametrize("options", [{"bos_id": 2, "eos_id": 1}, {"bos_id": -1}, {"eos_id": -1}])
def test_other_special_tokens_are_refused(options):
    with pytest.raises(FormatError, match=r"t\.model is .* with <s> as token 1 and </s> as"):
        tokenizer_from_bytes(train(**options), "t.model")


def test_a_model_without_byte_fallback_is_refused():
    with pytest.raises(FormatError, match=r"t\.model: the tokens 3 to 258 .*with byte fallback"):
        tokenizer_from_bytes(train(byte_fallback=False), "t.model")


def test_a_damaged_model_is_refused(trained):
    for length in range(4, len(trained) - 100, 97):
        with pytest.raises(FormatError, match=r"t\.model is a damaged SentencePiece model"):
            tokenizer_from_bytes(trained[:length], "t.model")
