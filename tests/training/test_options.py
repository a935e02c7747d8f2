"""What a run is asked to do: found, told, or refused before anything is written."""

import os
import re
import shutil
from dataclasses import asdict, fields, replace

import numpy as np
import pytest

import training.corpus
from dataloader import write_shard
from formats import llama2_c
from formats.checkpoint import read_meta
from formats.weights import Parts, Weights
from models import FAMILIES, gpt2, llama2, mistral, qwen3
from models.gpt2 import GPT2Config
from models.llama2 import Llama2Config
from runs import LLAMA_NANO, NANO, SMALL, refused
from training import options

MISTRAL_TINY, QWEN3_TINY = mistral.PRESETS["mistral-tiny"], qwen3.PRESETS["qwen3-tiny"]


def test_the_other_models_trainer_is_named(program, small, tmp_path):
    program("gpt2_train", *small, "--steps", 1)
    status, _, err = program("llama2_train", "--resume", tmp_path / "run")
    assert status == 2
    assert "holds a GPT-2; use python train.py gpt2" in err


def test_families_that_are_one_model_take_each_other_s_files(program, small, corpus, tmp_path):
    """And a run keeps the family that it is of."""
    program("llama2_train", *small, "--steps", 1)
    arguments = ["--init-from", tmp_path / "run", "--data", corpus, "--out", tmp_path / "next"]
    assert program("train", "qwen3", *arguments, "--seq-len", 16, "--steps", 1)[0] == 0
    assert program("train", "llama3", "--resume", tmp_path / "next", "--steps", 2)[0] == 0
    meta = read_meta(tmp_path / "next" / "checkpoint.npz")
    assert (meta["model"], meta["step"]) == ("llama2", 2)


def test_a_model_whose_vocabulary_is_not_known(program, corpus, tmp_path):
    """A llama2.c file says how many tokens it has, and not which."""
    config = Llama2Config(dim=32, num_layers=1, num_heads=2, vocab_size=99, seq_len=16)
    path = tmp_path / "model.bin"
    tensors = {name: Parts.of(name, tensor) for name, tensor in llama2.Llama2(config).params}
    llama2_c.write(path, Weights("", "llama2", vars(config), tensors))
    status, _, err = program("llama2_train", "--init-from", path, "--data", corpus)
    assert status == 2
    assert "vocabulary of 357 tokens" in err
    assert "one of 99; prepare it again" in err
    assert f"NEW.npz --tokenizer {corpus / 'tokenizer.tiktoken'}" in err


def test_a_models_conversions_have_its_vocabulary(program, starter, tmp_path):
    """Each file has scores of its own; the order in which they merge is one."""
    text = (starter / "tinyshakespeare.txt").read_text(encoding="utf-8")[:20_000]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    arguments = [tmp_path / "text.txt", "--tokenizer", starter / "tok512.bin"]
    assert program("dev.data.textfile", *arguments, "--out", tmp_path / "corpus")[0] == 0
    for name in ("folder", "model.gguf"):
        assert program("convert", starter / "stories260K.bin", tmp_path / name)[0] == 0
        small = ["--batch-size", 2, "--seq-len", 16, "--steps", 1, "--prompt", "a"]
        arguments = ["--data", tmp_path / "corpus", "--out", tmp_path / f"{name}-run", *small]
        status, _, err = program("llama2_train", "--init-from", tmp_path / name, *arguments)
        assert status == 0, err


def test_parameters_are_counted_as_convert_counts_them(program, small, tmp_path):
    _, out, _ = program("gpt2_train", *small, "--steps", 1)
    config = GPT2Config(**read_meta(tmp_path / "run" / "checkpoint.npz")["config"])
    assert (config.vocab_size, config.padded_vocab_size) == (357, 384)
    count = gpt2.GPT2(config).params.flat.size - 27 * config.channels
    assert f"{count:,} parameters (and {27 * config.channels} numbers of padding) on" in out
    assert f"GPT-2, {count:,} parameters" in program("convert", tmp_path / "run")[1]
    _, out, _ = program("llama2_train", *small, "--steps", 1, "--out", tmp_path / "llama")
    assert re.search(r"parameters on .*corpus", out)


def test_without_names_the_newest_corpus_and_a_free_folder_are_taken(
    program, corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(training.corpus, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("new", "old")):
        shutil.copytree(corpus, tmp_path / "data" / name)
        tokenizer = tmp_path / "data" / name / "tokenizer.tiktoken"
        os.utime(tokenizer, (10**9 - age, 10**9 - age))
    for _ in range(2):
        status, out, _ = program("gpt2_train", *SMALL, "--steps", 1)
        assert status == 0
        assert str(tmp_path / "data" / "new") in out
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"nano", "nano-2"}


