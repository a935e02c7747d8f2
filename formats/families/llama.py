"""What others call the numbers and tensors of a Llama and of its kin.

Sources: llama2.c, model.py; Meta's llama, model.py; transformers,
models/llama/configuration_llama.py and modeling_llama.py, and those of mistral, qwen2, qwen3, phi3.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errors import FormatError
from formats.families.rotations import rotations
from formats.naming import Architecture, Config, Naming, Number, Others, check_value

META = Naming(  # and llama2.c
    {
        "wte": "tok_embeddings.weight",
        "rms1w": "layers.{}.attention_norm.weight",
        "wq": "layers.{}.attention.wq.weight",
        "wk": "layers.{}.attention.wk.weight",
        "wv": "layers.{}.attention.wv.weight",
        "wo": "layers.{}.attention.wo.weight",
        "rms2w": "layers.{}.ffn_norm.weight",
        "w1": "layers.{}.feed_forward.w1.weight",
        "w2": "layers.{}.feed_forward.w2.weight",
        "w3": "layers.{}.feed_forward.w3.weight",
        "rmsfw": "norm.weight",
        "wcls": "output.weight",
    }
)
META_NUMBERS = {
    "dim": Number("dim"),
    "num_layers": Number("n_layers"),
    "num_heads": Number("n_heads"),
    "num_kv_heads": Number("n_kv_heads", default=lambda config: config["num_heads"]),
    "norm_eps": Number("norm_eps", float, 1e-5),
    "rope_theta": Number("rope_theta", float, 10000.0),
}


def _num_heads(config: Config) -> int:
    return config["num_heads"]


# Hugging Face's: first what all types have

TENSORS = {
    "wte": "model.embed_tokens.weight",
    "rms1w": "model.layers.{}.input_layernorm.weight",
    "wq": "model.layers.{}.self_attn.q_proj.weight",
    "wk": "model.layers.{}.self_attn.k_proj.weight",
    "wv": "model.layers.{}.self_attn.v_proj.weight",
    "wo": "model.layers.{}.self_attn.o_proj.weight",
    "rms2w": "model.layers.{}.post_attention_layernorm.weight",
    "w1": "model.layers.{}.mlp.gate_proj.weight",
    "w2": "model.layers.{}.mlp.down_proj.weight",
    "w3": "model.layers.{}.mlp.up_proj.weight",
    "rmsfw": "model.norm.weight",
    "wcls": "lm_head.weight",
}
HALVES = frozenset({"wq", "wk", "bq", "bk", "qnormw", "knormw"})
NUMBERS = {
    "dim": Number("hidden_size"),
    "hidden_dim": Number("intermediate_size"),
    "num_layers": Number("num_hidden_layers"),
    "num_heads": Number("num_attention_heads"),
    "num_kv_heads": Number("num_key_value_heads", default=_num_heads),
    "vocab_size": Number("vocab_size"),
    "seq_len": Number("max_position_embeddings"),
    "norm_eps": Number("rms_norm_eps", float, 1e-6),
    "tied": Number("tie_word_embeddings", bool, False),
    "head_size": Number("head_dim", default=lambda config: config["dim"] // config["num_heads"]),
}
WINDOW = Number("sliding_window", default=4096, null=None)
COMPUTED = {"hidden_act": ["silu", "swish"]}  # two names of one

LLAMA = Architecture(
    "llama",
    kinds=("llama2", "llama3"),
    code="LlamaForCausalLM",
    naming=Naming(TENSORS, halves=HALVES),
    numbers=NUMBERS,
    computed=COMPUTED | {"attention_bias": [False], "mlp_bias": [False], "sliding_window": [None]},
    always={"qkv_bias": False, "qk_norm": False, "window": None},
    others=[rotations()],
    only=lambda config: config["dim"] % config["num_heads"] == 0,
)
MISTRAL = Architecture(
    "mistral",
    kinds=("mistral",),
    code="MistralForCausalLM",
    naming=LLAMA.naming,
    numbers=NUMBERS
    | {
        "num_kv_heads": Number("num_key_value_heads", default=8, null=_num_heads),
        "window": WINDOW,
    },
    computed=COMPUTED | {"layer_types": [None]},
    always={"qkv_bias": False, "qk_norm": False},
    others=[rotations()],
)
PHI3 = Architecture(
    "phi3",
    kinds=("phi3",),
    code="Phi3ForCausalLM",
    naming=Naming(
        TENSORS
        | dict.fromkeys(("wq", "wk", "wv"), "model.layers.{}.self_attn.qkv_proj.weight")
        | dict.fromkeys(("w1", "w3"), "model.layers.{}.mlp.gate_up_proj.weight"),
        shares={"wq": "num_heads", "wk": "num_kv_heads", "wv": "num_kv_heads"}
        | {"w1": "hidden_dim", "w3": "hidden_dim"},
        halves=HALVES,
    ),
    numbers=NUMBERS
    | {
        "norm_eps": Number("rms_norm_eps", float, 1e-5),
        "window": Number("sliding_window", default=None),
    },
    computed=COMPUTED | {"layer_types": [None]},
    always={"qkv_bias": False, "qk_norm": False},
    others=[rotations(original=4096)],
    # What scaling transformers lets it have, and heads of what size then.
    only=lambda config: (
        not config["rope_scaling"]
        or (
            config["rope_scaling"]["rope_type"] == "longrope"
            and config["head_size"] == config["dim"] // config["num_heads"]
        )
    ),
)


# Qwen's, in which each layer may have a window or none; here they all have it, or none has.

FULL, SLIDING = "full_attention", "sliding_attention"  # what a layer's attention sees


def layer_types(path: Path, numbers: Mapping[str, Any], num_layers: int) -> list[str] | None:
    """The type of each layer, where config.json says it.

    Raises:
        FormatError: it is not a list with a known type for each layer.
    """
    types = numbers.get("layer_types")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != num_layers:
        raise FormatError(
            f"{path}: layer_types must have a type for each of {num_layers} layers; it is damaged"
        )
    for each in types:
        check_value(path, "layer_types", each, [FULL, SLIDING])
    return types


def _read_window(path: Path, numbers: Mapping[str, Any], config: Config) -> Config:
    uses, num_layers = numbers.get("use_sliding_window", False), config["num_layers"]
    check_value(path, "use_sliding_window", uses, [False, True])
    window = WINDOW.read(path, numbers, config) if uses else None
    types = layer_types(path, numbers, num_layers)
    first = numbers.get("max_window_layers", 28)
    if type(first) is not int:
        raise FormatError(
            f"{path}: max_window_layers must be a whole number, not {first!r:.60}; it is damaged"
        )
    if types is not None:
        count = types.count(SLIDING)
    else:
        count = num_layers - min(max(first, 0), num_layers) if window else 0
    if count not in (0, num_layers) or (count and not window):
        raise FormatError(
            f"{path}: layer_types or max_window_layers give {count} of {num_layers} layers a "
            f"sliding_window, of {window}, and models here have it in all or none"
        )
    return {"window": window if count else None}


def _write_window(config: Config) -> dict[str, Any]:
    window = config["window"]
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": 0 if window else config["num_layers"],
    }


QWEN2 = Architecture(
    "qwen2",
    kinds=("qwen2",),
    code="Qwen2ForCausalLM",
    naming=Naming(
        TENSORS | {f"b{x}": f"model.layers.{{}}.self_attn.{x}_proj.bias" for x in "qkv"},
        halves=HALVES,
    ),
    numbers=NUMBERS | {"num_kv_heads": Number("num_key_value_heads", default=32, null=_num_heads)},
    computed=COMPUTED,
    always={"qkv_bias": True, "qk_norm": False},
    others=[rotations(), Others(_read_window, _write_window)],
)
QWEN3 = Architecture(
    "qwen3",
    kinds=("qwen3",),
    code="Qwen3ForCausalLM",
    naming=Naming(
        TENSORS | {f"{x}normw": f"model.layers.{{}}.self_attn.{x}_norm.weight" for x in "qk"},
        halves=HALVES,
    ),
    numbers=QWEN2.numbers | {"head_size": Number("head_dim", default=128)},  # whatever the width
    computed=COMPUTED | {"attention_bias": [False]},
    always={"qkv_bias": False, "qk_norm": True},
    others=QWEN2.others,
)

HUGGINGFACE = (LLAMA, MISTRAL, QWEN2, QWEN3, PHI3)
