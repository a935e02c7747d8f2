from collections import Counter
from itertools import pairwise
from pydoc_data.topics import topics

import pytest
import regex
import requests
import tiktoken
from hypothesis import example, given
from hypothesis import strategies as st

import tokenizer as tokenizer_module
from errors import FormatError, UserError
from tokenizer import GPT2_PATTERN, Tokenizer, load_tokenizer, train_bpe

BYTES = load_tokenizer("bytes")
TRAINED = train_bpe(topics["while"] + topics["string-methods"] + "naïve “quotes” 😀😀", 200)
BOTH = pytest.mark.parametrize("tokenizer", [BYTES, TRAINED], ids=["bytes", "trained"])


@BOTH
@given(text=st.text())
@example(text="<|endoftext|> it's\r\n\t  naïve “quotes” 😀 \x00")
def test_text_survives_encoding(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert all(0 <= token < tokenizer.end_of_text for token in tokens)


@BOTH
def test_lone_surrogates_become_replacement_characters(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud83db")) == "a\ufffdb"


def test_training_on_lone_surrogates_does_not_crash():
    assert b"aaaa" in train_bpe("aaaa\ud83d aaaa", 3).ranks


@given(tokens=st.lists(st.integers(0, TRAINED.end_of_text)))
@example(tokens=list("😀".encode()[:3]))
def test_streamed_pieces_join_to_what_decode_says(tokens):
    assert "".join(TRAINED.stream(iter(tokens))) == TRAINED.decode(tokens)


def test_stream_holds_back_an_incomplete_character_and_no_other():
    given_out = []

    def tokens():
        for token in "é😀".encode():
            given_out.append(token)
            yield token

    pieces = BYTES.stream(tokens())
    assert next(pieces) == "é"
    assert len(given_out) == 2  # it takes no token before it must
    assert next(pieces) == "😀"
    assert list(pieces) == []


def test_stream_ends_with_the_replacement_of_a_cut_character():
    assert list(BYTES.stream([65, *"😀".encode()[:2]])) == ["A", "\ufffd"]


def test_end_of_text_is_the_last_token():
    assert (BYTES.vocab_size, BYTES.end_of_text) == (257, 256)
    assert TRAINED.decode([TRAINED.end_of_text]) == "<|endoftext|>"


@pytest.mark.parametrize("token", [-1, 257])
def test_a_token_outside_the_vocabulary_is_refused(token):
    sentence = f"token {token} is outside the vocabulary of 257 tokens"
    with pytest.raises(UserError, match=sentence):
        BYTES.decode([token])
    with pytest.raises(UserError, match=sentence):
        list(BYTES.stream([token]))


def test_a_saved_vocabulary_loads_again(tmp_path):
    path = tmp_path / "tokenizer.tiktoken"
    BYTES.save(path)
    TRAINED.save(path)
    assert load_tokenizer(str(path)).ranks == TRAINED.ranks
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))  # as Windows editors save it
    assert Tokenizer.load(path).ranks == TRAINED.ranks


def _with_line(number: int, line: str) -> str:
    lines = BYTES.to_text().splitlines()
    lines[number - 1] = line
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (_with_line(3, "Ag=="), "v.tiktoken, line 3: 'Ag==' is not a token"),
        (_with_line(3, "Ag== two"), "v.tiktoken, line 3: 'Ag== two' is not a token"),
        (_with_line(3, "A?== 2"), r"v.tiktoken, line 3: 'A\?== 2' is not a token"),
        (_with_line(3, "é 2"), "v.tiktoken, line 3: 'é 2' is not a token"),
        (_with_line(3, ""), "v.tiktoken, line 3: '' is not a token"),
        (_with_line(3, "Ag== 1"), "v.tiktoken, line 3: rank 1 where 2 is next"),
        (_with_line(3, "Ag== 3"), "v.tiktoken, line 3: rank 3 where 2 is next"),
        (_with_line(3, "AQ== 2"), r"v.tiktoken, line 3: the token b'\\x01' is already on line 2"),
        (_with_line(3, "YWI= 2"), "v.tiktoken: the byte 2 has no rank"),
        ("", "v.tiktoken: the byte 0 has no rank"),
    ],
)
def test_a_damaged_vocabulary_is_refused_with_its_line(text, sentence):
    with pytest.raises(FormatError, match=sentence):
        Tokenizer.from_text(text, "v.tiktoken")


def test_a_vocabulary_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match=r"model\.bin is not text"):
        load_tokenizer(path)


def test_an_unknown_tokenizer_is_refused():
    with pytest.raises(UserError, match="there is no tokenizer gpt3; give gpt2, bytes or a"):
        load_tokenizer("gpt3")


def test_gpt2_is_openais(starter, monkeypatch):
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    gpt2 = load_tokenizer("gpt2")
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)
    assert gpt2.encode("Hello, world!") == [15496, 11, 995, 0]
    text = topics["string-methods"]
    assert gpt2.encode(text) == tiktoken.get_encoding("gpt2").encode_ordinary(text)


def test_no_network_says_what_to_do_instead(monkeypatch):
    def fail(name):
        raise requests.exceptions.ConnectionError("no route")

    monkeypatch.setattr(tokenizer_module.tiktoken, "get_encoding", fail)
    with pytest.raises(UserError, match=r"TIKTOKEN_CACHE_DIR.*download_starter_pack.*bpe:1024"):
        load_tokenizer("gpt2")


def naive_bpe(text: str, num_merges: int) -> dict[bytes, int]:
    """Byte-pair training as it is defined: count every pair of the whole text for every merge."""
    words = [
        [bytes([byte]) for byte in word.encode()] for word in regex.findall(GPT2_PATTERN, text)
    ]
    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < 256 + num_merges:
        counts = Counter(pair for word in words for pair in pairwise(word))
        if max(counts.values(), default=0) < 2:
            break
        best = min(counts, key=lambda pair: (-counts[pair], ranks[pair[0]], ranks[pair[1]]))
        ranks[best[0] + best[1]] = len(ranks)
        for word in words:
            position = 0
            while position < len(word) - 1:
                if (word[position], word[position + 1]) == best:
                    word[position : position + 2] = [best[0] + best[1]]
                position += 1
    return ranks


def test_training_merges_what_a_naive_trainer_merges():
    text = topics["while"] + topics["exprlists"] + topics["assert"]
    assert train_bpe(text, 120).ranks == naive_bpe(text, 120)


@given(text=st.text(alphabet="ab c"), num_merges=st.integers(0, 30))
@example(text="aaaaaaa aaaa aaa", num_merges=30)
@example(text="abc abc bca bca ab bc", num_merges=30)
def test_training_merges_what_a_naive_trainer_merges_where_pairs_overlap(text, num_merges):
    assert train_bpe(text, num_merges).ranks == naive_bpe(text, num_merges)


def test_equally_frequent_pairs_merge_in_the_order_of_their_ids():
    assert list(train_bpe("dc dc ba ba", 9).ranks)[256:] == [b" b", b"dc", b" ba"]


def test_training_ends_when_no_pair_occurs_twice():
    assert train_bpe("ab ab", 1000).vocab_size == 256 + 1 + 1
    assert train_bpe("", 1000).vocab_size == 257


def test_training_takes_several_texts():
    assert train_bpe(iter(["ab", "ab"]), 9).ranks == {**BYTES.ranks, b"ab": 256}


def test_the_file_has_a_line_of_base64_and_rank_per_token():
    lines = train_bpe("ab ab", 1).to_text().splitlines()
    assert (lines[0], lines[97], lines[256]) == ("AA== 0", "YQ== 97", "YWI= 256")