def test_without_a_corpus_the_default_one_is_made(program, tmp_path, monkeypatch):
    monkeypatch.setattr(training.corpus, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert program("gpt2_train", *SMALL, "--steps", 1)[0] == 0
    assert (tmp_path / "data" / "pydocs" / "train_000000.bin").is_file()


def test_the_memory_map_needs_no_memory(program, small, tmp_path):
    picture = tmp_path / "map.png"
    arguments = ["--batch-size", 50_000_000, "--memory-map", picture]
    assert program("gpt2_train", *small, *arguments)[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("trainer", ["gpt2_train", "llama2_train"])
def test_a_profile_stops_before_anything_is_written(program, small, tmp_path, trainer):
    status, out, err = program(trainer, *small, "--profile")
    assert (status, err) == (0, "")
    for word in ("attention ", "linear ", "AdamW ", "everything else", "matrix products are"):
        assert word in out
    assert not (tmp_path / "run").exists()


def test_the_memory_is_told_exactly(program, small, tmp_path):
    status, out, _ = program("gpt2_train", *small, "--steps", 1)
    assert status == 0
    meta = read_meta(tmp_path / "run" / "checkpoint.npz")
    model = gpt2.GPT2(GPT2Config(**meta["config"]), 4, 16)
    total = 4 * model.params.flat.nbytes + model.acts.flat.nbytes
    assert f"memory: {total / 2**20:,.1f} MiB" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "gpt5"], ["gpt5", "gpt2-medium"]),
        (["--channels", 33], ["2 heads do not divide 33 channels"]),
        (["--data", "nowhere"], ["nowhere", "dev/data"]),
        (["--init-from", "nowhere"], ["nowhere"]),
        (["--resume", "nowhere"], ["nowhere"]),
        (["--batch-size", 0], ["--batch-size", "0"]),
        (["--steps", -1], ["--steps", "-1"]),
        (["--lr", "nan"], ["--lr", "nan"]),
        (["--lr", "fast"], ["--lr", "fast"]),
        (["--beta1", 1], ["--beta1", "below 1"]),
        (["--dropout", 1], ["--dropout", "below 1"]),
        (["--dropout", -0.1], ["--dropout", "-0.1"]),
        (["--beta2", 1.5], ["--beta2", "1.5"]),
        (["--min-lr", 1, "--lr", 0.1], ["--min-lr", "above --lr"]),
        (["--schedule", "linear"], ["--schedule", "linear", "wsd"]),
        (["--schedule", "wsd", "--cooldown", -1], ["--cooldown", "-1"]),
        (["--prompt", "much too long for sixteen tokens, " * 5], ["--prompt", "16"]),
        (["--memory-map", "map.xyz"], ["map.xyz", "png"]),
        (["--batch-size", 9000], ["batch of 9000 x 16", "lower"]),  # the corpus is too small
        (["--batch-size", 50_000_000], ["memory", "lower --batch-size"]),
    ],
)
def test_arguments_that_cannot_be(program, small, tmp_path, arguments, words):
    sentence = refused(program, *small, *arguments)
    assert all(word in sentence for word in words), sentence
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten(program, small, tmp_path):
    program("gpt2_train", *small, "--steps", 1)
    before = (tmp_path / "run" / "checkpoint.npz").read_bytes()
    assert "--resume" in refused(program, *small, "--steps", 1)
    assert (tmp_path / "run" / "checkpoint.npz").read_bytes() == before
    assert "--steps" in refused(program, "--resume", tmp_path / "run")  # it is finished
    assert "--preset" in refused(program, "--resume", tmp_path / "run", "--preset", "tiny")


def damage_header(position, value):
    def damage(path):
        header = np.fromfile(path, "<i4", 256)
        tokens = path.read_bytes()[1024:]
        header[position] = value
        path.write_bytes(header.tobytes() + tokens)

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), ["prepare"]),
        (lambda path: path.write_bytes(b"GIF89a" * 300), ["another format"]),
        (lambda path: path.write_bytes(b"short"), ["5 bytes"]),
        (damage_header(1, 9), ["version 9"]),
        (damage_header(2, 7), ["promises 7 tokens"]),
        (lambda path: write_shard(path, []), ["no tokens"]),
        (lambda path: write_shard(path, [1] * 20), ["20 tokens"]),
        (lambda path: write_shard(path, [999] * 500), ["token 999", "vocabulary of 357"]),
    ],
)
def test_token_files_that_are_not_right(program, corpus, tmp_path, damage, words):
    shutil.copytree(corpus, tmp_path / "bad")
    path = tmp_path / "bad" / "train_000000.bin"
    damage(path)
    arguments = [*SMALL, "--data", tmp_path / "bad", "--out", tmp_path / "run"]
    sentence = refused(program, *arguments)
    assert all(word in sentence for word in ["train_", *words]), sentence
    assert not (tmp_path / "run" / "checkpoint.npz").exists()


