"""What others call a GPT-2's numbers and tensors.

Sources: nanoGPT, model.py; transformers, models/gpt2/configuration_gpt2.py and modeling_gpt2.py;
llama.cpp, src/models/gpt2.cpp and conversion/gpt2.py.
"""

from dataclasses import replace

from formats import gguf_numbers
from formats.naming import Architecture, Naming, Number

NANOGPT = Naming(
    {
        "wte": "transformer.wte.weight",
        "wpe": "transformer.wpe.weight",
        "ln1w": "transformer.h.{}.ln_1.weight",
        "ln1b": "transformer.h.{}.ln_1.bias",
        "qkvw": "transformer.h.{}.attn.c_attn.weight",
        "qkvb": "transformer.h.{}.attn.c_attn.bias",
        "attprojw": "transformer.h.{}.attn.c_proj.weight",
        "attprojb": "transformer.h.{}.attn.c_proj.bias",
        "ln2w": "transformer.h.{}.ln_2.weight",
        "ln2b": "transformer.h.{}.ln_2.bias",
        "fcw": "transformer.h.{}.mlp.c_fc.weight",
        "fcb": "transformer.h.{}.mlp.c_fc.bias",
        "fcprojw": "transformer.h.{}.mlp.c_proj.weight",
        "fcprojb": "transformer.h.{}.mlp.c_proj.bias",
        "lnfw": "transformer.ln_f.weight",
        "lnfb": "transformer.ln_f.bias",
        "wcls": "lm_head.weight",  # always the same table as wte
    }
)
NANOGPT_NUMBERS = {
    "seq_len": Number("block_size"),
    "vocab_size": Number("vocab_size"),
    "num_layers": Number("n_layer"),
    "num_heads": Number("n_head"),
    "channels": Number("n_embd"),
}

GPT2 = Architecture(
    "gpt2",
    kinds=("gpt2",),
    code="GPT2LMHeadModel",
    naming=replace(NANOGPT, transposed=frozenset({"qkvw", "attprojw", "fcw", "fcprojw"})),
    numbers=NANOGPT_NUMBERS | {"seq_len": Number("n_positions")},
    computed={
        "activation_function": ["gelu_new", "gelu_fast", "gelu_pytorch_tanh"],  # three names of one
        "layer_norm_epsilon": [1e-5],
        "n_inner": lambda config: [None, 4 * config["channels"]],
        "scale_attn_weights": [True],
        "scale_attn_by_inverse_layer_idx": [False],
        "add_cross_attention": [False],
        "tie_word_embeddings": [True, False],  # it is tied whatever this says
    },
)
HUGGINGFACE = (GPT2,)

GGUF = [
    gguf_numbers.architecture(
        "gpt2",
        kinds=("gpt2",),
        naming=Naming(
            {
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
            }
        ),
        numbers={
            "seq_len": Number("context_length"),
            "num_layers": Number("block_count"),
            "num_heads": Number("attention.head_count"),
            "channels": Number("embedding_length"),
        },
        computed={
            "feed_forward_length": lambda config: [4 * config["channels"]],
            "attention.head_count_kv": lambda config: [config["num_heads"]],
            "attention.layer_norm_epsilon": [1e-5],
        },
    )
]
