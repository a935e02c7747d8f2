"""Tokenizers in Hugging Face's files against transformers, both ways."""

import json
import random
from pydoc_data.topics import topics

import pytest

from formats.hf_sentencepiece import METASPACE, REPLACE
from formats.hf_tokenizer import write
from formats.sentencepiece_model import Settings, make_tokenizer, settings_of
from formats.tokenizer_files import load_tokenizer
from tokenizer import BytePairTokenizer, CharTokenizer, LlamaTokenizer, Tokenizer, train_bpe

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "a", "ab", "ba", "the", " The", "naïve", "Hello"]
WORDS += [
    "'s",
    "'ll",
    "'S",
    "’t",
    "12",
    "3456",
    "½",
    "Ⅷ",
    "²",
    "٣",
    "==",
    "----",
    "#",
    "@",
    "_",
    "<",
    "/>",
]
WORDS += [
    "😀",
    "👩‍👩‍👧",
    "é",
    "e\u0301",
    "ß",
    "ı",
    "ʰ",
    "中文",
    "漢字かな",
    "한국어",
    "ไทย",
    "𝔘",
    "“q”",
    "…",
]
WORDS += ["\u00a0", "\u2003", "\u0085", "\u2028", "\u200b", "\ufeff", "\x00", "\x1c", "\ue000"]


def varied_texts() -> list[str]:
    """Thousands of texts; none spells a special token or has a "▁", which mean more there."""
    rng = random.Random(0)
    texts = ["".join(rng.choices(WORDS, k=rng.randrange(15))) for _ in range(3000)]
    texts += [rng.choice(" =-.#a\n") * rng.randrange(70) + rng.choice(WORDS) for _ in range(500)]
    texts += ["".join(rng.choices(["a", "b", "ab", "ba", " "], k=30)) for _ in range(200)]
    letters = [*range(32, 127), *range(0x2581), *range(0x2582, 0x3000), *range(0x1F300, 0x1F700)]
    texts += ["".join(map(chr, rng.choices(letters, k=10))) for _ in range(1000)]
    return texts + list(topics.values())[:20]


TEXTS = varied_texts()


@pytest.fixture(
    scope="module", params=["bytes", "trained", "gpt2", "tok512.bin", "llama2_tokenizer.bin"]
)
def ours(request, starter) -> Tokenizer:
    if request.param == "trained":
        return train_bpe(topics["while"] + topics["string-methods"] + "naïve “quotes” 😀😀", 500)
    name = request.param
    return load_tokenizer(starter / name if name.endswith(".bin") else name)


@pytest.fixture(scope="module")
def folder(ours, tmp_path_factory):
    """What we write of it."""
    folder = tmp_path_factory.mktemp("written")
    write(folder, ours)
    return folder


def check_that_they_agree(ours: Tokenizer, theirs, texts: list[str]) -> None:
    assert len(theirs) == ours.vocab_size
    assert (theirs.bos_token_id, {theirs.eos_token_id}) == (ours.begin, {*ours.ends} - {1})
    for text in texts:
        tokens = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == tokens, text
        assert theirs.decode(tokens) == ours.decode(tokens), text


@pytest.mark.parametrize("beside", ["nothing", "config.json"])
def test_transformers_reads_what_is_written(ours, folder, beside):
    (folder / "config.json").unlink(missing_ok=True)
    if beside == "config.json":
        kind = "llama" if isinstance(ours, LlamaTokenizer) else "gpt2"
        (folder / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    check_that_they_agree(ours, theirs, TEXTS if beside == "nothing" else TEXTS[::10])
    # What a model gets to continue begins with <s> in Llama's kind, and with nothing in GPT-2's.
    assert theirs.encode("Once upon") == ours.encode_prompt("Once upon")


def test_what_transformers_saves_is_read(ours, folder, tmp_path):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path / "tokenizer.json")
    check_that_they_agree(again, theirs, TEXTS[::5])
    if isinstance(ours, BytePairTokenizer):
        assert again.ranks == ours.ranks


def test_what_their_classes_for_the_models_save_is_read(ours, folder, tmp_path):
    llama = isinstance(ours, LlamaTokenizer)
    kind = transformers.LlamaTokenizerFast if llama else transformers.GPT2TokenizerFast
    theirs = kind.from_pretrained(folder)
    theirs.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path / "tokenizer.json")
    # Llama's class of version 5 puts no blank in front of a text that begins with one.
    texts = [text for text in TEXTS[::5] if not (llama and text.startswith(" "))]
    check_that_they_agree(again, theirs, texts)
    for text in TEXTS[::5]:
        assert again.encode(text) == ours.encode(text)


