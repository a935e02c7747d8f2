"""BPE on bytes with ids, merges and words of any kind: what it does, and its files."""

import json
import random
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
from gguf_files import fields_of, forge_tokenizer, llama
from hypothesis import example, given
from hypothesis import strategies as st

from errors import FormatError, UserError
from formats import gguf, hf_tokenizer
from formats.byte_level import GPT2_PATTERN, WORDS, ByteLevelTokenizer, Words, of_ranks
from formats.tokenizer_files import find_tokenizer, load_tokenizer, tokenizer_from_bytes
from tokenizer import train_bpe

TEXT = "It's 1234 tests, isn't it?\n\n  The \u00e9t\u00e9 of '99:\tit's the\r\n  tests' THE 1234  "
TRAINED = train_bpe(TEXT * 2, 60)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ADDED = ["<think>", "<think>>", "</think>"]


def tokenizer_of(
    words=WORDS["smollm"], added=ADDED, adds_begin=False, merges=None, special=SPECIAL
):
    """Special tokens first, then pieces in another order than their merges', then added tokens."""
    trained = of_ranks(TRAINED)
    pieces = [*trained.tokens][: TRAINED.begin]
    order = random.Random(0).sample(range(len(pieces)), len(pieces))
    place = {old: new for new, old in enumerate(order, start=len(special))}
    tokens = [*map(str.encode, special), *(pieces[old] for old in order), *map(str.encode, added)]
    ids = range(len(tokens) - len(added), len(tokens))
    merges = trained.merges if merges is None else merges
    return ByteLevelTokenizer(
        tokens,
        [(place[left], place[right]) for left, right in merges],
        words,
        {name: id_ for id_, name in enumerate(special)},
        dict(zip(added, ids, strict=True)),
        begin=1,
        adds_begin=adds_begin,
        ends=[2, 0, 1],
    )


TOKENIZERS = {name: tokenizer_of(words) for name, words in WORDS.items()}
ALL = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt-2", "It|'s| 1234| tests|'|D|!|\n\n | é"),
        ("smollm", "It|'s| |1|2|3|4| tests|'|D|!|\n\n | é"),
        ("llama-bpe", "It|'s| |123|4| tests|'D|!\n\n| | é"),
        ("qwen2", "It|'s| |1|2|3|4| tests|'D|!\n\n| | é"),
        ("default", "It|'|s| |123|4| tests|'|D|!|\n\n | é"),
    ],
)
def test_a_text_becomes_words_as_the_models_have_them(name, words):
    assert TOKENIZERS[name].words_of(words.replace("|", "")) == words.split("|")


@pytest.mark.parametrize("name", WORDS)
def test_contractions_count_in_capitals_only_for_llama_3_and_qwen(name):
    words = ["We", "'LL", "x"] if name in ("llama-bpe", "qwen2") else ["We", "'", "LLx"]
    assert TOKENIZERS[name].words_of("We'LLx") == words


@ALL
@given(text=st.text())
@example(text=TEXT)
@example(text="<|im_start|>a<|endoftext|><think>\n</think>")
def test_text_survives_encoding(tokenizer, text):
    if tokenizer.words.nfc:
        text = "".join(each for each in text if each.isascii())
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert not tokenizer.ends & set(tokens)


def plain_merges(tokenizer, word: str) -> list[bytes]:
    """What merging is by its definition: the first pair of the list that is there, again."""
    pairs = [(tokenizer.tokens[left], tokenizer.tokens[right]) for left, right in tokenizer.merges]
    pieces = [bytes([byte]) for byte in word.encode()]
    while found := [pair for pair in pairs if pair in pairwise(pieces)]:
        place = [*pairwise(pieces)].index(found[0])
        pieces[place : place + 2] = [b"".join(found[0])]
    return pieces


@given(text=st.text(alphabet="its theé1'\n"), seed=st.integers(0, 3))
@example(text=TEXT, seed=0)
def test_the_first_pair_of_the_list_is_merged_first_and_of_equals_the_leftmost(text, seed):
    merges = of_ranks(TRAINED).merges
    tokenizer = tokenizer_of(merges=random.Random(seed).sample(merges, len(merges)))
    for word in tokenizer.words_of(text):
        tokens = tokenizer._encode_word(word)
        assert [tokenizer.tokens[token] for token in tokens] == plain_merges(tokenizer, word)


