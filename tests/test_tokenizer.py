import math
from collections import Counter
from itertools import pairwise
from pydoc_data.topics import topics

import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st

from errors import RunError, UserError
from formats.tokenizer_files import load_tokenizer
from tokenizer import (
    BYTE_PIECES,
    GPT2_PATTERN,
    SPECIAL_PIECES,
    BytePairTokenizer,
    CharTokenizer,
    LlamaTokenizer,
    train_bpe,
)


def llama(texts: dict[str, float]) -> LlamaTokenizer:
    """A tokenizer of Llama's kind with these pieces and scores; the first is token 259."""
    pieces = [*SPECIAL_PIECES, *BYTE_PIECES, *map(str.encode, texts)]
    return LlamaTokenizer(pieces, [0.0] * 259 + list(texts.values()))


BYTES = load_tokenizer("bytes")
TRAINED = train_bpe(topics["while"] + topics["string-methods"] + "naïve “quotes” 😀😀", 200)
LLAMA = llama(
    {" ": -9, "a": -9, "b": -9, "é": -9, "“": -9}
    | {" a": -1, "ab": -2, "  ": -4, " ab": -3, "aa": -2, "é“": -5}
)
CHARS = CharTokenizer("\n !aé\ufffd😀b")
OF_BYTES = {"bytes": BYTES, "trained": TRAINED, "llama": LLAMA}  # which have every text
EVERY = {**OF_BYTES, "chars": CHARS}
ALL = pytest.mark.parametrize("tokenizer", EVERY.values(), ids=EVERY.keys())


@pytest.mark.parametrize("tokenizer", OF_BYTES.values(), ids=OF_BYTES.keys())
@given(text=st.text())
@example(text="<|endoftext|> it's\r\n\t  naïve “quotes” 😀 \x00")
@example(text=" <unk><s></s>\n<s>\n<0x41>▁")
@example(text="中文，没有空格。")
@example(text="  ")
def test_text_survives_encoding(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert all(0 <= token < tokenizer.vocab_size for token in tokens)
    assert not {tokenizer.begin, *tokenizer.ends} & set(tokens)


@ALL
def test_lone_surrogates_become_replacement_characters(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud83db")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d")) == "\ufffd"


def test_training_on_lone_surrogates_does_not_crash():
    assert b"aaaa" in train_bpe("aaaa\ud83d aaaa", 3).ranks


@ALL
@given(data=st.data())
def test_streamed_pieces_join_to_what_decode_says(tokenizer, data):
    tokens = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    assert "".join(tokenizer.stream(iter(tokens))) == tokenizer.decode(tokens)


@given(tokens=st.lists(st.integers(0, 255)))
@example(tokens=list("😀".encode()[:3]))
def test_any_bytes_decode_to_some_text(tokens):
    assert BYTES.decode(tokens) == bytes(tokens).decode(errors="replace")


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
    assert (BYTES.vocab_size, BYTES.begin, BYTES.ends) == (257, 256, {256})
    assert TRAINED.decode([TRAINED.begin]) == "<|endoftext|>"


@ALL
def test_a_token_outside_the_vocabulary_is_refused(tokenizer):
    for token in (-1, tokenizer.vocab_size):
        sentence = f"token {token} is outside the vocabulary of {tokenizer.vocab_size} tokens"
        with pytest.raises(UserError, match=sentence):
            tokenizer.decode([token])
        with pytest.raises(UserError, match=sentence):
            list(tokenizer.stream([token]))


def test_a_prompt_is_what_the_model_was_trained_to_see_before_the_answer():
    assert BYTES.encode_prompt("ab") == [97, 98]
    assert LLAMA.encode_prompt("ab") == [1, *LLAMA.encode("ab")]


