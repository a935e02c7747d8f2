"""Phi-3 mini (Abdin et al. 2024, arXiv 2404.14219): Llama 2 with a window, or with LongRoPE.

The latter is for longer texts: see rotations.py.
"""

from models.llama2 import Llama2Config

PRESETS = {
    "phi3-tiny": Llama2Config(
        dim=192, num_layers=3, num_heads=3, vocab_size=2305, seq_len=128, tied=False, window=32
    ),
    "phi3-mini-4k": Llama2Config(
        dim=3072, hidden_dim=8192, vocab_size=32064, seq_len=4096, tied=False, window=2047
    ),
}

# With so few numbers that gradcheck.py can check their gradients.
SMALL = (
    Llama2Config(
        *(16, 9, 2, 2, 2, 13, 8),
        tied=False,
        window=5,
        rope_scaling={
            "rope_type": "longrope",
            "short_factor": [1.0, 1.1, 1.3, 1.4],
            "long_factor": [1.2, 1.9, 3.1, 4.7],
            "original_max_position_embeddings": 5,
        },
    ),
)
