import json
import random
from itertools import pairwise
from pydoc_data.topics import topics

import pytest
from hf_files import LLAMA, TRAINED, llama, llama_file, loaded
from hypothesis import example, given, settings
from hypothesis import strategies as st

from errors import UserError
from formats.byte_pairs import byte_characters, merges
from formats.hf_tokenizer import write
from formats.tokenizer_files import load_tokenizer
from tokenizer import BytePairTokenizer, LlamaTokenizer, train_bpe

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
        assert [*again.pieces] == [*tokenizer.pieces]
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
