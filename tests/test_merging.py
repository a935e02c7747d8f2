"""Where a text is cut before anything is merged; test_tokenizer.py tests merging itself."""

import re
import time

from hypothesis import example, given
from hypothesis import strategies as st

from merging import longest_of, words_between

LETTERS = st.text("ab .é")
PIECES = st.sets(st.text("ab .é", min_size=1, max_size=6), max_size=8)


def plain_cuts(texts: set[str], text: str) -> list[str]:
    """At each place the longest, and characters of which none begins one."""
    parts, place = [], 0
    while place < len(text):
        found = [each for each in texts if text.startswith(each, place)]
        parts.append(max(found, key=len, default=text[place]))
        place += len(parts[-1])
    return parts


@given(texts=PIECES, text=LETTERS, depth=st.integers(0, 8))
@example(texts={"a", "aab", "aabab"}, text="aabaab", depth=8)
@example(texts={"a", "ab"}, text="aba", depth=0)
@example(texts={".", "a.b", "|"}, text="a.ba|b.", depth=1)
def test_at_each_place_the_longest_is_found(texts, text, depth):
    found = re.findall(f"{longest_of(texts, depth)}|.", text)
    assert found == plain_cuts(texts, text)


def test_without_texts_nothing_is_found():
    assert re.findall(longest_of(set()), "a b") == []


def test_thousands_of_texts_are_looked_for_in_a_moment():
    pattern = re.compile(longest_of({f"<unused{number}>" for number in range(6000)} | {"<" * 2000}))
    begin = time.process_time()
    assert len(pattern.findall("<unused70>< <unused7 " * 10_000)) == 10_000
    assert time.process_time() - begin < 1


@given(pieces=PIECES, text=LETTERS)
@example(pieces={"a b"}, text="a  a b")
@example(pieces={"a ", "b  a"}, text="b  a a. a")
@example(pieces={"] -"}, text="] - ] ")
def test_words_are_the_text_and_no_piece_reaches_across_two(pieces, text):
    words = words_between(map(str.encode, pieces)).findall(text)
    assert "".join(words) == text
    border = 0
    for word in words[:-1]:
        border += len(word)
        for piece in pieces:
            for start in range(max(0, border - len(piece) + 1), border):
                assert not (text.startswith(piece, start) and start + len(piece) > border)


def test_words_are_short_where_pieces_allow_it():
    assert words_between([b" a", b"  ", b"ab"]).findall("ab  a b ") == ["ab", "  a", " b", " "]
    assert words_between([b"> <"]).findall("a b> <b > a c") == ["a", " b> <b", " > a", " c"]
