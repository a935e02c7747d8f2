"""GGUF, the files of llama.cpp: a header that describes a model entirely, then its tensors.

The header has keys with values (the model's numbers, its tokenizer), then the name, shape, type and
place of every tensor. Matrices have rows of inputs as ours do, but a shape is written columns
first; queries and keys are rotated in pairs of neighbours, as ours are.

Handled: GPT-2 and Llama with their tokenizers; versions 2 and 3 of the format; float32, float16 and
bfloat16, and to read also every quantised type that the library `gguf` can turn into floats.
Not handled: big-endian files, models in several files, and what our models do not compute, such as
experts and stretched rotations: a model with a key or a tensor that is not known here is refused.

gguf_header.py reads the header, and gguf_tokenizer.py what it has of a tokenizer. The library
writes and dequantises.

Source of the format: ggml, docs/gguf.md; of the keys and tensors: llama.cpp, src/llama-model.cpp
and conversion/.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errors import FormatError
from files import replacing
from formats.chat_template import checked
from formats.gguf_header import Stored, damaged, get, read_header
from formats.gguf_tensors import FLOAT_TYPES, check_copy, library, parts_of
from formats.gguf_tokenizer import add_tokenizer, read_tokenizer
from formats.weights import FLOATS, SINGLE, Parts, Weights, as_type, missing

DTYPES = tuple(FLOATS)

KINDS = {"gpt2": "gpt2", "llama": "llama2"}  # our names of its architectures
TENSORS = {
    "gpt2": {
        "wte": "token_embd.weight",
        "wpe": "position_embd.weight",
        "ln1w": "blk.{}.attn_norm.weight",
        "ln1b": "blk.{}.attn_norm.bias",
        "qkvw": "blk.{}.attn_qkv.weight",
        "qkvb": "blk.{}.attn_qkv.bias",
        "attprojw": "blk.{}.attn_output.weight",
        "attprojb": "blk.{}.attn_output.bias",
        "ln2w": "blk.{}.ffn_norm.weight",
        "ln2b": "blk.{}.ffn_norm.bias",
        "fcw": "blk.{}.ffn_up.weight",
        "fcb": "blk.{}.ffn_up.bias",
        "fcprojw": "blk.{}.ffn_down.weight",
        "fcprojb": "blk.{}.ffn_down.bias",
        "lnfw": "output_norm.weight",
        "lnfb": "output_norm.bias",
        "wcls": "output.weight",  # wte once more, in files of before March 2025
    },
    "llama": {
        "wte": "token_embd.weight",
        "rms1w": "blk.{}.attn_norm.weight",
        "wq": "blk.{}.attn_q.weight",
        "wk": "blk.{}.attn_k.weight",
        "wv": "blk.{}.attn_v.weight",
        "wo": "blk.{}.attn_output.weight",
        "rms2w": "blk.{}.ffn_norm.weight",
        "w1": "blk.{}.ffn_gate.weight",
        "w2": "blk.{}.ffn_down.weight",
        "w3": "blk.{}.ffn_up.weight",
        "rmsfw": "output_norm.weight",
        "wcls": "output.weight",
    },
}

# The keys of a model's numbers, each behind the architecture's name and a point.
COUNTS = {
    "gpt2": {
        "seq_len": "context_length",
        "num_layers": "block_count",
        "num_heads": "attention.head_count",
        "channels": "embedding_length",
    },
    "llama": {
        "dim": "embedding_length",
        "hidden_dim": "feed_forward_length",
        "num_layers": "block_count",
        "num_heads": "attention.head_count",
        "num_kv_heads": "attention.head_count_kv",
        "seq_len": "context_length",
    },
}
CONSTANTS = {
    "gpt2": {},
    "llama": {
        "norm_eps": ("attention.layer_norm_rms_epsilon", 1e-5),
        "rope_theta": ("rope.freq_base", 10000.0),
    },
}

# Other keys, and the only value of each that means what our models compute.
NEUTRAL = {
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,
    "rope.scale_linear": 1.0,
}
UNUSED = {"vocab_size", "tensor_data_layout"}  # the tensors tell the same


def read(path: Path) -> Weights:
    """What is in a file: floats are views of it, quantised tensors become float32 part by part.

    Raises:
        FormatError: it is not a GGUF file, a damaged one, or a model that is not handled here.
        UserError: it has quantised tensors, and the library `gguf` is not installed.
    """
    version, values, stored = read_header(path)
    architecture = get(path, values, "general.architecture", str, None)
    if architecture not in KINDS:
        raise FormatError(
            f"{path} is a model of the architecture {architecture!s:.60}, and only gpt2 and llama "
            "are known here; give another"
        )
    if get(path, values, "split.count", int, 1) > 1:
        raise FormatError(
            f"{path} is one of a model's files; join them with llama.cpp's llama-gguf-split --merge"
        )
    config = _read_config(path, architecture, values)
    tensors = _read_tensors(path, architecture, config["num_layers"], stored)
    config["vocab_size"] = tensors["wte"].shape[0]
    if architecture == "llama":
        config["tied"] = "wcls" not in tensors
    elif tensors.pop("wcls", None):
        check_copy(path, stored["token_embd.weight"], stored["output.weight"])
    tokenizer, reason = read_tokenizer(path, values, config["vocab_size"])
    # Others have a name behind the key, and are for special purposes.
    template = checked(path, values.get("tokenizer.chat_template"))
    kind = KINDS[architecture]
    return Weights(f"GGUF, version {version}", kind, config, tensors, tokenizer, reason, template)


def write(path: Path, weights: Weights, dtype: str = "float32") -> None:
    """Write a model with its tokenizer; only matrices are in another type than float32.

    Raises:
        UserError: the model has no tokenizer, or one with more tokens than it; a weight is too
            large for the type; or the library `gguf` is not installed.
        RunError: it cannot be written; what was there before is unharmed.
    """
    gguf = library(path)
    architecture = next(name for name, kind in KINDS.items() if kind == weights.kind)
    writer = gguf.GGUFWriter(None, architecture)
    _add_config(writer, architecture, weights.config)
    add_tokenizer(writer, path, weights)
    if weights.chat_template:
        writer.add_chat_template(weights.chat_template)
    dtypes = {}
    for name, template in TENSORS[architecture].items():
        if name not in weights.tensors:  # the classifier of a tied model
            continue
        parts = weights.tensors[name]
        shape = parts.shape if name in SINGLE else parts.shape[1:]
        # llama.cpp wants vectors in float32, and so it gets the table of positions.
        dtypes[name] = dtype if len(shape) == 2 and name != "wpe" else "float32"
        stored = FLOATS[dtypes[name]]
        kind = next(kind for kind, each in FLOAT_TYPES.items() if each == stored)
        size = math.prod(shape) * stored.itemsize
        for layer in range(len(parts)):
            stored_name = template.format(layer)
            writer.add_tensor_info(
                stored_name, shape, stored, size, gguf.GGMLQuantizationType(kind)
            )
    with replacing(path) as file:
        writer.fout, writer.state = [file], gguf.WriterState.EMPTY  # as if it had opened the file
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, each in dtypes.items():
            for part in weights.tensors[name]:
                writer.write_tensor_data(as_type(part, each, path))


# The model's numbers


def _implied(architecture: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of keys that follow from the model's numbers."""
    if architecture == "gpt2":
        return {
            "feed_forward_length": 4 * config["channels"],
            "attention.head_count_kv": config["num_heads"],
            "attention.layer_norm_epsilon": 1e-5,
        }
    head_size = config["dim"] // config["num_heads"]
    return dict.fromkeys(
        ("rope.dimension_count", "attention.key_length", "attention.value_length"), head_size
    )


