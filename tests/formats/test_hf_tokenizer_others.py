"""Other people's tokenizer.json, vocab.json and merges.txt, whole and damaged."""

import copy
import json
import random

import pytest
from hf_files import LLAMA, TRAINED, gpt2_content, gpt2_file, llama_file, loaded, small_files
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import FormatError
from formats.byte_level import ByteLevelTokenizer
from formats.byte_pairs import byte_characters
from formats.tokenizer_files import load_tokenizer, tokenizer_from_bytes
from tokenizer import train_bpe


def gpt2_split(pattern: str) -> dict:
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    byte_level = gpt2_file()["pre_tokenizer"] | {"use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}


GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def test_older_files_of_gpt2_have_fewer_entries():
    content = gpt2_file()
    for entry in ("type", "byte_fallback", "ignore_merges", "dropout"):
        del content["model"][entry]
    del content["pre_tokenizer"]["use_regex"]
    content["pre_tokenizer"]["trim_offsets"] = False
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    content["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    assert loaded(content).ranks == loaded(gpt2_file()).ranks


def test_gpt2s_pattern_may_be_spelled_out():
    content = gpt2_file() | {"pre_tokenizer": gpt2_split(GPT2_PATTERN)}
    assert loaded(content).ranks == loaded(gpt2_file()).ranks


def test_whole_words_may_be_looked_up_before_they_are_merged():
    content = gpt2_file()
    content["model"]["ignore_merges"] = True  # the same, where merging makes every token
    assert loaded(content).ranks == loaded(gpt2_file()).ranks


def test_a_special_token_may_be_in_the_list_of_these_only():
    content = gpt2_file()
    del content["model"]["vocab"]["<|endoftext|>"]
    assert loaded(content).ranks == loaded(gpt2_file()).ranks


def test_bytes_may_have_any_ids():
    content = gpt2_file()
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["ab"] = vocab["ab"], vocab["a"]
    tokenizer = loaded(content)
    assert tokenizer.encode("aab") == [vocab["a"], vocab["ab"]] == [256, 97]


def test_merges_to_special_tokens_are_not_for_texts():
    content = llama_file()
    content["model"]["vocab"] |= {"</": 276, "s>": 277}
    content["model"]["merges"].insert(0, ["</", "s>"])
    assert loaded(content).decode(loaded(content).encode("</s>")) == "</s>"


def write_vocab(folder, tokenizer=TRAINED, version="#version: 0.2\n"):
    content = gpt2_content(tokenizer)["model"]
    lines = "".join(f"{left} {right}\n" for left, right in content["merges"])
    (folder / "merges.txt").write_text(version + lines, encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]), encoding="utf-8")
    return folder / "vocab.json"


@pytest.mark.parametrize("version", ["#version: 0.2\n", ""])
def test_vocab_json_and_merges_txt_are_read(tmp_path, version):
    tokenizer = train_bpe("##\n##\nmodel\nmodel", 20)
    assert {b"##", b"model"} <= tokenizer.ranks.keys()  # neither a comment nor a key
    assert load_tokenizer(write_vocab(tmp_path, tokenizer, version)).ranks == tokenizer.ranks


