"""BPE on bytes against the library that tokenizer.json is of, on 20,000 texts for each kind."""

import itertools
import json
import random
from functools import cache
from pydoc_data.topics import topics

import pytest
from gguf import GGUFReader
from odd_texts import odd_texts

from dev.download_real_models import cache as real_models
from errors import UserError
from formats import gguf
from formats.byte_level import ByteLevelTokenizer
from formats.hf_tokenizer import write
from formats.tokenizer_files import load_tokenizer, tokenizer_from_bytes
from tokenizer import Tokenizer

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
AddedToken, Regex, BPE = tokenizers.AddedToken, tokenizers.Regex, tokenizers.models.BPE
decoders, normalizers = tokenizers.decoders, tokenizers.normalizers
pre_tokenizers, processors = tokenizers.pre_tokenizers, tokenizers.processors
BpeTrainer = tokenizers.trainers.BpeTrainer

SMOLLM2 = real_models() / "SmolLM2-135M-Instruct.Q4_1.gguf"

# As the models' own files have them.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As llama.cpp has it.
DEFAULT = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    "[0-9][0-9][0-9]",
]


def split(*patterns):
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(False, use_regex=False)])


SPLITS = {
    "gpt-2": pre_tokenizers.ByteLevel(False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]
    ),
    "llama-bpe": split(LLAMA3),
    "qwen2": split(QWEN2),
}
SPECIAL = ["<|begin_of_text|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ADDED = ["<think>", "</think>", "<tool_call>", "<tool_call>>"]
EVERY_SPLIT = pytest.mark.parametrize("name", SPLITS)


@cache
def trained(name: str) -> tokenizers.Tokenizer:
    """A vocabulary of one kind, with what makes its text into words."""
    made = tokenizers.Tokenizer(BPE())
    made.pre_tokenizer = SPLITS[name]
    made.decoder = decoders.ByteLevel()
    if name == "qwen2":
        made.normalizer = normalizers.NFC()
    first = SPECIAL if name == "smollm" else []
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=3000, special_tokens=first, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([*topics.values(), *odd_texts(3000, ADDED, seed=1)], trainer)
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    made.add_tokens([AddedToken(token, normalized=False) for token in ADDED])
    if name == "llama-bpe":
        begin = SPECIAL[0]
        made.post_processor = processors.TemplateProcessing(
            f"{begin} $A", None, [(begin, made.token_to_id(begin))]
        )
        content = json.loads(made.to_str())
        content["model"]["ignore_merges"] = True
        # Some tokens come of no merge, and only as whole words.
        content["model"]["merges"] = content["model"]["merges"][:2000]
        made = tokenizers.Tokenizer.from_str(json.dumps(content))
    made.encode_special_tokens = True  # as plain text
    return made


def assert_same_tokens(ours: Tokenizer, theirs: tokenizers.Tokenizer, texts: list[str]) -> None:
    encodings = theirs.encode_batch(texts, add_special_tokens=False)
    tokens = [encoding.ids for encoding in encodings]
    decoded = theirs.decode_batch(tokens, skip_special_tokens=False)
    known = 0
    for text, expected, back in zip(texts, tokens, decoded, strict=True):
        if ours.unknown(text):
            with pytest.raises(UserError, match="vocabulary has no bytes for"):
                ours.encode(text)
            assert back != text  # there the bytes are left out
            continue
        assert ours.encode(text) == expected, repr(text)
        assert ours.decode(expected) == back
        known += 1
    assert known > 0.8 * len(texts)


@EVERY_SPLIT
def test_vocabularies_trained_by_the_library(name):
    theirs = trained(name)
    ours = tokenizer_from_bytes(theirs.to_str().encode(), "tokenizer.json")
    assert isinstance(ours, ByteLevelTokenizer)
    assert_same_tokens(ours, theirs, odd_texts(20_000, SPECIAL + ADDED))
    assert ours.adds_begin == (name == "llama-bpe")
    assert ours.encode_prompt("it's") == theirs.encode("it's").ids


@EVERY_SPLIT
def test_any_tokens_are_the_same_text(name):
    theirs = trained(name)
    ours = tokenizer_from_bytes(theirs.to_str().encode(), "tokenizer.json")
    rng = random.Random(0)
    tokens = [token for token in range(ours.vocab_size) if token not in ours.ends]
    for _ in range(2000):
        some = rng.choices(tokens, k=rng.randrange(20))
        assert ours.decode(some) == theirs.decode(some, skip_special_tokens=False)


def test_gpt2s_kind_as_the_library_trains_it():
    made = tokenizers.Tokenizer(BPE())
    made.pre_tokenizer, made.decoder = SPLITS["gpt-2"], decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(topics.values(), trainer)
    made.add_special_tokens(["<|endoftext|>"])
    made.encode_special_tokens = True
    ours = tokenizer_from_bytes(made.to_str().encode(), "tokenizer.json")
    assert_same_tokens(ours, made, odd_texts(2000, SPECIAL))


def test_llama_cpps_default_words():
    made = trained("smollm")
    content = json.loads(made.to_str())
    content["pre_tokenizer"] = json.loads(split(*DEFAULT).__getstate__())
    theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    theirs.encode_special_tokens = True
    # What the second pattern leaves of a gap is a piece, as the last part of GPT-2's makes it one.
    steps = content["pre_tokenizer"]["pretokenizers"]
    steps[1]["pattern"]["Regex"] += r"|\s+"
    ours = tokenizer_from_bytes(json.dumps(content).encode(), "tokenizer.json")
    assert_same_tokens(ours, theirs, odd_texts(20_000, SPECIAL + ADDED))


@pytest.fixture(scope="module")
def smollm2():
    if not SMOLLM2.is_file():
        pytest.skip("needs a real model: python dev/download_real_models.py")
    return gguf.read(SMOLLM2).tokenizer


def test_smollm2(smollm2):
    fields = GGUFReader(SMOLLM2).fields
    names = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    vocab = {name: id_ for id_, name in enumerate(names)}
    theirs = tokenizers.Tokenizer(BPE(vocab, merges))
    theirs.pre_tokenizer, theirs.decoder = SPLITS["smollm"], decoders.ByteLevel()
    theirs.add_special_tokens(names[:17])
    theirs.encode_special_tokens = True
    assert_same_tokens(smollm2, theirs, odd_texts(20_000, names[:17]))


WRITTEN = ["smollm2", *SPLITS]


@pytest.mark.parametrize(
    ("name", "model_type"),
    # For the model_type qwen2, it makes words as Qwen2 does, whatever a file says.
    [*itertools.product(WRITTEN, ["llama", "qwen3", "gpt2"]), ("qwen2", "qwen2")],
)
def test_transformers_uses_what_is_written(name, model_type, tmp_path, request):
    """Also beside a config.json, whose model_type has a class of its own for tokenizers."""
    if name == "smollm2":
        ours = request.getfixturevalue(name)
    else:
        ours = tokenizer_from_bytes(trained(name).to_str().encode(), "tokenizer.json")
    write(tmp_path, ours)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.begin, ours.end)
    marks = [*ours.added, "<|im_start"] if ours.added else ["<|im_start"]
    for text in odd_texts(500, marks, seed=2):
        if text and not ours.unknown(text) and not any(name in text for name in ours.special):
            tokens = theirs(text)["input_ids"]
            assert ours.encode_prompt(text) == tokens
            assert theirs.decode(tokens) == ours.decode(tokens)
    theirs.save_pretrained(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again" / "tokenizer.json")
    assert again == ours
    assert (again.begin, again.ends, again.special) == (ours.begin, ours.ends, ours.special)
