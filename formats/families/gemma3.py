"""What others call a Gemma 3's numbers and tensors.

Sources: transformers, models/gemma3/configuration_gemma3.py and modeling_gemma3.py;
llama.cpp, src/models/gemma3.cpp and conversion/gemma.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from errors import FormatError
from formats import gguf_numbers
from formats.families.llama import (
    FULL,
    GGUF_COMPUTED,
    GGUF_NORMS,
    GGUF_NUMBERS,
    GGUF_TENSORS,
    HALVES,
    SLIDING,
    TENSORS,
    layer_types,
)
from formats.families.rotations import read_scaling, write_scaling
from formats.naming import Architecture, Config, Naming, Number, Others, check_value, inner

NORMS = {
    "rms1w": "model.layers.{}.input_layernorm.weight",
    "qnormw": "model.layers.{}.self_attn.q_norm.weight",
    "knormw": "model.layers.{}.self_attn.k_norm.weight",
    "postrms1w": "model.layers.{}.post_attention_layernorm.weight",
    "rms2w": "model.layers.{}.pre_feedforward_layernorm.weight",
    "postrms2w": "model.layers.{}.post_feedforward_layernorm.weight",
    "rmsfw": "model.norm.weight",
}


def _read_rotations(path: Path, numbers: Mapping[str, Any], config: Config) -> Config:
    by_type = inner(path, numbers, "rope_parameters")
    for name in by_type:
        check_value(path, "a layer type of rope_parameters", name, [FULL, SLIDING])
    local, full = inner(path, by_type, SLIDING), inner(path, by_type, FULL)
    full = {"rope_type": "default", **full, **inner(path, numbers, "rope_scaling")}
    # transformers 5 overlooks a scaling that has its type by the older name, and 4 does not.
    for found, rope_types in ((local, ["default"]), (full, [full["rope_type"]])):
        for name in ("rope_type", "type"):
            check_value(path, name, found.get(name, rope_types[0]), rope_types)
    local_name = "rope_theta" if "rope_theta" in local else "rope_local_base_freq"
    return {
        "rope_theta": Number("rope_theta", float, 1e6).read(path, {**numbers, **full}, config),
        "rope_local_theta": Number(local_name, float, 1e4).read(path, {**numbers, **local}, config),
        "rope_scaling": read_scaling(path, full, numbers, config),
    }


def _write_rotations(config: Config) -> dict[str, Any]:
    return {
        "rope_theta": config["rope_theta"],
        "rope_local_base_freq": config["rope_local_theta"],
        **write_scaling(config),
    }


def _types(pattern: int, num_layers: int) -> list[str]:
    """Each layer's type where one of `pattern` sees all."""
    return [FULL if i % pattern == 0 else SLIDING for i in range(1, num_layers + 1)]


def _read_layers(path: Path, numbers: Mapping[str, Any], config: Config) -> Config:
    pattern = Number("sliding_window_pattern", default=6).read(path, numbers, config)
    num_layers = config["num_layers"]
    types = layer_types(path, numbers, num_layers)
    if types is None or types == _types(pattern, num_layers):
        return {"window_pattern": pattern}
    pattern = [*types, FULL].index(FULL) + 1
    if types != _types(pattern, num_layers):
        raise FormatError(
            f"{path}: layer_types gives a window to other layers than all but each of a certain "
            "number, and models here have it in these only"
        )
    return {"window_pattern": pattern}


def _write_layers(config: Config) -> dict[str, Any]:
    pattern = config["window_pattern"]
    return {
        "sliding_window_pattern": pattern,
        "layer_types": _types(pattern, config["num_layers"]),
    }


