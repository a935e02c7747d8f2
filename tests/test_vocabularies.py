"""When two vocabularies are the same, and the special tokens that stand behind one."""

import math

import pytest

from convert import write_checkpoint
from errors import FormatError
from formats import gguf, hf_tokenizer, huggingface
from formats.sentencepiece_model import SentencePieceTokenizer, Settings
from formats.tokenizer_files import load_tokenizer, padded, tokenizer_from_bytes
from formats.weights import Parts, Weights
from load import tokenizer_of
from models.llama2 import Llama2, Llama2Config
from tokenizer import (
    BYTE_PIECES,
    SPECIAL_PIECES,
    BytePairTokenizer,
    CharTokenizer,
    LlamaTokenizer,
    train_bpe,
)
from vocabulary import Pieces

BYTES = load_tokenizer("bytes")
TRAINED = train_bpe("ab abc abcd" * 3, 3)
TEXTS = {"a": -9, "b": -9, "c": -9, " ": -9, "ab": -1, "bc": -2, "ca": -2, "abc": -3, "  ": -4}


def llama(texts, special=()):
    """A tokenizer of Llama's kind with these pieces and scores, and special tokens behind them."""
    pieces = [*SPECIAL_PIECES, *BYTE_PIECES, *map(str.encode, (*texts, *special))]
    return LlamaTokenizer(
        pieces, [*[0.0] * 259, *map(float, texts.values()), *[-math.inf] * len(special)]
    )


def sentencepiece(tokenizer):
    """The same with other settings."""
    settings = Settings(add_dummy_prefix=False, remove_extra_whitespaces=True)
    return SentencePieceTokenizer(tokenizer.pieces, tokenizer.scores, settings)


LLAMA = llama(TEXTS)
NAMES = ["<pad>", "cab", "<|日本|>"]
SPECIAL = {
    "gpt2": (TRAINED, BytePairTokenizer(TRAINED.ranks, NAMES)),
    "llama": (LLAMA, llama(TEXTS, NAMES)),
    "sentencepiece": (sentencepiece(LLAMA), sentencepiece(llama(TEXTS, NAMES))),
}
EACH = pytest.mark.parametrize(("plain", "special"), SPECIAL.values(), ids=SPECIAL.keys())


# Special tokens


@EACH
def test_no_text_becomes_a_special_token(plain, special):
    count = plain.vocab_size
    assert special.vocab_size == count + 3
    assert (special.begin, special.ends) == (plain.begin, plain.ends)
    for text in ("<pad>", "ab", "cab", "<|日本|> abc"):
        assert special.encode(text) == plain.encode(text)
        assert special.encode_prompt(text) == plain.encode_prompt(text)


@EACH
def test_a_special_token_stands_for_its_name(plain, special):
    for number, name in enumerate(NAMES):
        token = plain.vocab_size + number
        assert special.decode([*plain.encode("abc"), token, token]) == f"abc{name}{name}"


@EACH
def test_special_tokens_are_in_its_file(plain, special):
    data = special.to_bytes()
    again = tokenizer_from_bytes(data, "t")
    assert again.to_bytes() == data
    assert again.vocab_size == special.vocab_size
    tokens = [*range(plain.vocab_size, special.vocab_size)]
    assert again.decode(tokens) == special.decode(tokens)


def test_without_special_tokens_a_tiktoken_file_is_tiktokens_own():
    assert len(TRAINED.to_bytes().splitlines()) == len(TRAINED.ranks)


def test_a_line_that_is_missing_makes_no_special_tokens():
    lines = SPECIAL["gpt2"][1].to_bytes().splitlines(keepends=True)
    for number in range(len(lines) - 1):
        with pytest.raises(FormatError, match=f"line {number + 1}: rank {number + 1} where"):
            tokenizer_from_bytes(b"".join(lines[:number] + lines[number + 1 :]), "t.tiktoken")


