"""The sampler: what it picks, and that its cache changes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from checkpoint import save_checkpoint
from errors import RunError, UserError
from gpt2 import GPT2, GPT2Config
from sample import generate, generate_tokens, pick
from tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
CONFIG = GPT2Config(seq_len=16, vocab_size=257, num_layers=2, num_heads=2, channels=32)


@pytest.fixture
def model():
    """Random, with weights so large that what came before matters."""
    model = GPT2(CONFIG)
    rng = np.random.default_rng(1)
    model.params.flat += 0.2 * rng.standard_normal(model.params.flat.size)
    model.params.wpe *= 5
    return model


@pytest.fixture
def run(tmp_path, model):
    """A run's folder with a checkpoint of `model`."""
    meta = {"config": vars(CONFIG), "positions": 16, "tokenizer": load_tokenizer("bytes").to_text()}
    save_checkpoint(tmp_path / "checkpoint.npz", meta, {"params": model.params.flat})
    return tmp_path


def greedy(model, context):
    """What a forward pass over everything says comes next."""
    return int(model.forward(np.array([context]))[0, -1].argmax())


def test_the_cache_changes_nothing(model):
    context = [3, 1, 4]
    tokens = list(generate_tokens(model, context, 13, temperature=0))
    for token in tokens:
        assert token == greedy(model, context)
        context.append(token)


def test_past_the_context_the_older_half_is_forgotten(model):
    other = GPT2(CONFIG, seed=None)  # the same weights, in buffers that the sampler does not use
    other.params.flat[:] = model.params.flat
    context = [3, 1, 4]
    for token in generate_tokens(model, context, 40, temperature=0):
        # What the sampler sees: never more than the context, and at least half of it.
        seen = context
        while len(seen) > 16:
            seen = seen[8:]
        assert token == greedy(other, seen)
        context = [*context, token]
    assert len(context) == 43


def test_sampling_in_a_training_models_buffers(model):
    """A model made for batches of shorter sequences speaks too, and its training goes on."""
    trainer = GPT2(CONFIG, batch_size=4, seq_len=8)
    trainer.params.flat[:] = model.params.flat
    alone = list(generate_tokens(model, [5], 7, temperature=0))
    assert list(generate_tokens(trainer, [5], 7, temperature=0)) == alone
    tokens = np.arange(32).reshape(4, 8)
    loss = trainer.forward(tokens, tokens)
    list(generate_tokens(trainer, [5], 20))
    assert trainer.forward(tokens, tokens) == loss


def test_it_stops_at_the_end_of_the_text(model):
    first, second = list(generate_tokens(model, [3, 1, 4], 2, temperature=0))
    assert list(generate_tokens(model, [3, 1, 4], 9, second, temperature=0)) == [first]


def test_the_same_seed_gives_the_same_text(model):
    tokenizer = load_tokenizer("bytes")

    def text(seed):
        return "".join(generate(model, tokenizer, "ab", 30, rng=np.random.default_rng(seed)))

    assert text(1) == text(1) != text(2)


def frequencies(logits, **settings):
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | settings
    rng = np.random.default_rng(0)
    picked = [pick(np.array(logits, np.float32), rng=rng, **settings) for _ in range(4000)]
    return np.bincount(picked, minlength=len(logits)) / len(picked)


def test_pick_follows_the_distribution():
    probs = np.array([0.1, 0.5, 0.15, 0.25])
    logits = np.log(probs) + 300  # a constant changes nothing
    assert frequencies(logits) == pytest.approx(probs, abs=0.03)
    squared = probs**2 / np.sum(probs**2)
    assert frequencies(logits, temperature=0.5) == pytest.approx(squared, abs=0.03)
    assert frequencies(logits, temperature=0).tolist() == [0, 1, 0, 0]
    two = [0, 2 / 3, 0, 1 / 3]
    assert frequencies(logits, top_k=2) == pytest.approx(two, abs=0.03)
    # The likeliest has 0.5 and is not enough for 0.6; with the next it is.
    assert frequencies(logits, top_p=0.6) == pytest.approx(two, abs=0.03)
    assert frequencies(logits, top_p=0.4).tolist() == [0, 1, 0, 0]
    assert frequencies(logits, top_k=99) == pytest.approx(probs, abs=0.03)


def test_extreme_logits_and_temperatures():
    assert frequencies([0, 1e4, -1e4]).tolist() == [0, 1, 0]
    assert frequencies([0, 1], temperature=1e-6).tolist() == [0, 1]
    assert frequencies([0, 1], temperature=1e6) == pytest.approx([0.5, 0.5], abs=0.03)


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"temperature": -0.1}, "-0.1"),
        ({"temperature": float("nan")}, "nan"),
        ({"top_k": -1}, "-1"),
        ({"top_p": 0.0}, "0.0"),
        ({"top_p": 1.1}, "1.1"),
    ],
)
def test_settings_out_of_range_are_named_at_once(model, settings, value):
    with pytest.raises(UserError, match=value):
        generate_tokens(model, [1], 1, **settings)


def test_a_model_that_has_diverged_says_so(model):
    model.params.lnfw.fill(np.nan)
    with pytest.raises(RunError, match="diverged"):
        list(generate_tokens(model, [1], 1))


@pytest.mark.parametrize("seq_len", [1, 2, 5])
def test_short_contexts_go_on_too(model, seq_len):
    short = GPT2(CONFIG, seq_len=seq_len)
    assert len(list(generate_tokens(short, [3], 11))) == 11


def test_a_prompt_longer_than_the_context(model):
    with pytest.raises(UserError, match=r"17 tokens.*16"):
        generate_tokens(model, [1] * 17, 1)


def test_the_program_speaks(program, run):
    status, out, err = program(
        "sample", run, "--prompt", "ab", "--max-tokens", 12, "--temperature", 0
    )
    assert status == 0
    assert out.startswith("ab")
    assert "12 tokens in" in err
    assert "tokens/s" in err
    assert (
        program("sample", run, "--prompt", "ab", "--max-tokens", 12, "--temperature", 0)[1] == out
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--temperature", "-1"], "temperature must be 0 or more, not -1"),
        (["--top-p", "0"], "top-p must be above 0"),
        (["--top-k", "-3"], "not -3"),
        (["--max-tokens", "0"], "not 0"),
        (["--seed", "-1"], "not -1"),
        (["--prompt", "x" * 17], "17 tokens"),
    ],
)
def test_bad_arguments(program, run, arguments, sentence):
    status, out, err = program("sample", run, *arguments)
    assert (status, out) == (2, "")
    assert sentence in err


def test_bad_checkpoints(program, tmp_path):
    status, _, err = program("sample", tmp_path)
    assert status == 2
    assert str(tmp_path) in err
    (tmp_path / "checkpoint.npz").write_bytes(b"PK not really")
    status, _, err = program("sample", tmp_path)
    assert status == 2
    assert "damaged" in err


def test_a_console_that_cannot_show_a_character(run):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    result = subprocess.run(
        [sys.executable, "sample.py", run, "--prompt", "☃ ", "--max-tokens", "3"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(b"?")
