"""A model's numbers in GGUF: keys of the header, each behind the name of the model's architecture.

The tables of keys are in families/. A key of an architecture that is not known here is refused,
since a model that has it may compute something else.

How rotations are scaled is said by several keys, and by tensors of factors by which frequencies are
divided, a number for each pair of a head: rope_freqs.weight for all texts, or one for those that
are not longer than the texts of the training and another for those that are. Llama 3's kind has the
first, and its parameters are not in the file; where Llama's own reproduce the factors, it is taken
for these.

Source: llama.cpp, src/llama-model.cpp and conversion/llama.py, phi.py and base.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from errors import FormatError
from formats.gguf_header import MAX_ENTRIES, Stored, damaged
from formats.gguf_tensors import parts_of
from formats.naming import Architecture, Config, Naming, Number, Others, check_value
from formats.weights import Parts, missing
from models.rotations import ORIGINAL, llama3_factors

Scaling = dict[str, Any]

UNUSED = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned")  # change nothing

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
FACTORS = (FREQS, LONG, SHORT)
MOST_FACTORS = 1 << 16  # many times what heads have; a forged tensor must not fill the memory

# Behind the name of the architecture and "rope."; the third is an older name of the second.
SCALING_KEYS = (
    "scaling.type",
    "scaling.factor",
    "scale_linear",
    "scaling.original_context_length",
    "scaling.attn_factor",
)

# How Llama 3.1 and 3.2 scale their rotations, but for the factor.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 8192}


def architecture(
    name: str,
    kinds: tuple[str, ...],
    naming: Naming,
    numbers: Mapping[str, Number],
    computed: Mapping[str, Any],
    **others: Any,
) -> Architecture:
    """An `Architecture`, of whose keys each has got the architecture's name in front."""
    return Architecture(
        name,
        kinds,
        naming,
        {ours: replace(each, name=f"{name}.{each.name}") for ours, each in numbers.items()},
        {f"{name}.{key}": values for key, values in computed.items()},
        **others,
    )


def read_config(
    path: Path, architecture: Architecture, values: Mapping[str, Any], stored: Mapping[str, Stored]
) -> dict[str, Any]:
    """The numbers of a model, but for the vocabulary's.

    Args:
        path: what error messages call the file.
        values: of the header.
        stored: its tensors.

    Raises:
        FormatError: one is missing, or means what no model here computes.
    """
    prefix = f"{architecture.name}."
    theirs: dict[str, Any] = {
        key: value[:MAX_ENTRIES].tolist() if isinstance(value, np.ndarray) else value
        for key, value in values.items()
        if key.startswith(prefix)
    }
    known = {number.name for number in architecture.numbers.values()}
    known |= {*architecture.computed, *(prefix + key for key in UNUSED)}
    known |= {name for other in architecture.others for name in other.names}
    tensors = dict.fromkeys(stored) | {
        name: _factors(path, stored[name]) for name in FACTORS if name in known & stored.keys()
    }
    config = architecture.read(path, tensors | theirs)
    if others := [key for key in theirs if key not in known]:
        raise FormatError(
            f"{path} has {others[0]} = {theirs[others[0]]!s:.60}, which is not what the models "
            "here compute; give another"
        )
    return config


def add_config(
    writer: Any, architecture: Architecture, config: Mapping[str, Any]
) -> dict[str, Parts]:
    """Write a model's numbers to the header; those that are tensors are returned by their names."""
    factors = {}
    for key, value in architecture.write(config).items():
        if key in FACTORS:
            array = np.array(value, np.float32)
            factors[key] = Parts(array.shape, array.dtype, [array.copy])
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    return factors


def _factors(path: Path, stored: Stored) -> list[float]:
    if len(stored.shape) != 1 or stored.shape[0] > MOST_FACTORS:
        raise damaged(path, f"a tensor {stored.name} of the shape {stored.shape}")
    parts = parts_of(path, stored.name, Naming({}), {}, [stored])[0]
    # The shortest numbers that float32 makes these of, as in the header.
    return [float(str(factor)) for factor in parts]


