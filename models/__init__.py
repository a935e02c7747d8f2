"""The models, one file each. A new one is a file here, its layers in layers/, and a line below."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import own_imports
from models import gpt2, llama2
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
    "llama2": Family("Llama 2", llama2.Llama2, llama2.Llama2Config, llama2.PRESETS, llama2.SMALL),
}
