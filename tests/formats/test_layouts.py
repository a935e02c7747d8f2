"""Vocabularies that are not laid out like Llama's, in every kind of file that has them."""

import json
import re

import pytest
from gguf_files import fields_of, forge_tokenizer, llama
from hf_files import loaded

from convert import TARGETS
from errors import FormatError, UserError
from formats import gguf, hf_tokenizer
from formats.sentencepiece_model import Settings, make_tokenizer, settings_of
from formats.tokenizer_files import find_tokenizer, load_tokenizer, tokenizer_from_bytes
from load import open_model
from tokenizer import (
    BYTE,
    BYTE_PIECES,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    LlamaTokenizer,
)

NO_PREFIX = Settings(add_dummy_prefix=False)
# As in Gemma, but shorter: what begins and ends a text, what is looked for, bytes, texts, and more.
LAYOUT = [
    *[(name, CONTROL) for name in (b"<pad>", b"<eos>", b"<bos>")],
    *[(b"<unk>", UNKNOWN), (b"[TOOL]", USER_DEFINED), (b"<start_of_turn>", CONTROL)],
    *[(b"<end_of_turn>", CONTROL), *((b"\n" * count, USER_DEFINED) for count in (1, 2, 3))],
    *[(b" " * count, USER_DEFINED) for count in (2, 3, 4)],
    *[(name, USER_DEFINED) for name in (b"<b>", b"</b>", "é ".encode())],
    *[(name, BYTE) for name in BYTE_PIECES],
    *[(name.encode(), NORMAL) for name in (" a", "ab", " ab", "> <", "abab", "> ", "<b")],
    *[(name.encode(), NORMAL) for name in (" ", "a", "b", "é", "<", ">")],
    (b"<unused0>", CONTROL),
]
PIECES, TYPES = (list(each) for each in zip(*LAYOUT, strict=True))
SPELLED = [name.replace(b" ", "▁".encode()) if kind == NORMAL else name for name, kind in LAYOUT]
SCORES = [-float(token) if kind == NORMAL else 0.0 for token, kind in enumerate(TYPES)]
ENDS = {"begin": 2, "end": 1}
GEMMA = make_tokenizer(PIECES, SCORES, NO_PREFIX, TYPES, **ENDS)
WITHOUT_BEGIN = make_tokenizer(PIECES, SCORES, NO_PREFIX, TYPES, **ENDS, adds_begin=False)
FIRST_TEXT = PIECES.index(b" a")
TEXTS = [
    "ab  abab\n\n\n\n<b>a</b>> <b>",
    "é é a",
    "    é\n",
    "<bos>a<end_of_turn>",
    "[TOOL",
    "<<b>>",
]
TEXTS += ["<pad><unused0><unk><0x41>", "漢\x00", "a" * 50 + " " * 50, "", "▁▁"]
EACH = pytest.mark.parametrize("tokenizer", [GEMMA, WITHOUT_BEGIN], ids=["begin", "none"])


def pieces_of(text, tokenizer=GEMMA):
    return [tokenizer.pieces[token].decode() for token in tokenizer.encode(text)]


def check_that_it_is_the_same(found, tokenizer):
    assert found == tokenizer
    assert settings_of(found) == NO_PREFIX
    assert ([*found.pieces], found.types) == ([*tokenizer.pieces], tokenizer.types)
    assert (found.begin, found.end, found.adds_begin) == (2, 1, tokenizer.adds_begin)
    assert found.ends == {1, 2, PIECES.index(b"<end_of_turn>")}
    assert found.special == tokenizer.special
    for text in TEXTS:
        tokens = tokenizer.encode(text)
        assert found.encode(text) == tokens
        assert found.decode(tokens) == text


def test_tokens_are_looked_for_before_others_are_merged():
    assert pieces_of("\n\n\n\n") == ["\n\n\n", "\n"]
    assert pieces_of("a     a") == ["a", "    ", " a"]
    assert pieces_of("<b><<b") == ["<b>", "<", "<b"]
    assert pieces_of("abab> <b") == ["abab", "> <", "b"]
    assert pieces_of("abab> <b>") == ["abab", "> ", "<b>"]
    assert pieces_of("é éa") == ["é ", "é", "a"]
    assert pieces_of("[TOOL][TOOL") == ["[TOOL]", *(f"<0x{ord(each):02X}>" for each in "[TOOL")]


