import copy
import json
import random
from functools import cache
from itertools import pairwise
from pydoc_data.topics import topics

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from errors import FormatError, UserError
from formats import hf_tokenizer
from formats.hf_tokenizer import byte_characters, merges, write
from formats.tokenizer_files import load_tokenizer, tokenizer_from_bytes
from tokenizer import BYTE_PIECES, SPECIAL_PIECES, BytePairTokenizer, LlamaTokenizer, train_bpe

TRAINED = train_bpe(topics["while"] + topics["string-methods"] + "naïve “quotes” 😀😀", 200)


def llama(texts: dict[str, float]) -> LlamaTokenizer:
    """A tokenizer of Llama's kind with these pieces and scores; the first is token 259."""
    pieces = [*SPECIAL_PIECES, *BYTE_PIECES, *map(str.encode, texts)]
    return LlamaTokenizer(pieces, [0.0] * 259 + list(texts.values()))


LLAMA = llama(
    {"  ": -9, "    ": -9, "   ": -9, "ab": -1, " ab": -2, "aa": -3, "éa": -4, "abab": -5}
    | {"\n\n": -6, "no": -1e10, " ": -20, "a": -21, "b": -22, "é": -23, "\n": -24, "n": -25}
    | {"o": -26}
)

WORDS = [" ", "  ", "\n", "\t", "a", "ab", "ba", "the ", " The", "it's", "'LL", "12", "345", "==="]
WORDS += [
    "😀",
    "é",
    "e\u0301",
    "中文",
    "ไทย",
    "\u00a0",
    "\u2028",
    "\x00",
    "<",
    "/>",
    "#",
    "“",
    "½",
    "_",
]


def varied_texts() -> list[str]:
    rng = random.Random(0)
    texts = ["".join(rng.choices(WORDS, k=rng.randrange(15))) for _ in range(1500)]
    texts += [rng.choice(" =-.#a\n") * rng.randrange(70) + rng.choice(WORDS) for _ in range(300)]
    return texts + [topic[:300] for topic in topics.values()]


TEXTS = varied_texts()


def written(folder, tokenizer) -> dict:
    write(folder, tokenizer)
    return json.loads((folder / "tokenizer.json").read_bytes())


@cache
def small_files() -> tuple[str, str]:
    """A tokenizer.json of each kind."""
    tiny = train_bpe("abab abab aba", 5)
    contents = (
        hf_tokenizer._gpt2_content(tiny.ranks),
        hf_tokenizer._llama_content(LLAMA),
    )
    return tuple(map(json.dumps, contents))


def gpt2_file() -> dict:
    return json.loads(small_files()[0])


def llama_file() -> dict:
    return json.loads(small_files()[1])


def loaded(content) -> BytePairTokenizer | LlamaTokenizer:
    return tokenizer_from_bytes(json.dumps(content).encode(), "t/tokenizer.json")


def merge_by_rank(tokens: list, ranks: dict) -> list:
    """What Hugging Face does: of all pairs the one that comes first in the list, then again."""
    tokens = list(tokens)
    while len(tokens) > 1:
        costs = [ranks.get(pair, len(ranks)) for pair in pairwise(tokens)]
        place = costs.index(min(costs))
        if costs[place] == len(ranks):
            break
        tokens[place : place + 2] = [tokens[place] + tokens[place + 1]]
    return tokens


def characters_of(text: str, content: dict) -> list[str]:
    """The first tokens of a text in Llama's kind of file, before any merge."""
    tokens = []
    for character in f"▁{text}".replace(" ", "▁") if text else "":
        known = character in content["model"]["vocab"]
        tokens += [character] if known else [f"<0x{byte:02X}>" for byte in character.encode()]
    return tokens


# What GPT-2's files are made of


def test_every_byte_has_a_printable_character_of_its_own():
    characters = byte_characters()
    assert len(set(characters)) == 256
    assert all(character.isprintable() and character != " " for character in characters)
    assert [characters[byte] for byte in b" \n\x00!~\xa1\xff\xad\x7f"] == [*"ĠĊĀ!~¡ÿŃġ"]


