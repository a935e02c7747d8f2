"""From a file to a model: how to get one out of what a person has.

The format of a file is recognised, never asked for.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import own_imports
from buffers import Buffer, check_available, extents, num_elements
from errors import FormatError, UserError
from formats import gguf, huggingface, llama2_c, llm_c, state_dict
from formats.chat_template import checked
from formats.checkpoint import (
    CHECKPOINT,
    FORMAT,
    find_array,
    list_checkpoints,
    read_meta,
    save_checkpoint,
)
from formats.tokenizer_files import load_tokenizer, tokenizer_from_bytes
from formats.weights import SINGLE, Parts, Weights, copy_blocks
from models import FAMILIES
from models.model import FORWARD_ONLY, Model, unpadded_shapes
from tokenizer import Tokenizer

# Positions of all texts together that a sampler computes at once: enough to be fast.
SAMPLER_ROWS = 512


# What a tokenizer's file may be called that lies beside a model: the first five for the model's
# file called `stem`, as convert.py writes them, the sixth for a model of N tokens.
TOKENIZERS = (
    "{stem}.tokenizer.tiktoken",
    "{stem}.tokenizer.bin",
    "{stem}.tokenizer.spm",
    "{stem}.tokenizer.json",
    "{stem}.characters.json",
    "tok{N}.bin",
    "tokenizer.bin",
    "tokenizer.tiktoken",
    "tokenizer.model",
    "tokenizer.json",
    "vocab.json",
    "characters.json",
    "meta.pkl",
)
# A table may have more rows than there are tokens: for one of padding that only the model has got,
# or up to a round number. But a tokenizer that lies beside it with a tenth less is another model's.
FEWEST_TOKENS = 0.9
GPT2_TOKENS, GPT2_ROUNDED = 50257, 50304  # nanoGPT rounds it up for the sake of GPUs

MOST_POSITIONS = 1 << 24  # of a model; nothing in a Llama's file contradicts a forged number
# Names of files that say nothing; the folder's name says more.
COMMON_NAMES = frozenset(
    {"best", "checkpoint", "ckpt", "model", "pytorch_model", "params", "config"}
)


@dataclass(frozen=True)
class Source:
    """A model in a file, of which only the description has been read.

    Attributes:
        path: the file or the folder.
        name: what to call it.
        weights: what is in it.
        config: the model's.
        positions: how many positions it was trained on; those beyond say nothing.
        tokenizer: its own, if it is known.
        tokenizer_source: where that is from; or why there is none.
        meta: what a run has saved beside them; None for what is not a run's checkpoint.
    """

    path: Path
    name: str
    weights: Weights
    config: Any
    positions: int
    tokenizer: Tokenizer | None
    tokenizer_source: str
    meta: dict[str, Any] | None

    @property
    def kind(self) -> str:
        """Its name in `FAMILIES`."""
        return self.weights.kind

    @property
    def chat_template(self) -> str | None:
        """As in `Weights`."""
        return self.weights.chat_template

    def load(
        self, batch_size: int = 1, seq_len: int | None = None, recompute: str = FORWARD_ONLY
    ) -> Model:
        """The model with its weights, by default only to sample from.

        Args:
            batch_size: B, the most texts at once.
            seq_len: T, how many positions they can have; by default as many as were trained.
            recompute: as `Model` has it; "none" for a model with a backward pass.

        Raises:
            UserError: the machine has not the memory.
            FormatError: the file is damaged.
        """
        T = seq_len or self.positions
        samples = recompute == FORWARD_ONLY
        rows = max(batch_size, min(batch_size * T, SAMPLER_ROWS)) if samples else batch_size * T
        params = self.config.param_shapes()
        acts = self.config.act_shapes(batch_size, T, rows, recompute)
        check_available(
            4 * (num_elements(params) + num_elements(acts)),
            f"for {batch_size} texts of {T} positions with the model in {self.path}",
            "ask for fewer texts or tokens, or choose a smaller model",
        )
        model = FAMILIES[self.kind].model(
            self.config, batch_size, T, seed=None, rows=rows, recompute=recompute
        )
        fill(model.params, self.weights)
        return model


def fill(params: Buffer, weights: Weights) -> None:
    """Copy weights into a model's parameters.

    Raises:
        FormatError: the file that they come from is damaged.
    """
    for name, tensor in params:
        parts = weights.tensors[name]
        for index, place in enumerate([tensor] if name in SINGLE else tensor):
            copy_blocks(parts.blocks(index), place)  # behind wte may be padding, which stays 0


def model_meta(
    kind: str,
    config: Any,
    positions: int,
    tokenizer: Tokenizer,
    chat_template: str | None = None,
) -> dict[str, Any]:
    """What a checkpoint says of the model in it, for `open_model`; see `Source`."""
    return {
        "model": kind,
        "config": asdict(config),
        "positions": positions,
        # JSON holds text, and latin-1 has a character for every byte.
        "tokenizer": tokenizer.to_bytes().decode("latin-1"),
        "ends": sorted(tokenizer.ends),  # not every kind of tokenizer's file knows all
        "chat_template": chat_template,
    }


def save_model(
    folder: str | Path, model: Model, tokenizer: Tokenizer, kind: str | None = None
) -> None:
    """Save a model of a program or a notebook as a run of the trainer is saved, in runs/NAME say.

    `open_model`, sample.py and convert.py take the folder, and `train.py FAMILY --init-from` goes
    on training it.

    Args:
        kind: which of the families of such models it is of, by its name in `FAMILIES`; by default
            the first.

    Raises:
        RunError: it cannot be written; what was there before is unharmed.
    """
    kind = kind or next(kind for kind, each in FAMILIES.items() if each.model is type(model))
    meta = model_meta(kind, model.config, model.seq_len, tokenizer)
    params = model.params.like()  # a model that only samples has turned some
    for name, tensor in model.params:
        params[name] = tensor
    save_checkpoint(Path(folder) / CHECKPOINT, meta, {"params": params.flat})


def open_model(path: str | Path, tokenizer: str | Path | None = None) -> Source:
    """What is in a model's file or folder, of any format that is read here.

    Args:
        path: the file or the folder.
        tokenizer: as for `tokenizer_of`, with at most as many tokens as the model's table has rows;
            by default the one in the file, else one beside it with as many tokens as rows, else the
            one beside it with the most, if less than a tenth of the rows has none, else GPT-2's for
            its 50,257 rows or these rounded up to 50,304.

    Raises:
        UserError: there is no such file, or the tokenizer is another model's.
        FormatError: it is damaged, or nothing that can be read.
    """
    path = Path(path)
    if path.is_dir():
        path = next(iter(list_checkpoints(path)), path)
    if not path.exists():
        raise UserError(f"there is no model {path}")
    meta = read_meta(path) if _is_checkpoint(path) else {}
    weights = _from_checkpoint(path, meta) if meta else _read_weights(path)
    config = _make_config(path, weights.kind, weights.config)
    weights = replace(weights, config=asdict(config))  # with those that the file does not say
    positions = meta.get("positions", config.seq_len)
    if type(positions) is not int or not 1 <= positions <= config.seq_len <= MOST_POSITIONS:
        raise FormatError(f"{path} has {positions!r} of {config.seq_len} positions; it is damaged")
    for name, shape in unpadded_shapes(config).items():
        if weights.tensors[name].shape != shape:
            raise FormatError(
                f"{path}: {name} is {weights.tensors[name].shape}, and with the model's numbers "
                f"it must be {shape}; the file is damaged, or one of several is missing"
            )
    if not tokenizer:
        found, found_in = _find_tokenizer(path, weights, config.vocab_size)
    else:
        found, found_in = tokenizer_of(tokenizer), str(tokenizer)
        if found.vocab_size > config.vocab_size:
            raise UserError(
                f"{tokenizer} has {found.vocab_size:,} tokens, but the model in {path} has "
                f"{config.vocab_size:,}; give the --tokenizer that it was trained with"
            )
    if found:
        found.ends |= weights.ends
    says_nothing = path.is_file() and path.stem in COMMON_NAMES
    return Source(
        path,
        path.absolute().parent.name if says_nothing else path.stem,
        weights,
        config,
        positions,
        found,
        found_in,
        meta if "step" in meta else None,
    )


def tokenizer_of(name: str | Path) -> Tokenizer:
    """The tokenizer that `load_tokenizer` knows by that name, or that of the model with that name.

    Raises:
        UserError: there is none.
        FormatError: the file is damaged.
    """
    try:
        return load_tokenizer(name)
    except UserError as error:
        try:
            source = open_model(name)
        except UserError:  # it is no model either
            raise error from None
    if not source.tokenizer:
        raise UserError(f"{name} has no tokenizer: {source.tokenizer_source}")
    return source.tokenizer


def _read_weights(path: Path) -> Weights:
    """The weights in a file or folder of somebody else's."""
    if path.suffix == ".json" and path.is_file():  # it describes what is in its folder
        path = path.parent if path.name in ("params.json", "config.json") else path
    if path.is_dir():
        if (path / "params.json").is_file():
            return state_dict.read_meta(path)
        if (path / "config.json").is_file():
            return huggingface.read(path)
        if (path / "ckpt.pt").is_file():
            return state_dict.read(path / "ckpt.pt")
        raise UserError(
            f"{path} is no model's folder: it has no {CHECKPOINT}, ckpt.pt, config.json or "
            "params.json; name a file"
        )
    with path.open("rb") as file:
        head = file.read(9)
    if head == b"version h":
        raise FormatError(f"{path} only says where Git LFS has the file; run git lfs pull")
    if head.startswith(b"GGUF"):
        return gguf.read(path)
    if head.startswith(llm_c.MAGIC):
        return llm_c.read(path)
    pickled = head.startswith((b"PK", b"\x80\x02\x8a"))
    if pickled and not (path.suffix == ".bin" and (path.parent / "config.json").is_file()):
        return state_dict.read(path)
    if pickled or head[8:] == b"{" or path.suffix == ".json":
        if not (path.parent / "config.json").is_file():
            raise FormatError(f"{path} says nothing without its config.json; put that beside it")
        return huggingface.read(path)
    if head.startswith(llama2_c.MAGIC):
        return llama2_c.read(path)
    try:
        return llama2_c.read(path)
    except FormatError as error:
        raise FormatError(
            f"{path} is no model of a kind that is known here, unless a damaged one of llama2.c's, "
            f"which have no mark of their own: {error}"
        ) from None