def test_no_text_becomes_a_control_token():
    for name, token in GEMMA.special.items():
        assert token not in GEMMA.encode(f"a{name}{name}")
        assert GEMMA.decode(GEMMA.encode(name)) == name
    assert set(GEMMA.special) == {
        name.decode() for name, kind in LAYOUT if kind in (CONTROL, UNKNOWN)
    }


def test_a_text_begins_and_ends_as_the_layout_says():
    assert GEMMA.encode_prompt("ab") == [2, *GEMMA.encode("ab")]
    assert WITHOUT_BEGIN.encode_prompt("ab") == GEMMA.encode("ab")
    assert WITHOUT_BEGIN.encode_prompt(None) == [2]
    assert GEMMA.decode([2, *GEMMA.encode(" a"), 1]) == " a"


@EACH
@pytest.mark.parametrize("target", ["llm.np", "gguf", "huggingface"])
def test_models_files_have_it(tmp_path, tokenizer, target):
    path = tmp_path / {"llm.np": "m.npz", "gguf": "m.gguf", "huggingface": "m"}[target]
    for rows in (0, 3):  # rows of the table for which there is no token
        model = llama(tokenizer, vocab_size=tokenizer.vocab_size + rows)
        write, dtypes = TARGETS[target]
        write(path.with_stem(f"m{rows}"), model, dtypes[0])
        check_that_it_is_the_same(open_model(path.with_stem(f"m{rows}")).tokenizer, tokenizer)


@EACH
def test_a_file_of_its_own_has_it(tmp_path, tokenizer):
    tokenizer.save(tmp_path / tokenizer.file_name)
    assert tokenizer.file_name == "tokenizer.spm"
    check_that_it_is_the_same(load_tokenizer(find_tokenizer(tmp_path)), tokenizer)


