"""The sampler: what it picks, and that its cache changes nothing."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from errors import RunError, UserError
from formats.checkpoint import read_meta, save_checkpoint
from formats.tokenizer_files import load_tokenizer
from load import open_model
from models.gpt2 import GPT2, GPT2Config
from models.llama2 import Llama2, Llama2Config
from sampler import Cache, Settings, draw, generate, generate_many, generate_tokens

ROOT = Path(__file__).resolve().parents[1]
GPT2_CONFIG = GPT2Config(seq_len=16, vocab_size=257, num_layers=2, num_heads=2, channels=32)
LLAMA2_CONFIG = Llama2Config(
    dim=32, num_layers=2, num_heads=4, num_kv_heads=2, vocab_size=257, seq_len=16
)
BYTES = load_tokenizer("bytes")
# The tokens of these are far from alike in number.
PROMPTS = [[3], [1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [200, 100, 0], [7, 7]]


def make(config, batch_size=1, seq_len=None):
    """Random, with weights so large that what came before matters."""
    model = (GPT2 if isinstance(config, GPT2Config) else Llama2)(config, batch_size, seq_len)
    rng = np.random.default_rng(1)
    model.params.flat += 0.2 * rng.standard_normal(model.params.flat.size)
    if isinstance(config, GPT2Config):
        model.params.wpe *= 5
    return model


@pytest.fixture(params=[GPT2_CONFIG, LLAMA2_CONFIG], ids=["gpt2", "llama2"])
def config(request):
    return request.param


@pytest.fixture
def model(config):
    return make(config)


@pytest.fixture
def run(tmp_path, config, model):
    """A run's folder with a checkpoint of `model`."""
    meta = {
        "model": "gpt2" if isinstance(config, GPT2Config) else "llama2",
        "config": vars(config),
        "positions": 16,
        "tokenizer": BYTES.to_bytes().decode("latin-1"),
    }
    save_checkpoint(tmp_path / "checkpoint.npz", meta, {"params": model.params.flat})
    return tmp_path


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS[1:2], PROMPTS])
def test_the_cache_changes_nothing(config, prompts):
    """The logits at every step are those of a full pass over each text alone.

    Also beyond the context, where what is seen is what a text is then said to remember: never more
    than the context, and at least the half of it, or else all of the text.
    """
    cache, alone = Cache(make(config, len(prompts)), prompts), make(config)
    texts = [list(prompt) for prompt in prompts]
    rng = np.random.default_rng(0)
    for _ in range(40):
        logits = cache.next_logits().copy()
        np.testing.assert_allclose(cache.next_logits(), logits, rtol=0, atol=1e-4)  # asked again
        for row, seen, text in zip(logits, cache.texts(), texts, strict=True):
            assert min(8, len(text)) <= len(seen) <= 16
            assert seen.tolist() == text[-len(seen) :]
            expected = alone.forward(seen[None])[0, -1]
            np.testing.assert_allclose(row, expected, rtol=0, atol=1e-5 * abs(expected).max())
        tokens = rng.integers(0, 257, (len(prompts), 1))
        cache.append(tokens)
        for text, token in zip(texts, tokens[:, 0].tolist(), strict=True):
            text.append(token)


def test_several_tokens_can_be_appended_at_once(config, model):
    cache, alone = Cache(model, [[3, 1]]), make(config)
    cache.next_logits()
    cache.append(np.array([[4, 1, 5]]))
    expected = alone.forward(np.array([[3, 1, 4, 1, 5]]))[0, -1]
    np.testing.assert_allclose(cache.next_logits()[0], expected, atol=1e-5 * abs(expected).max())
    with pytest.raises(UserError, match=r"17 tokens.*16"):
        cache.append(np.ones((1, 17), int))


def test_a_long_prompt_is_entered_in_pieces(config):
    """Where the model computes fewer rows at once than the prompts have."""
    whole = Cache(make(config, 4), PROMPTS)
    model = make(config, 4)
    pieces = Cache(type(model)(config, 4, seed=None, rows=4 * 3), PROMPTS)
    pieces.model.params.flat[:] = model.params.flat
    np.testing.assert_allclose(pieces.next_logits(), whole.next_logits(), rtol=0, atol=1e-4)
    assert pieces.model.passes == 4
    with pytest.raises(UserError, match="more than the 12"):
        pieces.model.forward(np.zeros((4, 4), int))