@pytest.mark.parametrize("auto", [True, False], ids=["auto", "model"])
def test_special_tokens_that_they_add(ours, folder, tmp_path, auto):
    llama = isinstance(ours, LlamaTokenizer)
    kind = transformers.LlamaTokenizerFast if llama else transformers.GPT2TokenizerFast
    theirs = (transformers.AutoTokenizer if auto else kind).from_pretrained(folder)
    theirs.add_special_tokens({"pad_token": "<pad>"})
    theirs.add_tokens(["[SEP]", "<|日本|>"], special_tokens=True)
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_tokenizer(tmp_path / "theirs" / "tokenizer.json")
    assert again.vocab_size == ours.vocab_size + 3
    assert again == ours
    texts = [text for text in TEXTS[::20] if not (llama and text.startswith(" "))]
    check_that_they_agree(again, theirs, texts)
    added = range(ours.vocab_size, again.vocab_size)
    for tokens in ([*added], [*ours.encode("a word"), *added, *ours.encode("naïve")]):
        assert theirs.decode(tokens) == again.decode(tokens)
    write(tmp_path / "ours", again)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    check_that_they_agree(again, theirs, texts[::5])
    assert theirs.convert_ids_to_tokens([*added]) == ["<pad>", "[SEP]", "<|日本|>"]
    in_a_text = theirs.encode("a [SEP]", add_special_tokens=False)
    assert in_a_text[-1] == added[1]


def test_merges_are_those_of_their_converter(ours, folder):
    if isinstance(ours, LlamaTokenizer):
        from transformers.convert_slow_tokenizer import generate_merges

        model = json.loads((folder / "tokenizer.json").read_bytes())["model"]
        scores = dict(zip(model["vocab"], ours.scores, strict=True))
        assert [tuple(pair) for pair in model["merges"]] == generate_merges(model["vocab"], scores)


def test_characters(tmp_path):
    ours = CharTokenizer("".join(sorted(set("".join(TEXTS)))))
    write(tmp_path / "written", ours)
    config = json.dumps({"model_type": "gpt2"})
    (tmp_path / "written" / "config.json").write_text(config, encoding="utf-8")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "written")
    theirs.save_pretrained(tmp_path / "saved")
    for folder in ("written", "saved"):
        assert load_tokenizer(tmp_path / folder / "tokenizer.json") == ours
    assert len(theirs) == ours.vocab_size
    for text in TEXTS:
        tokens = ours.encode(text)
        assert theirs.encode(text) == tokens, text
        assert theirs.decode(tokens, skip_special_tokens=True) == text
    assert theirs.encode("a\U0001f9ffb") == ours.encode("ab")  # what it has not, it leaves out


def test_the_older_files_of_gpt2_are_read(starter, tmp_path):
    write(tmp_path, load_tokenizer("gpt2"))
    model = json.loads((tmp_path / "tokenizer.json").read_bytes())["model"]
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]
    folder = tmp_path / "older"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    theirs = transformers.GPT2TokenizerFast.from_pretrained(folder)
    check_that_they_agree(load_tokenizer(folder / "vocab.json"), theirs, TEXTS[::5])


@pytest.mark.parametrize("settings", [Settings(False), Settings(True, True), Settings(False, True)])
def test_settings_of_llamas_kind_are_written_and_read(starter, tmp_path, settings):
    llama = load_tokenizer(starter / "tok512.bin")
    ours = make_tokenizer(llama.pieces, llama.scores, settings)
    write(tmp_path, ours)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    check_that_they_agree(ours, theirs, [*TEXTS[::5], "", " ", "  ", " a", "a ", " \n a  \n"])
    theirs.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved" / "tokenizer.json")
    check_that_they_agree(again, theirs, TEXTS[::10])


@pytest.mark.parametrize(
    "steps",
    [
        (REPLACE, None),
        (None, METASPACE | {"prepend_scheme": "never"}),
        (None, METASPACE | {"prepend_scheme": "always"}),
        (None, METASPACE | {"prepend_scheme": "first"}),
    ],
)
def test_other_steps_are_read_as_they_work(starter, tmp_path, steps):
    write(tmp_path, load_tokenizer(starter / "tok512.bin"))
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_bytes())
    content |= dict(zip(("normalizer", "pre_tokenizer"), steps, strict=True))
    path.write_text(json.dumps(content), encoding="utf-8")
    ours, theirs = load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    for text in TEXTS[::5]:
        # In front of a blank, Metaspace puts none, as SentencePiece and we do.
        if not (settings_of(ours).add_dummy_prefix and text.startswith(" ")):
            assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text), text
