"""A table with more rows than the tokenizer has tokens: these rows stay, and are never picked."""

import io
import shutil

import numpy as np
import pytest

from chat import Chat, find_template
from convert import write_checkpoint
from errors import UserError
from formats import llama2_c, llm_c
from formats.checkpoint import read_meta
from formats.tokenizer_files import find_tokenizer, load_tokenizer, padded
from formats.weights import Parts, Weights
from load import open_model
from models.gpt2 import GPT2, GPT2Config
from models.llama2 import Llama2, Llama2Config
from sampler import generate_many
from tokenizer import BYTE_PIECES, SPECIAL_PIECES, LlamaTokenizer

TEXTS = [" ", "a", "b", " a", "ab", "é"]
PIECES = [*SPECIAL_PIECES, *BYTE_PIECES, *map(str.encode, TEXTS)]
LLAMA = LlamaTokenizer(PIECES, [0.0] * 259 + [-1.0 * place for place in range(len(TEXTS))])
TOKENIZERS = {"gpt2": load_tokenizer("bytes"), "llama2": LLAMA}
ROWS = 280
FORMATS = [
    ("gpt2", "out"),
    ("gpt2", "out.gguf"),
    ("gpt2", "out.bin"),
    ("gpt2", "out.npz"),
    ("llama2", "out"),
    ("llama2", "out.gguf"),
    ("llama2", "out.bin"),
    ("llama2", "out.npz"),
]


def model_of(kind, rows=ROWS, spare=0):
    """A model that finds any of the last `spare` rows by far the likeliest, always."""
    if kind == "gpt2":
        config = GPT2Config(seq_len=64, vocab_size=rows, num_layers=1, num_heads=2, channels=16)
        params = GPT2(config).params
        params.lnfw[:], params.lnfb[:] = 0, 1
        params.wte[rows - spare : rows] = 9
    else:
        config = Llama2Config(16, 16, 1, 2, vocab_size=rows, seq_len=64, tied=False)
        params = Llama2(config).params
        params.wte[:], params.wo[:], params.w2[:] = 1, 0, 0
        params.wcls[rows - spare : rows] = 9
    return config, params


def weights_of(kind, rows=ROWS):
    config, params = model_of(kind, rows, spare=rows - TOKENIZERS[kind].vocab_size)
    tensors = {name: Parts.of(name, tensor) for name, tensor in params}
    tensors["wte"] = Parts.of("wte", params.wte[:rows])
    return Weights("", kind, vars(config), tensors, TOKENIZERS[kind])


def told(err, tokens, rows=ROWS):
    sentence = f"the model has {rows:,} tokens, and its tokenizer {tokens:,}: the rest stay in"
    return err.count(sentence)


@pytest.mark.parametrize(("kind", "name"), FORMATS)
def test_every_format_keeps_the_rows_and_the_sampler_never_picks_them(
    program, tmp_path, kind, name
):
    weights = weights_of(kind)
    count = weights.tokenizer.vocab_size
    write_checkpoint(tmp_path / "model.npz", weights, "float32")
    status, _, err = program("convert", tmp_path / "model.npz", tmp_path / name)
    assert (status, told(err, count)) == (0, 1)
    source = open_model(tmp_path / name)
    assert source.config.vocab_size == ROWS
    assert (source.tokenizer, source.tokenizer.vocab_size) == (weights.tokenizer, count)
    np.testing.assert_array_equal(source.weights.tensors["wte"][0], weights.tensors["wte"][0])
    if (tmp_path / "out.tokenizer.bin").exists():  # of which run.c reads a token for each row
        each = LlamaTokenizer(*padded(LLAMA, ROWS))
        assert (tmp_path / "out.tokenizer.bin").read_bytes() == each.to_bytes()
    for settings in (["--temperature", 0], ["--num-samples", 3, "--repetition-penalty", 2]):
        status, _, err = program("sample", tmp_path / name, *settings)
        assert (status, told(err, count)) == (0, 1), err
    status, out, err = program("convert", tmp_path / name)
    assert (status, told(err, count)) == (0, 1)
    assert f"{count} tokens: " in out


