"""Texts that are too small for the usual batch, and data that are no corpus."""

import pickle
import re

import numpy as np
import pytest

from dataloader import DataLoader
from dev.data.corpus import write_corpus
from formats.checkpoint import read_meta
from formats.tokenizer_files import load_tokenizer
from load import open_model
from runs import NANO, refused, rows

TEXT = "".join(
    f"The quick brown fox jumped over {n} dogs, and they did not mind.\n" for n in range(99)
)


@pytest.fixture
def corpus_of(tmp_path):
    """A corpus of so many tokens for training and for validation, each a byte or a character."""

    def make(num_train, num_val, tokenizer="bytes"):
        train, val = TEXT[: num_train - 1], TEXT[-num_val + 1 :]
        write_corpus([train], [val], tmp_path / "corpus", tokenizer)
        return tmp_path / "corpus"

    return make


def train(program, corpus, tmp_path, *arguments):
    arguments = ["--data", corpus, "--out", tmp_path / "run", "--steps", 3, *arguments]
    status, out, err = program("gpt2_train", "--preset", "nano", *arguments)
    assert status == 0, err
    return out


def test_validation_takes_what_there_is(program, corpus_of, tmp_path):
    """Of each window that there is the loss, and the mean of those, whatever the batches."""
    corpus = corpus_of(900, 33 * 14)
    args = ["--batch-size", 9, "--val-batches", 99, "--val-every", 3]
    assert "is small" not in train(program, corpus, tmp_path, *args)
    source = open_model(tmp_path / "run")
    windows = DataLoader(corpus / "val_*.bin", 1, NANO.seq_len, vocab_size=257, shuffle=False)
    assert len(windows) % 9 in range(2, 8)
    model = source.load()
    losses = [model.forward(*windows.next_batch()) for _ in range(len(windows))]
    last = float(rows(tmp_path / "run")[-1]["val_loss"])
    assert last == pytest.approx(np.mean(losses), abs=1e-6)


def test_a_batch_is_more_than_there_is_to_validate_with(program, corpus_of, tmp_path):
    out = train(program, corpus_of(300, 40), tmp_path)
    assert "is small" not in out
    assert read_meta(tmp_path / "run" / "checkpoint.npz")["batch_size"] == 8
    assert re.search(r"validation loss \d", out)


def test_a_default_batch_is_lowered_and_told(program, corpus_of, tmp_path):
    corpus = corpus_of(121, 21)
    out = train(program, corpus, tmp_path, "--seq-len", 20)
    assert "corpus is small: batches have 6 sequences, not 8" in out
    assert read_meta(tmp_path / "run" / "checkpoint.npz")["batch_size"] == 6
    assert program("gpt2_train", "--resume", tmp_path / "run", "--steps", 4)[0] == 0
    assert len(rows(tmp_path / "run")) == 4


def test_a_default_length_is_lowered_and_told(program, corpus_of, tmp_path):
    corpus = corpus_of(300, 28)
    out = train(program, corpus, tmp_path)
    assert "corpus is small: sequences have 27 tokens instead of 32" in out
    meta = read_meta(tmp_path / "run" / "checkpoint.npz")
    assert (meta["config"]["seq_len"], meta["positions"]) == (32, 27)
    assert program("gpt2_train", "--resume", tmp_path / "run", "--steps", 4)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--batch-size", 9],
            "train_*.bin holds 288 tokens, and a batch of 9 x 32 needs 289; lower",
        ),
        (["--seq-len", 33], "val_*.bin holds 33 tokens, and a batch of 1 x 33 needs 34; lower the"),
    ],
)
def test_what_was_asked_for_is_refused(program, corpus_of, tmp_path, arguments, sentence):
    corpus = corpus_of(288, 33)
    arguments = ["--preset", "nano", "--data", corpus, "--out", tmp_path / "run", *arguments]
    assert sentence in refused(program, *arguments)
    assert not (tmp_path / "run").exists()


def test_a_run_of_characters(program, corpus_of, tmp_path):
    corpus = corpus_of(3000, 300, "chars")
    out = train(program, corpus, tmp_path, "--sample-every", 3)
    assert "--- a sample ---\nThe" in out
    characters = load_tokenizer(corpus / "characters.json").characters
    assert open_model(tmp_path / "run").tokenizer.characters == characters
    arguments = ["--init-from", tmp_path / "run", "--data", corpus, "--out", tmp_path / "tuned"]
    assert program("gpt2_train", *arguments, "--steps", 1)[0] == 0
    status, out, _ = program("sample", tmp_path / "run", "--prompt", "The fox", "--max-tokens", 5)
    assert status == 0
    assert out.startswith("The fox")


def test_samples_begin_a_text_where_the_usual_prompt_cannot_be_written(program, tmp_path):
    (tmp_path / "names.txt").write_text("emma\nolivia\nava\n" * 100, encoding="utf-8")
    arguments = ["--lines", "--tokenizer", "chars", "--out", tmp_path / "names"]
    assert program("dev.data.textfile", tmp_path / "names.txt", *arguments)[0] == 0
    out = train(program, tmp_path / "names", tmp_path, "--sample-every", 3)
    sample = out.partition("--- a sample ---\n")[2].partition("\n----------------")[0]
    assert set(sample) <= set("emaolivn\n")
    assert "sample.py" in out.splitlines()[-2]
    assert "--prompt" not in out.splitlines()[-2]
    arguments = ["--data", tmp_path / "names", "--out", tmp_path / "other", "--prompt", "The"]
    assert "vocabulary of 8 characters has no 'T'" in refused(program, *arguments)


def nanogpt(folder, meta):
    """What nanoGPT's prepare.py writes."""
    folder.mkdir()
    for split in ("train", "val"):
        np.arange(2000, dtype=np.uint16).tofile(folder / f"{split}.bin")
    (folder / "input.txt").write_text("Once", encoding="utf-8")
    if meta:
        (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 1}))


@pytest.mark.parametrize(("meta", "tokenizer"), [(True, "chars"), (False, "gpt2")])
@pytest.mark.parametrize("name", [".", "train.bin"])
def test_nanogpts_tokens_are_refused_with_a_hint(program, tmp_path, meta, tokenizer, name):
    folder = tmp_path / "shakespeare"
    nanogpt(folder, meta)
    sentence = refused(program, "--data", folder / name)
    text = folder / "input.txt"
    assert "has tokens without a header or a tokenizer, as nanoGPT prepares them" in sentence
    assert sentence.endswith(f"python dev/data/textfile.py {text} --tokenizer {tokenizer}")


def test_files_that_are_no_corpus_are_refused_with_a_hint(program, corpus_of, tmp_path):
    corpus = corpus_of(300, 300)
    text = tmp_path / "text.txt"
    text.write_text("Once", encoding="utf-8")
    assert f"of it: python dev/data/textfile.py {text}" in refused(program, "--data", text)
    sentence = refused(program, "--data", corpus / "train_000000.bin")
    assert f"is one file of a corpus; give its folder, {corpus}" in sentence


def test_a_shard_of_nanogpts_under_our_name(program, corpus_of, tmp_path):
    corpus = corpus_of(300, 300)
    np.arange(2000, dtype=np.uint16).tofile(corpus / "train_000000.bin")
    sentence = refused(program, "--data", corpus, "--out", tmp_path / "run")
    assert "looks like another format, such as nanoGPT's, which has no header" in sentence