def rotations(name: str, factors: Sequence[str] = ()) -> Others:
    """How an architecture scales its rotations.

    Args:
        name: of the architecture.
        factors: which of the tensors of `FACTORS` it may have.
    """
    keys = [f"{name}.rope.{key}" for key in SCALING_KEYS]
    return Others(
        partial(_read_scaling, keys, factors),
        partial(_write_scaling, keys, factors),
        [*keys, *factors],
    )


def _read_scaling(
    keys: Sequence[str],
    factors: Sequence[str],
    path: Path,
    theirs: Mapping[str, Any],
    config: Config,
) -> dict[str, Any]:
    type_key, factor_key, older_key, original_key, amplitude_key = keys

    def number(key: str, kind: type, default: Any) -> Any:
        return Number(key, kind, default).read(path, theirs, config)

    lists = {name: theirs[name] for name in factors if name in theirs}
    for name, numbers in lists.items():
        if 2 * len(numbers) != config["head_size"]:
            size = config["head_size"]
            raise damaged(path, f"{len(numbers)} factors in {name}, and heads of {size} numbers")
    is_long = LONG in lists or SHORT in lists
    kind = theirs.get(type_key, "longrope" if is_long else "linear")
    known = ["longrope"] if is_long else ["linear", "none", "longrope"]
    check_value(path, type_key, kind, known)
    factor = number(factor_key, float, number(older_key, float, 1.0))
    amplitude = number(amplitude_key, float, 1.0)
    original = number(original_key, int, None)
    if kind == "longrope":
        for name in (LONG, SHORT):
            if name not in lists:
                raise missing(path, name)
        check_value(path, factor_key, factor, [1.0])
        scaling = _longrope(lists[SHORT], lists[LONG], original or config["seq_len"], amplitude)
        return {"rope_scaling": scaling}
    check_value(path, amplitude_key, amplitude, [1.0])
    factor = 1.0 if kind == "none" else factor
    if FREQS in lists:
        check_value(path, factor_key, factor, [1.0])
        return {"rope_scaling": _of_factors(lists[FREQS], original, config)}
    return {"rope_scaling": None if factor == 1 else {"rope_type": "linear", "factor": factor}}


def _longrope(short: list[float], long: list[float], original: int, amplitude: float) -> Scaling:
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        ORIGINAL: original,
        "attention_factor": amplitude,
    }


def _of_factors(factors: list[float], original: int | None, config: Config) -> Scaling:
    """The scaling that divides frequencies by these: Llama 3's, if it does."""
    scaling = {"rope_type": "llama3", "factor": max(factors), **LLAMA3}
    if original:
        scaling[ORIGINAL] = original
    with np.errstate(all="ignore"):  # whatever a file has for factors
        same = np.allclose(
            llama3_factors(scaling, config["head_size"], config["rope_theta"]), factors, rtol=1e-5
        )
    return scaling if same else _longrope(factors, factors, original or config["seq_len"], 1.0)


def _write_scaling(keys: Sequence[str], factors: Sequence[str], config: Config) -> dict[str, Any]:
    type_key, factor_key, _, original_key, amplitude_key = keys
    scaling = config["rope_scaling"]
    if not scaling:
        return {}
    if scaling["rope_type"] == "linear":
        return {type_key: "linear", factor_key: float(scaling["factor"])}
    result = {original_key: int(scaling[ORIGINAL])}
    if scaling["rope_type"] == "llama3":
        numbers = llama3_factors(scaling, config["head_size"], config["rope_theta"])
        return result | {FREQS: numbers.tolist()}
    short, long = scaling["short_factor"], scaling["long_factor"]
    if FREQS in factors and short == long and scaling["attention_factor"] == 1:
        return result | {FREQS: long}
    result |= {type_key: "longrope", amplitude_key: float(scaling["attention_factor"])}
    return result | {LONG: long, SHORT: short}
