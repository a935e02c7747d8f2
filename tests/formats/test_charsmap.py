"""The rules by which SentencePiece replaces characters, in arrays made by hand."""

import struct

import pytest
from double_array import charsmap
from hypothesis import given
from hypothesis import strategies as st

from formats.charsmap import Charsmap

RULES = {b"a": b"x y", b"ab": b"", b"\xc3\xa9": b"e"}


DATA = charsmap(RULES)


@pytest.mark.parametrize("data", [DATA, charsmap(RULES, times_256=True)])
def test_the_longest_rule_is_applied_from_left_to_right(data):
    assert Charsmap(data).replace("") == ""
    assert Charsmap(data).replace("bab aabé中a") == "b x ye中x y"
    assert Charsmap(data).replace("\0ba\xe8") == "\0bx y\xe8"


def with_node(place: int, node: int) -> bytes:
    return DATA[: 4 + 4 * place] + struct.pack("<I", node) + DATA[8 + 4 * place :]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "cut short"),
        (DATA[:99], "cut short"),
        (b"\2\0\0\0ab", "cut short"),
        (bytes(4), "lead nowhere"),
        (with_node(0, 1 << 31), "lead nowhere"),  # the root
        (with_node(0, 1 << 30), "lead nowhere"),  # its children are outside
        (with_node(7, 1 << 30), "lead nowhere"),
        (DATA[:-1], "end nowhere"),
        (DATA[: -len(b"x y\0\0e\0")], "end nowhere"),
        (with_node(2048, 1 << 31 | 7), "end nowhere"),  # where the text of "a" is
        (charsmap({b"a": b"b" * 1001}), "too long"),
    ],
)
def test_damaged_rules_are_refused(data, what):
    with pytest.raises(ValueError, match=f"its rules for characters .*{what}"):
        Charsmap(data)


@given(changes=st.dictionaries(st.integers(0, len(DATA) - 1), st.integers(0, 255), max_size=5))
def test_forged_rules_replace_something_or_are_refused(changes):
    data = bytearray(DATA)
    for place, byte in changes.items():
        data[place] = byte
    try:
        rules = Charsmap(bytes(data))
    except ValueError:
        return
    assert isinstance(rules.replace("bab aabé中a\0" * 3), str)
