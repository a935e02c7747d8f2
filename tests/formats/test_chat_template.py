"""Chat templates in files: read, written again, kept by a run, and bounded."""

import json
from dataclasses import asdict, replace

import gguf as library
import pytest
from gguf_files import forge
from gguf_files import llama as partial_llama

from convert import write_checkpoint
from errors import FormatError
from formats import gguf, huggingface, llama2_c
from formats.checkpoint import read_meta, save_checkpoint
from formats.tokenizer_files import find_tokenizer, load_tokenizer
from formats.weights import Parts, Weights
from load import open_model
from models.gpt2 import GPT2, GPT2Config
from models.llama2 import Llama2Config

TEMPLATE = "{% for message in messages %}\n<|im_start|>ünï{{ message.role }}{% endfor %}"


def llama(**changes):
    """With every number, as a model that was opened has."""
    weights = partial_llama(**changes)
    return replace(weights, config=asdict(Llama2Config(**weights.config)))


WRITERS = {"gguf": gguf.write, "huggingface": huggingface.write, "llm.np": write_checkpoint}


@pytest.mark.parametrize("to", WRITERS)
@pytest.mark.parametrize("template", [TEMPLATE, ""])
def test_a_template_is_written_again(tmp_path, to, template):
    weights = replace(llama(), chat_template=template)
    WRITERS[to](tmp_path / "model", weights, "float32")
    assert open_model(tmp_path / "model").chat_template == template


def test_where_a_format_cannot_say(tmp_path):
    """It is unknown whether there is one, and a run's checkpoint keeps that."""
    weights = llama(norm_eps=1e-5, rope_theta=10000.0)
    llama2_c.write(tmp_path / "model.bin", replace(weights, chat_template=TEMPLATE))
    assert open_model(tmp_path / "model.bin").chat_template is None
    write_checkpoint(tmp_path / "model.npz", llama(), "float32")
    assert open_model(tmp_path / "model.npz").chat_template is None


@pytest.mark.parametrize("default", [TEMPLATE, None])
def test_named_templates_of_a_gguf(tmp_path, default):
    """As the library writes them: only the default one has no name behind its key."""
    writer = library.GGUFWriter(None, "llama")
    named = [{"name": "tool_use", "template": "{{ tools }}"}]
    writer.add_chat_template(named + [{"name": "default", "template": default}] * bool(default))
    keys = {k: v.value for k, v in writer.kv_data[0].items() if k.startswith("tokenizer")}
    assert "tokenizer.chat_template.tool_use" in keys
    forge(tmp_path / "model.gguf", keys)
    assert gguf.read(tmp_path / "model.gguf").chat_template == (default or "")


@pytest.fixture
def folder(tmp_path):
    huggingface.write(tmp_path / "model", llama())
    return tmp_path / "model"


def say(folder, template):
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"chat_template": template}), encoding="utf-8")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TEMPLATE, TEMPLATE),
        (None, ""),
        ([{"name": "rag", "template": "x"}, {"name": "default", "template": TEMPLATE}], TEMPLATE),
        ([{"name": "rag", "template": "x"}], ""),
        (["x", {"name": ["default"]}], ""),
        ("\ud800", "\ufffd"),
    ],
)
def test_templates_in_tokenizer_config(folder, template, expected):
    say(folder, template)
    assert huggingface.read(folder).chat_template == expected


def test_a_file_of_its_own_counts_more(folder):
    say(folder, "another")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    assert huggingface.read(folder).chat_template == TEMPLATE


@pytest.mark.parametrize("template", [7, {"default": TEMPLATE}, "x" * 100_001])
def test_damaged_templates(folder, tmp_path, template):
    write_checkpoint(tmp_path / "model.npz", llama(), "float32")
    meta = read_meta(tmp_path / "model.npz") | {"chat_template": template}
    model = open_model(tmp_path / "model.npz").load(recompute="none")
    params = {"params": model.params.flat}
    save_checkpoint(tmp_path / "model.npz", meta, params)
    say(folder, template)
    models = [folder, tmp_path / "model.npz"]
    if not isinstance(template, dict):  # which no key of a GGUF can have
        forge(tmp_path / "model.gguf", {"tokenizer.chat_template": template})
        models.append(tmp_path / "model.gguf")
    for path in models:
        with pytest.raises(FormatError, match="chat template that is no text, or has more than"):
            open_model(path)


def test_a_long_file_is_not_read_whole(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff" * 5_000_000)
    with pytest.raises(FormatError, match=r"chat_template\.jinja.*more than 100,000"):
        huggingface.read(folder)


def test_fine_tuning_keeps_it(program, corpus, tmp_path):
    """From file to run, when that goes on, and from run to run."""
    tokenizer = load_tokenizer(find_tokenizer(corpus))
    config = GPT2Config(16, tokenizer.vocab_size, 1, 2, 16)
    tensors = {name: Parts.of(name, tensor) for name, tensor in GPT2(config).params}
    tensors["wte"] = Parts.of("wte", tensors["wte"][0][: config.vocab_size])
    weights = Weights("", "gpt2", vars(config), tensors, tokenizer, chat_template=TEMPLATE)
    huggingface.write(tmp_path / "model", weights)
    small = ["--data", corpus, "--batch-size", 2, "--seq-len", 16]
    for origin, arguments in (
        ("model", ["--init-from", tmp_path / "model", "--out", tmp_path / "run", "--steps", 1]),
        ("run", ["--resume", tmp_path / "run", "--steps", 2]),
        ("run", ["--init-from", tmp_path / "run", "--out", tmp_path / "other", "--steps", 1]),
    ):
        status, _, err = program("gpt2_train", *small, *arguments)
        assert status == 0, err
        assert open_model(tmp_path / "run").chat_template == TEMPLATE, origin
    assert open_model(tmp_path / "other").chat_template == TEMPLATE