def test_run_c_gets_a_token_for_each_row():
    """It reads as many as the model has, and ends where there are fewer."""
    data = LlamaTokenizer(*padded(LLAMA, 300)).to_bytes()
    pieces, position = [], 4
    while position < len(data):
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        pieces.append(data[position + 8 : position + 8 + size])
        position += 8 + size
    names = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *[*LLAMA.pieces][3:]]
    assert pieces == [*names, *(b"[PAD%d]" % row for row in range(268, 300))]
    again = tokenizer_from_bytes(data, "t.bin")
    assert again.to_bytes() == LLAMA.to_bytes()


# Equal vocabularies


@EACH
def test_special_tokens_do_not_count(plain, special):
    assert plain == special
    assert special == plain


def test_scores_count_only_by_their_order():
    order = {score: place for place, score in enumerate(sorted({*TEXTS.values()}))}
    assert LLAMA == llama({text: order[score] for text, score in TEXTS.items()})
    assert LLAMA == llama(TEXTS | {"a": -1e10, "b": 7})  # which no merge makes
    assert LLAMA != llama(TEXTS | {"ab": -2.5})
    assert LLAMA != llama(TEXTS | {"  ": -1e10})  # is never merged then


def test_other_pieces_are_another_vocabulary():
    assert LLAMA != llama({**TEXTS, "d": -9})
    assert LLAMA != llama(dict(reversed(TEXTS.items())))
    assert BYTES != TRAINED
    assert BYTES == BytePairTokenizer(dict(reversed(BYTES.ranks.items())))
    assert TRAINED != train_bpe("cb cba cbad" * 3, 3)
    one_more = BytePairTokenizer(TRAINED.ranks | {b"zz": len(TRAINED.ranks)})
    assert one_more != BytePairTokenizer(TRAINED.ranks, ["zz"])
    different = [BYTES, TRAINED, LLAMA, sentencepiece(LLAMA), CharTokenizer("ab"), "bytes"]
    for one in different:
        assert [other for other in different if one == other] == [one]


@pytest.mark.parametrize("name", ["tok512.bin", "llama2_tokenizer.bin", "gpt2"])
def test_files_of_every_kind_have_the_same_vocabulary(starter, tmp_path, name):
    tokenizer = load_tokenizer(name if name == "gpt2" else starter / name)
    config = Llama2Config(2, 2, 1, 1, vocab_size=tokenizer.vocab_size, seq_len=2)
    tensors = {name: Parts.of(name, tensor) for name, tensor in Llama2(config).params}
    weights = Weights("", "llama2", vars(config), tensors, tokenizer)
    gguf.write(tmp_path / "model.gguf", weights)
    huggingface.write(tmp_path / "folder", weights)
    write_checkpoint(tmp_path / "own.npz", weights, "float32")
    for file in ("model.gguf", "folder", "folder/tokenizer.json", "own.npz"):
        assert tokenizer_of(tmp_path / file) == tokenizer


def test_llamas_model_has_the_same_vocabulary(starter, tmp_path):
    pytest.importorskip("sentencepiece")
    tokenizer = load_tokenizer(starter / "llama2_tokenizer.model")
    assert tokenizer == load_tokenizer(starter / "llama2_tokenizer.bin")
    hf_tokenizer.write(tmp_path, tokenizer)
    assert tokenizer == load_tokenizer(tmp_path / "tokenizer.json")


def test_pieces_of_one_hash_are_told_apart_and_hidden_ones_are_not_found(monkeypatch):
    monkeypatch.setattr("vocabulary.hash", lambda piece: len(piece), raising=False)
    pieces = Pieces([b"", b"ab", b"cd", b"e\0", b"f"], hidden={2})
    assert [*pieces] == [b"", b"ab", b"cd", b"e\0", b"f"]
    assert [pieces.find(each) for each in (b"", b"ab", b"cd", b"e\0", b"e", b"f")] == [
        0, 1, None, 3, None, 4,
    ]  # fmt: skip
    assert pieces.found() == {b"": 0, b"ab": 1, b"e\0": 3, b"f": 4}