def test_a_word_that_is_a_token_may_stay_whole():
    words = Words((GPT2_PATTERN,))
    (the,) = (id_ for id_, data in enumerate(tokenizer_of().tokens) if data == b" the")
    for whole in (False, True):
        tokenizer = tokenizer_of(replace(words, whole=whole), merges=[])
        assert (tokenizer.encode(" the") == [the]) is whole
        assert tokenizer.decode(tokenizer.encode(" the")) == " the"


def test_characters_are_composed_where_the_model_wants_it():
    for nfc in (False, True):
        tokenizer = tokenizer_of(Words((GPT2_PATTERN,), nfc))
        composed = tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")
        assert composed is nfc


def test_control_tokens_are_plain_text_and_added_ones_are_looked_for():
    tokenizer = tokenizer_of()
    first = tokenizer.vocab_size - 3
    assert tokenizer.encode("<think></think>") == [first, first + 2]
    assert tokenizer.encode("<think>>") == [first + 1]  # the longest of those that begin first
    assert tokenizer.encode("<<think>") == [*tokenizer.encode("<"), first]
    assert len(tokenizer.encode("<|im_start|>")) > 1
    assert tokenizer.decode(tokenizer.encode("<|im_start|>")) == "<|im_start|>"


def test_a_word_with_the_name_of_a_control_token_is_plain_text():
    tokenizer = tokenizer_of(WORDS["llama-bpe"], special=[*SPECIAL, "stop", "A"])
    for text in ("stop", "A"):
        assert tokenizer.special[text] not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_character_without_its_bytes_is_named():
    tokenizer = TOKENIZERS["smollm"]
    missing = tokenizer_of()
    missing.__init__(
        [data if data != b"\xc3" else b"ZZ" for data in tokenizer.tokens],
        [],
        *(tokenizer.words, tokenizer.special, tokenizer.added, 1, False, tokenizer.ends),
    )
    assert missing.unknown("aéb\u00e8ñ") == {"é", "è", "ñ"}
    assert missing.encode("aα") == tokenizer.encode("aα")
    with pytest.raises(UserError, match="vocabulary has no bytes for 'é'; write the text without"):
        missing.encode("aé")


def test_vocabularies_are_equal_if_every_text_has_the_same_tokens():
    merges = of_ranks(TRAINED).merges
    assert tokenizer_of() == tokenizer_of(adds_begin=True)
    for other in (
        tokenizer_of(WORDS["qwen2"]),
        tokenizer_of(replace(WORDS["smollm"], whole=True)),
        tokenizer_of(added=ADDED[:2]),
        tokenizer_of(merges=merges[1:]),
        tokenizer_of(merges=[*merges[1:], merges[0]]),
        TRAINED,
    ):
        assert tokenizer_of() != other


def test_long_words_and_gaps_are_no_problem():
    for tokenizer in TOKENIZERS.values():
        for text in (
            "a" * 100_000,
            " " * 100_000 + "a",
            "!" * 100_000,
            "'" * 100_000,
            "\n " * 50_000,
        ):
            assert tokenizer.decode(tokenizer.encode(text)) == text


# Files

KINDS = {
    **{name: partial(tokenizer_of, words) for name, words in WORDS.items()},
    "begin": partial(tokenizer_of, adds_begin=True),
    "plain": partial(tokenizer_of, added=[]),
}
EVERY_KIND = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def assert_same(again, tokenizer):
    assert again.to_bytes() == tokenizer.to_bytes()
    assert again == tokenizer
    for name in ("begin", "adds_begin", "end", "ends", "special", "added"):
        assert getattr(again, name) == getattr(tokenizer, name)
    assert again.encode(TEXT) == tokenizer.encode(TEXT)


@EVERY_KIND
def test_a_tokenizer_json_keeps_all_of_it(make, tmp_path):
    tokenizer = make()
    tokenizer.save(tmp_path / tokenizer.file_name)
    assert_same(load_tokenizer(find_tokenizer(tmp_path)), tokenizer)


@EVERY_KIND
def test_a_folder_for_hugging_face_keeps_all_of_it(make, tmp_path):
    hf_tokenizer.write(tmp_path, make())
    assert "begin" not in json.loads((tmp_path / "tokenizer.json").read_bytes())["model"]
    config = json.loads((tmp_path / "tokenizer_config.json").read_bytes())
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert_same(load_tokenizer(tmp_path / "tokenizer.json"), make())


