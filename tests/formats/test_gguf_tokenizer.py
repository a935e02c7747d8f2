"""Tokenizers in GGUF files."""

import math
import re

import gguf as library
import pytest
from gguf_files import LLAMA, TEXT, TEXTS, TRAINED, fields_of, forge_tokenizer, llama

from errors import FormatError
from formats.byte_level import ByteLevelTokenizer
from formats.gguf import read, write
from tokenizer import BYTE_PIECES, CONTROL, BytePairTokenizer, LlamaTokenizer


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


@pytest.mark.parametrize(
    "left_out", ["pre", "token_type", "bos_token_id", "eos_token_id", "add_space_prefix", "merges"]
)
def test_a_llamas_tokenizer_needs_only_its_tokens_and_scores(path, left_out):
    forge_tokenizer(path, LLAMA, **{left_out: None})
    assert read(path).tokenizer.to_bytes() == LLAMA.to_bytes()


SPELLED = ["<unk>", "<s>", "</s>", *map(bytes.decode, BYTE_PIECES), *TEXTS]


WORD = [1] * 266 + [4]  # the last one's type: llama.cpp looks for it in a text


@pytest.mark.parametrize(
    ("tokenizer", "changes", "reason"),
    [
        (LLAMA, {"model": None}, ""),
        (LLAMA, {"model": "t5\x1b"}, r"is of the kind 't5\\x1b', which is not known here"),
        (LLAMA, {"tokens": [*SPELLED[:3], *TEXTS, *SPELLED[3:259]]}, "has no token <0xF8> for"),
        (LLAMA, {"tokens": [*SPELLED[:-1], "a"]}, "has two tokens for the same text"),
        (LLAMA, {"token_type": WORD}, "looks for '▁▁' in a text"),
        (TRAINED, {"model": "bert"}, "is of the kind 'bert'"),
        (TRAINED, {"pre": "tekken"}, "splits a text into words as 'tekken', which is unknown here"),
    ],
)
def test_of_a_tokenizer_unlike_ours_it_is_said_why(path, tokenizer, changes, reason):
    forge_tokenizer(path, tokenizer, **changes)
    weights = read(path)
    assert weights.tokenizer is None
    assert re.match(f"its tokenizer ?{reason}" if reason else "$", weights.unread_tokenizer)


def test_byte_pairs_are_gpt2s_kind_only_in_the_order_of_merges(path):
    write(path, llama(TRAINED))
    tokens, merges = (fields_of(path)[f"tokenizer.ggml.{each}"] for each in ("tokens", "merges"))
    forge_tokenizer(path, TRAINED, tokens=tokens, merges=merges)
    assert read(path).tokenizer.ranks == TRAINED.ranks
    for changes in (
        {"merges": merges[::-1]},
        {"merges": merges[:-1]},
        {"merges": None},
        {"pre": None},
        {"token_type": [1] * 264 + [4, 1]},
        {"tokens": [tokens[-1], *tokens[:-1]], "eos_token_id": 0, "bos_token_id": 0},
    ):
        forge_tokenizer(path, TRAINED, **changes)
        tokenizer = read(path).tokenizer
        assert isinstance(tokenizer, ByteLevelTokenizer)
        assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


SPECIAL = {
    "trained": BytePairTokenizer(TRAINED.ranks, ["[PAD]", "<|日本|>", "<a b>"]),
    "llama": LlamaTokenizer(
        [*LLAMA.pieces, b"<pad>", "<|日本|>".encode()], [*LLAMA.scores, *[-math.inf] * 2]
    ),
}


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("rows", [0, 1, 60])
def test_special_tokens_and_rows_for_which_there_is_none(path, name, rows):
    tokenizer = SPECIAL[name]
    count = tokenizer.vocab_size
    write(path, llama(tokenizer, vocab_size=count + rows))
    fields = fields_of(path)
    names, types = (fields[f"tokenizer.ggml.{each}"] for each in ("tokens", "token_type"))
    special = 3 if name == "trained" else 2
    assert names[count - special :] == [
        *("[PAD]", "<|日本|>", "<a b>")[: special * (name == "trained")],
        *("<pad>", "<|日本|>")[: special * (name == "llama")],
        *(f"[PAD{row}]" for row in range(count, count + rows)),
    ]
    kinds = [library.TokenType.CONTROL] * special + [library.TokenType.UNUSED] * rows
    assert types[count - special :] == kinds
    again = read(path)
    assert again.config["vocab_size"] == count + rows
    assert again.tokenizer.vocab_size == count
    assert again.tokenizer.to_bytes() == tokenizer.to_bytes()


