"""What others call the numbers and tensors of a Llama and of its kin.

Sources: llama2.c, model.py; Meta's llama, model.py; transformers,
models/llama/configuration_llama.py and modeling_llama.py, and modeling_rope_utils.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errors import FormatError
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


def _read_rotations(path: Path, numbers: Mapping[str, Any], _: Config) -> Config:
    # What concerns the rotations has been in three places, of which transformers 5 has the last.
    for name in ("rope_scaling", "rope_parameters"):
        inner = numbers.get(name) or {}
        if not isinstance(inner, dict):
            raise FormatError(f"{path}: {name} is not names and values; it is damaged")
        numbers = {**numbers, **inner}
    for name in ("rope_type", "type"):
        check_value(path, name, numbers.get(name, "default"), ["default"])
    check_value(path, "partial_rotary_factor", numbers.get("partial_rotary_factor", 1), [1])
    return {"rope_theta": Number("rope_theta", float, 10000.0).read(path, numbers, {})}


ROTATIONS = Others(
    _read_rotations,
    # transformers 5 still reads it here
    lambda config: {"rope_theta": config["rope_theta"]},
)

HUGGINGFACE = Architecture(
    "llama",
    kinds=("llama2",),
    code="LlamaForCausalLM",
    naming=Naming(
        {
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
        },
        halves=frozenset({"wq", "wk"}),
    ),
    numbers={
        "dim": Number("hidden_size"),
        "hidden_dim": Number("intermediate_size"),
        "num_layers": Number("num_hidden_layers"),
        "num_heads": Number("num_attention_heads"),
        "num_kv_heads": Number("num_key_value_heads", default=lambda config: config["num_heads"]),
        "vocab_size": Number("vocab_size"),
        "seq_len": Number("max_position_embeddings"),
        "norm_eps": Number("rms_norm_eps", float, 1e-6),
        "tied": Number("tie_word_embeddings", bool, False),
    },
    computed={
        "hidden_act": ["silu", "swish"],  # two names of one
        "attention_bias": [False],
        "mlp_bias": [False],
        "head_dim": lambda config: [None, config["dim"] // config["num_heads"]],
        "sliding_window": [None],
    },
    others=[ROTATIONS],
)
