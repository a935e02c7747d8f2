"""Hugging Face's folders: a config.json, and weights in safetensors or PyTorch files.

Handled: the models of families/, also in several files with an index. Read are both kinds of
files, written is safetensors, and the tokenizer with it (hf_tokenizer.py).
Not handled: whatever would compute something else here, which is refused by the name that
config.json has for it.

Sources of the format: transformers, configuration_utils.py, and `save_pretrained` in
modeling_utils.py.
"""

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errors import FormatError, UserError
from files import replacing
from formats import chat_template, hf_tokenizer, safetensors, torch_pickle
from formats.families import gemma3, gpt2, llama
from formats.naming import architecture_of, check_value
from formats.state_dict import State, bare, load_json, tensors_of, to_theirs
from formats.weights import FLOATS, Parts, Weights
from tokenizer import Tokenizer

DTYPES = tuple(FLOATS)  # to write
CONFIG = "config.json"
GENERATION = "generation_config.json"
LARGEST_FILE = 5_000_000_000  # bytes of tensors in one file, where it can be
BY_CLASS = gpt2.HUGGINGFACE, llama.HUGGINGFACE, gemma3.HUGGINGFACE
ARCHITECTURES = {each.name: each for architectures in BY_CLASS for each in architectures}
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
    architecture = ARCHITECTURES.get(kind) if isinstance(kind, str) else None
    if not architecture:
        raise FormatError(
            f"{folder / CONFIG} is of a model of the type {kind!r:.60}, and only "
            f"{' and '.join(ARCHITECTURES)} are known here"
        )
    for name in ("quantization_config", "per_layer_config"):
        check_value(folder / CONFIG, name, numbers.get(name), [None])
    state = _state(folder, path.name)
    config = architecture.read(folder / CONFIG, numbers)
    tied = config.get("tied", True)  # GPT-2 and Gemma 3 always are, and say nothing
    tensors = tensors_of(folder, [state], architecture.naming, config, tied)
    return Weights(
        "Hugging Face",
        architecture.kinds[0],
        config,
        tensors,
        ends=_read_ends(folder, numbers, config["vocab_size"]),
        chat_template=chat_template.read_folder(folder),
    )


def _read_ends(folder: Path, numbers: Mapping[str, Any], vocab_size: int) -> frozenset[int]:
    """The tokens that end a text: generation_config.json knows more of them, if it is there."""
    path = folder / GENERATION
    said = load_json(path) if path.is_file() else {}
    if said.get("eos_token_id") is None:
        path, said = folder / CONFIG, numbers
    found = said.get("eos_token_id")
    ends = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int for token in ends):
        raise FormatError(
            f"{path}: eos_token_id must be a token's number, or several, not {found!r:.60}"
        )
    return frozenset(token for token in ends if 0 <= token < vocab_size)


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
    architecture = architecture_of(folder, weights.kind, weights.config, BY_CLASS)
    tensors = to_theirs(weights, architecture.naming)
    numbers = {"architectures": [architecture.code], "model_type": architecture.name}
    numbers |= architecture.write(weights.config)
    numbers["torch_dtype"] = dtype
    numbers |= _special_tokens(weights.tokenizer)
    try:
        _write_weights(folder, tensors, dtype, largest_file)
        if weights.tokenizer:
            hf_tokenizer.write(folder, weights.tokenizer)
        chat_template.write_folder(folder, weights.chat_template)
        _write_json(folder / CONFIG, numbers)  # last: without it there is no model
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _special_tokens(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What config.json calls the tokens that begin and end texts.

    null where there is none: transformers would take those of its own models instead, which a
    smaller vocabulary may not even have.
    """
    if not tokenizer:
        return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    # What stands in front of each text ends none.
    ends = sorted(tokenizer.ends - ({tokenizer.begin} if tokenizer.adds_begin else set()))
    return {
        "bos_token_id": tokenizer.begin,
        "eos_token_id": ends if len(ends) > 1 else tokenizer.end,
        "pad_token_id": None,
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