def test_llama_cpp_has_counted_padding_from_1_and_called_special_tokens_user_defined(path):
    names = ["<pad>", "[UNK2]", "[PAD1]", "[PAD2]"]
    pieces, scores = [*LLAMA.pieces, *map(str.encode, names)], [*LLAMA.scores, *[-1000.0] * 4]
    types = [2, 3, 3] + [6] * 256 + [1] * 8 + [4, 4, 5, 5]
    forge_tokenizer(path, LlamaTokenizer(pieces, scores), token_type=types)
    tokenizer = read(path).tokenizer
    assert [*tokenizer.pieces] == pieces[:-2]
    assert [*tokenizer.types] == [*LLAMA.types, CONTROL, CONTROL]


@pytest.mark.parametrize("tokenizer", [TRAINED, LLAMA], ids=["bytes", "llama"])
def test_all_tokens_that_a_file_says_end_a_text(path, tokenizer):
    forge_tokenizer(path, tokenizer, eos_token_id=264, eot_token_id=262, eom_token_id=263)
    again = read(path).tokenizer
    assert again.ends >= {262, 263, 264}
    assert again.end == 264


WITH_BLANK = [" ", *(f"t{number}" for number in range(265))]  # which no byte is spelled as


@pytest.mark.parametrize(
    ("tokenizer", "changes", "sentence"),
    [
        (LLAMA, {"tokens": None}, "0 tokens, but embeddings of 267;"),
        (LLAMA, {"tokens": SPELLED[:-1]}, "266 tokens, but embeddings of 267;"),
        (LLAMA, {"tokens": [1, 2, 3]}, r"a tokenizer\.ggml\.tokens of \[1 2 3\];"),
        (LLAMA, {"scores": None}, "0 scores of 267 tokens;"),
        (LLAMA, {"scores": [0.0] * 266}, "266 scores of 267 tokens;"),
        (LLAMA, {"scores": SPELLED}, r"a tokenizer\.ggml\.scores of \[b'<unk>', "),
        (LLAMA, {"tokens": [*SPELLED[:-1], "x" * 257]}, "a token of more than 256 bytes;"),
        (LLAMA, {"bos_token_id": "1"}, r"a tokenizer\.ggml\.bos_token_id of 1;"),
        (LLAMA, {"bos_token_id": 267}, "a special token 267, and 267 tokens;"),
        (LLAMA, {"eos_token_id": 1 << 31}, "a token 2147483648 that ends texts, and 267 tokens;"),
        (LLAMA, {"eom_token_id": 267}, "a token 267 that ends texts, and 267 tokens;"),
        (LLAMA, {"unknown_token_id": 300}, "a special token 300, and 267 tokens;"),
        (LLAMA, {"token_type": [1] * 266 + [9]}, "a token of a type that there is not;"),
        (LLAMA, {"token_type": [1] * 266}, "types of 266 tokens, and 267 tokens;"),
        (TRAINED, {"tokens": ["A"]}, "1 tokens, but embeddings of 266;"),
        (TRAINED, {"merges": "a b"}, r"a tokenizer\.ggml\.merges of a b;"),
        (TRAINED, {"merges": ["a b"]}, "the merge 'a b', which is not of two of its tokens;"),
        (TRAINED, {"merges": ["i t", "i t"]}, "the merge 'i t' twice;"),
        (TRAINED, {"tokens": ["A"] * 266}, "a token twice, or an empty one;"),
        (TRAINED, {"tokens": ["", *map(str, range(265))]}, "a token twice, or an empty one;"),
        (TRAINED, {"tokens": WITH_BLANK, "merges": None}, "the token ' ', which does not spell"),
        (TRAINED, {"bos_token_id": 266}, "a token 266 that begins texts, and 266 tokens;"),
        (TRAINED, {"eot_token_id": 300}, "a token 300 that ends texts, and 266 tokens;"),
    ],
)
def test_a_damaged_tokenizer_is_refused(path, tokenizer, changes, sentence):
    forge_tokenizer(path, tokenizer, **changes)
    with pytest.raises(FormatError, match=rf"model\.gguf has {sentence}"):
        read(path)