def test_vocab_json_without_its_merges_is_refused(tmp_path):
    path = write_vocab(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(FormatError, match=r"vocab\.json needs the merges\.txt that belongs to it"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe a\n", b"a b c\n", b"ab\n", b"a \xe2\x80\xa8\n", b"\0"]
)
def test_damaged_merges_are_refused(tmp_path, damage):
    path = write_vocab(tmp_path)
    (tmp_path / "merges.txt").write_bytes((tmp_path / "merges.txt").read_bytes() + damage)
    with pytest.raises(FormatError, match=r"vocab\.json has the merge '.*', which is not of two"):
        load_tokenizer(path)


def changed(content: dict, *places_and_value) -> dict:
    """With another value at a place; "DELETED" takes it away."""
    *places, last, value = places_and_value
    inner = content
    for place in places:
        inner = inner[place]
    if value == "DELETED":
        del inner[last]
    else:
        inner[last] = value
    return content


def with_token(content: dict, token: str) -> dict:
    content["model"]["vocab"][token] = len(content["model"]["vocab"])
    return content


def with_added(content: dict, token: str, special: bool = True, behind: int = 0) -> dict:
    """With an added token whose id comes so far behind the vocabulary."""
    number = len(content["model"]["vocab"]) + behind
    content["added_tokens"].append({"id": number, "content": token, "special": special})
    return content


def with_merge(content: dict, place: int, merge) -> dict:
    content["model"]["merges"].insert(place, merge)
    return content


def with_gpt2_merges(*pairs: str) -> dict:
    """A file of GPT-2's kind with these merges, "a b" or, of single characters, "ab"."""
    content = gpt2_file()
    pairs = [pair.split(" ") if " " in pair else [*pair] for pair in pairs]
    spellings = [*byte_characters(), *map("".join, pairs), "<|endoftext|>"]
    vocab = {token: id_ for id_, token in enumerate(dict.fromkeys(spellings))}
    for token in {token for pair in pairs for token in pair} - vocab.keys():
        vocab |= {token: len(vocab) - 1, "<|endoftext|>": len(vocab)}
    content["added_tokens"][0]["id"] = vocab["<|endoftext|>"]
    content["model"] |= {"vocab": vocab, "merges": pairs}
    return content


def without_byte(content: dict) -> dict:
    vocab = content["model"]["vocab"]
    vocab["AA"] = vocab.pop("A")
    return content


def with_ids(content: dict, one: str, other: str) -> dict:
    """With the ids of two tokens exchanged."""
    vocab = content["model"]["vocab"]
    vocab[one], vocab[other] = vocab[other], vocab[one]
    for token in content["added_tokens"]:
        token["id"] = vocab[token["content"]]
    return content


def renamed(content: dict, old: str, new: str) -> dict:
    vocab = content["model"]["vocab"]
    vocab[new] = vocab.pop(old)
    return content


def metaspace(**options) -> dict:
    step = {"type": "Metaspace", "replacement": "▁", "split": False}
    return llama_file() | {"normalizer": None, "pre_tokenizer": step | options}


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        (with_gpt2_merges("ab", "bc", "a bc"), ["ab", "c"]),  # tiktoken would make one token of it
        (with_gpt2_merges("bc", "ab", "a bc", "ab c"), ["abc"]),
        (with_token(gpt2_file(), "cd"), ["ab", "c"]),
        (without_byte(gpt2_file()), ["ab", "c"]),
        (changed(gpt2_file(), "model", "merges", []), ["a", "b", "c"]),
        (changed(gpt2_file(), "normalizer", {"type": "NFC"}), ["ab", "c"]),
        (with_added(gpt2_file(), "bc", special=False), ["a", "bc"]),
        (with_ids(with_token(with_added(gpt2_file(), "ab<"), "ab<"), "ab<", "a"), ["ab", "c"]),
    ],
)
def test_what_gpt2s_kind_cannot_be_is_byte_level(content, tokens):
    tokenizer = loaded(content)
    assert isinstance(tokenizer, ByteLevelTokenizer)
    assert [tokenizer.tokens[token] for token in tokenizer.encode("abc")] == [
        *map(str.encode, tokens)
    ]


