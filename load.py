"""From a file to a model: which models there are, and how to get one out of what a person has.

The format of a file is recognised by its first bytes, never asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gpt2
import llama2
from buffers import Buffer, num_elements
from checkpoint import find_checkpoint, load_arrays, read_meta
from errors import FormatError, UserError
from formats import llama2_c
from model import Model
from report import check_available
from tokenizer import Tokenizer, load_tokenizer, tokenizer_from_bytes


class Family(NamedTuple):
    """A kind of model: what a person calls it, its classes, and the sizes that have names."""

    title: str
    model: type[Model]
    config: type
    presets: Mapping[str, Any]


# By the name that a checkpoint has for them, and the programs that train them.
FAMILIES = {
    "gpt2": Family("GPT-2", gpt2.GPT2, gpt2.GPT2Config, gpt2.PRESETS),
    "llama2": Family("Llama 2", llama2.Llama2, llama2.Llama2Config, llama2.PRESETS),
}


@dataclass(frozen=True)
class Source:
    """A model in a file, of which only the description has been read.

    Attributes:
        path: the file.
        name: what to call it.
        kind: a name in `FAMILIES`.
        config: the model's.
        positions: how many positions it was trained on; those beyond say nothing.
        tokenizer: its own, if it is known.
        fill: copies the weights into a model's `params`.
    """

    path: Path
    name: str
    kind: str
    config: Any
    positions: int
    tokenizer: Tokenizer | None
    fill: Callable[[Buffer], None]

    def load(self, batch_size: int = 1, seq_len: int | None = None) -> Model:
        """The model with its weights, for so many sequences of so many positions.

        Raises:
            UserError: the machine has not the memory.
            FormatError: the file is damaged.
        """
        size = 4 * num_elements(self.config.param_shapes())
        check_available(size, f"the model in {self.path}", "choose a smaller model")
        model_type = FAMILIES[self.kind].model
        model = model_type(self.config, batch_size, seq_len or self.positions, seed=None)
        self.fill(model.params)
        return model


def open_model(path: Path, tokenizer: str | Path | None = None) -> Source:
    """What is in a checkpoint of ours, a run's folder, or a llama2.c file.

    Args:
        path: the file or the folder.
        tokenizer: name or file of the tokenizer; by default the one in the checkpoint, or beside
            a llama2.c file: tokN.bin, where N is the size of its vocabulary, or tokenizer.bin.

    Raises:
        UserError: there is no such file, or the tokenizer is another model's.
        FormatError: it is damaged, or nothing that can be read.
    """
    path = find_checkpoint(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    with path.open("rb") as file:
        archive = file.read(2) == b"PK"
    given = load_tokenizer(tokenizer) if tokenizer else None
    source = _from_checkpoint(path, given) if archive else _from_llama2_c(path, given)
    if source.tokenizer and source.tokenizer.vocab_size != source.config.vocab_size:
        raise UserError(
            f"{tokenizer or 'the tokenizer'} has {source.tokenizer.vocab_size:,} tokens, but the "
            f"model in {path} has {source.config.vocab_size:,}; give the --tokenizer that it was "
            "trained with"
        )
    return source


def _from_checkpoint(path: Path, tokenizer: Tokenizer | None) -> Source:
    meta = read_meta(path)
    kind = meta["model"]
    if kind not in FAMILIES:
        raise FormatError(f"{path} holds a {kind!r}, and only {', '.join(FAMILIES)} are known here")
    # A checkpoint holds the tokenizer's file as text, in which every byte is one character.
    own = tokenizer_from_bytes(meta["tokenizer"].encode("latin-1"), path)
    return Source(
        path,
        path.absolute().parent.name,
        kind,
        FAMILIES[kind].config(**meta["config"]),
        meta["positions"],
        tokenizer or own,
        lambda params: load_arrays(path, {"params": params.flat}),
    )


def _from_llama2_c(path: Path, tokenizer: Tokenizer | None) -> Source:
    numbers, tensors = llama2_c.read(path)
    config = llama2.Llama2Config(**numbers)
    if not tokenizer:
        beside = (path.with_name(name) for name in (f"tok{config.vocab_size}.bin", "tokenizer.bin"))
        found = next((file for file in beside if file.is_file()), None)
        tokenizer = load_tokenizer(found) if found else None

    def fill(params: Buffer) -> None:
        for name, _ in params:
            params[name] = tensors[name]

    return Source(path, path.stem, "llama2", config, config.seq_len, tokenizer, fill)