def test_nothing_is_told_where_each_row_has_a_token(program, tmp_path):
    write_checkpoint(tmp_path / "model.npz", weights_of("gpt2", rows=257), "float32")
    for name in ("convert", "sample"):
        assert "stay in the model" not in program(name, tmp_path / "model.npz")[2]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_many_texts_and_every_setting(kind):
    config, params = model_of(kind, spare=ROWS - TOKENIZERS[kind].vocab_size)
    model = (GPT2 if kind == "gpt2" else Llama2)(config, 3, seed=None)
    model.params.flat[:] = params.flat
    for settings in ({"top_k": 2}, {"top_p": 0.5}, {"temperature": 9, "top_k": ROWS}):
        # Decoding would refuse a token that the tokenizer has not.
        pieces = generate_many(model, TOKENIZERS[kind], ["a", "b a", None], 30, **settings)
        assert {number for number, _ in pieces} == {0, 1, 2}


def test_a_chat(program, tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "model.npz", weights_of("llama2"), "float32")
    source = open_model(tmp_path / "model.npz")
    "".join(Chat(source.load(), LLAMA, find_template(LLAMA, None), max_tokens=20).answer("a"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ab\n")))
    status, _, err = program("sample", tmp_path / "model.npz", "--chat", "--max-tokens", 20)
    assert (status, told(err, LLAMA.vocab_size)) == (0, 1)


def test_a_tokenizer_with_fewer_tokens_can_be_named_and_one_with_more_cannot(program, tmp_path):
    weights = weights_of("llama2", rows=600)
    llama2_c.write(tmp_path / "model.bin", weights)
    for name in ("tokenizer.bin", "big.bin"):
        LLAMA.save(tmp_path / name)
    more = [*PIECES, *(b"%d" % number for number in range(400))]
    LlamaTokenizer(more, [0.0] * len(more)).save(tmp_path / "big.bin")
    status, _, err = program("sample", tmp_path / "model.bin")
    assert status == 2  # with half as many it may be another model's, as long as nobody says so
    assert "tokenizer.bin has 265 tokens, and the model 600); give its --tokenizer" in err
    named = tmp_path / "tokenizer.bin"
    status, _, err = program("sample", tmp_path / "model.bin", "--tokenizer", named)
    assert (status, told(err, 265, 600)) == (0, 1)
    with pytest.raises(UserError, match=r"big\.bin has 665 tokens, but the model in .* has 600"):
        open_model(tmp_path / "model.bin", tmp_path / "big.bin")


def test_fine_tuning_keeps_the_rows(program, corpus, tmp_path):
    tokenizer = load_tokenizer(find_tokenizer(corpus))
    count, rows = tokenizer.vocab_size, 384  # 357, rounded up
    config, params = model_of("gpt2", rows)
    tensors = {name: Parts.of(name, tensor) for name, tensor in params}
    weights = Weights("", "gpt2", vars(config), tensors, tokenizer)
    write_checkpoint(tmp_path / "own.npz", weights, "float32")
    llm_c.write(tmp_path / "unknown.bin", weights)
    small = ["--data", corpus, "--batch-size", 4, "--seq-len", 16]
    for name, resumed in (("own.npz", False), ("unknown.bin", False), ("run", True)):
        origin = "--resume" if resumed else "--init-from"
        arguments = [*small, origin, tmp_path / name, "--steps", 2 if resumed else 1]
        if not resumed:
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            arguments += ["--out", tmp_path / "run"]
        status, out, err = program("gpt2_train", *arguments)
        assert (status, told(err, count, rows)) == (0, 1), err
        assert "--- a sample ---" in out
        assert read_meta(tmp_path / "run" / "checkpoint.npz")["config"]["vocab_size"] == rows
    assert open_model(tmp_path / "run").tokenizer == tokenizer


def test_special_tokens_of_the_model_stay_when_it_is_fine_tuned(program, corpus, tmp_path):
    """A corpus cannot have them, and so need not know them."""
    plain = load_tokenizer(find_tokenizer(corpus))
    tokenizer = type(plain)(plain.ranks, ["<pad>"])
    config, params = model_of("gpt2", tokenizer.vocab_size)
    tensors = {name: Parts.of(name, tensor) for name, tensor in params}
    tensors["wte"] = Parts.of("wte", params.wte[: tokenizer.vocab_size])
    weights = Weights("", "gpt2", vars(config), tensors, tokenizer)
    write_checkpoint(tmp_path / "own.npz", weights, "float32")
    arguments = ["--init-from", tmp_path / "own.npz", "--data", corpus, "--out", tmp_path / "run"]
    status, _, err = program("gpt2_train", *arguments, "--batch-size", 4, "--steps", 1)
    assert (status, "stay in the model" in err) == (0, False), err
    assert open_model(tmp_path / "run").tokenizer.to_bytes() == tokenizer.to_bytes()