def test_merges_are_openais(starter):
    characters = byte_characters()
    lines = [
        " ".join("".join(characters[byte] for byte in token) for token in pair)
        for pair in merges(load_tokenizer("gpt2").ranks)
    ]
    cached = starter / "tiktoken" / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"
    assert cached.read_text(encoding="utf-8").splitlines() == ["#version: 0.2", *lines]


def naive_halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """What is left of the bytes of a token when all that ranks below it is merged."""
    lower = {other: rank for other, rank in ranks.items() if rank < ranks[token]}
    parts = [bytes([byte]) for byte in token]
    while True:
        costs = [lower.get(left + right, 10**9) for left, right in pairwise(parts)]
        if min(costs, default=10**9) == 10**9:
            return parts
        place = costs.index(min(costs))
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


TABLES = st.lists(
    st.text("ab c", min_size=2, max_size=6).map(str.encode), unique=True, max_size=12
).map(
    lambda tokens: {
        token: rank for rank, token in enumerate([*map(bytes, [*zip(range(256))]), *tokens])
    }
)


@settings(max_examples=300)
@given(ranks=TABLES, text=st.text("ab c", max_size=20))
@example(ranks=train_bpe("aaaaaaa aaaa aaa", 30).ranks, text="aaaaaaaaaaaaa aaa")
@example(ranks=train_bpe("abcabcabab cbcbc", 30).ranks, text="cabcabababcbcbcbca")
def test_merges_do_what_ranks_do(ranks, text):
    halves = {token: naive_halves(token, ranks) for token in ranks if len(token) > 1}
    if any(len(parts) > 2 for parts in halves.values()):
        with pytest.raises(UserError, match=r"has the token b'.*', which no merge of two earlier"):
            merges(ranks)
        return
    assert merges(ranks) == [tuple(parts) for parts in halves.values()]
    # Ranks merge any two tokens whose bytes are a token; to merge the listed pairs is the same.
    for word in text.split():
        tokens = merge_by_rank(
            [bytes([byte]) for byte in word.encode()],
            {pair: rank for rank, pair in enumerate(merges(ranks))},
        )
        assert [ranks[token] for token in tokens] == BytePairTokenizer(ranks).encode(word)


# Both ways


@pytest.fixture(
    scope="module",
    params=["bytes", "trained", "gpt2", "small", "tok512.bin", "llama2_tokenizer.bin"],
)
def round_trip(request, tmp_path_factory):
    """A tokenizer, the tokenizer.json that is written of it, and what is read of that."""
    name = request.param
    if name in ("trained", "small"):
        tokenizer = TRAINED if name == "trained" else LLAMA
    elif name == "bytes":
        tokenizer = load_tokenizer(name)
    else:
        starter = request.getfixturevalue("starter")
        tokenizer = load_tokenizer(name if name == "gpt2" else starter / name)
    folder = tmp_path_factory.mktemp("written")
    return tokenizer, written(folder, tokenizer), load_tokenizer(folder / "tokenizer.json")


def test_what_is_written_is_read_again(round_trip):
    tokenizer, _, again = round_trip
    assert type(again) is type(tokenizer)
    if isinstance(tokenizer, BytePairTokenizer):
        assert again.ranks == tokenizer.ranks
    else:
        assert again.pieces == tokenizer.pieces
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text)


def test_scores_come_back_in_the_same_order(round_trip):
    tokenizer, content, again = round_trip
    if isinstance(tokenizer, LlamaTokenizer):
        vocab = content["model"]["vocab"]
        merged = {vocab["".join(pair)] for pair in content["model"]["merges"]}
        scores = sorted((tokenizer.scores[token], again.scores[token]) for token in merged)
        for (old, new), (next_old, next_new) in pairwise(scores):
            assert new < next_new or old == next_old
        assert max(again.scores[259:]) == -1
        assert {again.scores[token] for token in {*range(259, len(vocab))} - merged} == {-1e10}


def test_a_second_round_trip_changes_nothing(round_trip, tmp_path):
    tokenizer, content, again = round_trip
    if tokenizer.vocab_size < 1000:
        assert written(tmp_path, again) == content
        assert load_tokenizer(tmp_path / "tokenizer.json").to_bytes() == again.to_bytes()


