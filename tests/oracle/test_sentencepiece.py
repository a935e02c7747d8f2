"""Llama's kind of tokenizer against the library that trains such tokenizers."""

import itertools
import random
from pydoc_data.topics import topics

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sentencepiece_models import check_that_they_agree, known, sentencepiece, train

from errors import FormatError
from formats.charsmap import Charsmap
from formats.tokenizer_files import load_tokenizer, tokenizer_from_bytes

# The library takes ▁ for a blank, which run.c does not.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"))
LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
RULES = ["identity", "nfkc", "nfkc_cf", "nmt_nfkc", "nmt_nfkc_cf"]


@pytest.fixture(scope="module")
def like_llama2_c() -> bytes:
    """As llama2.c's tinystories.py trains one."""
    return train(**LLAMA, split_digits=True, allow_whitespace_only_pieces=True)


@pytest.fixture(scope="module")
def llama2(starter) -> bytes:
    return (starter / "llama2_tokenizer.model").read_bytes()


def test_llamas_model_is_llama2_c_s_tokenizer_bin(starter):
    tokenizer = load_tokenizer(starter / "llama2_tokenizer.model")
    assert tokenizer.to_bytes() == (starter / "llama2_tokenizer.bin").read_bytes()


@given(text=TEXTS)
@example(text="  It's 1,234   “words”\n\n\t中文 and 😀.  ")
@example(text="<s> <0x41> </s><unk>")
def test_llamas_tokenizer_encodes_as_the_library_does(llama2, text):
    check_that_they_agree(llama2, text)


@given(text=TEXTS)
@example(text="  str.format()   “words”\n\n\t中文 and 😀.  ")
def test_a_trained_tokenizer_encodes_as_the_library_does(like_llama2_c, text):
    check_that_they_agree(like_llama2_c, text)


def test_long_texts_are_encoded_as_the_library_does(llama2, like_llama2_c):
    for data in (llama2, like_llama2_c):
        ours, theirs = known(data)
        for text in topics.values():
            assert ours.encode(text) == theirs.encode(text)


# What is done to a text

WORDS = [" ", " ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2003", "\x00", "\x01", "\u200b"]
WORDS += [
    "str",
    "The",
    "string",
    "ＦＵＬＬ",
    "ﬁ",
    "ﬀ",
    "½",
    "①",
    "Ⅷ",
    "ｶﾞ",
    "한",
    "한",
    "中文",
    "😀",
]
WORDS += ["e\u0301", "\u0301", "q\u0323\u0307", "ẛ̣", "¨", "ﷺ", "ß", "İ", "Σ", "K", "<s>", "</s>"]
WORDS += ["<unk>", "<0x41>", "foo", "\ufeff", "\ufffd", "\u00ad", "\u0085", "‘’“”", "…", "－—"]


def varied_texts() -> list[str]:
    rng = random.Random(0)
    texts = ["", " ", "   ", " a", "a ", " a ", "  a  b  ", "\n", " \n ", "\x01", " \x01 ", "¨"]
    texts += ["".join(rng.choices(WORDS, k=rng.randrange(1, 10))) for _ in range(100)]
    return texts


VARIED = varied_texts()
EVERY = [
    {
        "normalization_rule_name": rules,
        "add_dummy_prefix": prefix,
        "remove_extra_whitespaces": extra,
        **more,
    }
    for rules, prefix, extra, more in itertools.product(
        RULES,
        (True, False),
        (True, False),
        (
            {},
            {"split_by_whitespace": False, "split_by_unicode_script": False},
            {"allow_whitespace_only_pieces": True, "split_digits": True, "split_by_number": False},
        ),
    )
]


def test_every_setting_gives_the_librarys_tokens():
    text = topics["string-methods"] + "".join(VARIED).replace("\0", "")
    for settings in EVERY:
        data = train(text, vocab_size=1200, **settings)
        tokens = known(data)[0].encode("".join(VARIED))
        assert len({token for token in tokens if token >= 259}) > 50
        for each in VARIED:
            check_that_they_agree(data, each)


@pytest.mark.parametrize("settings", EVERY[:12:3])
def test_tokens_that_no_text_becomes_are_decoded_as_well(settings):
    ours, theirs = known(train(**settings))
    for token in range(259, ours.vocab_size):
        # The library removes all blanks in front, also those that are tokens of their own.
        if ours.pieces[token] != b" ":
            assert ours.decode([token, token]) == theirs.decode([token, token])
            assert ours.decode([1, token, 2]) == theirs.decode([1, token, 2])


