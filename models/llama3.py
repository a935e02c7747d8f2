"""Llama 3 (Grattafiori et al. 2024, arXiv 2407.21783): Llama 2 with other rotations.

Their base is higher, and from Llama 3.1 on they are scaled: see rotations.py. The vocabulary is
larger. SmolLM2 (Allal et al. 2025, arXiv 2502.02737) is such a model, too.
"""

from models.llama2 import Llama2Config

PRESETS = {
    "llama3-tiny": Llama2Config(
        dim=192,
        num_layers=3,
        num_heads=3,
        num_kv_heads=1,
        vocab_size=2305,
        seq_len=128,
        rope_theta=500_000.0,
    ),
    "smollm2-135m": Llama2Config(
        dim=576,
        hidden_dim=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        vocab_size=49152,
        seq_len=8192,
        rope_theta=100_000.0,
    ),
    "smollm2-360m": Llama2Config(
        dim=960,
        hidden_dim=2560,
        num_layers=32,
        num_heads=15,
        num_kv_heads=5,
        vocab_size=49152,
        seq_len=8192,
        rope_theta=100_000.0,
    ),
    "llama3.2-1b": Llama2Config(
        dim=2048,
        hidden_dim=8192,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        vocab_size=128_256,
        seq_len=131_072,
        rope_theta=500_000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
}

# With so few numbers that gradcheck.py can check their gradients. Of the four pairs of a head one
# keeps its frequency, one is scaled by the factor, and two are between.
SMALL = (
    Llama2Config(
        *(16, 9, 2, 2, 1, 13, 8),
        rope_theta=30.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 0.1,
            "high_freq_factor": 0.6,
            "original_max_position_embeddings": 6,
        },
    ),
)