REFUSED = [
    # GPT-2's kind, with the bytes, then "ab", "Ġab" and <|endoftext|>
    (changed(gpt2_file(), "model", 7), r"needs the merges\.txt|ids are not"),
    (changed(gpt2_file(), "model", "type", "Unigram"), "a model of the type 'Unigram'"),
    (changed(gpt2_file(), "model", "type", ["BPE"]), r"a model of the type \['BPE'\]"),
    (changed(gpt2_file(), "model", "dropout", 0.1), "has the setting dropout"),
    (
        changed(gpt2_file(), "model", "end_of_word_suffix", "</w>"),
        "has the setting end_of_word_suffix",
    ),
    (
        changed(gpt2_file(), "model", "continuing_subword_prefix", "##"),
        "setting continuing_subword_prefix",
    ),
    (changed(gpt2_file(), "model", "vocab", []), "has no vocab, or one of a strange type"),
    (changed(gpt2_file(), "model", "vocab", {}), "tokens whose ids are not"),
    (changed(gpt2_file(), "model", "merges", {}), "has no merges, or one of a strange type"),
    (changed(gpt2_file(), "added_tokens", "DELETED"), "has no added_tokens, or one"),
    (changed(gpt2_file(), "added_tokens", 0, "content", 7), "has no content, or one"),
    (changed(gpt2_file(), "added_tokens", 0, "id", "259"), "has no id, or one"),
    (changed(gpt2_file(), "added_tokens", 0, 7), "has no content, or one"),
    (changed(gpt2_file(), "added_tokens", 0, "id", 257), "ids are not 0, 1, 2"),
    (changed(gpt2_file(), "model", "vocab", "a", 98), "ids are not 0, 1, 2"),
    (changed(gpt2_file(), "model", "vocab", "a", -1), "ids are not 0, 1, 2"),
    (changed(gpt2_file(), "model", "vocab", "a", 10**300), "ids are not 0, 1, 2"),
    (changed(gpt2_file(), "model", "vocab", "a", 97.0), "ids are not 0, 1, 2"),
    (changed(gpt2_file(), "model", "vocab", "a", None), "ids are not 0, 1, 2"),
    (changed(gpt2_file(), "model", "vocab", "a", "DELETED"), "ids are not 0, 1, 2"),
    (with_added(gpt2_file(), "<pad>", behind=1), "260 tokens whose ids are not 0, 1, 2"),
    (with_added(gpt2_file(), "\ud83d"), "has the token '.ud83d', which is no text"),
    (with_token(gpt2_file(), ""), "has an empty token"),
    (
        changed(gpt2_file(), "normalizer", {"type": "NFD"}),
        "the step .*'NFD'.* beside its model",
    ),
    (changed(gpt2_file(), "pre_tokenizer", None), "has the step None beside its model"),
    (changed(gpt2_file(), "pre_tokenizer", "add_prefix_space", True), "has the step .*True"),
    (changed(gpt2_file(), "pre_tokenizer", "use_regex", False), "has the step .*ByteLevel"),
    (changed(gpt2_file(), "pre_tokenizer", gpt2_split(r"(a+)+")), r"has the step .*\(a\+\)\+"),
    (changed(gpt2_file(), "model", "merges", 0, ["a"]), r"the merge \['a'\], which is not of two"),
    (changed(gpt2_file(), "model", "merges", 0, [["a"], "b"]), "which is not of two of its"),
    (changed(gpt2_file(), "model", "merges", 0, "a b c"), "the merge 'a b c', which is not of two"),
    (changed(gpt2_file(), "model", "merges", 0, {"a": "b"}), "which is not of two of its tokens"),
    (changed(gpt2_file(), "model", "merges", 0, ["a", "c"]), r"\['a', 'c'\], which is not of two"),
    (changed(gpt2_file(), "model", "merges", 0, ["", "ab"]), r"\['', 'ab'\], which is not of two"),
    (with_merge(gpt2_file(), 1, ["a", "b"]), r"has the merge \['a', 'b'\] twice"),
    (with_gpt2_merges("▁b"), "has the token '▁b', which does not spell bytes"),
    # Llama's kind
    (changed(llama_file(), "model", "byte_fallback", False), "has the step .* beside its model"),
    (changed(llama_file(), "model", "ignore_merges", True), "has the setting ignore_merges"),
    (with_added(llama_file(), "w", special="yes"), "no special, or one of a strange type"),
    (with_added(llama_file(), "w", special=False), "the added token 'w', which is not special"),
    (with_token(llama_file(), "a b"), "has the token 'a b', with a blank or too long"),
    (with_token(llama_file(), "a" * 1001), "has the token 'aaa.*aaa', with a blank or too long"),
    (with_token(llama_file(), "\ud83d"), "has the token '.ud83d', which is no text"),
    (renamed(llama_file(), "<0x41>", "<0x4>"), "has no token <0x41> for that byte"),
    (changed(llama_file(), "normalizer", None), "has the steps .*None.* before its model"),
    (changed(llama_file(), "normalizer", "normalizers", []), r"has the steps .*\[\]"),
    (changed(llama_file(), "pre_tokenizer", {"type": "Digits"}), "has the steps .*Digits"),
    (metaspace(prepend_scheme="never", split=True), "has the steps .*never.*True"),
    (metaspace(prepend_scheme="first", split=True), "has the steps .*first.*True"),
    (metaspace(prepend_scheme="first", replacement="_"), "has the steps .*first.*_"),
    (
        changed(llama_file(), "model", "merges", -2, "DELETED"),
        "not all merges that lead to a token",
    ),
    (with_merge(llama_file(), 0, ["a", "b"]), r"has the merge \['a', 'b'\] twice"),
    (with_merge(llama_file(), 0, ["a", "é"]), "which is not of two of its tokens"),
]