def test_others_may_use_the_model_in_between(config, model):
    """Two conversations in one model's buffers, and a step of training between them."""
    alone = [words(Cache(make(config), [prompt]), 5, temperature=0)[0] for prompt in PROMPTS[:2]]
    steps = [
        generate_tokens(Cache(model, [prompt]), 5, settings=Settings(temperature=0))
        for prompt in PROMPTS[:2]
    ]
    said = [[], []]
    for _ in range(5):
        for text, tokens in zip(said, steps, strict=True):
            text.append(next(tokens)[0])
        model.forward(np.array([[9, 8, 7]]), np.array([[8, 7, 6]]))
    assert said == alone


def words(cache, count, ends=(), **settings):
    """What each text gets to say."""
    said = [[] for _ in cache.tokens]
    for tokens in generate_tokens(cache, count, ends, Settings(**settings)):
        for number, token in tokens.items():
            said[number].append(token)
    return said


def test_sampling_in_a_training_models_buffers(config):
    """A model made for batches of shorter sequences speaks too, and its training goes on."""
    trainer = make(config, batch_size=4, seq_len=8)
    alone = words(Cache(make(config), [[5]]), 7, temperature=0)
    assert words(Cache(trainer, [[5]]), 7, temperature=0) == alone
    tokens = np.arange(32).reshape(4, 8)
    loss = trainer.forward(tokens, tokens)
    words(Cache(trainer, [[5], [6, 7]]), 20)
    assert trainer.forward(tokens, tokens) == loss


def test_each_text_ends_for_itself(config):
    """The others go on, and say what they would have said."""
    said = words(Cache(make(config, 4), PROMPTS), 12, temperature=0)
    end = said[2][4]
    ended = words(Cache(make(config, 4), PROMPTS), 12, [end], temperature=0)
    expected = [text[: text.index(end)] if end in text else text for text in said]
    assert ended == expected
    assert len(ended[2]) <= 4 < max(map(len, ended))


def test_what_one_says_does_not_depend_on_the_others(config):
    many = words(Cache(make(config, 4), PROMPTS), 30)
    first = words(Cache(make(config), PROMPTS[:1]), 7)
    assert many[0][:7] == first[0]  # the other prompts leave it room for seven
    assert len({tuple(text) for text in many}) == 4


def test_the_same_seed_gives_the_same_text(model):
    def text(seed):
        return "".join(generate(model, BYTES, "ab", 30, rng=np.random.default_rng(seed)))

    assert text(1) == text(1) != text(2)


def test_pieces_of_many_texts(config):
    """Joined, the pieces of each are what it says; none of them ends inside a character."""
    prompts = ["a", "abcdefgh", None]
    model = make(config, 3)
    texts = ["", "", ""]
    for number, piece in generate_many(model, BYTES, prompts, 50):
        texts[number] += piece
    said = words(Cache(model, [BYTES.encode_prompt(prompt) for prompt in prompts]), 50, BYTES.ends)
    assert texts == [BYTES.decode(tokens) for tokens in said]


def frequencies(logits, **settings):
    rng = np.random.default_rng(0)
    rows = np.tile(np.array(logits, np.float32), (4000, 1))
    picked = Settings(**settings).pick(rows, [[]] * 4000, [rng] * 4000)
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
    # Of the two likeliest, the first is enough.
    assert frequencies(logits, top_k=2, top_p=0.6).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("count", [1, 127, 128, 129, 1000])
def test_draw_finds_the_token_at_its_place(count):
    """Also at both ends, and never a token without weight."""
    weights = np.random.default_rng(0).random(count).astype(np.float32)
    weights[1::3] = 0
    ends = np.cumsum(weights, dtype=np.float64)
    tokens = np.flatnonzero(weights)
    chances = (ends[tokens] - weights[tokens] / 2) / ends[-1]
    chances = np.array([*chances, 0, 1])
    expected = [*tokens, tokens[0], tokens[-1]]
    assert draw(np.tile(weights, (len(chances), 1)), chances).tolist() == expected


def test_extreme_logits_and_temperatures():
    assert frequencies([0, 1e4, -1e4]).tolist() == [0, 1, 0]
    assert frequencies([0, 1], temperature=1e-6).tolist() == [0, 1]
    assert frequencies([0, 1], temperature=1e6) == pytest.approx([0.5, 0.5], abs=0.03)