def _read_config(path: Path, architecture: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a model, but for those that are seen from its tensors."""
    config: dict[str, Any] = {}
    for name, key in COUNTS[architecture].items():
        # There need not be a number of key/value heads; it comes after that of the heads.
        default = config["num_heads"] if name == "num_kv_heads" else 0
        config[name] = get(path, values, f"{architecture}.{key}", int, default)
        if config[name] < 1:
            raise damaged(path, f"a {architecture}.{key} of {config[name]}")
    for name, (key, default) in CONSTANTS[architecture].items():
        config[name] = get(path, values, f"{architecture}.{key}", float, default)

    known = {*COUNTS[architecture].values(), *(key for key, _ in CONSTANTS[architecture].values())}
    expected = NEUTRAL | _implied(architecture, config)
    for key, value in values.items():
        prefix, _, key = key.partition(".")
        if prefix != architecture or key in known | UNUSED:
            continue
        # Types first, since a list of numbers, one for each layer, is not simply equal or not.
        if type(value) is not type(expected.get(key)) or value != expected[key]:
            raise FormatError(
                f"{path} has {architecture}.{key} = {value!s:.60}, which is not what the models "
                "here compute; give another"
            )
    return config


def _add_config(writer: Any, architecture: str, config: Mapping[str, Any]) -> None:
    numbers = {key: config[name] for name, key in COUNTS[architecture].items()}
    for name, (key, _) in CONSTANTS[architecture].items():
        numbers[key] = config[name]
    for key, number in (numbers | _implied(architecture, config)).items():
        add = writer.add_float32 if isinstance(number, float) else writer.add_uint32
        add(f"{architecture}.{key}", number)


# Tensors


def _read_tensors(
    path: Path, architecture: str, num_layers: int, stored: Mapping[str, Stored]
) -> dict[str, Parts]:
    if num_layers > len(stored):
        raise damaged(path, f"{num_layers} layers, but only {len(stored)} tensors")
    tensors, others = {}, dict(stored)
    for name, template in TENSORS[architecture].items():
        if name == "wcls" and template not in stored:
            continue
        layers = []
        for layer in range(1 if name in SINGLE else num_layers):
            stored_name = template.format(layer)
            if stored_name not in stored:
                raise missing(path, stored_name)
            layers.append(others.pop(stored_name))
        tensors[name] = parts_of(path, name, layers)
    if others:
        raise FormatError(
            f"{path} has a tensor {next(iter(others))}, which the models here do not have; give "
            "another"
        )
    return tensors
