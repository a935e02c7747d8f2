"""GGUF, the files of llama.cpp: a header that describes a model entirely, then its tensors.

The header has keys with values (the model's numbers, its tokenizer), then the name, shape, type and
place of every tensor. Matrices have rows of inputs as ours do, but a shape is written columns
first.

Handled: the architectures of families/ with their tokenizers; versions 2 and 3 of the format;
float32, float16 and bfloat16, and to read also every quantised type that the library `gguf` can
turn into floats.
Not handled: big-endian files, models in several files, and what our models do not compute, such as
experts: a model with a key or a tensor that is not known here is refused.

llama.cpp overlooks the window of Mistral, Qwen and Phi-3, which its converter writes for Phi-3
only. Here it counts, and is written for all: so beyond it a file may mean something else there.

gguf_header.py reads the header, gguf_numbers.py and gguf_tensors.py what it says of the model, and
gguf_tokenizer.py what of a tokenizer. The library writes and dequantises.

Source of the format: ggml, docs/gguf.md; of the keys and tensors: llama.cpp, src/llama-model.cpp
and conversion/.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from errors import FormatError
from files import replacing
from formats.chat_template import checked
from formats.families import gemma3, gpt2, llama
from formats.gguf_header import Stored, damaged, get, read_header
from formats.gguf_numbers import add_config, read_config
from formats.gguf_tensors import FLOAT_TYPES, check_copy, library, parts_of
from formats.gguf_tokenizer import add_tokenizer, read_tokenizer
from formats.naming import Architecture, Config, architecture_of
from formats.state_dict import to_theirs
from formats.weights import FLOATS, SINGLE, Parts, Weights, as_type, missing

DTYPES = tuple(FLOATS)

BY_CLASS = gpt2.GGUF, llama.GGUF, gemma3.GGUF
ARCHITECTURES = {each.name: each for architectures in BY_CLASS for each in architectures}

POSITIONS = "position_embd.weight"
CLASSIFIER = "output.weight"


def read(path: Path) -> Weights:
    """What is in a file: floats are views of it, quantised tensors become float32 part by part.

    Raises:
        FormatError: it is not a GGUF file, a damaged one, or a model that is not handled here.
        UserError: it has quantised tensors, and the library `gguf` is not installed.
    """
    version, values, stored = read_header(path)
    name = get(path, values, "general.architecture", str, None)
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        *known, last = ARCHITECTURES
        raise FormatError(
            f"{path} is a model of the architecture {name!s:.60}, and only {', '.join(known)} and "
            f"{last} are known here; give another"
        )
    if get(path, values, "split.count", int, 1) > 1:
        raise FormatError(
            f"{path} is one of a model's files; join them with llama.cpp's llama-gguf-split --merge"
        )
    config = read_config(path, architecture, values, stored)
    tensors = _read_tensors(path, architecture, config, stored)
    config["vocab_size"] = tensors["wte"].shape[0]
    tokenizer, reason = read_tokenizer(path, values, config["vocab_size"])
    # Others have a name behind the key, and are for special purposes.
    template = checked(path, values.get("tokenizer.chat_template"))
    kind = architecture.kinds[0]
    return Weights(f"GGUF, version {version}", kind, config, tensors, tokenizer, reason, template)


def write(path: Path, weights: Weights, dtype: str = "float32") -> None:
    """Write a model with its tokenizer; only matrices are in another type than float32.

    Raises:
        UserError: the model has no tokenizer, or one with more tokens than it; no architecture of
            GGUF's has all that it has; a weight is too large for the type; or the library `gguf`
            is not installed.
        RunError: it cannot be written; what was there before is unharmed.
    """
    gguf = library(path)
    architecture = architecture_of(path, weights.kind, weights.config, BY_CLASS)
    writer = gguf.GGUFWriter(None, architecture.name)
    tensors = add_config(writer, architecture, weights.config)
    add_tokenizer(writer, path, weights)
    if weights.chat_template:
        writer.add_chat_template(weights.chat_template)
    tensors |= to_theirs(weights, architecture.naming)
    dtypes = {}
    for name, tensor in tensors.items():
        # llama.cpp wants vectors in float32, and so it gets the table of positions.
        dtypes[name] = dtype if len(tensor.shape) == 2 and name != POSITIONS else "float32"
        stored = FLOATS[dtypes[name]]
        kind = next(kind for kind, each in FLOAT_TYPES.items() if each == stored)
        size = math.prod(tensor.shape) * stored.itemsize
        writer.add_tensor_info(name, tensor.shape, stored, size, gguf.GGMLQuantizationType(kind))
    with replacing(path) as file:
        writer.fout, writer.state = [file], gguf.WriterState.EMPTY  # as if it had opened the file
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors.items():
            writer.write_padding(file, file.tell())
            for block in tensor.all_blocks():
                file.write(as_type(block, dtypes[name], path).view(np.uint8))
        writer.write_padding(file, file.tell())


def _read_tensors(
    path: Path, architecture: Architecture, config: Config, stored: Mapping[str, Stored]
) -> dict[str, Parts]:
    num_layers, naming = config["num_layers"], architecture.naming
    if num_layers > len(stored):
        raise damaged(path, f"{num_layers} layers, but only {len(stored)} tensors")
    tensors, used = {}, {name for other in architecture.others for name in other.names}
    for ours, theirs in naming.names.items():
        if not _has(config, ours):
            continue
        names = [theirs.format(i) for i in range(1 if ours in SINGLE else num_layers)]
        for name in names:
            if name not in stored:
                raise missing(path, name)
        tensors[ours] = parts_of(path, ours, naming, config, [stored[name] for name in names])
        used.update(names)
    if CLASSIFIER in stored and CLASSIFIER not in used:
        check_copy(path, stored[naming.names["wte"]], stored[CLASSIFIER])
        used.add(CLASSIFIER)
    if others := [name for name in stored if name not in used]:
        raise FormatError(
            f"{path} has a tensor {others[0]}, which the models here do not have; give another"
        )
    return tensors


def _has(config: Config, ours: str) -> bool:
    """Whether a model has one of our tensors, if its architecture has it."""
    if ours == "wcls":
        return not config.get("tied", True)  # GPT-2 and Gemma 3 are always
    return ours not in ("bq", "bk", "bv") or config["qkv_bias"]
