"""Settings of Llama's kind of tokenizer: in every file that has them, and refused by the others."""

import json

import numpy as np
import pytest
from double_array import charsmap

from convert import TARGETS
from dev.data import corpus
from errors import UserError
from formats import gguf, hf_tokenizer
from formats.sentencepiece_model import LLAMA, Settings, make_tokenizer, settings_of
from formats.tokenizer_files import find_tokenizer, load_tokenizer
from formats.weights import Parts, Weights
from load import open_model
from models.llama2 import Llama2Config
from tokenizer import BYTE_PIECES, SPECIAL_PIECES

TEXTS = {" ": -9, "a": -9, "b": -9, " a": -1, "aa": -2, " aa": -3, "  ": -4, "é": -9}
PIECES = [*SPECIAL_PIECES, *BYTE_PIECES, *map(str.encode, TEXTS)]
SCORES = [0.0] * 259 + [float(score) for score in TEXTS.values()]
RULES = Settings(charsmap=charsmap({"ａ".encode(): b"a"}))
ONE_BLANK = Settings(remove_extra_whitespaces=True)
NO_PREFIX = Settings(add_dummy_prefix=False)
NEITHER = Settings(add_dummy_prefix=False, remove_extra_whitespaces=True)
CHANGED = ["", " ", "a", "  aa a ", "ａa\n b  ", "é", "aaé <s>"]

CONFIG = Llama2Config(
    dim=32, hidden_dim=32, num_layers=1, num_heads=4, num_kv_heads=4, vocab_size=267, seq_len=9
)


def model_with(settings: Settings) -> Weights:
    tensors = {
        name: Parts.of(name, np.ones(shape, np.float32))
        for name, shape in CONFIG.param_shapes().items()
    }
    return Weights("", "llama2", vars(CONFIG), tensors, make_tokenizer(PIECES, SCORES, settings))


def check_that_it_is_the_same(found, settings: Settings) -> None:
    ours = make_tokenizer(PIECES, SCORES, settings)
    assert type(found) is type(ours)
    assert settings_of(found) == settings
    for text in CHANGED:
        tokens = ours.encode(text)
        assert found.encode(text) == tokens
        assert found.decode(tokens) == ours.decode(tokens)


@pytest.mark.parametrize(
    ("target", "name"),
    [("llm.np", "m.npz"), ("gguf", "m.gguf"), ("huggingface", "m")],
)
@pytest.mark.parametrize("settings", [LLAMA, NO_PREFIX, ONE_BLANK, NEITHER, RULES])
def test_a_models_file_has_the_settings_or_is_not_written(tmp_path, target, name, settings):
    path, (write, dtypes) = tmp_path / name, TARGETS[target]
    able = {"gguf": [LLAMA, NO_PREFIX], "huggingface": [LLAMA, NO_PREFIX, ONE_BLANK, NEITHER]}
    if settings in able.get(target, [settings]):
        write(path, model_with(settings), dtypes[0])
        check_that_it_is_the_same(open_model(path).tokenizer, settings)
    else:
        with pytest.raises(UserError, match=r"cannot say .* replaces characters"):
            write(path, model_with(settings), dtypes[0])
        assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("settings", [LLAMA, NO_PREFIX, ONE_BLANK, RULES])
def test_a_converted_model_finds_them_beside_it(tmp_path, program, settings):
    TARGETS["llm.np"].write(tmp_path / "m.npz", model_with(settings), "float32")
    status, out, _ = program("convert", tmp_path / "m.npz", tmp_path / "m.bin")
    beside = tmp_path / f"m.tokenizer.{'bin' if settings == LLAMA else 'spm'}"
    assert (status, out.splitlines()[-1]) == (0, f"wrote {beside}: its tokenizer")
    check_that_it_is_the_same(open_model(tmp_path / "m.bin").tokenizer, settings)


@pytest.mark.parametrize("settings", [LLAMA, NO_PREFIX, ONE_BLANK, RULES])
def test_a_corpus_has_them(tmp_path, settings):
    tokenizer = make_tokenizer(PIECES, SCORES, settings)
    tokenizer.save(tmp_path / "any name")
    corpus.write_corpus(["aa"], ["ａ"], tmp_path / "data", str(tmp_path / "any name"))
    check_that_it_is_the_same(load_tokenizer(find_tokenizer(tmp_path / "data")), settings)
    corpus.write_corpus(["aa"], ["ａ"], tmp_path / "data", "bytes")
    assert find_tokenizer(tmp_path / "data").name == "tokenizer.tiktoken"


# Other people's files

REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
METASPACE = {"type": "Metaspace", "replacement": "▁", "split": False}
KNOWN = {
    "always": (None, METASPACE | {"prepend_scheme": "always"}, LLAMA),
    "first": (None, METASPACE | {"prepend_scheme": "first"}, LLAMA),
    "never": (None, METASPACE | {"prepend_scheme": "never"}, NO_PREFIX),
    "replace": (REPLACE, None, NO_PREFIX),
    "sequence": ({"type": "Sequence", "normalizers": [REPLACE]}, None, NO_PREFIX),
}


@pytest.mark.parametrize(("normalizer", "pre_tokenizer", "settings"), KNOWN.values(), ids=KNOWN)
def test_other_steps_that_do_the_same_are_read(tmp_path, normalizer, pre_tokenizer, settings):
    hf_tokenizer.write(tmp_path, make_tokenizer(PIECES, SCORES, LLAMA))
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_bytes())
    content |= {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    path.write_text(json.dumps(content), encoding="utf-8")
    check_that_it_is_the_same(load_tokenizer(path), settings)


def test_a_gguf_says_it_as_llama_cpp_reads_it(tmp_path):
    library = pytest.importorskip("gguf")
    for settings in (LLAMA, NO_PREFIX):
        gguf.write(tmp_path / "m.gguf", model_with(settings), "float32")
        field = library.GGUFReader(tmp_path / "m.gguf").get_field("tokenizer.ggml.add_space_prefix")
        assert field.contents() is settings.add_dummy_prefix
