"""The models, one file each. A new one is a file here, its layers in layers/, and a line below.

Some families are one model with other numbers; then theirs are all that their files have.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import own_imports
from models import gemma3, gpt2, llama2, llama3, mistral, phi3, qwen2, qwen3
from models.llama2 import Llama2, Llama2Config
from models.model import Model


class Family(NamedTuple):
    """A kind of model: what a person calls it, its classes, and its sizes.

    Attributes:
        presets: the sizes that have names.
        small: configs with so few numbers that gradcheck.py can check the gradients of each.
    """

    title: str
    model: type[Model]
    config: type
    presets: Mapping[str, Any]
    small: Sequence[Any]


# By the name that a checkpoint has for them, and the command line.
FAMILIES = {
    "gpt2": Family("GPT-2", gpt2.GPT2, gpt2.GPT2Config, gpt2.PRESETS, gpt2.SMALL),
    "llama2": Family("Llama", Llama2, Llama2Config, llama2.PRESETS, llama2.SMALL),
    "llama3": Family("Llama 3", Llama2, Llama2Config, llama3.PRESETS, llama3.SMALL),
    "mistral": Family("Mistral", Llama2, Llama2Config, mistral.PRESETS, mistral.SMALL),
    "qwen2": Family("Qwen2", Llama2, Llama2Config, qwen2.PRESETS, qwen2.SMALL),
    "qwen3": Family("Qwen3", Llama2, Llama2Config, qwen3.PRESETS, qwen3.SMALL),
    "phi3": Family("Phi-3", Llama2, Llama2Config, phi3.PRESETS, phi3.SMALL),
    "gemma3": Family("Gemma 3", gemma3.Gemma3, gemma3.Gemma3Config, gemma3.PRESETS, gemma3.SMALL),
}
