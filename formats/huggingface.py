"""Hugging Face's folders: a config.json, and weights in safetensors or PyTorch files.

Handled: GPT-2 and Llama 2, also in several files with an index. Read are both kinds of files,
written is safetensors, and the tokenizer with it (hf_tokenizer.py).
Not handled: whatever would compute something else here, which is refused by the name that
config.json has for it.

Sources of the format: transformers, models/gpt2/configuration_gpt2.py,
models/llama/configuration_llama.py, modeling_rope_utils.py, and `save_pretrained` in
modeling_utils.py.
"""

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from errors import FormatError, UserError
from files import replacing
from formats import chat_template, hf_tokenizer, safetensors, torch_pickle
from formats.state_dict import (
    HUGGINGFACE_GPT2,
    HUGGINGFACE_LLAMA,
    State,
    bare,
    count,
    load_json,
    positive,
    tensors_of,
    to_theirs,
)
from formats.weights import FLOATS, Parts, Weights

DTYPES = tuple(FLOATS)  # to write
CONFIG = "config.json"
LARGEST_FILE = 5_000_000_000  # bytes of tensors in one file, where it can be
# Each alone has the weights; in the order in which transformers looks for them.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
FILE_NAME = re.compile(r"\w[\w.-]*\.(safetensors|bin)")  # no path, which might lead out of a folder


def read(path: Path) -> Weights:
    """The model in a folder.

    Args:
        path: the folder, or a file in it. That is read, if it has weights and is not one of
            several; else the first of `WEIGHTS`.

    Raises:
        UserError: there is no such folder, or it lacks a file.
        FormatError: a file is damaged, or the model is none of ours.
    """
    folder = path if path.is_dir() else path.parent
    numbers = load_json(folder / CONFIG)
    kind = numbers.get("model_type")
    if kind not in ("gpt2", "llama"):
        raise FormatError(
            f"{folder / CONFIG} is of a model of the type {kind!r:.60}, and only gpt2 and llama "
            "are known here"
        )
    read_model = _read_gpt2 if kind == "gpt2" else _read_llama
    weights = read_model(folder / CONFIG, numbers, _state(folder, path.name))
    return replace(weights, chat_template=chat_template.read_folder(folder))


def _read_gpt2(path: Path, numbers: Mapping[str, Any], state: State) -> Weights:
    config = {
        "seq_len": count(path, numbers, "n_positions"),
        "vocab_size": count(path, numbers, "vocab_size"),
        "num_layers": count(path, numbers, "n_layer"),
        "num_heads": count(path, numbers, "n_head"),
        "channels": count(path, numbers, "n_embd"),
    }
    computed = {
        "activation_function": ["gelu_new", "gelu_fast", "gelu_pytorch_tanh"],  # three names of one
        "layer_norm_epsilon": [1e-5],
        "n_inner": [None, 4 * config["channels"]],
        "scale_attn_weights": [True],
        "scale_attn_by_inverse_layer_idx": [False],
        "add_cross_attention": [False],
        "quantization_config": [None],
    }
    _check_computed(path, numbers, computed)
    tensors = tensors_of(path.parent, [state], HUGGINGFACE_GPT2, config, tied=True)
    return Weights("Hugging Face", "gpt2", config, tensors)