def test_the_repetition_penalty():
    """Divides what speaks for a token that was said, and multiplies what speaks against it."""
    logits = np.array([[2.0, 1.5, -1.0, -1.5]], np.float32)
    settings = Settings(temperature=0, repetition_penalty=2)
    assert settings.pick(logits.copy(), [np.array([0, 0])], []) == [1]
    assert settings.pick(logits.copy(), [np.array([1])], []) == [0]
    seen = logits.copy()
    settings.pick(seen, [np.array([0, 2, 0])], [])
    assert seen.tolist() == [[1.0, 1.5, -2.0, -1.5]]


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"temperature": -0.1}, "-0.1"),
        ({"temperature": float("nan")}, "nan"),
        ({"top_k": -1}, "-1"),
        ({"top_p": 0.0}, "0.0"),
        ({"top_p": 1.1}, "1.1"),
        ({"temperature": 1e39}, "1e\\+39"),
        ({"repetition_penalty": 0}, "0"),
        ({"repetition_penalty": 1e-300}, "1e-300"),
    ],
)
def test_settings_out_of_range_are_named_at_once(model, settings, value):
    with pytest.raises(UserError, match=value):
        generate(model, BYTES, "a", 1, **settings)


def test_a_model_that_has_diverged_says_so(model):
    model.params.flat[-1] = np.nan  # in the last norm
    with pytest.raises(RunError, match="diverged"):
        list(generate(model, BYTES, "a", 1))


@pytest.mark.parametrize("seq_len", [1, 2, 5])
def test_short_contexts_go_on_too(config, seq_len):
    assert len(words(Cache(make(config, seq_len=seq_len), [[3]]), 11)[0]) == 11


def test_prompts_that_cannot_be_continued(model):
    with pytest.raises(UserError, match=r"17 tokens.*16"):
        generate(model, BYTES, "a" * 17)
    with pytest.raises(UserError, match="empty"):
        generate(model, BYTES, "")


def speak(program, run, *arguments):
    """The program's output, of a few likeliest tokens."""
    arguments = ["--max-tokens", 12, "--temperature", 0, *arguments]
    status, out, err = program("sample", run, *arguments)
    assert status == 0, err
    return out, err


def test_the_program_speaks(program, run):
    out, err = speak(program, run, "--prompt", "ab")
    assert out.startswith("ab")
    assert re.search(r"12 tokens in .* tokens/s; of that the prompt, 2 tokens in .* tokens/s", err)
    assert speak(program, run, "--prompt", "ab")[0] == out


def test_nothing_to_add(program, run):
    """The likeliest next token ends the text."""
    source = open_model(run)
    model = source.load(recompute="none")
    embedding = model.params.wte
    logits = model.forward(np.array([[97, 98]]), last_only=True)[0, 0]
    embedding[256] = embedding[logits.argmax()] * 2
    arrays = {"params": model.params.flat}
    save_checkpoint(run / "checkpoint.npz", read_meta(run / "checkpoint.npz"), arrays)
    out, err = speak(program, run, "--prompt", "ab")
    assert out == "ab\n"
    assert err.startswith("0 tokens in")


def test_prompts_from_files(program, run, tmp_path, monkeypatch):
    expected = speak(program, run, "--prompt", "né")[0]
    # As an editor on Windows writes it: with a byte-order mark, and a line end of two bytes.
    (tmp_path / "prompt.txt").write_bytes(b"\xef\xbb\xbfn\xc3\xa9\r\n")
    assert speak(program, run, "--prompt-file", tmp_path / "prompt.txt")[0] == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("né".encode())))
    assert speak(program, run, "--prompt-file", "-")[0] == expected


