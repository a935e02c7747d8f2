"""PyTorch's state dicts, name -> array, of GPT-2 and Llama models: which tensor is which of ours.

Whose names and layouts they are says a `Naming` of families/. huggingface.py reads and writes with
others of these. Read here: the ckpt.pt of nanoGPT and of llama2.c, and the folder that Meta
hands out, params.json and consolidated.00.pth, and as many more as there were GPUs.
Not handled: writing any of these; what has weights but no numbers, since no shape tells how many
heads there are; Llama 3's in several files, which part the embedding's table in another way.

Sources of the formats: nanoGPT, model.py and train.py; llama2.c, model.py and train.py; Meta's
llama, model.py, where fairscale's layers say along which axis a tensor is cut.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from errors import FormatError, UserError
from formats import torch_pickle
from formats.families.gpt2 import NANOGPT, NANOGPT_NUMBERS
from formats.families.llama import META, META_FACTORS, META_NUMBERS, META_SCALING
from formats.naming import Config, Naming, Number, read_numbers
from formats.weights import FLOATS, SINGLE, Parts, Weights, missing

State = Mapping[str, np.ndarray]

# Along which axis Meta's files each have a slice; of any other tensor each has a copy.
SLICED = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "wcls": 0, "wo": 1, "w2": 1, "wte": 1}

# What torch.compile and DistributedDataParallel put in front of names, and models in front of
# those of all but the classifier: sometimes there, sometimes not.
PREFIX = re.compile(r"((_orig_mod|module|transformer|model|language_model)\.)+")

# Tables that follow from a model's numbers: of masks and of rotations.
BUFFERS = re.compile(
    r"(.*\.)?(attn\.bias|attn\.masked_bias|attention\.mask|rotary_emb\.inv_freq|rope\.freqs"
    r"|freqs_cos|freqs_sin)"
)

# Thousands of times what any model's JSON needs; a forged one cannot fill the memory.
LARGEST_JSON = 10_000_000


def read(path: Path) -> Weights:
    """The model in a ckpt.pt of nanoGPT or llama2.c, or in a file of Meta's folder.

    Raises:
        UserError: there is no such file.
        FormatError: it is damaged, or another kind of model.
    """
    if path.name.startswith("consolidated."):
        return read_meta(path.parent)
    checkpoint = torch_pickle.load(path)
    if not isinstance(checkpoint, Mapping):
        raise FormatError(f"{path} has a {type(checkpoint).__name__} and no model")
    state, numbers = checkpoint.get("model"), checkpoint.get("model_args")
    if not isinstance(state, Mapping) or not isinstance(numbers, Mapping):
        raise FormatError(
            f'{path} has no "model" with its "model_args", and without these nobody can tell how '
            "many heads there are; give the folder of the model, with a config.json or params.json"
        )
    state = bare(path, state)
    if "wte.weight" in state:
        return _nanogpt(path, state, numbers)
    if "tok_embeddings.weight" in state:
        return _llama2_c(path, state, numbers)
    raise FormatError(f"{path} has neither nanoGPT's nor llama2.c's tensors; it is another model")


def _nanogpt(path: Path, state: State, numbers: Mapping[str, Any]) -> Weights:
    config = read_numbers(path, numbers, NANOGPT_NUMBERS)
    if numbers.get("bias", True):
        tensors = tensors_of(path, [state], NANOGPT, config, tied=True)
    else:
        names = {ours: name for ours, name in NANOGPT.names.items() if not ours.endswith("b")}
        tensors = tensors_of(path, [state], replace(NANOGPT, names=names), config, tied=True)
        # The same model has biases of 0.
        for weight in [name for name in tensors if name.endswith("w")]:
            # A number for each row of a matrix, or for each of a norm.
            zeros = np.zeros(tensors[weight].shape[:2], tensors[weight].dtype)
            tensors[f"{weight[:-1]}b"] = Parts.of(f"{weight[:-1]}b", zeros, "not there")
    note = (
        "nanoGPT computes the exact GELU, and this project and its formats the usual approximation "
        "by tanh: logits differ by up to about 0.001"
    )
    return Weights("nanoGPT checkpoint", "gpt2", config, tensors, note=note)


def _llama2_c(path: Path, state: State, numbers: Mapping[str, Any]) -> Weights:
    seq_len = Number("max_seq_len").read(path, numbers, {})
    return _llama(path, "llama2.c checkpoint", [state], numbers, seq_len, tied=None)


def read_meta(folder: Path) -> Weights:
    """The model in Meta's folder.

    Raises:
        UserError: there is no such folder, or it lacks a file.
        FormatError: a file is damaged, or the model scales its rotations by nobody knows what.
    """
    numbers = load_json(folder / "params.json")
    paths = sorted(folder.glob("consolidated.*.pth"))
    if not paths or any(path.name != f"consolidated.{i:02}.pth" for i, path in enumerate(paths)):
        raise FormatError(
            f"{folder} must have consolidated.00.pth, and from there on each number up to the "
            "last; get those that are missing"
        )
    states = [bare(path, torch_pickle.load(path)) for path in paths]
    seq_len = 4096  # Llama 2's; the folder does not tell
    weights = _llama(folder, "Meta's Llama", states, numbers, seq_len, tied=False)
    if not numbers.get("use_scaled_rope"):
        return weights
    size = weights.config["dim"], weights.config["num_layers"]
    if size not in META_FACTORS:
        raise FormatError(
            f"{folder / 'params.json'} says use_scaled_rope, but not by what factor, and a model "
            f"{size[0]} wide of {size[1]} layers is none of Meta's; get Hugging Face's folder of it"
        )
    scaling = {**META_SCALING, "factor": META_FACTORS[size]}
    config = {**weights.config, "rope_scaling": scaling, "seq_len": 131072}
    return replace(weights, config=config)


def _llama(
    path: Path,
    format: str,
    states: Sequence[State],
    numbers: Mapping[str, Any],
    seq_len: int,
    tied: bool | None,
) -> Weights:
    config = read_numbers(path, numbers, META_NUMBERS) | {"seq_len": seq_len}
    tensors = tensors_of(path, states, META, config, tied)
    config |= {
        "hidden_dim": tensors["w1"].shape[1],  # else it would follow from several numbers
        "vocab_size": tensors["wte"].shape[0],  # Meta says -1
        "tied": "wcls" not in tensors,
    }
    return Weights(format, "llama2", config, tensors)


def bare(path: Path, state: Any) -> State:
    """A state dict by names without their prefixes.

    Raises:
        FormatError: it is none, or has two names that differ in their prefixes only.
    """
    if not isinstance(state, Mapping):
        raise FormatError(f"{path} has no tensors by name; it is damaged, or no model")
    result = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, np.ndarray):
            raise FormatError(f"{path} has an entry {name!r} that is no tensor; it is no model")
        if _bare(name) in result:
            raise FormatError(
                f"{path} has two tensors {_bare(name)}; it is damaged, so get it anew"
            )
        result[_bare(name)] = tensor
    return result


def _bare(name: str) -> str:
    prefix = PREFIX.match(name)
    return name[prefix.end() :] if prefix else name


def tensors_of(
    path: Path,
    states: Sequence[State],
    naming: Naming,
    config: Mapping[str, Any],
    tied: bool | None,
) -> dict[str, Parts]:
    """Our tensors, of which each part is made when it is looked up.

    Args:
        path: what error messages call it.
        states: as `bare` makes them; more than one if each has slices.
        config: ours.
        tied: whether the classifier is the embedding's table. Then there is no "wcls". None if
            that shall be found out.

    Raises:
        FormatError: a tensor is missing, superfluous, or not what it should be.
    """
    if tied is not False:
        tied = _is_tied(path, states[0], naming, tied)
    used = {_bare(naming.names["wcls"])}
    tensors = {}
    for ours, theirs in naming.names.items():
        if ours == "wcls" and tied:
            continue
        pieces = []  # for each layer, one from each of the states
        for i in range(1 if ours in SINGLE else config["num_layers"]):
            name = _bare(theirs).format(i)
            if any(name not in state for state in states):
                raise missing(path, theirs.format(i))
            pieces.append([state[name] for state in states])
            used.add(name)
        tensors[ours] = _parts(path, ours, naming, config, pieces)
    for name in set().union(*states) - used:
        if not BUFFERS.fullmatch(name):
            raise FormatError(
                f"{path} has a tensor {name}, for which a model with its numbers has no place; it "
                "is of another kind, or of more layers"
            )
    return tensors


def _is_tied(path: Path, state: State, naming: Naming, wanted: bool | None) -> bool:
    head, table = (state.get(_bare(naming.names[ours])) for ours in ("wcls", "wte"))
    # Row by row, since of two different tables the first row tells.
    tied = head is None or (
        table is not None
        and head.shape == table.shape
        and head.ndim == 2
        and all(map(np.array_equal, head, table))
    )
    if wanted and not tied:
        raise FormatError(
            f"{path} has a classifier {naming.names['wcls']} that is not the embedding's table, "
            "as its numbers or its kind demand; it is of another kind"
        )
    return tied


def _parts(
    path: Path,
    ours: str,
    naming: Naming,
    config: Mapping[str, Any],
    pieces: Sequence[Sequence[np.ndarray]],
) -> Parts:
    theirs = naming.names[ours].format("N")
    kinds = {(array.shape, array.dtype) for arrays in pieces for array in arrays}
    shape, dtype = next(iter(kinds))
    if len(kinds) > 1:
        raise FormatError(f"{path}: the tensors {theirs} are not all of one shape and type")
    if dtype not in FLOATS.values():
        raise FormatError(
            f"{path}: the tensor {theirs} is of the type {dtype}, which is not handled; get the "
            f"model in {', '.join(FLOATS)}"
        )
    of_layer = naming.our_shape(ours, shape, config)
    if of_layer is None or (ours in SLICED and len(of_layer) != 2):
        raise FormatError(f"{path}: the tensor {theirs} is {shape}, which cannot be")
    if ours in SLICED:
        whole = list(of_layer)
        whole[SLICED[ours]] *= len(pieces[0])
        of_layer = tuple(whole)
    makers = [partial(_to_ours, ours, naming, config, arrays) for arrays in pieces]
    made = np.float32 if ours in naming.less_one else dtype
    whole = of_layer if ours in SINGLE else (len(pieces), *of_layer)
    return Parts(whole, made, makers, dtype.name)


def _to_ours(ours: str, naming: Naming, config: Config, arrays: Sequence[np.ndarray]) -> np.ndarray:
    sliced = ours in SLICED and len(arrays) > 1
    theirs = np.concatenate(arrays, axis=SLICED[ours]) if sliced else arrays[0]
    return naming.to_ours(ours, theirs, config)


def to_theirs(weights: Weights, naming: Naming) -> dict[str, Parts]:
    """Their tensors by their names, of which each is made when it is looked up."""
    result = {}
    for theirs, names in naming.joined.items():
        if names[0] not in weights.tensors:  # the classifier of a tied model
            continue
        tensors = {name: weights.tensors[name] for name in names}
        shapes = [t.shape if name in SINGLE else t.shape[1:] for name, t in tensors.items()]
        shape = sum(each[0] for each in shapes), *shapes[0][1:]
        if names[0] in naming.transposed:
            shape = shape[::-1]
        dtypes = {tensor.dtype for tensor in tensors.values()}
        dtype = dtypes.pop() if len(dtypes) == 1 else np.float32
        for i in range(len(tensors[names[0]])):
            maker = partial(_to_theirs, naming, weights.config, tensors, i)
            blocks = [partial(tensors[names[0]].blocks, i)] if naming.keeps(names[0]) else ()
            result[theirs.format(i)] = Parts(shape, dtype, [maker], blocks=blocks)
    return result


def _to_theirs(naming: Naming, config: Config, tensors: Mapping[str, Parts], i: int) -> np.ndarray:
    parts = [naming.to_theirs(name, tensor[i], config) for name, tensor in tensors.items()]
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def load_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: there is no such file.
        FormatError: it is not JSON, or no object, or too large.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if path.stat().st_size > LARGEST_JSON:
        raise FormatError(
            f"{path} has more than {LARGEST_JSON} bytes; it is damaged, so get it anew"
        )
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON ({error}); it is damaged, so get it anew") from None
    if not isinstance(result, dict):
        raise FormatError(
            f"{path} is JSON, but not names and values; it is damaged, so get it anew"
        )
    return result