@given(text=TEXTS)
def test_the_default_settings_give_the_librarys_tokens(text):
    check_that_they_agree(train(), text)


def test_rules_of_ones_own_are_read(tmp_path):
    rules = tmp_path / "rules.tsv"
    # A is aa, C is nothing, ab is a blank and x, and ba is a line end.
    rules.write_text("41\t61 61\n43\t\n61 62\t20 78\n62 61\tA\n", encoding="utf-8")
    data = train(normalization_rule_tsv=str(rules))
    for letters in itertools.product("Aab C", repeat=5):
        check_that_they_agree(data, "".join(letters))


@pytest.mark.parametrize("name", RULES[1:])
def test_every_rule_is_read(name):
    normalizer = sentencepiece.SentencePieceNormalizer(
        rule_name=name, add_dummy_prefix=False, remove_extra_whitespaces=False
    )
    ours, _ = known(train(normalization_rule_name=name))
    charsmap = Charsmap(ours.settings.charsmap)
    rules = normalizer.Decompile()
    assert len(rules) > 200_000
    assert all(charsmap.replace(before) == after for before, after in rules)


NAMES = {"unk_piece": "<what>", "bos_piece": "<begin>", "eos_piece": "<end>", "unk_surface": "?"}


@pytest.mark.parametrize(
    "options",
    [
        *({name: value} for name, value in NAMES.items()),
        {"vocabulary_output_piece_score": False},
        {"max_sentencepiece_length": 3},
        {"pretokenization_delimiter": "t"},
        {"required_chars": "é中"},
        {"character_coverage": 0.98},
        {"control_symbols": "<s>"},  # it is one already
    ],
)
def test_settings_of_training_alone_do_not_matter(options):
    for text in VARIED:
        check_that_they_agree(train(**options), text)


@pytest.mark.parametrize("settings", [each for each in EVERY[::3] if LLAMA.items() - each.items()])
def test_what_is_written_means_the_same_to_the_library(settings):
    ours, theirs = known(train(**settings))
    again, library = known(ours.to_bytes())
    assert again.settings == ours.settings
    assert again.to_bytes() == ours.to_bytes()
    assert library.get_piece_size() == ours.vocab_size
    assert (library.unk_id(), library.bos_id(), library.eos_id()) == (0, 1, 2)
    for text in VARIED:
        tokens = theirs.encode(text)
        assert again.encode(text) == library.encode(text) == tokens
        assert again.decode(tokens) == library.decode(tokens) == theirs.decode(tokens)


# What is refused

REFUSED = [
    ({"model_type": "unigram", "vocab_size": 400}, "of the type unigram"),
    ({"model_type": "word", "vocab_size": 400, "hard_vocab_limit": False}, "of the type word"),
    ({"model_type": "char", "vocab_size": 400, "hard_vocab_limit": False}, "of the type char"),
    ({"byte_fallback": False}, "without byte_fallback"),
    ({"treat_whitespace_as_suffix": True}, "with treat_whitespace_as_suffix"),
]


@pytest.mark.parametrize(("options", "what"), REFUSED)
def test_what_would_give_other_tokens_is_refused_by_name(options, what):
    sentence = rf"^t\.model is a SentencePiece model {what}, which is not handled"
    with pytest.raises(FormatError, match=sentence):
        tokenizer_from_bytes(train(**options), "t.model")


@pytest.mark.parametrize(
    ("file", "rule", "what"),
    [
        ("normalization_rule_tsv", "41\t20 20\n", "with rules that make ▁ or several blanks"),
        ("normalization_rule_tsv", "41\t2581\n", "with rules that make ▁ or several blanks"),
        ("denormalization_rule_tsv", "61\t41\n", "with rules that change a decoded text"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused_by_name(tmp_path, file, rule, what):
    path = tmp_path / "rules.tsv"
    path.write_text(rule, encoding="utf-8")
    with pytest.raises(FormatError, match=rf"^t\.model is a SentencePiece model {what}"):
        tokenizer_from_bytes(train(**{file: str(path)}), "t.model")


def test_a_damaged_model_is_refused():
    for data in (train(), train(**LLAMA)):
        for length in {*range(4, 8000, 97), *range(8000, len(data), 9973), len(data) - 1}:
            with pytest.raises(FormatError, match=r"^t\.model is a damaged SentencePiece model \("):
                tokenizer_from_bytes(data[:length], "t.model")
