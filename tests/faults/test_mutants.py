"""Mutants of every kind of file that is read here: read or refused, soon, in little memory.

A hundred of each kind, or as many as the environment variable MUTANTS says; SEED decides which.
"""

import contextlib
import io
import json
import pickle
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from double_array import charsmap
from mutants import check_mutants

from convert import TARGETS
from dataloader import DataLoader, write_shard
from formats import gguf, hf_tokenizer, huggingface
from formats.byte_level import WORDS, ByteLevelTokenizer, of_ranks
from formats.sentencepiece_model import Settings, make_tokenizer
from formats.tokenizer_files import load_tokenizer
from formats.weights import Parts, Weights
from load import open_model
from models import FAMILIES
from models.gemma3 import Gemma3Config
from models.gpt2 import GPT2Config
from models.llama2 import Llama2Config
from tokenizer import (
    BYTE,
    BYTE_PIECES,
    CONTROL,
    NORMAL,
    SPECIAL_PIECES,
    UNKNOWN,
    USER_DEFINED,
    CharTokenizer,
    LlamaTokenizer,
    train_bpe,
)
from training.report import COLUMNS, Log

GOLDEN = Path(__file__).parents[1] / "golden"
TEXT = "abab  aa naïve 😀"
CHARACTERS = "\n abcdé漢"
PIECES = [" ", "a", "b", "ab", " ab", "é"]
TOKENIZERS = {
    "gpt2": train_bpe(TEXT * 3, 6),
    "llama2": LlamaTokenizer(
        [*SPECIAL_PIECES, *BYTE_PIECES, *map(str.encode, PIECES)],
        [0.0] * 259 + [-4.0, -5.0, -6.0, -1.0, -2.0, -7.0],
    ),
}
OF_BYTES = of_ranks(TOKENIZERS["gpt2"])
COUNT = OF_BYTES.vocab_size
TOKENIZERS["byte-level"] = ByteLevelTokenizer(
    [*OF_BYTES.tokens, b"<s>", b"<w>"],
    OF_BYTES.merges[::-1],
    WORDS["qwen2"],
    {**OF_BYTES.special, "<s>": COUNT},
    {"<w>": COUNT + 1},
    begin=COUNT,
    adds_begin=True,
    ends=[COUNT - 1, COUNT],
)
# As many tokens as in Llama's, in another order, some of which are looked for in a text.
TOKENIZERS["gemma3"] = make_tokenizer(
    [b"<eos>", b"<bos>", b"\n", b"  ", *BYTE_PIECES, b"ab", b" ", b"a", b"b", b"<unk>"],
    [0.0] * 260 + [-1.0, -2.0, -3.0, -4.0, 0.0],
    Settings(add_dummy_prefix=False),
    [CONTROL, CONTROL, USER_DEFINED, USER_DEFINED, *[BYTE] * 256, *[NORMAL] * 4, UNKNOWN],
    begin=1,
    end=0,
)
RULES = Settings(charsmap=charsmap({b"a": b"b", b"aa": b"", "ï".encode(): b"i "}))
SIZES = {kind: TOKENIZERS[kind].vocab_size for kind in ("gpt2", "llama2")}
CONFIGS = {
    "gpt2": GPT2Config(4, SIZES["gpt2"], num_layers=2, num_heads=1, channels=4),
    "llama2": Llama2Config(4, 4, 2, 1, 1, SIZES["llama2"], seq_len=4, tied=False),
}
SMALL = partial(Llama2Config, 4, 4, 2, 1, 1, SIZES["llama2"], seq_len=4)
FROM_8192 = {"factor": 8.0, "original_max_position_embeddings": 8192}
LLAMA3 = FROM_8192 | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LISTS = {"short_factor": [1.0, 1.5], "long_factor": [1.0, 9.5], "attention_factor": 1.25}
LONGROPE = LISTS | {"original_max_position_embeddings": 2}
DESCENDANTS = {
    "llama3": SMALL(rope_scaling=LLAMA3 | {"rope_type": "llama3"}),
    "mistral": SMALL(head_size=6, window=3),
    "qwen2": SMALL(qkv_bias=True),
    "qwen3": SMALL(head_size=6, qk_norm=True),
    "phi3": SMALL(window=3, rope_scaling=LONGROPE | {"rope_type": "longrope"}),
    "gemma3": Gemma3Config(4, 4, 2, 1, 1, 6, SIZES["llama2"], 4, window=2, window_pattern=2),
}
CONFIGS |= DESCENDANTS


def small_model(kind):
    config = CONFIGS[kind]
    params = FAMILIES[kind].model(config).params
    tensors = {name: Parts.of(name, tensor) for name, tensor in params}
    tensors["wte"] = Parts.of("wte", params.wte[: config.vocab_size])
    return Weights("", kind, vars(config), tensors, TOKENIZERS.get(kind, TOKENIZERS["llama2"]))


# Of each kind of file one into a folder; what is returned is what a person would name.


def write_model(kind, target, folder):
    write, dtypes = TARGETS[target]
    path = folder if target == "huggingface" else folder / "model"
    write(path, small_model(kind), dtypes[-1])
    return path


def write_byte_level(folder):
    weights = small_model("llama2")
    tokenizer = TOKENIZERS["byte-level"]
    config = {**weights.config, "vocab_size": tokenizer.vocab_size}
    shapes = Llama2Config(**config).param_shapes()
    tensors = {name: Parts.of(name, np.ones(shape, np.float32)) for name, shape in shapes.items()}
    gguf.write(
        folder / "model", replace(weights, config=config, tensors=tensors, tokenizer=tokenizer)
    )
    return folder / "model"


def write_several_files(folder):
    huggingface.write(folder, small_model("llama2"), largest_file=2000)
    return folder