def _read_llama(path: Path, numbers: Mapping[str, Any], state: State) -> Weights:
    # What concerns the rotations has been in three places, of which transformers 5 has the last.
    for name in ("rope_scaling", "rope_parameters"):
        inner = numbers.get(name) or {}
        if not isinstance(inner, dict):
            raise FormatError(f"{path}: {name} is not names and values; it is damaged")
        numbers = {**numbers, **inner}
    num_heads = count(path, numbers, "num_attention_heads")
    tied = numbers.get("tie_word_embeddings", False) is True
    config = {
        "dim": count(path, numbers, "hidden_size"),
        "hidden_dim": count(path, numbers, "intermediate_size"),
        "num_layers": count(path, numbers, "num_hidden_layers"),
        "num_heads": num_heads,
        "num_kv_heads": count(path, numbers, "num_key_value_heads", num_heads),
        "vocab_size": count(path, numbers, "vocab_size"),
        "seq_len": count(path, numbers, "max_position_embeddings"),
        "norm_eps": positive(path, numbers, "rms_norm_eps", 1e-6),
        "rope_theta": positive(path, numbers, "rope_theta", 10000.0),
        "tied": tied,
    }
    computed = {
        "hidden_act": ["silu", "swish"],  # two names of one
        "attention_bias": [False],
        "mlp_bias": [False],
        "head_dim": [None, config["dim"] // num_heads],
        "rope_type": ["default"],
        "type": ["default"],  # of the rotations too
        "partial_rotary_factor": [1],
        "sliding_window": [None],
        "tie_word_embeddings": [False, True],
        "quantization_config": [None],
    }
    _check_computed(path, numbers, computed)
    tensors = tensors_of(path.parent, [state], HUGGINGFACE_LLAMA, config, tied)
    return Weights("Hugging Face", "llama2", config, tensors)


def _check_computed(
    path: Path, numbers: Mapping[str, Any], computed: Mapping[str, list[Any]]
) -> None:
    """Raise FormatError if config.json wants another value than those that our models have."""
    for name, values in computed.items():
        if numbers.get(name, values[0]) not in values:
            raise FormatError(
                f"{path}: {name} is {numbers[name]!r:.60}, and models here have "
                f"{' or '.join(map(repr, values))} only"
            )


def _state(folder: Path, given: str) -> State:
    """The tensors of all files of the weights."""
    alone = FILE_NAME.fullmatch(given) and "-of-" not in given
    names = [given] if alone or given in WEIGHTS else WEIGHTS
    name = next((name for name in names if (folder / name).is_file()), None)
    if name is None:
        raise UserError(f"{folder} has none of {', '.join(WEIGHTS)}; get the weights too")
    if not name.endswith(".json"):
        return _load(folder / name)
    places = load_json(folder / name).get("weight_map")
    if not isinstance(places, dict):
        raise FormatError(f"{folder / name} has no weight_map; it is damaged, so get it anew")
    state: dict[str, Any] = {}
    for file in {str(file): None for file in places.values()}:
        if not FILE_NAME.fullmatch(file):
            raise FormatError(
                f"{folder / name} wants a file {file!r:.60}, which is no file of weights"
            )
        state |= _load(folder / file)
    return state


def _load(path: Path) -> State:
    load = safetensors.load if path.suffix == ".safetensors" else torch_pickle.load
    return bare(path, load(path))


def write(
    folder: Path, weights: Weights, dtype: str = "float32", largest_file: int = LARGEST_FILE
) -> None:
    """Write a folder that does not exist yet, or is empty; after an error it has gone again.

    Args:
        dtype: one of `DTYPES`.
        largest_file: bytes of tensors, beyond which they get several files and an index.

    Raises:
        UserError: there is something in the folder, or a number is too large for the type.
        RunError: it cannot be written.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(
            f"cannot write {folder}: there is something already; delete it or choose another name"
        )
    is_gpt2 = weights.kind == "gpt2"
    tensors = to_theirs(weights, HUGGINGFACE_GPT2 if is_gpt2 else HUGGINGFACE_LLAMA)
    numbers = _gpt2_numbers(weights.config) if is_gpt2 else _llama_numbers(weights.config)
    numbers["torch_dtype"] = dtype
    # null without a tokenizer, as transformers would else take its own GPT-2's or Llama's. Of the
    # tokens that end a text the last, as in Llama the first is the one that begins it.
    tokenizer = weights.tokenizer
    numbers["bos_token_id"] = tokenizer.begin if tokenizer else None
    numbers["eos_token_id"] = max(tokenizer.ends, default=None) if tokenizer else None
    try:
        _write_weights(folder, tensors, dtype, largest_file)
        if tokenizer:
            hf_tokenizer.write(folder, tokenizer)
        chat_template.write_folder(folder, weights.chat_template)
        _write_json(folder / CONFIG, numbers)  # last: without it there is no model
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _gpt2_numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config["vocab_size"],
        "n_positions": config["seq_len"],
        "n_embd": config["channels"],
        "n_layer": config["num_layers"],
        "n_head": config["num_heads"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    }


def _llama_numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config["vocab_size"],
        "max_position_embeddings": config["seq_len"],
        "hidden_size": config["dim"],
        "intermediate_size": config["hidden_dim"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": config["num_heads"],
        "num_key_value_heads": config["num_kv_heads"],
        "hidden_act": "silu",
        "rms_norm_eps": config["norm_eps"],
        "rope_theta": config["rope_theta"],  # transformers 5 still reads it here
        "tie_word_embeddings": config["tied"],
    }


def _write_weights(
    folder: Path, tensors: Mapping[str, Parts], dtype: str, largest_file: int
) -> None:
    sizes = {name: math.prod(t.shape) * FLOATS[dtype].itemsize for name, t in tensors.items()}
    files: list[dict[str, Parts]] = [{}]
    for name, tensor in tensors.items():
        if files[-1] and sum(map(sizes.get, files[-1])) + sizes[name] > largest_file:
            files.append({})
        files[-1][name] = tensor
    if len(files) == 1:
        safetensors.save(folder / "model.safetensors", tensors, dtype)
        return
    places = {}
    for number, part in enumerate(files, start=1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors"
        safetensors.save(folder / file, part, dtype)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path) as file:
        file.write(json.dumps(content, indent=2).encode())