def test_another_vocabulary_than_the_checkpoints(program, small, corpus, tmp_path):
    program("gpt2_train", *small, "--steps", 1)
    shutil.copytree(corpus, tmp_path / "other")
    tokenizer = tmp_path / "other" / "tokenizer.tiktoken"
    lines = tokenizer.read_text(encoding="utf-8").splitlines(keepends=True)
    tokenizer.write_text("".join(lines[:-1]), encoding="utf-8")
    for option in ("--init-from", "--resume"):
        sentence = refused(
            program, option, tmp_path / "run", "--data", tmp_path / "other", "--steps", 2
        )
        assert "another vocabulary" in sentence


def test_the_model_comes_from_one_place(program, small, tmp_path):
    program("gpt2_train", *small, "--steps", 1)
    run = tmp_path / "run"
    assert "leave out --preset" in refused(program, "--init-from", run, "--preset", "nano")
    assert "leave out --preset" in refused(program, "--resume", run, "--preset", "nano")
    assert "leave out" in refused(program, "--resume", run, "--out", tmp_path)


@pytest.mark.parametrize(
    ("family", "sizes", "config", "name"),
    [
        (
            "gpt2",
            ["--num-layers", 1, "--num-heads", 4, "--channels", 16],
            GPT2Config(seq_len=9, num_layers=1, num_heads=4, channels=16),
            "gpt2-1x16",
        ),
        ("gpt2", ["--preset", "nano", "--channels", 8], replace(NANO, channels=8), "gpt2-2x8"),
        (
            "llama2",  # what followed from other numbers follows from the new ones
            ["--preset", "nano", "--dim", 48, "--no-tied", "--rope-theta", 5e5],
            replace(
                LLAMA_NANO, dim=48, hidden_dim=None, head_size=None, tied=False, rope_theta=5e5
            ),
            "llama2-2x48",
        ),
        (
            "llama2",
            ["--preset", "nano", "--hidden-dim", 40, "--num-kv-heads", 1],
            replace(LLAMA_NANO, hidden_dim=40, num_kv_heads=1),
            "llama2-2x32",
        ),
        (
            "mistral",
            ["--num-layers", 1, "--window", 4],
            replace(MISTRAL_TINY, num_layers=1, window=4),
            "mistral-1x192",
        ),
        (
            "qwen3",
            ["--num-layers", 1, "--head-size", 6, "--qkv-bias", "--no-qk-norm"],
            replace(QWEN3_TINY, num_layers=1, head_size=6, qkv_bias=True, qk_norm=False),
            "qwen3-1x192",
        ),
    ],
)
def test_sizes_of_ones_own(program, corpus, tmp_path, monkeypatch, family, sizes, config, name):
    monkeypatch.chdir(tmp_path)
    arguments = [*sizes, "--seq-len", 9, "--batch-size", 2, "--data", corpus, "--steps", 1]
    assert program("train", family, *arguments)[0] == 0
    meta = read_meta(tmp_path / "runs" / name / "checkpoint.npz")
    vocab_size = meta["config"]["vocab_size"]
    assert meta["config"] == asdict(replace(config, seq_len=9, vocab_size=vocab_size))
    assert "leave out --num-layers" in refused(
        program, "--init-from", f"runs/{name}", "--num-layers", 3
    )


def test_every_size_that_a_model_has_is_an_option():
    for kind, family in FAMILIES.items():
        known = {action.dest for action in options.make_parser(kind)._actions}
        others = {field.name for field in fields(family.config)} - known
        assert others <= {"vocab_size", "rope_scaling"}


@pytest.mark.parametrize("words", [[], ["gpt5"], ["--steps", 1]])
def test_a_family_that_is_not_known(program, words):
    status, _, err = program("train", *words)
    assert status == 2
    assert "gpt2, llama2" in err


def test_help_without_a_family_names_the_ways_in(program):
    status, out, err = program("train", "--help")
    assert (status, err) == (0, "")
    for words in ("train.py gpt2", "train.py llama2", "--help", "--list"):
        assert words in out


def test_out_that_is_a_file(program, small, tmp_path):
    (tmp_path / "run").write_text("", encoding="utf-8")
    assert "is a file" in refused(program, *small)


def test_help_is_a_page_for_a_person(program):
    status, out, _ = program("gpt2_train", "--help")
    assert status == 0
    for group in ("the model", "the data", "by default the preset's", "the optimiser", "the run"):
        assert f"{group}:" in out
    for action in options.make_parser("gpt2")._actions:
        assert action.help, action.dest
