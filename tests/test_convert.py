"""A model is the same in every format, and a file tells what it is."""

import re

import numpy as np
import pytest

from buffers import Buffer
from convert import TARGETS, write_checkpoint
from formats.tokenizer_files import load_tokenizer
from formats.weights import Parts, Weights
from load import fill, open_model
from models.gpt2 import GPT2, GPT2Config
from models.llama2 import Llama2, Llama2Config
from tokenizer import CharTokenizer

BYTES = load_tokenizer("bytes")
CHARS = CharTokenizer("\n“" + "".join(map(chr, range(0x4E00 - 250, 0x4E00 + 5))))
# No two numbers are equal, so that none can stand in another's place unnoticed.
GPT2_CONFIG = GPT2Config(seq_len=40, vocab_size=257, num_layers=2, num_heads=3, channels=24)
LLAMA2 = {"dim": 48, "hidden_dim": 56, "num_layers": 2, "num_heads": 6, "num_kv_heads": 3}
LLAMA2 |= {"vocab_size": 257, "seq_len": 40}
CONFIGS = {
    "gpt2": GPT2_CONFIG,
    "tied": Llama2Config(**LLAMA2),
    "untied": Llama2Config(**LLAMA2, tied=False),
}
OUTPUTS = {"llm.np": "out.npz", "huggingface": "out", "gguf": "out.gguf"}
EXACT = [
    (model, target)
    for model in CONFIGS
    for target in TARGETS
    if target != "llama2.c-2" and not target.startswith("llama2.c" if model == "gpt2" else "llm.c")
]


def make_run(folder, config, largest=None, positions=None, tokenizer=BYTES):
    """A folder with a checkpoint of a random model, and the model's parameters."""
    model = (GPT2 if isinstance(config, GPT2Config) else Llama2)(config, seq_len=1)
    rng = np.random.default_rng(1)
    model.params.flat += rng.standard_normal(model.params.flat.size)
    if largest:
        model.params.fcw[1, 2, 3] = largest
    tensors = {name: Parts.of(name, tensor) for name, tensor in model.params}
    if isinstance(config, GPT2Config):
        model.params.wte[config.vocab_size :] = 0
        tensors["wte"] = Parts.of("wte", model.params.wte[: config.vocab_size])
    kind = "gpt2" if isinstance(config, GPT2Config) else "llama2"
    weights = Weights("", kind, vars(config), tensors, tokenizer)
    write_checkpoint(folder / "checkpoint.npz", weights, "float32", positions)
    return model.params


def params_of(path):
    source = open_model(path)
    params = Buffer(source.config.param_shapes())
    fill(params, source.weights)
    return source, params


def convert(program, *arguments):
    status, out, err = program("convert", *arguments)
    assert status == 0, err
    return out


@pytest.mark.parametrize(("model", "target"), EXACT)
def test_every_format_keeps_every_bit(program, tmp_path, model, target):
    expected = make_run(tmp_path / "run", CONFIGS[model])
    path = tmp_path / OUTPUTS.get(target, "out.bin")
    out = convert(program, tmp_path / "run", path, "--to", target)
    assert str(path) in out
    source, params = params_of(path)
    assert source.config == CONFIGS[model]
    assert source.meta is None  # a model, and no run to go on with
    for name, tensor in expected:
        np.testing.assert_array_equal(params[name], tensor, err_msg=name)
    assert source.tokenizer.to_bytes() == BYTES.to_bytes()  # in the file or beside it
    # And from there back to where it came from.
    convert(program, path, tmp_path / "back.npz")
    back, params = params_of(tmp_path / "back.npz")
    assert back.config == CONFIGS[model]
    np.testing.assert_array_equal(params.flat, expected.flat)
    assert back.tokenizer.to_bytes() == BYTES.to_bytes()


@pytest.mark.parametrize(("model", "target"), [*EXACT, ("tied", "llama2.c-2")])
def test_only_our_own_format_keeps_positions_that_were_not_trained(
    program, tmp_path, model, target
):
    expected = make_run(tmp_path / "run", CONFIGS[model], positions=16)
    path = tmp_path / OUTPUTS.get(target, "out.bin")
    out = convert(program, tmp_path / "run", path, "--to", target)
    source, params = params_of(path)
    kept = 40 if target == "llm.np" else 16
    assert (source.positions, source.config.seq_len) == (16, kept)
    assert ("it has the 16 of 40 positions that were trained" in out) == (kept == 16)
    if model == "gpt2":
        np.testing.assert_array_equal(params.wpe, expected.wpe[:kept])


def test_how_many_positions_were_trained_is_told(program, tmp_path):
    make_run(tmp_path / "whole", GPT2_CONFIG)
    make_run(tmp_path / "part", GPT2_CONFIG, positions=16)
    assert "trained" not in convert(program, tmp_path / "whole")
    assert "trained        16 of its 40 positions" in convert(program, tmp_path / "part")


@pytest.mark.parametrize("target", ["huggingface", "gguf", "llm.c"])
def test_bfloat16_is_half_the_file_and_stays_as_it_is(program, tmp_path, target):
    expected = make_run(tmp_path / "run", GPT2_CONFIG)
    half, again = (tmp_path / f"{n}{OUTPUTS.get(target, 'out.bin')}" for n in "ab")
    convert(program, tmp_path / "run", half, "--to", target, "--dtype", "bfloat16")
    _, params = params_of(half)
    for name, tensor in expected:
        np.testing.assert_allclose(params[name], tensor, rtol=2**-8, err_msg=name)
    assert not np.array_equal(params.wte, expected.wte)
    out = convert(program, half, again, "--to", target)  # the same type, unless asked otherwise
    assert "in bfloat16" in out
    _, params_again = params_of(again)
    np.testing.assert_array_equal(params.flat, params_again.flat)