@pytest.mark.parametrize(("content", "sentence"), REFUSED)
def test_other_and_damaged_files_are_refused(content, sentence):
    with pytest.raises(FormatError, match=rf"^t/tokenizer\.json.*({sentence})"):
        loaded(content)


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b'{"model": {"vocab": {"\xff": 0}}}',
        b'{"model":' + b"[" * 100_000,
        b'{"model": {"vocab": {"a": ' + b"9" * 5000 + b"}}}",
        b'{"model": {}}{}',
        b"{}",
        b'{"model": {}}',
        b'{"model": []}',
        b'{"a": 0}',
    ],
)
def test_what_is_no_tokenizer_is_refused(data):
    with pytest.raises(FormatError, match=r"^t/tokenizer\.json "):
        tokenizer_from_bytes(data, "t/tokenizer.json")


@pytest.mark.parametrize("depth", [*range(900, 1000, 7), 100_000])
@pytest.mark.parametrize("entry", ["pre_tokenizer", "model", "added_tokens"])
def test_deep_nesting_is_refused(depth, entry):
    text = json.dumps(gpt2_file() | {entry: "DEEP"})
    text = text.replace('"DEEP"', "[" * depth + "]" * depth)
    with pytest.raises(FormatError, match=r"^t/tokenizer\.json "):
        tokenizer_from_bytes(text.encode(), "t/tokenizer.json")


@pytest.mark.parametrize("scheme", ["always", "first"])
def test_llamas_kind_may_have_metaspace(scheme):
    content = metaspace(prepend_scheme=scheme)
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    again = loaded(content)
    assert ([*again.pieces], again.scores) == ([*LLAMA.pieces], loaded(llama_file()).scores)


PUNCTUATION = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"0", b"\\"]
STRANGE = [None, True, -1, 97, 256, 1.5, 1e400, "", "a", "a b", [], ["a", "b"], {}, {"a": 97}]


def mutate(content, rng: random.Random) -> None:
    """Replace, take away or double one entry somewhere in `content`."""
    inner = content
    while True:
        key = rng.choice([*inner] if isinstance(inner, dict) else range(len(inner)))
        if not isinstance(inner[key], dict | list) or not inner[key] or rng.random() < 0.2:
            break
        inner = inner[key]
    action = rng.randrange(3)
    if action == 0:
        inner[key] = copy.deepcopy(rng.choice(STRANGE))
    elif action == 1:
        del inner[key]
    elif isinstance(inner, list):
        inner.insert(rng.randrange(len(inner)), inner[key])
    else:
        inner[rng.choice(["", "x", "type", *inner])] = inner[key]


def check_that_it_is_refused_or_works(data: bytes) -> None:
    try:
        tokenizer = tokenizer_from_bytes(data, "t/tokenizer.json")
    except FormatError as error:
        assert str(error).startswith("t/tokenizer.json")
    else:
        text = "abab  aa naïve 😀"
        if not tokenizer.unknown(text):
            assert tokenizer.decode(tokenizer.encode(text)) == text


FUZZ = given(seed=st.integers(0, 2**32))


@settings(max_examples=1000)
@FUZZ
def test_changed_entries_are_refused_or_harmless(seed):
    rng = random.Random(seed)
    content = json.loads(rng.choice(small_files()))
    mutate(rng.choice([content, content["model"]]), rng)
    if content and rng.random() < 0.5:
        mutate(content, rng)
    check_that_it_is_refused_or_works(json.dumps(content).encode())


@settings(max_examples=1000)
@FUZZ
def test_changed_bytes_are_refused_or_harmless(seed):
    rng = random.Random(seed)
    content = bytearray(rng.choice(small_files()).encode())
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(1, len(content))
        length = rng.choice([0, 1, 2, rng.randrange(100)])
        content[start : start + length] = rng.choice([b"", rng.randbytes(1), *PUNCTUATION])
    check_that_it_is_refused_or_works(bytes(content))


def test_a_file_that_ends_early_is_refused():
    for text in small_files():
        for length in range(1, len(text), 37):
            with pytest.raises(FormatError, match="is not JSON, or damaged"):
                tokenizer_from_bytes(text[:length].encode(), "t/tokenizer.json")
