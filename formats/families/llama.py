"""What others call the numbers and tensors of a Llama and of its kin.

Sources: llama2.c, model.py; Meta's llama, model.py; transformers,
models/llama/configuration_llama.py and modeling_llama.py, and those of mistral, qwen2, qwen3, phi3;
llama.cpp, src/models/ and conversion/llama.py, qwen.py and phi.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errors import FormatError
from formats import gguf_numbers
from formats.families.rotations import rotations
from formats.naming import Architecture, Config, Naming, Number, Others, check_value


def _num_heads(config: Config) -> int:
    return config["num_heads"]


def _part_of_width(config: Config) -> int:
    """The head size of a model that does not say it."""
    return config["dim"] // config["num_heads"]


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
    "num_kv_heads": Number("n_kv_heads", default=_num_heads),
    "norm_eps": Number("norm_eps", float, 1e-5),
    "rope_theta": Number("rope_theta", float, 10000.0),
}
# Its params.json says that rotations are scaled, but not by what: that follows from which of Meta's
# models it is, by the width and the layers. Beginning with Llama 3.2's of 1B and 3B parameters.
META_FACTORS = {(2048, 16): 32.0, (3072, 28): 32.0}
META_FACTORS |= {(4096, 32): 8.0, (8192, 80): 8.0, (16384, 126): 8.0}  # Llama 3.1
META_SCALING = {"rope_type": "llama3", **gguf_numbers.LLAMA3}


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
    "head_size": Number("head_dim", default=_part_of_width),
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
            and config["head_size"] == _part_of_width(config)
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


# GGUF's: first what all have

GGUF_TENSORS = {
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
}
GGUF_BIASES = {"bq": "blk.{}.attn_q.bias", "bk": "blk.{}.attn_k.bias", "bv": "blk.{}.attn_v.bias"}
GGUF_NORMS = {"qnormw": "blk.{}.attn_q_norm.weight", "knormw": "blk.{}.attn_k_norm.weight"}
GGUF_NUMBERS = {
    "dim": Number("embedding_length"),
    "hidden_dim": Number("feed_forward_length"),
    "num_layers": Number("block_count"),
    "num_heads": Number("attention.head_count"),
    "num_kv_heads": Number("attention.head_count_kv", default=_num_heads),
    "head_size": Number("attention.key_length", default=_part_of_width),
    "seq_len": Number("context_length"),
    "norm_eps": Number("attention.layer_norm_rms_epsilon", float, 1e-5),
    "rope_theta": Number("rope.freq_base", float, 10000.0),
}
GGUF_WINDOW = {"window": Number("attention.sliding_window", default=None)}
GGUF_COMPUTED = {
    "attention.value_length": lambda config: [config["head_size"]],
    "rope.dimension_count": lambda config: [config["head_size"]],
    "attention.causal": [None, True],
    "expert_count": [None, 0],
    "expert_used_count": [None, 0],
}
TIED = Others(lambda path, theirs, config: {"tied": "output.weight" not in theirs}, lambda _: {})
BIASED = Others(
    lambda path, theirs, config: {"qkv_bias": "blk.0.attn_q.bias" in theirs}, lambda _: {}
)


def _read_phi3_window(path: Path, theirs: Mapping[str, Any], config: Config) -> Config:
    """Of which 0 says that there is none."""
    number = Number(PHI3_WINDOW, default=None)
    return {"window": number.read(path, theirs, config) if theirs.get(PHI3_WINDOW) != 0 else None}


PHI3_WINDOW = "phi3.attention.sliding_window"


def _is_divided(config: Config) -> bool:
    return config["head_size"] * config["num_heads"] == config["dim"]


def _is_linear(config: Config) -> bool:
    return not config["rope_scaling"] or config["rope_scaling"]["rope_type"] == "linear"


GGUF = [
    # Its rows are turned already: llama.cpp's converter has made neighbours of halves.
    gguf_numbers.architecture(
        "llama",
        kinds=("llama2", "llama3", "mistral"),
        naming=Naming(GGUF_TENSORS | GGUF_BIASES),
        numbers=GGUF_NUMBERS | GGUF_WINDOW,
        computed=GGUF_COMPUTED,
        always={"qk_norm": False},
        others=[gguf_numbers.rotations("llama", gguf_numbers.FACTORS), TIED, BIASED],
    ),
    gguf_numbers.architecture(
        "qwen2",
        kinds=("qwen2",),
        naming=Naming(GGUF_TENSORS | GGUF_BIASES, halves=HALVES),
        numbers=GGUF_NUMBERS | GGUF_WINDOW,
        computed=GGUF_COMPUTED,
        always={"qk_norm": False, "qkv_bias": True},
        others=[gguf_numbers.rotations("qwen2"), TIED],
        only=lambda config: _is_divided(config) and _is_linear(config),
    ),
    gguf_numbers.architecture(
        "qwen3",
        kinds=("qwen3",),
        naming=Naming(GGUF_TENSORS | GGUF_BIASES | GGUF_NORMS, halves=HALVES),
        numbers=GGUF_NUMBERS | GGUF_WINDOW,
        computed=GGUF_COMPUTED,
        always={"qk_norm": True},
        others=[gguf_numbers.rotations("qwen3"), TIED, BIASED],
        only=_is_linear,
    ),
    gguf_numbers.architecture(
        "phi3",
        kinds=("phi3",),
        naming=Naming(
            GGUF_TENSORS
            | dict.fromkeys(("wq", "wk", "wv"), "blk.{}.attn_qkv.weight")
            | dict.fromkeys(("w1", "w3"), "blk.{}.ffn_up.weight"),
            shares={"wq": "num_heads", "wk": "num_kv_heads", "wv": "num_kv_heads"}
            | dict.fromkeys(("w1", "w3"), "hidden_dim"),
            halves=HALVES,
        ),
        numbers=GGUF_NUMBERS,
        computed=GGUF_COMPUTED,
        always={"qk_norm": False, "qkv_bias": False},
        others=[
            gguf_numbers.rotations("phi3", [gguf_numbers.LONG, gguf_numbers.SHORT]),
            Others(
                _read_phi3_window, lambda config: {PHI3_WINDOW: config["window"]}, [PHI3_WINDOW]
            ),
            TIED,
        ],
        only=lambda config: (
            _is_divided(config) and (config["rope_scaling"] or {}).get("rope_type") != "llama3"
        ),
    ),
]