def test_too_large_for_float16(program, tmp_path):
    make_run(tmp_path, GPT2_CONFIG, largest=7e4)
    status, _, err = program("convert", tmp_path, tmp_path / "out.gguf", "--dtype", "float16")
    assert status == 2
    assert "a weight of 70000 is too large for float16" in err
    assert not (tmp_path / "out.gguf").exists()


def test_the_types_in_the_file_are_told(program, tmp_path):
    make_run(tmp_path / "run", CONFIGS["tied"])
    convert(program, tmp_path / "run", tmp_path / "out.bin", "--to", "llama2.c-2")
    lines = convert(program, tmp_path / "out.bin").splitlines()
    types = {line.split()[0]: line.split(")")[1].split()[0] for line in lines if "(" in line}
    assert types["wte"] == types["w2"] == "int8"
    assert types["rms1w"] == "float32"


def test_a_tokenizer_is_its_own_models(program, tmp_path):
    """Two models in one folder, whose vocabularies have as many tokens."""
    other = type(BYTES)({bytes([255 - byte]): byte for byte in range(256)})
    make_run(tmp_path / "run", GPT2_CONFIG)
    other.save(tmp_path / "other.tiktoken")
    convert(program, tmp_path / "run", tmp_path / "a.bin")
    convert(
        program, tmp_path / "run", tmp_path / "b.bin", "--tokenizer", tmp_path / "other.tiktoken"
    )
    assert open_model(tmp_path / "a.bin").tokenizer.to_bytes() == BYTES.to_bytes()
    assert open_model(tmp_path / "b.bin").tokenizer.to_bytes() == other.to_bytes()


def test_no_tokenizer_is_not_silent(program, starter, tmp_path):
    (tmp_path / "model.bin").write_bytes((starter / "stories260K.bin").read_bytes())
    assert "unknown: none is in the file or beside it" in convert(program, tmp_path / "model.bin")
    out = convert(program, tmp_path / "model.bin", tmp_path / "out")
    assert "it has no tokenizer, for none is in the file or beside it; --tokenizer gives" in out
    (tmp_path / "tokenizer.bin").write_bytes((starter / "llama2_tokenizer.bin").read_bytes())
    status, _, err = program("sample", tmp_path / "model.bin")
    assert status == 2
    assert "tokenizer.bin has 32,000 tokens, and the model 512); give its --tokenizer" in err


@pytest.mark.parametrize("target", ["llm.np", "huggingface", "llm.c"])
def test_characters_go_along(program, tmp_path, target):
    make_run(tmp_path / "run", GPT2_CONFIG, tokenizer=CHARS)
    path = tmp_path / OUTPUTS.get(target, "out.bin")
    convert(program, tmp_path / "run", path, "--to", target)
    assert open_model(path).tokenizer == CHARS
    status, out, _ = program("sample", path, "--prompt", "“一", "--max-tokens", 9)
    assert status == 0
    assert out.startswith("“一")
    assert program("sample", path)[0] == 0  # from a line end on
    status, _, err = program("sample", path, "--prompt", "“a")
    assert status == 2
    assert "vocabulary of 257 characters has no 'a'" in err


def test_gguf_has_no_characters(program, tmp_path):
    make_run(tmp_path / "run", GPT2_CONFIG, tokenizer=CHARS)
    status, _, err = program("convert", tmp_path / "run", tmp_path / "out.gguf")
    assert status == 2
    assert "no tokenizer of GGUF's has characters as its tokens; write a folder for Hugging" in err
    assert not (tmp_path / "out.gguf").exists()


def test_a_slash_means_a_folder(program, tmp_path):
    make_run(tmp_path / "run", GPT2_CONFIG)
    convert(program, tmp_path / "run", f"{tmp_path}/TinyLlama-1.1B/")
    assert (tmp_path / "TinyLlama-1.1B" / "config.json").is_file()


def test_what_is_it(program, starter, tmp_path):
    out = convert(program, starter / "stories260K.bin")
    assert "llama2.c, version 0" in out
    assert "Llama, 260,032 parameters" in out
    assert re.search(r"num_kv_heads +4\n", out)
    assert "512 tokens" in out
    lines = {line.split()[0]: line for line in out.splitlines()}
    _, params = params_of(starter / "stories260K.bin")
    for name, tensor in params:
        assert f"{tensor.shape}" in lines[name]
        assert "float32" in lines[name]
        mean, deviation = map(float, lines[name].split()[-2:])
        np.testing.assert_allclose([mean, deviation], [tensor.mean(), tensor.std()], rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["out.xyz"], "out.xyz does not tell the format; add --to huggingface, gguf, llm.c"),
        (["out.bin", "--to", "llama2.c"], "llama2.c knows nothing but Llama 2"),
        (["out.bin", "--dtype", "float16"], "llm.c cannot hold float16; choose --dtype float32 or"),
        (["run/checkpoint.npz"], "run/checkpoint.npz is there already; choose another name"),
        (["run"], "run is there already"),
        (["."], ". is there already"),
        (["--dtype", "float16"], "written only where an output is named"),
        (["out.bin", "--tokenizer", "gone.bin"], "there is no tokenizer gone.bin"),
    ],
)
def test_what_cannot_be(program, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", GPT2_CONFIG)
    status, out, err = program("convert", "run", *arguments)
    assert (status, out) == (2, "")
    assert sentence in err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
