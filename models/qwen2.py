"""Qwen2 (Yang et al. 2024, arXiv 2407.10671) and 2.5: Llama 2 with biases of q, k and v."""

from models.llama2 import Llama2Config

PRESETS = {
    "qwen2-tiny": Llama2Config(
        dim=192,
        num_layers=3,
        num_heads=3,
        num_kv_heads=1,
        vocab_size=2305,
        seq_len=128,
        norm_eps=1e-6,
        rope_theta=1e6,
        qkv_bias=True,
    ),
    "qwen2.5-0.5b": Llama2Config(
        dim=896,
        hidden_dim=4864,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        vocab_size=151_936,
        seq_len=32768,
        norm_eps=1e-6,
        rope_theta=1e6,
        qkv_bias=True,
    ),
}

# With so few numbers that gradcheck.py can check their gradients.
SMALL = (Llama2Config(*(16, 9, 2, 4, 2, 13, 6), qkv_bias=True),)