def copy_nanogpt(folder):
    return shutil.copy(GOLDEN / "nanogpt.pt", folder / "ckpt.pt")


def copy_meta(folder):
    shutil.copy(GOLDEN / "meta.pth", folder / "consolidated.00.pth")
    numbers = {"dim": 4, "n_layers": 1, "n_heads": 1, "vocab_size": 5, "norm_eps": 1e-5}
    (folder / "params.json").write_text(json.dumps(numbers), encoding="utf-8")
    return folder


def save_tokenizer(tokenizer, folder):
    tokenizer.save(folder / "tokenizer")
    return folder / "tokenizer"


def save_with(settings, folder):
    llama = TOKENIZERS["llama2"]
    return save_tokenizer(make_tokenizer(llama.pieces, llama.scores, settings), folder)


def write_meta_pkl(folder):
    tokens = {character: token for token, character in enumerate(CHARACTERS)}
    meta = {"vocab_size": len(tokens), "itos": dict(enumerate(CHARACTERS)), "stoi": tokens}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return folder / "meta.pkl"


def write_tokenizer_json(kind, folder):
    hf_tokenizer.write(folder, TOKENIZERS[kind])
    (folder / "tokenizer_config.json").unlink()
    return folder / "tokenizer.json"


def write_vocab_json(folder):
    content = json.loads(write_tokenizer_json("gpt2", folder).read_bytes())["model"]
    merges = "\n".join(map(" ".join, content["merges"]))
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    return folder / "vocab.json"


MODELS = {
    f"{kind}-{target}": partial(write_model, kind, target)
    for kind, other in (("gpt2", "llama2.c"), ("llama2", "llm.c"))
    for target in TARGETS
    if not target.startswith(other)  # which knows only the other kind
}
MODELS |= {
    f"{kind}-{target}": partial(write_model, kind, target)
    for kind in DESCENDANTS
    for target in ("huggingface", "gguf")
}
MODELS |= {"several-files": write_several_files, "nanogpt": copy_nanogpt, "meta": copy_meta}
MODELS["byte-level-gguf"] = write_byte_level
MODELS |= {
    f"{kind}-{target}": partial(write_model, kind, target)
    for kind in list(CONFIGS)[2:]
    for target in ("huggingface", "gguf")
}
TOKENIZER_FILES = {
    "tiktoken": partial(save_tokenizer, TOKENIZERS["gpt2"]),
    "tokenizer.bin": partial(save_tokenizer, TOKENIZERS["llama2"]),
    "tokenizer.spm": partial(save_with, Settings(add_dummy_prefix=False)),
    "tokenizer.spm-layout": partial(save_tokenizer, TOKENIZERS["gemma3"]),
    "tokenizer.spm-rules": partial(save_with, RULES),
    "characters.json": partial(save_tokenizer, CharTokenizer(CHARACTERS)),
    "meta.pkl": write_meta_pkl,
    "gpt2-tokenizer.json": partial(write_tokenizer_json, "gpt2"),
    "llama2-tokenizer.json": partial(write_tokenizer_json, "llama2"),
    "gemma3-tokenizer.json": partial(write_tokenizer_json, "gemma3"),
    "byte-level-tokenizer.json": partial(write_tokenizer_json, "byte-level"),
    "vocab.json": write_vocab_json,
}


@pytest.mark.parametrize("write", MODELS.values(), ids=MODELS)
def test_models(tmp_path, chance, write):
    check_mutants(tmp_path, partial(use_model, write(tmp_path)), chance)


def use_model(path):
    source = open_model(path)
    for parts in source.weights.tensors.values():
        for part in parts:
            assert part.dtype == parts.dtype
            assert part.shape == parts.shape[len(parts.shape) - part.ndim :]
    if source.tokenizer:
        use_tokenizer(source.tokenizer)


@pytest.mark.parametrize("write", TOKENIZER_FILES.values(), ids=TOKENIZER_FILES)
def test_tokenizers(tmp_path, chance, write):
    path = write(tmp_path)
    check_mutants(tmp_path, lambda: use_tokenizer(load_tokenizer(path)), chance)


def use_tokenizer(tokenizer):
    unknown = tokenizer.unknown(TEXT + CHARACTERS)
    tokens = tokenizer.encode("".join(each for each in TEXT + CHARACTERS if each not in unknown))
    assert all(0 <= token < tokenizer.vocab_size for token in tokens)
    tokenizer.decode(tokens)
    tokenizer.to_bytes()


@pytest.mark.parametrize("checksum", [True, False], ids=["", "as llm.c has it"])
@pytest.mark.parametrize("first", [0, 1 << 16], ids=["16 bits", "32 bits"])
def test_shards(tmp_path, chance, first, checksum):
    path = tmp_path / "train_000000.bin"
    write_shard(path, np.arange(first, first + 80))
    if not checksum:
        data = path.read_bytes()
        path.write_bytes(data[:12] + bytes(4) + data[16:])
    check_mutants(tmp_path, partial(read_batches, path, first + 90), chance)


def read_batches(path, vocab_size):
    batches = DataLoader(path, 4, 5, vocab_size=vocab_size)
    for _ in range(len(batches)):
        tokens, targets = batches.next_batch()
        assert max(tokens.max(), targets.max()) < vocab_size


def test_logs(tmp_path, chance):
    log = Log(tmp_path / "log.csv", 0)
    for step in range(1, 9):
        log.rows.append(dict.fromkeys(COLUMNS, 0.5) | {"step": step, "rollbacks": 0})
    log.store()
    with contextlib.redirect_stderr(io.StringIO()):  # it says how many rows are missing
        check_mutants(tmp_path, lambda: Log(tmp_path / "log.csv", 8), chance)
