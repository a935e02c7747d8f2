"""From a file to a model: which models there are, and how to get one out of what a person has.

The format of a file is recognised by its first bytes, never asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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


# Positions of all texts together that a sampler computes at once: enough to be fast.
SAMPLER_ROWS = 512


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
        meta: what a run has saved beside them; None for what is not a run's checkpoint.
    """

    path: Path
    name: str
    kind: str
    config: Any
    positions: int
    tokenizer: Tokenizer | None
    fill: Callable[[Buffer], None]
    meta: dict[str, Any] | None = None

    def load(self, batch_size: int = 1, seq_len: int | None = None) -> Model:
        """The model with its weights, to sample from.

        Args:
            batch_size: B, the most texts at once.
            seq_len: T, how many positions they can have; by default as many as were trained.

        Raises:
            UserError: the machine has not the memory.
            FormatError: the file is damaged.
        """
        T = seq_len or self.positions
        rows = max(batch_size, min(batch_size * T, SAMPLER_ROWS))
        params, acts = self.config.param_shapes(), self.config.act_shapes(batch_size, T, rows)
        check_available(
            4 * (num_elements(params) + num_elements(acts)),
            f"to sample {batch_size} texts of {T} positions from {self.path}",
            "ask for fewer texts or tokens, or choose a smaller model",
        )
        model = FAMILIES[self.kind].model(self.config, batch_size, T, seed=None, rows=rows)
        self.fill(model.params)
        return model


def open_model(path: str | Path, tokenizer: str | Path | None = None) -> Source:
    """What is in a checkpoint of ours, a run's folder, or a llama2.c file.

    Args:
        path: the file or the folder.
        tokenizer: name or file of the tokenizer; by default the one in the checkpoint, or beside
            a llama2.c file: tokN.bin or tokenizer.bin, if it has the N tokens of the model.

    Raises:
        UserError: there is no such file, or the tokenizer is another model's.
        FormatError: it is damaged, or nothing that can be read.
    """
    path = find_checkpoint(Path(path))
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    with path.open("rb") as file:
        archive = file.read(2) == b"PK"
    source = _from_checkpoint(path) if archive else _from_llama2_c(path)
    if tokenizer:
        source = replace(source, tokenizer=load_tokenizer(tokenizer))
        if source.tokenizer.vocab_size != source.config.vocab_size:
            raise UserError(
                f"{tokenizer} has {source.tokenizer.vocab_size:,} tokens, but the model in {path} "
                f"has {source.config.vocab_size:,}; give the --tokenizer that it was trained with"
            )
    return source


def _from_checkpoint(path: Path) -> Source:
    meta = read_meta(path)
    kind = meta["model"]
    if kind not in FAMILIES:
        raise FormatError(f"{path} holds a {kind!r}, and only {', '.join(FAMILIES)} are known here")
    return Source(
        path,
        path.absolute().parent.name,
        kind,
        FAMILIES[kind].config(**meta["config"]),
        meta["positions"],
        # A checkpoint holds the tokenizer's file as text, in which every byte is one character.
        tokenizer_from_bytes(meta["tokenizer"].encode("latin-1"), path),
        lambda params: load_arrays(path, {"params": params.flat}),
        meta,
    )


def _from_llama2_c(path: Path) -> Source:
    numbers, _ = llama2_c.read(path)
    config = llama2.Llama2Config(**numbers)

    def fill(params: Buffer) -> None:
        _, tensors = llama2_c.read(path)  # again, so that nobody keeps the file mapped in between
        for name, _ in params:
            params[name] = tensors[name]

    beside = (path.with_name(name) for name in (f"tok{config.vocab_size}.bin", "tokenizer.bin"))
    found = (load_tokenizer(file) for file in beside if file.is_file())
    fitting = (each for each in found if each.vocab_size == config.vocab_size)
    return Source(path, path.stem, "llama2", config, config.seq_len, next(fitting, None), fill)
