"""What tests on real models share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dev.download_real_models import cache

SMOLLM2, GEMMA_3 = "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"


def real_model(name: str) -> Path:
    """The file of a model that dev/download_real_models.py has fetched."""
    if not (path := cache() / name).is_file():
        pytest.skip("needs real models: python dev/download_real_models.py")
    return path


def greedy(model: Any, tokens: Sequence[int], count: int) -> list[int]:
    """The likeliest tokens that come next for a model of transformers, without what ends them."""
    import torch  # which not every test has

    model.generation_config.pad_token_id = 0  # of one text there is none, but it must be said
    given = torch.tensor([tokens])
    result = model.generate(given, max_new_tokens=count, do_sample=False)
    said = result[0, len(tokens) :].tolist()
    ends = model.generation_config.eos_token_id
    return said[:-1] if said and said[-1] in np.atleast_1d(ends) else said