@EVERY_KIND
@pytest.mark.parametrize("rows", [0, 5])
def test_a_gguf_keeps_all_of_it(make, tmp_path, rows):
    tokenizer = make()
    gguf.write(tmp_path / "a.gguf", llama(tokenizer, vocab_size=tokenizer.vocab_size + rows))
    assert_same(gguf.read(tmp_path / "a.gguf").tokenizer, tokenizer)


def test_a_gguf_has_the_names_and_types_of_llama_cpp(tmp_path):
    for name, words in WORDS.items():
        gguf.write(tmp_path / "a.gguf", llama(tokenizer_of(words)))
        fields = fields_of(tmp_path / "a.gguf")
        assert fields["tokenizer.ggml.pre"] == name
        types = fields["tokenizer.ggml.token_type"]
        assert types == [3] * 3 + [1] * (len(types) - 6) + [4] * 3


def test_what_a_gguf_does_not_say_is_as_llama_cpp_has_it(tmp_path):
    path = tmp_path / "a.gguf"
    for name, words in WORDS.items():
        forge_tokenizer(path, tokenizer_of(words, added=[]), add_bos_token=None, token_type=None)
        tokenizer = gguf.read(path).tokenizer
        assert tokenizer.adds_begin is (name == "llama-bpe")
        assert tokenizer.special == {"<|im_start|>": 1, "<|im_end|>": 2}  # which begin and end


def test_the_end_that_a_gguf_names_stays_the_one_to_name(tmp_path):
    """A base model's texts end with another token than the turns that its vocabulary has, too."""
    forge_tokenizer(tmp_path / "a.gguf", tokenizer_of(), eos_token_id=0)
    tokenizer = gguf.read(tmp_path / "a.gguf").tokenizer
    assert (tokenizer.end, tokenizer.ends) == (0, {0, 1, 2})
    gguf.write(tmp_path / "b.gguf", llama(tokenizer))
    assert fields_of(tmp_path / "b.gguf")["tokenizer.ggml.eos_token_id"] == 0
    hf_tokenizer.write(tmp_path, tokenizer)
    assert load_tokenizer(tmp_path / "tokenizer.json").end == 0


def test_unused_and_unknown_tokens_of_a_gguf_are_no_text(tmp_path):
    made = tokenizer_of()
    text = [id_ for id_ in range(made.vocab_size) if made.tokens[id_] in (b" the", b" its", b"'s")]
    assert len(text) == 2
    types = [3] * 3 + [1] * (made.vocab_size - 6) + [4] * 3
    types[text[0]], types[text[1]] = 5, 2
    forge_tokenizer(tmp_path / "a.gguf", made, token_type=types)
    tokenizer = gguf.read(tmp_path / "a.gguf").tokenizer
    assert {*text} <= {*tokenizer.special.values()}
    assert not {*text} & {*tokenizer.encode(TEXT)}


def test_a_gguf_cannot_say_that_words_are_made_in_another_way(tmp_path):
    for words in (Words((GPT2_PATTERN,), nfc=True), replace(WORDS["llama-bpe"], whole=False)):
        with pytest.raises(UserError, match="a GGUF cannot say how this tokenizer makes words of"):
            gguf.write(tmp_path / "a.gguf", llama(tokenizer_of(words)))
    assert not list(tmp_path.iterdir())


def content_of(words=WORDS["smollm"], **options) -> dict:
    return json.loads(tokenizer_of(words, **options).to_bytes())


def loaded(content: dict):
    return tokenizer_from_bytes(json.dumps(content).encode(), "t/tokenizer.json")


DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}


def test_the_steps_of_other_peoples_files():
    smollm = content_of() | {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, BYTES]},
        "post_processor": None,
    }
    assert loaded(smollm) == tokenizer_of()
    llama3 = content_of(WORDS["llama-bpe"], adds_begin=True)
    steps = [BYTES, llama3["post_processor"]]
    llama3["post_processor"] = {"type": "Sequence", "processors": steps}
    split = llama3["pre_tokenizer"]["pretokenizers"][0]
    split |= {"behavior": "Removed", "invert": True}
    assert_same(loaded(llama3), tokenizer_of(WORDS["llama-bpe"], adds_begin=True))
    del llama3["model"]["begin"], llama3["model"]["ends"]
    assert loaded(llama3).begin == 1