def _is_checkpoint(path: Path) -> bool:
    """Whether it is one of ours: an archive that begins with meta.json, or should."""
    if path.is_dir():
        return False
    with path.open("rb") as file:
        return path.name == CHECKPOINT or file.read(39)[30:] == b"meta.json"


def _from_checkpoint(path: Path, meta: Mapping[str, Any]) -> Weights:
    try:
        kind, numbers = meta["model"], meta["config"]
        config = _make_config(path, kind, numbers)
        tokenizer = tokenizer_from_bytes(meta["tokenizer"].encode("latin-1"), path)
        ends = frozenset(meta.get("ends", ()))  # older checkpoints say nothing of them
    except (KeyError, TypeError, AttributeError, UnicodeError) as error:
        raise FormatError(
            f"{path} describes no model that is known here ({error!r}); go back to a copy"
        ) from None
    if not all(type(token) is int and token >= 0 for token in ends):
        raise FormatError(f"{path} ends texts with {[*ends]!r:.60}; it is damaged")
    shapes = config.param_shapes()
    offset = find_array(path, "params", num_elements(shapes), np.float32)
    starts = {name: offset + 4 * start for name, (start, _) in extents(shapes).items()}
    tensors = {
        name: Parts.mapped(name, path, np.dtype(np.float32), starts[name], shape)
        for name, shape in unpadded_shapes(config).items()
    }
    template = meta.get("chat_template")  # older checkpoints say nothing of it
    if template is not None:
        template = checked(path, template)
    return Weights(FORMAT, kind, numbers, tensors, tokenizer, chat_template=template, ends=ends)