def test_a_gguf_says_it_as_llama_cpp_reads_it(tmp_path):
    gguf.write(tmp_path / "m.gguf", llama(GEMMA), "float32")
    fields = fields_of(tmp_path / "m.gguf")
    values = {key: fields[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type", "scores")}
    assert values["token_type"] == TYPES
    assert values["scores"] == SCORES
    assert values["tokens"] == [name.decode() for name in SPELLED]
    numbers = {"bos": 2, "eos": 1, "unknown": 3}
    assert {key: fields[f"tokenizer.ggml.{key}_token_id"] for key in numbers} == numbers
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.ggml.add_space_prefix"] is False


def test_a_tokenizer_json_says_it_as_hugging_face_reads_it(tmp_path):
    hf_tokenizer.write(tmp_path, GEMMA)
    content = json.loads((tmp_path / "tokenizer.json").read_bytes())
    added = {each["content"]: each for each in content["added_tokens"]}
    searched = {name for name, each in added.items() if not each["special"]}
    assert searched == {name.decode() for name, kind in LAYOUT if kind == USER_DEFINED}
    assert [each["id"] for each in added.values()] == sorted(each["id"] for each in added.values())
    assert content["model"]["unk_token"] == "<unk>"
    config = json.loads((tmp_path / "tokenizer_config.json").read_bytes())
    assert (config["bos_token"], config["eos_token"]) == ("<bos>", "<eos>")


@pytest.mark.parametrize("settings", [Settings(), Settings(False, True)])
def test_what_is_looked_for_beside_other_settings_is_in_its_own_file_alone(tmp_path, settings):
    tokenizer = make_tokenizer(PIECES, SCORES, settings, TYPES, **ENDS)
    again = tokenizer_from_bytes(tokenizer.to_bytes(), "t.spm")
    assert again == tokenizer
    assert again != GEMMA
    with pytest.raises(UserError, match=r"a tokenizer\.json cannot say that '\[TOOL\]' and others"):
        hf_tokenizer.write(tmp_path, tokenizer)
    with pytest.raises(UserError, match="a GGUF cannot say that this tokenizer"):
        gguf.write(tmp_path / "m.gguf", llama(tokenizer), "float32")
    assert not list(tmp_path.iterdir())


LIKE_LLAMA = [(b"<unk>", UNKNOWN), (b"<s>", CONTROL), (b"</s>", CONTROL)]
LIKE_LLAMA += [*((name, BYTE) for name in BYTE_PIECES), (b"a", NORMAL), (b"[x]", CONTROL)]


@pytest.mark.parametrize(
    ("place", "piece", "kind", "layout"),
    [
        (-2, b"a", USER_DEFINED, {}),
        (1, b"<bos>", CONTROL, {}),
        (0, b"<pad>", CONTROL, {}),
        (-1, b"[x]", CONTROL, {"begin": 260}),
        (-1, b"[x]", CONTROL, {"end": 260}),
        (-1, b"[x]", CONTROL, {"adds_begin": False}),
    ],
)
def test_llama2_c_s_file_is_for_llamas_layout_alone(place, piece, kind, layout):
    pieces, types = (list(each) for each in zip(*LIKE_LLAMA, strict=True))
    scores = [0.0] * len(pieces)
    plain = make_tokenizer(pieces, scores, types=types)
    assert type(plain) is LlamaTokenizer
    assert tokenizer_from_bytes(plain.to_bytes(), "t.bin").types.tolist() == types
    pieces[place], types[place] = piece, kind
    other = make_tokenizer(pieces, scores, types=types, **layout)
    assert other.file_name == "tokenizer.spm"
    again = tokenizer_from_bytes(other.to_bytes(), "t.spm")
    assert [*again.pieces] == [*other.pieces]
    for name in ("types", "begin", "end", "adds_begin", "ends", "special"):
        assert getattr(again, name) == getattr(other, name)


@pytest.mark.parametrize("mark", ["<|user|>", "<|im_end|>", "<start_of_turn>"])
def test_a_mark_of_a_chat_is_no_text_whatever_a_file_says(mark):
    pieces = [b"[x]" if piece == mark.encode() else piece for piece in PIECES]
    pieces[4] = mark.encode()
    tokenizer = make_tokenizer(pieces, SCORES, NO_PREFIX, TYPES, **ENDS)
    assert tokenizer.types[4] == CONTROL
    assert tokenizer.special[mark] == 4
    assert 4 not in tokenizer.encode(f"a{mark}")


# Other people's tokenizer.json


def written(folder):
    hf_tokenizer.write(folder, GEMMA)
    return json.loads((folder / "tokenizer.json").read_bytes())


def first_added(content, **flags):
    content["added_tokens"][4] |= flags  # [TOOL]
    return content


def with_template(content, *names):
    steps = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
    content["post_processor"]["single"] = [*steps, {"Sequence": {"id": "A", "type_id": 0}}]
    return content


PREPEND = {"type": "Prepend", "prepend": "▁"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
BOTH = {"type": "Sequence", "normalizers": [PREPEND, REPLACE]}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content | {"normalizer": REPLACE},
        lambda content: (
            content | {"normalizer": REPLACE, "pre_tokenizer": SPLIT | {"invert": False}}
        ),
    ],
)
def test_gemmas_own_steps_are_read(tmp_path, change):
    check_that_it_is_the_same(loaded(change(written(tmp_path))), GEMMA)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            lambda content: first_added(content, lstrip=True),
            r"the added token \{.*which is not spec",
        ),
        (
            lambda content: first_added(content, rstrip=True),
            r"the added token \{.*which is not spec",
        ),
        (
            lambda content: first_added(content, single_word=True),
            r"the added token \{.*not special",
        ),
        (
            lambda content: first_added(content, normalized=True),
            "added tokens of which some are normalized, and some",
        ),
        (
            lambda content: content | {"normalizer": BOTH},
            r"the added token '\[TOOL\]', which is not",
        ),
        (lambda content: with_template(content, "<bos>", "<eos>"), "the step .*TemplateProcessing"),
        (lambda content: with_template(content, "<b>"), "no special token <b> that begins a text"),
        (lambda content: with_template(content, "what"), "no special token what that begins a te"),
        (
            lambda content: content | {"pre_tokenizer": SPLIT | {"invert": True}},
            "the steps .*MergedWithPrevious.* before its model",
        ),
    ],
)
def test_what_a_tokenizer_json_asks_beyond_that_is_refused_by_name(tmp_path, change, what):
    with pytest.raises(FormatError, match=rf"^t/tokenizer\.json has ({what})"):
        loaded(change(written(tmp_path)))


def test_without_a_template_no_token_goes_first(tmp_path):
    for content in (written(tmp_path) | {"post_processor": None}, with_template(written(tmp_path))):
        check_that_it_is_the_same(loaded(content), WITHOUT_BEGIN)