def test_tokens_that_a_file_names_begin_and_end_texts(tmp_path):
    content = content_of()
    del content["model"]["begin"], content["model"]["ends"]
    plain = loaded(content)  # known by their names
    assert (plain.begin, plain.ends) == (0, {0, 2})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    config = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    named = load_tokenizer(tmp_path / "tokenizer.json")
    assert (named.begin, named.ends) == (1, {0, 1, 2})
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(FormatError, match=r"tokenizer_config\.json is not JSON, or damaged"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_token_that_looks_like_control_is_no_text_whatever_a_file_says():
    content = content_of()
    content["added_tokens"][1]["special"] = False
    assert content["added_tokens"][1]["content"] == "<|im_start|>"
    with pytest.raises(FormatError, match="a begin or an end of texts that is no special token"):
        loaded(content)
    content["model"] |= {"begin": 0, "ends": [0]}
    assert_same(loaded(content), loaded(content | {"added_tokens": content_of()["added_tokens"]}))


def test_merges_to_control_tokens_are_not_for_texts():
    content = content_of()
    vocab = content["model"]["vocab"]
    vocab |= {"<|": len(vocab), "im_end|>": len(vocab) + 1}
    content["model"]["merges"].insert(0, ["<|", "im_end|>"])
    tokenizer = loaded(content)
    assert tokenizer.merges == tokenizer_of().merges


TEMPLATE = content_of(adds_begin=True)["post_processor"]
BEGIN, SECOND = TEMPLATE["single"][0], {"Sequence": {"id": "B", "type_id": 0}}
WITHOUT_DIGITS = {
    "type": "Split",
    "pattern": {"Regex": r"\p{N}"},
    "behavior": "Removed",
    "invert": True,
}
REFUSED = [
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 2}}, "the step {'add_pref"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}}, "the step None beside its"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS]}}, "the step {'indiv"),
    (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [*[DIGITS] * 2, BYTES]}},
        "the step {'pretok",
    ),
    (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [WITHOUT_DIGITS, BYTES]}},
        "the step {'behavior': 'Removed'",
    ),
    ({"pre_tokenizer": {"type": "Metaspace"}}, "the step {'type': 'Metaspace'} beside its"),
    ({"normalizer": {"type": "NFKC"}}, "the step {'type': 'NFKC'} beside its"),
    ({"post_processor": {"type": "BertProcessing"}}, "the step {'type': 'BertProcessing'} beside"),
    ({"post_processor": TEMPLATE | {"single": TEMPLATE["single"][::-1]}}, "no SpecialToken, or on"),
    ({"post_processor": TEMPLATE | {"single": TEMPLATE["single"] * 2}}, "no SpecialToken, or one"),
    ({"post_processor": TEMPLATE | {"single": [BEGIN, *TEMPLATE["single"]]}}, "the step {'pair"),
    ({"post_processor": TEMPLATE | {"single": [BEGIN, SECOND]}}, "the step {'pair"),
    ({"post_processor": TEMPLATE | {"single": []}}, "no Sequence, or one of a strange type"),
    ({"post_processor": TEMPLATE | {"single": TEMPLATE["pair"][1:]}}, "no SpecialToken, or one of"),
    ({"added_tokens": []}, "a begin or an end of texts that is no special token"),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_what_is_not_known_is_refused_by_name(changes, sentence):
    with pytest.raises(FormatError, match=rf"^t/tokenizer\.json has {sentence}"):
        loaded(content_of() | changes)


@pytest.mark.parametrize("flag", ["single_word", "lstrip", "rstrip", "normalized"])
def test_an_added_token_that_minds_its_neighbours_is_refused(flag):
    content = content_of(WORDS["qwen2"])
    content["added_tokens"][0][flag] = True  # a special one's matter to nobody here
    assert loaded(content) == tokenizer_of(WORDS["qwen2"])
    content["added_tokens"][3][flag] = True
    with pytest.raises(FormatError, match=f"the token '<think>' with the setting {flag}"):
        loaded(content)


def test_a_vocabulary_without_an_end_of_texts_is_refused():
    content = content_of()
    del content["model"]["begin"], content["model"]["ends"]
    for token in content["added_tokens"]:
        token["content"] = token["content"].replace("end", "End")
    content["model"]["vocab"] = {
        name.replace("<|end", "<|End").replace("_end", "_End"): id_
        for name, id_ in content["model"]["vocab"].items()
    }
    with pytest.raises(FormatError, match="no token that ends a text"):
        loaded(content)