def test_ranks_merge_as_scores_do(round_trip):
    tokenizer, content, _ = round_trip
    if isinstance(tokenizer, LlamaTokenizer):
        vocab = content["model"]["vocab"]
        ranks = {tuple(pair): rank for rank, pair in enumerate(content["model"]["merges"])}
        assert len(ranks) == {276: 12, 512: 165, 32000: 61249}[tokenizer.vocab_size]
        for text in TEXTS[::4]:
            tokens = merge_by_rank(characters_of(text[:60], content), ranks)
            assert [vocab[token] for token in tokens] == tokenizer.encode(text[:60])


def test_what_is_never_merged_stays_so():
    assert ["n", "o"] not in llama_file()["model"]["merges"]
    assert loaded(llama_file()).encode("no") == LLAMA.encode("no") != []


def test_of_equal_scores_the_longest_halves_come_first():
    blanks = llama_file()["model"]["merges"][-6:]
    assert {*"".join(map("".join, blanks))} == {"▁"}
    lengths = [(len(left), len(right)) for left, right in blanks]
    assert lengths == [(3, 1), (2, 2), (2, 1), (1, 3), (1, 2), (1, 1)]


def test_tokens_whose_pairs_are_mixed_get_equal_scores():
    scores = dict(zip(LLAMA.pieces, loaded(llama_file()).scores, strict=True))
    assert scores[b"   "] == scores[b"    "]
    assert scores[b"ab"] > scores[b" ab"] > scores[b"aa"] > scores[b"   "] > scores[b"no"]


def test_the_files_of_gpt2s_kind(tmp_path):
    content = written(tmp_path, train_bpe("ab ab", 9))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    assert content["pre_tokenizer"] == content["decoder"] == byte_level
    assert content["normalizer"] is None
    (special,) = content["added_tokens"]
    assert (special["id"], special["content"], special["special"]) == (257, "<|endoftext|>", True)
    model = content["model"]
    assert (model["type"], model["merges"]) == ("BPE", [["a", "b"]])
    assert len(model["vocab"]) == 258
    assert [model["vocab"][token] for token in ("Ā", "Ġ", "ab", "<|endoftext|>")] == [
        0,
        32,
        256,
        257,
    ]
    assert json.loads((tmp_path / "tokenizer_config.json").read_bytes()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
    }


