"""Mistral 7B (Jiang et al. 2023, arXiv 2310.06825): Llama 2 with a window of positions to see.

What is further back comes to a query through the layers only, a window with each. Mistral's models
have had none since version 0.2.
"""

from models.llama2 import Llama2Config

PRESETS = {
    "mistral-tiny": Llama2Config(
        dim=192,
        num_layers=3,
        num_heads=3,
        num_kv_heads=1,
        vocab_size=2305,
        seq_len=128,
        window=32,
    ),
    "mistral-7b-v0.1": Llama2Config(
        hidden_dim=14336, num_kv_heads=8, seq_len=32768, tied=False, window=4096
    ),
}

# With so few numbers that gradcheck.py can check their gradients.
SMALL = (Llama2Config(*(16, 9, 2, 4, 2, 13, 8), window=3, tied=False),)
