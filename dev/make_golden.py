"""Write tests/golden/: what PyTorch and transformers compute for tiny models, and what torch saves.

    python dev/make_golden.py

`tests/test_golden.py` compares with the *.npz files, so that whoever has no PyTorch can still see
that every gradient is right. The reference computes in float64 and on one thread: running this
again gives the same numbers. `tests/formats/test_torch_pickle.py` reads torch_save.pt, and
`tests/faults/test_mutants.py` the models nanogpt.pt and meta.pth.
"""

import json
from argparse import Namespace
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dev.torch_models import (
    Config,
    grads_of,
    huggingface,
    load_weights,
    logits_of,
    loss_of,
    random_weights,
    train_losses,
)
from formats.families.gpt2 import NANOGPT
from formats.families.llama import META
from formats.naming import Naming
from formats.state_dict import to_theirs
from formats.weights import Parts, Weights
from models.gemma3 import Gemma3Config
from models.gpt2 import GPT2Config
from models.llama2 import Llama2Config

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"

LLAMA = (16, 13, 2, 2, 1, 41, 9)  # up to seq_len
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 0.1,  # of the four frequencies, one is below and two are between
    "high_freq_factor": 0.6,
    "original_max_position_embeddings": 6,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.4],
    "long_factor": [1.2, 1.9, 3.1, 4.7],
    "original_max_position_embeddings": 6,
}

# name: the config, B, T
CASES = {
    "odd_heads": (GPT2Config(9, vocab_size=131, num_layers=2, num_heads=3, channels=15), 2, 7),
    "one_head": (GPT2Config(5, vocab_size=128, num_layers=3, num_heads=1, channels=8), 1, 5),
    "long": (GPT2Config(140, vocab_size=67, num_layers=2, num_heads=2, channels=8), 1, 130),
    "llama2_groups": (
        Llama2Config(32, 13, 2, num_heads=8, num_kv_heads=2, vocab_size=41, seq_len=9, tied=False),
        2,
        7,
    ),
    "llama2_long": (
        Llama2Config(*(12, 9, 3, 3, 1), vocab_size=67, seq_len=140, norm_eps=0.01, rope_theta=50.0),
        1,
        130,
    ),
    "llama3": (Llama2Config(*LLAMA, rope_theta=50.0, rope_scaling=LLAMA3), 2, 9),
    "mistral": (Llama2Config(*LLAMA, tied=False, window=4), 2, 9),
    "qwen2": (Llama2Config(*LLAMA, qkv_bias=True), 2, 9),
    "qwen3": (Llama2Config(*LLAMA, head_size=6, qk_norm=True), 2, 9),
    "phi3": (Llama2Config(*LLAMA, tied=False, window=7, rope_scaling=LONGROPE), 2, 9),
    "phi3_short": (Llama2Config(*LLAMA, rope_scaling=LONGROPE), 2, 6),
    # Layers 0 and 2 have a window.
    "gemma3": (
        Gemma3Config(
            *(16, 13, 3, 4, 2, 6, 41, 9),
            norm_eps=0.01,
            rope_theta=50.0,
            rope_local_theta=7.0,
            window=4,
            window_pattern=2,
            query_scalar=3,
            rope_scaling={"rope_type": "linear", "factor": 2.0},
        ),
        2,
        9,
    ),
}
# In a storage of their own kind each, but for the unsigned ones of several bytes.
DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8"]
DTYPES += ["uint64", "uint32", "uint16", "uint8", "bool", "complex64", "complex128"]
ADAMW = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.3}
MAX_NORM = 0.5
LRS = [0.01 * (i + 1) / 10 for i in range(10)]


def golden(config: Config, B: int, T: int) -> dict[str, np.ndarray]:
    """Everything that one file holds."""
    rng = np.random.default_rng(1)
    tokens, targets = rng.integers(0, config.vocab_size, (2, B, T))
    weights = random_weights(config)
    model = huggingface(config).double()
    load_weights(model, weights)
    logits = logits_of(model, tokens).detach().numpy()
    loss = loss_of(model, tokens, targets)
    loss.backward()
    grads = grads_of(model)
    return {
        "config": json.dumps(asdict(config)),
        "tokens": tokens.astype(np.int32),
        "targets": targets.astype(np.int32),
        **{f"param_{name}": weight for name, weight in weights.items()},
        "logits": logits.astype(np.float32),
        "loss": loss.item(),
        **{f"grad_{name}": grad.astype(np.float32) for name, grad in grads.items()},
        **{f"adamw_{name}": value for name, value in ADAMW.items()},
        "max_norm": MAX_NORM,
        "lrs": LRS,
        "losses": train_losses(model, tokens, targets, LRS, MAX_NORM, **ADAMW),
    }


def checkpoint() -> dict[str, Any]:
    """Some of everything that a checkpoint can have."""
    numbers = torch.arange(24.0)
    return {
        "whole": numbers,
        "matrix": numbers.view(4, 6),
        "transposed": numbers.view(4, 6).T,
        "slice": numbers.view(2, 3, 4)[:, 1:, ::2],
        "diagonal": numbers.view(4, 6).diagonal(),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "types": [torch.tensor([0, 1, 2]).to(getattr(torch, name)) for name in DTYPES],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "state_dict": torch.nn.LayerNorm(2).state_dict(),
        "constants": [None, True, False, 7, 300, -7, 2**40, -(2**70), 0.1, "Grüße"],
        "bytes": [b"", b"\0\xff"],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "sets": [{1, 2}, frozenset({"a"}), Counter("aab")],
        "one": [{"key": [0]}],
        "others": [2j, Namespace(lr=0.1), torch.Size([2, 3]), torch.bfloat16],
        "devices": [torch.device("cpu"), torch.device("cuda", 1)],
        "numpy": [np.float64(0.5), np.int32(7), np.bool_(True), np.dtype("float32")],
    }


def state_of(kind: str, config: GPT2Config | Llama2Config, naming: Naming) -> dict[str, Any]:
    """The state dict of a random model, by somebody's names."""
    tensors = {name: Parts.of(name, tensor) for name, tensor in random_weights(config).items()}
    theirs = to_theirs(Weights("", kind, vars(config), tensors), naming)
    return {name: torch.tensor(parts[0]) for name, parts in theirs.items()}


def main() -> None:
    torch.set_num_threads(1)
    GOLDEN.mkdir(exist_ok=True)
    for name, case in CASES.items():
        path = GOLDEN / f"{name}.npz"
        np.savez_compressed(path, **golden(*case))
        print(f"{path}: {path.stat().st_size:,} bytes")
    torch.save(checkpoint(), GOLDEN / "torch_save.pt")
    numbers = {"block_size": 4, "vocab_size": 5, "n_layer": 1, "n_head": 1, "n_embd": 4}
    state = state_of("gpt2", GPT2Config(4, 5, 1, 1, 4), NANOGPT)
    torch.save({"model": state, "model_args": numbers}, GOLDEN / "nanogpt.pt")
    llama = Llama2Config(4, 4, 1, 1, 1, 5, tied=False)
    torch.save(state_of("llama2", llama, META), GOLDEN / "meta.pth")


if __name__ == "__main__":
    main()