GEMMA3 = Architecture(
    "gemma3_text",
    kinds=("gemma3",),
    code="Gemma3ForCausalLM",
    naming=Naming(TENSORS | NORMS, halves=HALVES, less_one=frozenset(NORMS)),
    numbers={
        "dim": Number("hidden_size", default=2304),
        "hidden_dim": Number("intermediate_size", default=9216),
        "num_layers": Number("num_hidden_layers", default=26),
        "num_heads": Number("num_attention_heads", default=8),
        "num_kv_heads": Number("num_key_value_heads", default=4),
        "head_size": Number("head_dim", default=256),
        "vocab_size": Number("vocab_size", default=262208),
        "seq_len": Number("max_position_embeddings", default=131072),
        "norm_eps": Number("rms_norm_eps", float, 1e-6),
        "query_scalar": Number("query_pre_attn_scalar", default=256),
        "window": Number("sliding_window", default=4096),
    },
    computed={
        "hidden_activation": ["gelu_pytorch_tanh", "gelu_new", "gelu_fast"],  # three names of one
        "attention_bias": [False],
        "final_logit_softcapping": [None],
        "use_bidirectional_attention": [False, None],
        "tie_word_embeddings": [True, False],  # it is tied whatever this says
    },
    others=[Others(_read_rotations, _write_rotations), Others(_read_layers, _write_layers)],
    only=lambda config: (
        config["dim"] % config["num_heads"] == 0
        and (config["rope_scaling"] or {}).get("rope_type") != "longrope"
    ),
)
# The first, and what sees pictures too, where that part has been taken away.
HUGGINGFACE = (GEMMA3, replace(GEMMA3, name="gemma3", inside="text_config"))


# GGUF's. Its norms are what is multiplied by, as ours are.

GGUF_WINDOW = Number("gemma3.attention.sliding_window", default=None)
GGUF_PATTERN = Number("gemma3.attention.sliding_window_pattern", default=6)
LAYERS_OF_27B = 62  # by which llama.cpp knows the one that divides its scores by another number


def _read_windows(path: Path, theirs: Mapping[str, Any], config: Config) -> Config:
    window = GGUF_WINDOW.read(path, theirs, config)
    if window is None:
        return {"window": config["seq_len"], "window_pattern": 1}  # all layers see all
    layers = theirs.get(GGUF_PATTERN.name)
    if isinstance(layers, list):  # for each whether it has the window
        pattern = [*layers, False].index(False) + 1
        have_it = [each == SLIDING for each in _types(pattern, len(layers))]
        check_value(path, GGUF_PATTERN.name, layers, [have_it])
        check_value(path, f"the length of {GGUF_PATTERN.name}", len(layers), [config["num_layers"]])
    else:
        pattern = GGUF_PATTERN.read(path, theirs, config)
    return {"window": window, "window_pattern": pattern}


def _write_windows(config: Config) -> dict[str, Any]:
    if config["window_pattern"] == 1:
        return {}
    return {GGUF_WINDOW.name: config["window"], GGUF_PATTERN.name: config["window_pattern"]}


def _query_scalar(config: Config) -> int:
    """What the scores are divided by the root of; no key says it."""
    if config["num_layers"] == LAYERS_OF_27B:
        return config["dim"] // config["num_heads"]
    return config["head_size"]


GGUF = [
    gguf_numbers.architecture(
        "gemma3",
        kinds=("gemma3",),
        naming=Naming(
            GGUF_TENSORS
            | GGUF_NORMS
            | {
                "postrms1w": "blk.{}.post_attention_norm.weight",
                "postrms2w": "blk.{}.post_ffw_norm.weight",
            },
            halves=HALVES,
        ),
        numbers=GGUF_NUMBERS
        | {
            "rope_theta": Number("rope.freq_base", float),
            "rope_local_theta": Number("rope.freq_base_swa", float, 10000.0),
        },
        computed=GGUF_COMPUTED
        | {"attn_logit_softcapping": [None, 0.0], "final_logit_softcapping": [None, 0.0]},
        others=[
            gguf_numbers.rotations("gemma3"),
            Others(_read_windows, _write_windows, [GGUF_WINDOW.name, GGUF_PATTERN.name]),
            Others(
                lambda path, theirs, config: {"query_scalar": _query_scalar(config)},
                lambda config: {},
            ),
        ],
        only=lambda config: (
            config["query_scalar"] == _query_scalar(config)
            and (config["rope_scaling"] or {}).get("rope_type", "linear") == "linear"
        ),
    )
]
