"""Gemma 3's own vocabulary, out of its GGUF file, against both libraries that know its kind."""

import time
from pathlib import Path

import pytest
from odd_texts import odd_texts
from real_models import GEMMA_3, real_model
from sentencepiece_models import sentencepiece

from dev.bench.machine import peak_memory
from formats.gguf_header import read_header
from formats.gguf_tokenizer import read_tokenizer
from formats.protobuf import write_message
from formats.sentencepiece_model import MODEL, NORMALIZER, PIECE, TRAINER
from formats.tokenizer_files import load_tokenizer, tokenizer_from_bytes
from tokenizer import CONTROL, NORMAL, USER_DEFINED

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

TAGS = ["<strong>", "</strong>", "<s>", "</s>", "<code>", "<bbox>", "<li>", "[multimodal]"]
TAGS += ["<start_of_image>", "  \n  ", "\t" * 31, *("\n" * 31, "\n" * 32, " " * 32, " " * 63)]
MARKS = ["<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
MARKS += ["<unused7>"]
ALIKE = [mark[:-1] for mark in MARKS] + [mark[1:] for mark in MARKS]


@pytest.fixture(scope="module")
def values() -> dict:
    return read_header(real_model(GEMMA_3))[1]


@pytest.fixture(scope="module")
def fields(values) -> tuple[list[str], list[int], list[float]]:
    """The names, the types and the scores in the file."""
    names, types, scores = (
        values[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type", "scores")
    )
    return [name.decode() for name in names], types.tolist(), scores.tolist()


@pytest.fixture(scope="module")
def ours(values):
    before, begin = peak_memory(), time.process_time()
    tokenizer, _ = read_tokenizer(Path(GEMMA_3), values, 262_144)
    assert time.process_time() - begin < 2
    assert peak_memory() - before < 100e6
    return tokenizer


@pytest.fixture(scope="module")
def model(fields) -> bytes:
    """SentencePiece's .model of it."""
    data = []
    for name, kind, score in zip(*fields, strict=True):
        spelled = name.replace(" ", "▁").encode()
        kind = 2 if name == "<unk>" else kind
        data.append(
            write_message(
                MODEL, pieces=write_message(PIECE, piece=spelled, score=float(score), type=kind)
            )
        )
    ends = {"bos_piece": b"<bos>", "eos_piece": b"<eos>", "unk_piece": b"<unk>"}
    trainer = write_message(TRAINER, model_type=2, byte_fallback=1, **ends)
    normalizer = write_message(NORMALIZER, add_dummy_prefix=0, remove_extra_whitespaces=0)
    return b"".join(data) + write_message(MODEL, trainer_spec=trainer, normalizer_spec=normalizer)


def check(ours, encode, decode, texts):
    for text in texts:
        tokens = encode(text)
        assert ours.encode(text) == tokens, text
        assert ours.decode(tokens) == decode(tokens) == text, text


def test_its_tokens_are_sentencepieces(ours, model, tmp_path):
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    check(ours, library.encode, library.decode, odd_texts(20_000, TAGS * 2 + MARKS + ALIKE))
    assert (ours.begin, ours.end) == (library.bos_id(), library.eos_id()) == (2, 1)
    assert ours.ends == {1, 2, library.piece_to_id("<end_of_turn>")}
    again = tokenizer_from_bytes(model, "gemma.model")
    assert again == ours
    assert again.special == ours.special
    ours.save(tmp_path / ours.file_name)
    assert load_tokenizer(tmp_path / ours.file_name).types == again.types


def test_its_tokens_are_hugging_faces(ours, fields, tmp_path):
    names = [name.replace(" ", "▁") for name in fields[0]]
    vocab = {name: token for token, name in enumerate(names)}
    # Blanks come first, as their score was nought before llama.cpp's converter changed it.
    scores = {
        name: 0.0 if kind == USER_DEFINED else score
        for name, kind, score in zip(names, *fields[1:], strict=True)
    }
    from transformers.convert_slow_tokenizer import generate_merges

    merges = generate_merges(vocab, scores)
    gemma = transformers.GemmaTokenizer(vocab=vocab, merges=merges)
    library = gemma.backend_tokenizer
    searched = [name for name, kind in zip(names, fields[1], strict=True) if kind == USER_DEFINED]
    library.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in searched])

    def encode(text):
        return library.encode(text, add_special_tokens=False).ids

    texts = odd_texts(21_000, TAGS * 2 + ALIKE)
    plain = [text for text in texts if not any(mark in text for mark in MARKS)]
    assert len(plain) > 20_000
    check(ours, encode, library.decode, plain)
    special = [name for name, kind in zip(names, fields[1], strict=True) if kind == CONTROL]
    library.add_special_tokens([tokenizers.AddedToken(name, normalized=False) for name in special])
    library.save(str(tmp_path / "tokenizer.json"))
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert (again.begin, again.end, again.ends) == (ours.begin, ours.end, ours.ends)
    for text in odd_texts(5000, TAGS * 2 + MARKS + ALIKE):
        assert again.encode(text) == ours.encode(text), text


def test_shakespeare_is_encoded_soon(ours, starter):
    text = (starter / "tinyshakespeare.txt").read_text(encoding="utf-8")
    begin = time.process_time()
    tokens = ours.encode(text)
    assert time.process_time() - begin < 5
    assert ours.decode(tokens) == text
    assert sum(ours.types[token] == NORMAL for token in tokens) > 200_000