def test_begin_and_end_may_be_named_beside_it(tmp_path):
    content = written(tmp_path) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    config = {"bos_token": {"content": "<pad>"}, "eos_token": "<end_of_turn>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert (tokenizer.begin, tokenizer.end) == (0, PIECES.index(b"<end_of_turn>"))


def test_what_is_looked_for_as_blanks_spelled_otherwise_is_a_piece(tmp_path):
    """Hugging Face looks for it in the text as it is written, where "▁" is no blank."""
    content = json.loads(json.dumps(written(tmp_path)).replace('"  "', '"\\u2581\\u2581"'))
    tokenizer = loaded(content)
    token = PIECES.index(b"  ")
    assert (tokenizer.pieces[token], tokenizer.types[token]) == (b"  ", NORMAL)
    assert token not in tokenizer.encode("a  ▁▁")
    content["added_tokens"][[each["id"] for each in content["added_tokens"]].index(token)][
        "normalized"
    ] = True
    with pytest.raises(FormatError, match=r"the added token \{.*which is not special"):
        loaded(content)


# Other people's GGUF


def test_tokens_in_brackets_are_control_tokens_where_a_blank_goes_first(tmp_path):
    path, tokenizer = tmp_path / "m.gguf", make_tokenizer(PIECES, SCORES, NO_PREFIX, TYPES, **ENDS)
    types = [
        CONTROL if kind == USER_DEFINED and token > 10 else kind for token, kind in enumerate(TYPES)
    ]
    types = [
        NORMAL if kind == USER_DEFINED and token != 4 else kind for token, kind in enumerate(types)
    ]
    forge_tokenizer(path, tokenizer, token_type=types, add_space_prefix=True)
    found = gguf.read(path).tokenizer
    assert found.types[4] == CONTROL
    assert settings_of(found).add_dummy_prefix
    types[FIRST_TEXT] = USER_DEFINED
    forge_tokenizer(path, tokenizer, token_type=types, add_space_prefix=True)
    weights = gguf.read(path)
    assert weights.tokenizer is None
    assert (
        weights.unread_tokenizer == "its tokenizer looks for '▁a' in a text with a blank in front"
    )


def test_what_begins_and_ends_a_text_is_a_control_token_whatever_its_type(tmp_path):
    path = tmp_path / "m.gguf"
    types = [NORMAL if token in (1, 2) else kind for token, kind in enumerate(TYPES)]
    forge_tokenizer(path, GEMMA, token_type=types)
    check_that_it_is_the_same(gguf.read(path).tokenizer, GEMMA)
    types = [CONTROL if token in (1, 2, 3) else kind for token, kind in enumerate(TYPES)]
    forge_tokenizer(path, GEMMA, token_type=types)  # as Gemma's has it
    check_that_it_is_the_same(gguf.read(path).tokenizer, GEMMA)


def test_without_a_byte_it_is_said_why(tmp_path):
    names = [name.replace(b"<0x41>", b"<0x4>") for name in SPELLED]
    forge_tokenizer(tmp_path / "m.gguf", GEMMA, tokens=names)
    weights = gguf.read(tmp_path / "m.gguf")
    assert weights.tokenizer is None
    assert weights.unread_tokenizer == "its tokenizer has no token <0x41> for that byte"


# In any file


def with_pieces(*more):
    """A vocabulary with more tokens, of a name and a type."""
    pieces, types = (list(each) for each in zip(*LAYOUT, *more, strict=True))
    return make_tokenizer(pieces, [0.0] * len(pieces), NO_PREFIX, types, **ENDS)


@pytest.mark.parametrize(
    ("tokenizer", "what"),
    [
        (with_pieces((b"  ", NORMAL)), "two tokens for the same text"),
        (
            with_pieces(*((b"<%d>" % token * 50, USER_DEFINED) for token in range(1000))),
            "user-defined tokens of 2[0-9]{2},[0-9]{3} bytes, to look for in every text",
        ),
    ],
)
def test_vocabularies_that_cannot_be_used_are_refused(tmp_path, tokenizer, what):
    with pytest.raises(FormatError, match=rf"^t\.spm .*(two of its pieces are the same|{what})"):
        tokenizer_from_bytes(tokenizer.to_bytes(), "t.spm")
    hf_tokenizer.write(tmp_path, tokenizer)
    with pytest.raises(FormatError, match=f"json has {what}"):
        load_tokenizer(tmp_path / "tokenizer.json")
    gguf.write(tmp_path / "m.gguf", llama(tokenizer), "float32")
    assert re.match(f"its tokenizer has {what}", gguf.read(tmp_path / "m.gguf").unread_tokenizer)