def test_many_at_once(program, run, tmp_path):
    (tmp_path / "prompts.txt").write_text("ab\n\nlonger\n", encoding="utf-8")
    out, err = speak(program, run, "--prompts-file", tmp_path / "prompts.txt", "--num-samples", 2)
    alone = {prompt: speak(program, run, "--prompt", prompt)[0] for prompt in ("ab", "longer")}
    texts = re.split(r"--- \d ---\n", out)[1:]
    # Greedy, so the samples of a prompt are equal; each has room for at least half a context.
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]
    for text, whole in zip(texts[::2], alone.values(), strict=True):
        assert text[:8] == whole[:8]
    assert "48 tokens in" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--temperature", "-1"], "temperature must be from 0 to 1e+06, not -1"),
        (["--top-p", "0"], "top-p must be above 0"),
        (["--top-k", "-3"], "not -3"),
        (["--max-tokens", "0"], "not 0"),
        (["--seed", "-1"], "not -1"),
        (["--repetition-penalty", "0"], "repetition penalty must be from"),
        (["--num-samples", "0"], "not 0"),
        (["--prompt", "x" * 17], "17 tokens"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "a", "--prompt-file", "b"], "not allowed with"),
        (["--prompt-file", "nowhere.txt"], "nowhere.txt"),
        (["--tokenizer", "nowhere.bin"], "nowhere.bin"),
        (["--chat"], "Llama's tokenizer"),
        (["--chat", "--num-samples", "2"], "--num-samples"),
        (["--system", "Be kind."], "--chat"),
        (["--num-samples", "9999999"], "fewer texts"),
    ],
)
def test_bad_arguments(program, run, arguments, sentence):
    status, out, err = program("sample", run, *arguments)
    assert (status, out) == (2, "")
    assert sentence in err


@pytest.mark.parametrize(
    ("option", "content", "words"),
    [
        ("--prompt-file", b"caf\xe9", ["not UTF-8", "0xe9", "offset 3"]),
        ("--prompt-file", b"", ["the prompt is empty"]),
        ("--prompts-file", b" \n\n", ["no prompts"]),
    ],
)
def test_bad_prompt_files(program, run, tmp_path, option, content, words):
    (tmp_path / "prompt.txt").write_bytes(content)
    status, out, err = program("sample", run, option, tmp_path / "prompt.txt")
    assert (status, out) == (2, "")
    assert all(word in err for word in words), err


def test_bad_checkpoints(program, tmp_path):
    status, _, err = program("sample", tmp_path)
    assert status == 2
    assert str(tmp_path) in err
    (tmp_path / "checkpoint.npz").write_bytes(b"PK not really")
    status, _, err = program("sample", tmp_path)
    assert status == 2
    assert "damaged" in err


@pytest.mark.parametrize("coding", ["cp1252", "ascii"])
def test_pipes_on_both_sides_are_utf_8(run, coding):
    prompt = "naïve ☃".encode()
    result = subprocess.run(
        [sys.executable, "sample.py", run, "--prompt-file", "-", "--max-tokens", "3"],
        input=prompt,
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": coding, "PYTHONUTF8": "0", "LC_ALL": "C"},
        capture_output=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(prompt)
    assert len(result.stdout.decode("utf-8")) > len("naïve ☃\n")


# --- a Llama 2 that somebody else has trained ---


def test_a_real_model_tells_its_story(program, starter):
    """What llama2.c's own tests expect of it, to the last character."""
    arguments = ["--tokenizer", starter / "tok512.bin", "--temperature", 0, "--max-tokens", 200]
    status, out, err = program("sample", starter / "stories260K.bin", *arguments)
    assert (status, out) == (0, STORY + "\n")
    assert "200 tokens" in err


# llama2.c, test_all.py
STORY = """\
Once upon a time, there was a little girl named Lily. She loved to play outside in the park. \
One day, she saw a big, red ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. \
She said, "I want to play with your ball, but I can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do."
Lily didn't want to help her mom, so she"""


def test_a_tokenizer_beside_the_model_is_found(starter):
    assert open_model(starter / "stories260K.bin").tokenizer.vocab_size == 512


def test_a_tokenizer_of_another_model(program, starter):
    arguments = ["--tokenizer", starter / "llama2_tokenizer.bin"]
    status, out, err = program("sample", starter / "stories260K.bin", *arguments)
    assert (status, out) == (2, "")
    assert "llama2_tokenizer.bin has 32,000 tokens" in err
    assert "stories260K.bin has 512" in err


def test_a_model_without_its_tokenizer(program, starter, tmp_path):
    (tmp_path / "model.bin").write_bytes((starter / "stories260K.bin").read_bytes())
    status, out, err = program("sample", tmp_path / "model.bin")
    assert (status, out) == (2, "")
    assert "--tokenizer" in err


def test_a_truncated_model(program, starter, tmp_path):
    (tmp_path / "model.bin").write_bytes((starter / "stories260K.bin").read_bytes()[:-1])
    status, out, err = program("sample", tmp_path / "model.bin")
    assert (status, out) == (2, "")
    assert "model.bin" in err
