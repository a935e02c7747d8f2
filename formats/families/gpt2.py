"""What others call a GPT-2's numbers and tensors.

Sources: nanoGPT, model.py; transformers, models/gpt2/configuration_gpt2.py and modeling_gpt2.py.
"""

from dataclasses import replace

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
