"""Vocabularies of characters: ours, and nanoGPT's pickle, which is read without being trusted."""

import json
import os
import pickle
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import FormatError
from formats import characters
from formats.pickle_machine import MAX_BYTES
from formats.tokenizer_files import load_tokenizer, tokenizer_from_bytes
from tokenizer import CharTokenizer

SHAKESPEARE = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TEXTS = [SHAKESPEARE, "a", " ", "é“😀中", "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))]


def meta(chars: str) -> dict:
    """What nanoGPT's data/shakespeare_char/prepare.py pickles."""
    return {
        "vocab_size": len(chars),
        "itos": dict(enumerate(chars)),
        "stoi": {ch: i for i, ch in enumerate(chars)},
    }


def refused(data: bytes, sentence: str) -> None:
    with pytest.raises(FormatError, match=sentence):
        tokenizer_from_bytes(data, "meta.pkl")


@pytest.mark.parametrize("chars", TEXTS)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_meta_pkl_is_a_tokenizer(tmp_path, chars, protocol):
    path = tmp_path / "meta.pkl"
    path.write_bytes(pickle.dumps(meta(chars), protocol=protocol))
    tokenizer = load_tokenizer(path)
    assert tokenizer == CharTokenizer(chars)
    tokenizer.save(tmp_path / "characters.json")
    assert load_tokenizer(tmp_path / "characters.json") == tokenizer
    assert json.loads((tmp_path / "characters.json").read_bytes()) == chars


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([], "meta.pkl is no vocabulary of characters, or a damaged one"),
        ({}, "is no vocabulary"),
        (meta("abc") | {"itos": 3}, "is no vocabulary"),
        (meta("abc") | {"itos": {0: "a", 2: "b"}}, "is no vocabulary"),
        (meta("abc") | {"itos": {0: "a", 1: "bc"}}, "its token 1 is not one character"),
        (meta("abc") | {"itos": {0: "a", 1: 5}}, "its token 1 is not one character"),
        (meta("abc") | {"itos": {0: "a", 1: ["b"]}}, "its token 1 is not one character"),
        (meta("abc") | {"stoi": {}}, "its stoi is not the reverse of its itos"),
        (meta("abc") | {"stoi": {"b": 0, "a": 1, "c": 2}}, "its stoi is not the reverse"),
        (meta(""), "has no characters, or one of them twice"),
        ({"itos": {0: "a", 1: "a"}, "stoi": {"a": 1}}, "has no characters, or one of them twice"),
        (meta("a\ud83d"), "has halves of characters"),
    ],
)
def test_a_meta_pkl_of_something_else_is_refused(value, sentence):
    refused(pickle.dumps(value), sentence)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b'"abc', "is no vocabulary of characters, or a damaged one .Unterminated string"),
        (b'""', "has no characters"),
        (b'"aa"', "one of them twice"),
        (b'"\\ud83d"', "has halves of characters"),
    ],
)
def test_a_damaged_characters_json_is_refused(data, sentence):
    refused(data, sentence)


class Trap:
    """Python's own pickle module calls this function when it reads one."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_it_is_called(tmp_path, protocol):
    trap = Trap(os.mkdir, (str(tmp_path / "ran"),))
    data = pickle.dumps(meta("ab") | {"vocab_size": trap}, protocol=protocol)
    refused(data, rf"meta\.pkl wants to call {os.name}\.mkdir, .* nothing was run; do not trust it")
    assert not (tmp_path / "ran").exists()


def test_a_large_pickle_is_refused_unread():
    refused(pickle.dumps(meta("ab") | {"more": "x" * MAX_BYTES}), "it has 1,0")


def test_what_has_itself_twice_many_times_is_refused_at_once():
    """To compare it or to show it would take forever."""
    doubled = b")q\0" + b"h\0\x86q\0" * 30  # each tuple has the one before twice
    itos, stoi = b"X\4\0\0\0itos}K\0" + doubled + b"s", b"X\4\0\0\0stoih\0"
    refused(b"\x80\4}(" + itos + stoi + b"u.", "its token 0 is not one character")
    itos = b"X\4\0\0\0itos}K\0X\1\0\0\0as"
    stoi = b"X\4\0\0\0stoi" + doubled
    refused(b"\x80\4}(" + itos + stoi + b"u.", "its stoi is not the reverse")


EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=3
)


@pytest.mark.parametrize("kind", ["pickle", "json"])
@settings(max_examples=1200)
@given(edits=EDITS)
def test_a_changed_vocabulary_is_refused_or_read(kind, edits):
    whole = pickle.dumps(meta(SHAKESPEARE)) if kind == "pickle" else json.dumps("\n aé😀").encode()
    data = whole
    for where, cut, inserted in edits:
        place = int(where * len(data))
        data = data[:place] + inserted + data[place + cut :]
    data = whole[:1] + data[1:]  # which says what it is
    tracemalloc.start()
    try:
        found = characters.read(data, "changed")
        assert all(len(character.encode()) for character in found)
    except FormatError as error:
        assert str(error).startswith("changed ")
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 10_000_000
