"""Vocabularies that are not laid out like Llama's, and tokens that are looked for in a text."""

import itertools

import pytest
from odd_texts import odd_texts
from sentencepiece_models import MARKS, check_that_they_agree, known, train

from errors import FormatError
from formats.tokenizer_files import tokenizer_from_bytes
from tokenizer import BYTE, CONTROL, UNKNOWN, USER_DEFINED

PLAIN = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
GEMMA = PLAIN | {"add_dummy_prefix": False, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
GEMMA |= {"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"}
SEARCHED = "\n,\n\n,\n\n\n,▁▁,▁▁▁▁,\t,<h1>,</h1>,<b>,<bb,[x],中,é"
GEMMA |= {"user_defined_symbols": SEARCHED, "control_symbols": "<start_of_turn>,[TOOL]"}
LAYOUTS = {
    "gemma": GEMMA,
    "searched": {"user_defined_symbols": "<h1>,str,string,▁a,a▁b,½,ＦＵＬＬ"},
    "searched in a plain text": PLAIN | {"user_defined_symbols": "<h1>,tr,▁the,e,x▁y"},
    "searched, and no blank": PLAIN | {"add_dummy_prefix": False, "user_defined_symbols": "t,▁"},
    "mistral": PLAIN | {"control_symbols": "[INST],[/INST],[control_8]"},
    "padded": {"pad_id": 3},
    "unknown last": {"pad_id": 0, "unk_id": 3},
    "turned": {"unk_id": 2, "bos_id": 0, "eos_id": 1},
    "named": {
        "bos_piece": "[CLS]",
        "eos_piece": "[SEP]",
        "unk_piece": "[UNK]",
        "bos_id": 2,
        "eos_id": 1,
    },
    "rules": {
        "normalization_rule_name": "nmt_nfkc_cf",
        "user_defined_symbols": "ﬁ,½,①,The",
    },
}


def symbols_of(options):
    return list(filter(None, options.get("user_defined_symbols", "").split(",")))


EACH = pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)


@EACH
def test_tokens_are_the_librarys(options):
    data = train(**options)
    marks = [mark.replace("▁", " ") for mark in symbols_of(options)]
    for text in odd_texts(20_000 if options is GEMMA else 2000, MARKS + marks * 3):
        check_that_they_agree(data, text)


@EACH
def test_special_tokens_are_where_the_library_has_them(options):
    ours, theirs = known(train(**options))
    assert (ours.begin, ours.end) == (theirs.bos_id(), theirs.eos_id())
    assert ours.ends == {theirs.bos_id(), theirs.eos_id()}
    tokens = range(ours.vocab_size)
    special = {theirs.id_to_piece(token): token for token in tokens if theirs.is_control(token)}
    assert ours.special == special | {theirs.id_to_piece(theirs.unk_id()): theirs.unk_id()}
    assert ours.types[theirs.unk_id()] == UNKNOWN
    for token in tokens:
        assert (ours.types[token] == BYTE) == theirs.is_byte(token)
    searched = [
        piece for piece, kind in zip(ours.pieces, ours.types, strict=True) if kind == USER_DEFINED
    ]
    assert len(searched) == len(symbols_of(options))


@EACH
def test_what_is_written_means_the_same_to_the_library(options):
    ours, theirs = known(train(**options))
    again, library = known(ours.to_bytes())
    assert again.to_bytes() == ours.to_bytes()
    assert again == ours
    for token in range(ours.vocab_size):
        assert library.id_to_piece(token) == theirs.id_to_piece(token)
    for text in odd_texts(500, MARKS):
        tokens = theirs.encode(text)
        assert again.encode(text) == library.encode(text) == tokens
        assert again.decode(tokens) == library.decode(tokens)


def test_overlapping_tokens_are_found_as_the_library_finds_them():
    data = train(**PLAIN, user_defined_symbols="ab,abc,bca,caab,b▁b,▁▁")
    rules = train(user_defined_symbols="ab,aab,½b,ba½", normalization_rule_name="nfkc")
    for letters in itertools.product("ab½ c", repeat=6):
        check_that_they_agree(data, "".join(letters))
        check_that_they_agree(rules, "".join(letters))


@pytest.mark.parametrize("mark", ["<start_of_turn>", "<end_of_turn>", "<|user|>", "<|im_end|>"])
def test_marks_of_a_chat_are_control_tokens_whatever_the_model_says(mark):
    ours, theirs = known(train(**PLAIN, user_defined_symbols=f"{mark},<b>"))
    token = theirs.piece_to_id(mark)
    assert token in theirs.encode(f"a{mark}")
    assert token not in ours.encode(f"a{mark}")
    assert ours.types[token] == CONTROL
    assert ours.special[mark] == token
    assert (token in ours.ends) == ("end" in mark)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"user_defined_symbols": "x y"}, "with a blank that is not spelled ▁ in the piece x y"),
        ({"user_defined_symbols": "<s>"}, "without the control symbol <s>"),
        ({"bos_id": -1}, "without the control symbol <s>"),
        ({"eos_id": -1}, "without the control symbol </s>"),
    ],
)
def test_what_would_be_another_vocabulary_is_refused(options, what):
    with pytest.raises(FormatError, match=rf"^t\.model is a SentencePiece model {what}, which"):
        tokenizer_from_bytes(train(**options), "t.model")
