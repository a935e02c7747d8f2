"""What a file is, is recognised, and of a file that is none of a model's it is said."""

import json
import tracemalloc

import numpy as np
import pytest

from errors import FormatError, UserError
from formats import huggingface, llama2_c
from formats.weights import Parts, Weights
from llama2 import Llama2, Llama2Config
from load import open_model
from tokenizer import load_tokenizer

CONFIG = Llama2Config(dim=96, num_layers=16, num_heads=2, vocab_size=257, seq_len=8)


@pytest.fixture(scope="module")
def weights():
    params = Llama2(CONFIG).params
    tensors = {name: Parts.of(name, tensor) for name, tensor in params}
    return Weights("", "llama2", vars(CONFIG), tensors, load_tokenizer("bytes"))


def test_any_file_of_a_hugging_face_folder_will_do(tmp_path, weights):
    huggingface.write(tmp_path / "model", weights, largest_file=2_000_000)
    files = sorted((tmp_path / "model").iterdir())
    assert len(files) > 4
    for path in (tmp_path / "model", *files):
        source = open_model(path)
        assert (source.kind, source.config) == ("llama2", CONFIG)
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(UserError, match=r"there is no file .*config\.json"):
        open_model(files[-1])


def test_another_format_in_a_hugging_face_folder_is_what_it_is(tmp_path, weights):
    huggingface.write(tmp_path / "model", weights)
    llama2_c.write(tmp_path / "model" / "model.bin", weights)
    assert open_model(tmp_path / "model" / "model.bin").weights.format == "llama2.c, version 0"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("old.pth", b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", "before 1.6"),
        ("text.bin", b"Once upon a time" * 100, "not a llama2.c model"),
        ("empty", b"", "not a llama2.c model"),
        ("a.gguf", b"GGUF" + bytes(9), "a.gguf"),
        ("a.bin", b"\xd8\x2855\x01", "a.bin"),
        ("a.safetensors", b"\x08" + bytes(7) + b"{" * 8, "config.json"),
        ("checkpoint.npz", b"PK\3\4" + bytes(26) + b"meta.json", "checkpoint.npz is damaged"),
        ("other.zip", b"PK\3\4" + bytes(50), "other.zip"),
        ("x.json", b"{}", "config.json"),
    ],
)
def test_what_is_no_model(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        open_model(tmp_path / name)


def test_folders_and_files_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"there is no model .*gone"):
        open_model(tmp_path / "gone")
    with pytest.raises(UserError, match=r"no checkpoint\.npz, config\.json or params\.json"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_size": 92}, "must be"),
        ({"num_hidden_layers": 10**9}, "model"),
        ({"vocab_size": 258}, r"wte is \(257, 96\), and .* must be \(258, 96\)"),
        ({"hidden_size": 98}, "even parts"),
    ],
)
def test_numbers_that_the_tensors_contradict(tmp_path, weights, changes, sentence):
    huggingface.write(tmp_path / "model", weights)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), encoding="utf-8")
    with pytest.raises(FormatError, match=sentence):
        open_model(tmp_path / "model")


@pytest.mark.parametrize("target", ["huggingface", "gguf", "llama2.c", "llama2.c-2"])
def test_a_conversion_needs_the_memory_of_a_part(program, tmp_path, weights, target):
    """All but our own format, which whoever uses it has in memory."""
    llama2_c.write(tmp_path / "model.bin", weights)
    size = 4 * sum(int(np.prod(parts.shape)) for parts in weights.tensors.values())
    arguments = [tmp_path / "model.bin", "--to", target, "--tokenizer", "bytes"]
    assert program("convert", *arguments, tmp_path / "first")[0] == 0  # imports what it needs
    tracemalloc.start()
    status, _, err = program("convert", *arguments, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert status == 0, err
    assert peak < size / 4
