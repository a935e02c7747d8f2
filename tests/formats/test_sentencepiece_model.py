"""SentencePiece's .model without its library: what is read, written and done to a text."""

import pytest
from double_array import charsmap
from hypothesis import given
from hypothesis import strategies as st

from errors import FormatError
from formats.sentencepiece_model import LLAMA, Settings, make_tokenizer
from formats.tokenizer_files import find_tokenizer, load_tokenizer, tokenizer_from_bytes
from tokenizer import BYTE_PIECES, SPECIAL_PIECES, LlamaTokenizer

TEXTS = {" ": -9, "a": -9, "b": -9, "é": -9, " a": -1, "aa": -2, " aa": -3, "  ": -0.5}
PIECES = [*SPECIAL_PIECES, *BYTE_PIECES, *map(str.encode, TEXTS)]
SCORES = [0.0] * 259 + [float(score) for score in TEXTS.values()]
RULES = charsmap({"ａ".encode(): b"a", b"\x01": b"", "¨".encode(): b" b"})
EVERY = [
    Settings(prefix, extra, rules)
    for prefix in (True, False)
    for extra in (True, False)
    for rules in (b"", RULES)
]


def pieces_of(tokenizer: LlamaTokenizer, text: str) -> list[str]:
    return [tokenizer.pieces[token].decode() for token in tokenizer.encode(text)]


def test_llamas_settings_need_no_other_kind():
    assert type(make_tokenizer(PIECES, SCORES, LLAMA)) is LlamaTokenizer
    assert make_tokenizer(PIECES, SCORES, LLAMA).to_bytes()[2:4] == b"\0\0"  # llama2.c's


@pytest.mark.parametrize(
    ("settings", "text", "pieces"),
    [
        (Settings(False), "aa a", ["aa", " a"]),
        (Settings(False), "  a ", ["  ", "a", " "]),
        (Settings(False), "", []),
        (Settings(True, True), "  a  aa ", [" a", " aa"]),
        (Settings(True, True), "  ", []),
        (Settings(False, True), "  a  aa ", ["a", " aa"]),
        (Settings(True, False, RULES), "ａa", [" aa"]),
        (Settings(True, False, RULES), "\x01", [" "]),
        (Settings(True, True, RULES), "\x01", []),
        (Settings(True, True, RULES), "¨ ¨", [" ", "b", " ", "b"]),
        (Settings(False, False, RULES), "¨ ¨", [" ", "b", "  ", "b"]),
    ],
)
def test_a_text_is_changed_as_the_settings_say(settings, text, pieces):
    assert pieces_of(make_tokenizer(PIECES, SCORES, settings), text) == pieces


@pytest.mark.parametrize("settings", EVERY)
@given(text=st.text(alphabet="ab é\x01ａ¨\n\ud83d"))
def test_decoding_gives_the_text_as_the_settings_changed_it(settings, text):
    tokenizer = make_tokenizer(PIECES, SCORES, settings)
    changed = tokenizer.normalise(text.replace("\ud83d", "\ufffd"))
    expected = changed.removeprefix(" ") if settings.add_dummy_prefix else changed
    assert tokenizer.decode(tokenizer.encode(text)) == expected


def test_without_the_blank_in_front_none_is_dropped():
    tokenizer = make_tokenizer(PIECES, SCORES, Settings(False))
    a = PIECES.index(b" a")
    assert tokenizer.decode([a, a]) == " a a"
    assert tokenizer.decode([1, a]) == " a"


@pytest.mark.parametrize("settings", EVERY)
def test_a_saved_tokenizer_loads_again(tmp_path, settings):
    tokenizer = make_tokenizer(PIECES, SCORES, settings)
    path = tmp_path / tokenizer.file_name
    tokenizer.save(path)
    again = load_tokenizer(find_tokenizer(tmp_path))
    assert type(again) is type(tokenizer)
    assert ([*again.pieces], [*again.scores]) == (PIECES, SCORES)
    assert again.to_bytes() == tokenizer.to_bytes() == path.read_bytes()
    for text in ("  a ａ", "\x01", " ¨ ¨", "é\n"):
        assert again.encode(text) == tokenizer.encode(text)


# The file as such: an appended message is joined to the one there was of the same field.

DATA = make_tokenizer(PIECES, SCORES, Settings(False)).to_bytes()
WITH_RULES = make_tokenizer(PIECES, SCORES, Settings(True, True, RULES)).to_bytes()