@ALL
def test_no_text_becomes_a_control_token(tokenizer):
    special = tokenizer.special.values()
    assert set(special) >= tokenizer.ends
    for name, token in tokenizer.special.items():
        assert tokenizer.decode([token]) in (name, "")
        assert not set(special) & set(tokenizer.encode(f"a{name}"))


def test_control_tokens_are_known_by_name():
    assert BytePairTokenizer(BYTES.ranks, ["<pad>"]).special == {"<|endoftext|>": 256, "<pad>": 257}
    padded = LlamaTokenizer([*LLAMA.pieces, b"<pad>"], [*LLAMA.scores, -math.inf])
    assert padded.special == {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": len(LLAMA.pieces)}
    assert CHARS.special == {}


@ALL
def test_no_prompt_begins_a_text_and_an_empty_one_is_a_mistake(tokenizer):
    assert tokenizer.encode_prompt(None) == [tokenizer.begin]
    with pytest.raises(UserError, match="the prompt is empty; give some text, or leave"):
        tokenizer.encode_prompt("")


@given(text=st.text(alphabet="ab1' \n\t!\u3000\x1c\ud83d"))
@example(text="a  \n\n\n  's'll")
@example(text="    a \n \n")
@example(text="\u3000\x1c\x1c\x1c\x1c\u3000  \u3000\x1c")
def test_gaps_that_tiktokens_engine_does_not_see_change_no_token(text):
    tokenizer = train_bpe(" \n\n  \n\n  a  b\t\t\t\t\ta\n1   \n'!   ''!   a" * 2, 60)
    engine = tokenizer._encoding.encode_ordinary
    seen = []
    tokenizer._encoding.encode_ordinary = lambda text: seen.append(text) or engine(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokenizer.LONGEST_GAP", 2)
        assert tokenizer.encode(text) == engine(text)
    assert not any(regex.search(r"\s{3}", part) for part in seen)


class PanicException(BaseException):
    """As one comes out of Rust."""


@pytest.mark.parametrize(
    ("raised", "expected", "sentence"),
    [
        (PanicException("E"), RunError, r"tiktoken gave up on a text of 2 characters \(E\); cut"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_an_engine_that_gives_up_is_a_sentence(monkeypatch, raised, expected, sentence):
    def give_up(text):
        raise raised

    tokenizer = train_bpe("ab ab", 1)
    monkeypatch.setattr(tokenizer._encoding, "encode_ordinary", give_up)
    with pytest.raises(expected, match=sentence):
        tokenizer.encode("ab")


# Llama's kind

# From llama2.c's test.c, which has them from Meta's own tokenizer; without the begin token.
KNOWN = [
    ("", ""),
    ("I believe the meaning of life is", "306 4658 278 6593 310 2834 338"),
    (
        "Simply put, the theory of relativity states that ",
        "3439 17632 1925 29892 278 6368 310 14215 537 5922 393 29871",
    ),
    (
        "A brief message congratulating the team on the launch:\n\n        Hi everyone,\n\n"
        "        I just ",
        "319 11473 2643 378 629 271 18099 278 3815 373 278 6826 29901 13 13 4706 6324 14332 29892 "
        "13 13 4706 306 925 29871",
    ),
    (
        "Translate English to French:\n\n        sea otter => loutre de mer\n        "
        "peppermint => menthe poivrée\n        plush girafe => girafe peluche\n        cheese =>",
        "4103 9632 4223 304 5176 29901 13 13 4706 7205 4932 357 1149 301 449 276 316 2778 13 4706 "
        "1236 407 837 524 1149 6042 354 772 440 29878 1318 13 4706 715 1878 330 3055 1725 1149 330 "
        "3055 1725 4639 28754 13 4706 923 968 1149",
    ),
]


@pytest.fixture(scope="session")
def llama2(starter):
    return load_tokenizer(starter / "llama2_tokenizer.bin")


@pytest.mark.parametrize(("text", "tokens"), KNOWN)
def test_known_texts_have_known_tokens(llama2, text, tokens):
    tokens = [int(token) for token in tokens.split()]
    assert llama2.encode(text) == tokens
    assert llama2.decode(tokens) == text
    assert llama2.decode([1, *tokens, 2]) == text


@pytest.mark.parametrize("name", ["llama2_tokenizer.bin", "tok512.bin"])
def test_shakespeare_survives_encoding(starter, name):
    text = (starter / "tinyshakespeare.txt").read_text(encoding="utf-8")
    tokenizer = load_tokenizer(starter / name)
    tokens = tokenizer.encode(text)
    assert len(tokens) == {"llama2_tokenizer.bin": 368633, "tok512.bin": 693363}[name]
    assert tokenizer.decode(tokens) == text
    for start in range(0, 100_000, 10_000):
        excerpt = text[start : start + 150]
        assert tokenizer.encode(excerpt) == plain_encode(tokenizer, excerpt)


def plain_encode(tokenizer: LlamaTokenizer, text: str) -> list[int]:
    """What llama2.c's run.c does: look at all pairs for every merge."""
    known = {piece: token for token, piece in enumerate(tokenizer.pieces)}
    tokens = []
    for character in f" {text}" if text else "":
        piece = character.encode()
        tokens += [known[piece]] if piece in known else [byte + 3 for byte in piece]
    while True:
        best_score, best_place, best_token = -1e10, None, None
        for place, (left, right) in enumerate(pairwise(tokens)):
            token = known.get(tokenizer.pieces[left] + tokenizer.pieces[right])
            if token is not None and tokenizer.scores[token] > best_score:
                best_score, best_place, best_token = tokenizer.scores[token], place, token
        if best_place is None:
            return tokens
        tokens[best_place : best_place + 2] = [best_token]


LETTERS = st.text(alphabet=" abé\n", max_size=12)
PIECES = st.text(alphabet=" abé", min_size=1, max_size=4)
SCORES = st.one_of(
    st.integers(-4, 0).map(float), st.sampled_from([-1e9, -1e10, -1e11, 1.5, math.nan])
)


@given(texts=st.dictionaries(PIECES, SCORES, max_size=25), text=LETTERS)
@example(texts={" ": 0, "a": 0, " a": 0, "a ": 0}, text="a a a")  # merges reach across words
@example(texts={" ": 0, "a": 0, "aa": -1, "aaa": 0, "aaaa": 0}, text="aaaaaaaaa")
@example(texts={"a": 0, "aé": 0}, text="aéaé")  # é is two bytes here, and these merge with nothing
def test_any_vocabulary_encodes_as_run_c_does(texts, text):
    tokenizer = llama(texts)
    for _ in range(2):  # the second time from memory
        assert tokenizer.encode(text) == plain_encode(tokenizer, text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


# The pieces of PIECES, often enough nested for long chains of merges.
NESTED = {text: -float(len(text)) for text in (" ", "a", "b", "ab", "aa", "abab", " ab", "aab")}


@pytest.mark.parametrize("more", [{}, {"b a": -2.0, "b ": -1.0}], ids=["words", "across"])
@given(text=st.text(alphabet="  abbaé"))
def test_words_are_encoded_one_by_one_only_where_that_changes_nothing(more, text):
    tokenizer = llama(NESTED | more)
    assert tokenizer.encode(text) == plain_encode(tokenizer, text)


@pytest.mark.parametrize("more", [{}, {"b a": -2.0}], ids=["words", "across"])
def test_long_words_are_no_problem(more):
    tokenizer = llama(NESTED | more)
    assert len(tokenizer.encode("ab" * 50_000)) == 1 + 24_999 + 1  # " ab", "abab" ..., "ab"


def test_an_unknown_character_is_spelled_in_bytes():
    assert LLAMA.encode("a😀") == [264, *(byte + 3 for byte in "😀".encode())]
    assert LLAMA.encode("\x00") == [259, 3]


def test_the_name_of_a_byte_is_no_text():
    tokenizer = llama({"a": -1, "a<0xC3>": -2, "<0xC3><0xA9>": -3})
    assert tokenizer.encode("aé") == [*(byte + 3 for byte in b" "), 259, 0xC3 + 3, 0xA9 + 3]


def test_a_character_in_bytes_is_streamed_as_one():
    pieces = LLAMA.stream([264, *(byte + 3 for byte in "😀é".encode()), 264])
    assert list(pieces) == ["a", "😀", "é", " a"]


def test_only_the_blank_in_front_of_a_text_is_dropped():
    a, blanks = 264, 266  # " a" and "  "
    assert [*LLAMA.pieces][a : blanks + 1 : 2] == [b" a", b"  "]
    assert LLAMA.decode([a, a]) == "a a"
    assert LLAMA.decode([blanks, a]) == "  a"
    assert LLAMA.decode([1, a, a]) == "a a"
    assert LLAMA.decode([a, 2, 1, a, 2, a]) == "aa a"
    assert list(LLAMA.stream([a, a], previous=a)) == [" a", " a"]
    assert list(LLAMA.stream([a, a], previous=1)) == ["a", " a"]
    assert list(LLAMA.stream([a, a], previous=2)) == [" a", " a"]


def test_begin_and_end_are_no_text():
    assert (LLAMA.begin, LLAMA.ends) == (1, {1, 2})
    assert LLAMA.decode([1, 2, 1]) == ""
    first, second = (byte + 3 for byte in "é".encode())
    assert LLAMA.decode([first, 2, second]) == "\ufffd\ufffd"  # no character has an end inside


# Characters


@given(text=st.text(alphabet=CHARS.characters))
def test_every_character_is_a_token(text):
    assert CHARS.encode(text) == [CHARS.characters.index(character) for character in text]
    assert CHARS.decode(CHARS.encode(text)) == text
    assert list(CHARS.stream(CHARS.encode(text))) == list(text)


def test_shakespeare_has_nanogpts_tokens(starter):
    text = (starter / "tinyshakespeare.txt").read_text(encoding="utf-8")
    # As nanoGPT's data/shakespeare_char/prepare.py does it.
    chars = sorted(set(text))
    stoi = {ch: i for i, ch in enumerate(chars)}
    tokenizer = CharTokenizer("".join(chars))
    assert tokenizer.vocab_size == 65
    assert tokenizer.encode(text) == [stoi[c] for c in text]


def test_a_text_of_characters_begins_after_a_line_end_and_has_no_end():
    assert (CHARS.begin, CHARS.ends) == (0, frozenset())
    assert CharTokenizer("ab\n").begin == 2
    assert CharTokenizer(" ab").begin == 0


def test_a_character_that_the_vocabulary_has_not_is_named():
    with pytest.raises(UserError, match=r"vocabulary of 8 characters has no 'ü'; write the text w"):
        CHARS.encode_prompt("abü")


def test_vocabularies_of_the_same_characters_in_the_same_order_are_equal():
    assert CharTokenizer("ab") == CharTokenizer("ab")
    assert CharTokenizer("ab") != CharTokenizer("ba")
    assert CharTokenizer("ab") != BYTES


# Training


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


@ALL
def test_byte_lengths_add_up_to_the_text(tokenizer):
    text = "é a b ab aé!\n" if tokenizer is not LLAMA else "é“ ab a  aa"
    text = "".join(character for character in text if character not in tokenizer.unknown(text))
    lengths = tokenizer.byte_lengths()
    tokens = tokenizer.encode(text)
    assert len(lengths) == tokenizer.vocab_size
    # Llama's kind puts a blank in front of a text, which is none of its own.
    assert sum(lengths[token] for token in tokens) - len(text.encode()) in (0, tokenizer is LLAMA)
    assert all(lengths[token] == 0 for token in tokenizer.special.values())