def _make_config(path: Path, kind: str, numbers: Mapping[str, Any]) -> Any:
    try:
        return FAMILIES[kind].config(**numbers)
    except UserError as error:
        raise FormatError(f"{path} holds a model that cannot be: {error}") from None


def fits(tokenizer: Tokenizer, rows: int) -> bool:
    """Whether a model whose table has so many rows may have this tokenizer, if nobody says so."""
    return FEWEST_TOKENS * rows < tokenizer.vocab_size <= rows


def tell_spare_rows(tokenizer: Tokenizer, rows: int) -> None:
    """Say on stderr if a model's table has more rows than its tokenizer has tokens."""
    if tokenizer.vocab_size < rows:
        print(
            f"the model has {rows:,} tokens, and its tokenizer {tokenizer.vocab_size:,}: the rest "
            "stay in the model, and are never picked",
            file=sys.stderr,
        )


def _find_tokenizer(path: Path, weights: Weights, rows: int) -> tuple[Tokenizer | None, str]:
    """A model's tokenizer and where that is from, or None and why there is none."""
    own = weights.tokenizer
    if own and own.vocab_size > rows:
        raise FormatError(
            f"{path} has a tokenizer of {own.vocab_size:,} tokens and a model of {rows:,}; it is "
            "damaged"
        )
    if own:
        return own, "in the file"
    folder = path if path.is_dir() else path.parent
    files = [folder / name.format(stem=path.stem, N=rows) for name in TOKENIZERS]
    reason = "none is in the file or beside it"
    found: list[tuple[Tokenizer, str]] = []
    for name in [str(file) for file in files if file.is_file()]:
        try:
            tokenizer = load_tokenizer(name)
        except UserError as error:
            reason = str(error)
            continue
        if tokenizer.vocab_size == rows:
            return tokenizer, name
        if fits(tokenizer, rows):
            found.append((tokenizer, name))
        reason = f"{name} has {tokenizer.vocab_size:,} tokens, and the model {rows:,}"
    if not found and GPT2_TOKENS <= rows <= GPT2_ROUNDED:
        try:
            return load_tokenizer("gpt2"), "gpt2"
        except UserError as error:
            reason = str(error)
    missing = None, weights.unread_tokenizer or reason
    return max(found, key=lambda each: each[0].vocab_size, default=missing)
