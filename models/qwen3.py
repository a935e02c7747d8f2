"""Qwen3 (Yang et al. 2025, arXiv 2505.09388): Llama 2 with norms of the queries and keys.

Each head has one, before it is rotated, so that scores cannot grow beyond all bounds. And heads
have a size of their own.
"""

from models.llama2 import Llama2Config

PRESETS = {
    "qwen3-tiny": Llama2Config(
        dim=192,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        vocab_size=2305,
        seq_len=128,
        norm_eps=1e-6,
        rope_theta=1e6,
        head_size=64,
        qk_norm=True,
    ),
    "qwen3-0.6b": Llama2Config(
        dim=1024,
        hidden_dim=3072,
        num_layers=28,
        num_heads=16,
        num_kv_heads=8,
        vocab_size=151_936,
        seq_len=40960,
        norm_eps=1e-6,
        rope_theta=1e6,
        head_size=128,
        qk_norm=True,
    ),
}

# With so few numbers that gradcheck.py can check their gradients.
SMALL = (
    Llama2Config(*(12, 9, 2, 4, 2, 13, 6), head_size=10, qk_norm=True),
    Llama2Config(*(20, 9, 2, 2, 1, 13, 6), head_size=4, qk_norm=True, qkv_bias=True, tied=False),
)