def test_the_parts_of_a_message_are_joined_and_the_last_value_counts():
    assert type(tokenizer_from_bytes(DATA + b"\x1a\x02\x18\x01", "t.model")) is LlamaTokenizer
    piece = b"\x0a\x0c\x0a\x01x\x0a\x02zz\x15\0\0\x80\xbf"
    again = tokenizer_from_bytes(DATA + piece, "t.model")
    assert ([*again.pieces], [*again.scores]) == ([*PIECES, b"zz"], [*SCORES, -1.0])


def test_what_is_not_given_is_as_sentencepiece_says():
    end = DATA.rindex(b"\x1a\x06")  # the settings
    again = tokenizer_from_bytes(DATA[:end] + b"\x1a\0", "t.model")
    assert again.settings == Settings(add_dummy_prefix=True, remove_extra_whitespaces=True)


def test_unknown_fields_are_passed_over():
    fields = b"\x98\x06\xff\xff\x01" + b"\x99\x0612345678" + b"\x9a\x06\x02ab" + b"\x9d\x061234"
    assert [*tokenizer_from_bytes(fields.join([DATA, b""]), "t.model").pieces] == PIECES


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (b"\x12\x02\x18\x01", "of the type unigram"),
        (b"\x12\x02\x18\x09", "of the type 9"),
        (b"\x12\x03\x98\x02\0", "without byte_fallback"),
        (b"\x12\x03\xc0\x01\x01", "with treat_whitespace_as_suffix"),
        (b"\x1a\x02\x28\0", "without escape_whitespaces"),
        (b"\x2a\x03\x12\x01x", "with rules that change a decoded text"),
        (b"\x0a\x05\x0a\x01x\x18\x05", "with the unused piece x as token 267"),
        (b"\x0a\x05\x0a\x01\xff\x18\x09", "with the strange piece \ufffd as token 267"),
        (b"\x12\x06\xf2\x02\x03<b>", "without the control symbol <b>"),
    ],
)
def test_models_of_other_kinds_are_refused_by_name(more, what):
    with pytest.raises(FormatError, match=rf"^t\.model is a SentencePiece model {what}, which"):
        tokenizer_from_bytes(DATA + more, "t.model")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (DATA + b"\x0a", "it ends too early"),
        (DATA + b"\x0a\x81", "it ends too early"),
        (DATA + b"\x0a\x05\x0a\x01x", "it ends too early"),
        (DATA + b"\x0b", "there is no type 3 of fields"),
        (DATA + b"\x08" + b"\xff" * 10 + b"\x01", "a number in it is too large"),
        (DATA + b"\x0a\x03\x0a\x01a", "two of its pieces are the same"),
        (DATA + b"\x08\x01", "its pieces is of another type"),
        (DATA + b"\x0a\x05\x0a\x01x\x10\x01", "its score is of another type"),
        (DATA + b"\x0a\x08\x0a\x01x\x12\x03abc", "unpack"),
        (DATA + b"\x1a\x03\x1a\x01x", "its add_dummy_prefix is of another type"),
        (DATA + b"\x1a\x07\x12\x05abcde", "its rules for characters"),
        (DATA[: DATA.rindex(b"\x1a\x06")], "it has no normalizer_spec"),
        (DATA[: DATA.index(b"\x12\x1a")], "it has no trainer_spec"),
    ],
)
def test_a_damaged_model_is_refused(data, what):
    with pytest.raises(FormatError, match=rf"^t\.model is a damaged SentencePiece model \({what}"):
        tokenizer_from_bytes(data, "t.model")


def test_too_few_pieces_are_refused():
    first = DATA.index(b"\x12\x1a")
    with pytest.raises(FormatError, match=r"^t\.model is .* with no token <0x00> for that byte"):
        tokenizer_from_bytes(DATA[:45] + DATA[first:], "t.model")


@given(
    data=st.sampled_from([DATA, WITH_RULES]),
    start=st.integers(0, 1 << 20),
    new=st.binary(max_size=9),
)
def test_noise_is_read_or_refused(data, start, new):
    start %= len(data)
    try:
        tokenizer = tokenizer_from_bytes(data[:start] + new + data[start + len(new) :], "noise")
    except FormatError as error:
        assert str(error).startswith("noise")
    else:
        tokenizer.decode(tokenizer.encode("ａ aa ¨ é\x01"))