def test_the_files_of_llamas_kind(tmp_path):
    content = written(tmp_path, llama({"a b": -3, "a ": -1, "b": -9, "a": -9, " ": -9}))
    assert content["normalizer"]["normalizers"][0] == {"type": "Prepend", "prepend": "▁"}
    assert content["pre_tokenizer"] is None
    assert [token["content"] for token in content["added_tokens"]] == ["<unk>", "<s>", "</s>"]
    model = content["model"]
    assert [*model["vocab"]][:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert [*model["vocab"]][258:] == ["<0xFF>", "a▁b", "a▁", "b", "a", "▁"]
    assert [*model["vocab"].values()] == list(range(264))
    assert model["merges"] == [["a", "▁"], ["a▁", "b"]]
    assert model["byte_fallback"] is True
    config = json.loads((tmp_path / "tokenizer_config.json").read_bytes())
    assert [config[f"{name}_token"] for name in ("unk", "bos", "eos")] == ["<unk>", "<s>", "</s>"]


@pytest.mark.parametrize(
    ("tokenizer", "sentence"),
    [
        (llama({"a": 0, "▁": 0}), "cannot have the token b'.*': it is no text, or has the ▁"),
        (llama({"a": 0, "a▁a": 0}), "cannot have the token b'a.*a': it is no text, or has the ▁"),
        (llama({"a": 0, "<s>": 0}), "cannot have two tokens of one spelling"),
        (llama({"<0x41>": 0}), "cannot have two tokens of one spelling"),
        (LlamaTokenizer([*LLAMA.pieces, b"\xff"], [*LLAMA.scores, 0.0]), r"the token b'\\xff'"),
        (BytePairTokenizer({**TRAINED.ranks, b"xyz": len(TRAINED.ranks)}), "the token b'xyz'"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, tokenizer, sentence):
    with pytest.raises(UserError, match=sentence):
        write(tmp_path, tokenizer)
    assert not list(tmp_path.iterdir())


# Other people's files


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
    content = hf_tokenizer._gpt2_content(tokenizer.ranks)["model"]
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


def with_token(content: dict, token: str, added: bool = False) -> dict:
    ids = content["model"]["vocab"]
    if added:
        content["added_tokens"].append({"id": len(ids), "content": token, "special": True})
    ids[token] = len(ids)
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


def metaspace(**options) -> dict:
    step = {"type": "Metaspace", "replacement": "▁", "split": False}
    return llama_file() | {"normalizer": None, "pre_tokenizer": step | options}


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
    (changed(gpt2_file(), "model", "vocab", {}), "tokens whose ids are not|a last token"),
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
    (with_token(gpt2_file(), "<pad>", added=True), "has the special token '<pad>'"),
    (with_token(gpt2_file(), "cd"), r"a last token that is not <\|endoftext\|>"),
    (with_token(gpt2_file(), ""), "has an empty token"),
    (changed(gpt2_file(), "normalizer", {"type": "NFC"}), "has the steps .*'NFC'.* before its"),
    (changed(gpt2_file(), "pre_tokenizer", None), "has the steps .*None.* before its model"),
    (changed(gpt2_file(), "pre_tokenizer", "add_prefix_space", True), "has the steps .*True"),
    (changed(gpt2_file(), "pre_tokenizer", "use_regex", False), "has the steps .*ByteLevel"),
    (changed(gpt2_file(), "pre_tokenizer", gpt2_split(r"\p{N}")), "has the steps .*Sequence"),
    (changed(gpt2_file(), "model", "merges", 0, ["a"]), r"the merge \['a'\], which is not of two"),
    (changed(gpt2_file(), "model", "merges", 0, [["a"], "b"]), "which is not of two of its"),
    (changed(gpt2_file(), "model", "merges", 0, "a b c"), "the merge 'a b c', which is not of two"),
    (changed(gpt2_file(), "model", "merges", 0, {"a": "b"}), "which is not of two of its tokens"),
    (changed(gpt2_file(), "model", "merges", 0, ["a", "c"]), r"\['a', 'c'\], which is not of two"),
    (changed(gpt2_file(), "model", "merges", 0, ["", "ab"]), r"\['', 'ab'\], which is not of two"),
    (with_merge(gpt2_file(), 1, ["a", "b"]), r"has the merge \['a', 'b'\] twice"),
    (changed(gpt2_file(), "model", "merges", 0, "DELETED"), "ids are not in the order of"),
    (changed(gpt2_file(), "model", "merges", []), "ids are not in the order of the merges"),
    (
        changed(gpt2_file(), "model", "merges", [["Ġ", "ab"], ["a", "b"]]),
        "ids are not in the order of the merges",
    ),
    (with_gpt2_merges("ab", "bc", "a bc"), r"\('a', 'bc'\), which other merges make impossible"),
    (with_gpt2_merges("aa", "a aa"), r"\('a', 'aa'\), which other merges make impossible"),
    (with_gpt2_merges("ab c", "ab"), r"\('ab', 'c'\), which other merges make impossible"),
    (with_gpt2_merges("▁b"), "has the token '▁b', which does not spell bytes"),
    (without_byte(gpt2_file()), "has no token A for the byte 65"),
    # Llama's kind
    (changed(llama_file(), "model", "byte_fallback", False), "the special token '<unk>'"),
    (changed(llama_file(), "model", "ignore_merges", True), "has the setting ignore_merges"),
    (with_token(llama_file(), "[PAD]", added=True), r"has the special token '\[PAD\]'"),
    (with_token(llama_file(), "a b"), "has the token 'a b', with a blank or too long"),
    (with_token(llama_file(), "a" * 1001), "has the token 'aaa.*aaa', with a blank or too long"),
    (with_token(llama_file(), "\ud83d"), "has the token '.ud83d', which is no text"),
    (with_ids(llama_file(), "<s>", "</s>"), "other first tokens than <unk>, <s> and </s>"),
    (with_ids(llama_file(), "a", "<0x41>"), "the tokens 3 to 258 are not the bytes"),
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
    assert (again.pieces, again.scores) == (LLAMA.pieces, loaded(llama_file()).scores)


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
