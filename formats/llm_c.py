"""llm.c's GPT-2 files: a header of 256 integers, then the tensors, one behind the other.

Handled: model files of version 3 (float32) and 5 (bfloat16), in which rows of zeros pad wte to a
multiple of 128, and debug states of version 2, which hold a batch and what PyTorch makes of it.
Not handled: their older versions, without padding; nor llm.c's other files, such as Llama 3 models
and the state of a training run.

Source of the format: llm.c, train_gpt2.py (`pad_vocab`, `write_model`, `write_state`).
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from errors import FormatError, UserError
from files import replacing
from formats.weights import FLOATS, Parts, Weights, as_type

MAGIC = (20240326).to_bytes(4, "little")
STATE_MAGIC = (20240327).to_bytes(4, "little")
HEADER_BYTES = 1024
VERSIONS = {"float32": 3, "bfloat16": 5}
DTYPES = tuple(VERSIONS)
STATE_VERSION = 2
NUMBERS = ("seq_len", "vocab_size", "num_layers", "num_heads", "channels")

Places = dict[str, tuple[int, tuple[int, ...]]]


@dataclass(frozen=True)
class DebugState:
    """A batch, and what PyTorch computes from it; all but the batch and the loss is mapped.

    Attributes:
        tokens: (B, T) int32.
        targets: (B, T) int32, the token that follows each.
        logits: (B, T, V) float32.
        loss: the mean cross-entropy, in nats.
        grads: the loss's derivatives by our names of the parameters; "wte" is without padding.
    """

    tokens: np.ndarray
    targets: np.ndarray
    logits: np.ndarray
    loss: float
    grads: Mapping[str, Parts]


def read(path: Path) -> Weights:
    """What is in a model file; its parts are views of it.

    Raises:
        FormatError: it is not an llm.c model, or a damaged one.
    """
    version, *numbers, Vp = _read_header(path, MAGIC, "model", 7)
    config = dict(zip(NUMBERS, numbers, strict=True))
    dtypes = {version: FLOATS[name] for name, version in VERSIONS.items()}
    if version not in dtypes:
        raise FormatError(
            f"{path} is an llm.c model of version {version}, and only 3 (float32) and 5 (bfloat16) "
            "are known; export it again with a newer llm.c"
        )
    for name, number in config.items():
        if number < 1:
            raise _damaged(path, f"a {name} of {number}")
    V, C, H = config["vocab_size"], config["channels"], config["num_heads"]
    if C % H:
        raise _damaged(path, f"{C} channels, not to be shared by {H} heads")
    if Vp < V:
        raise _damaged(path, f"a vocabulary of {V} padded to {Vp}")
    places, end = _places(config, Vp, HEADER_BYTES, dtypes[version].itemsize)
    _check_size(path, end)
    tensors = _mapped(path, dtypes[version], places)
    return Weights(f"llm.c, version {version}", "gpt2", config, tensors)


def write(path: Path, weights: Weights, dtype: str = "float32") -> None:
    """Write a model file: version 3 in float32, version 5 in bfloat16.

    Raises:
        UserError: it is no GPT-2, or in another type; or a weight is too large for the type.
        RunError: it cannot be written; what was there before is unharmed.
    """
    if weights.kind != "gpt2" or dtype not in DTYPES:
        raise UserError(
            f"cannot write {path}: llm.c knows nothing but GPT-2 in float32 and bfloat16"
        )
    numbers = [weights.config[name] for name in NUMBERS]
    V, C = weights.config["vocab_size"], weights.config["channels"]
    Vp = _padded(V)
    with replacing(path) as file:
        header = MAGIC + struct.pack("<7i", VERSIONS[dtype], *numbers, Vp)
        file.write(header.ljust(HEADER_BYTES, b"\0"))
        for name in _shapes(weights.config):
            for part in weights.tensors[name]:
                file.write(as_type(part, dtype, path))
            if name == "wte":
                file.write(bytes((Vp - V) * C * FLOATS[dtype].itemsize))


def read_debug_state(path: Path, config: Mapping[str, Any]) -> DebugState:
    """What is in a debug state, which tells only how large its batch is.

    Args:
        path: the file.
        config: of the model that it was computed with, as `read` returns it.

    Raises:
        FormatError: it is not a debug state, a damaged one, or another model's.
    """
    version, B, T = _read_header(path, STATE_MAGIC, "debug state", 3)
    if version != STATE_VERSION:
        raise FormatError(
            f"{path} is an llm.c debug state of version {version}, and only {STATE_VERSION} is "
            "known; export it again with a newer llm.c"
        )
    if B < 1 or not 1 <= T <= config["seq_len"]:
        raise _damaged(
            path, f"{B} sequences of {T} positions, for a model of {config['seq_len']} positions"
        )
    V = config["vocab_size"]
    logits_start = HEADER_BYTES + 2 * B * T * 4
    loss_start = logits_start + B * T * V * 4
    places, end = _places(config, _padded(V), loss_start + 4, 4)
    _check_size(path, end)

    batch = np.fromfile(path, "<i4", 2 * B * T, offset=HEADER_BYTES).reshape(2, B, T)
    if batch.min() < 0 or batch.max() >= V:
        token = batch[(batch < 0) | (batch >= V)][0]
        raise _damaged(path, f"a token {token}, in a vocabulary of {V}")
    return DebugState(
        *batch,
        np.memmap(path, "<f4", "r", logits_start, (B, T, V)),
        float(np.fromfile(path, "<f4", 1, offset=loss_start)[0]),
        _mapped(path, FLOATS["float32"], places),
    )


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, in the order of the files."""
    T, V, L, _, C = (config[name] for name in NUMBERS)
    return {
        "wte": (V, C),
        "wpe": (T, C),
        "ln1w": (L, C),
        "ln1b": (L, C),
        "qkvw": (L, 3 * C, C),
        "qkvb": (L, 3 * C),
        "attprojw": (L, C, C),
        "attprojb": (L, C),
        "ln2w": (L, C),
        "ln2b": (L, C),
        "fcw": (L, 4 * C, C),
        "fcb": (L, 4 * C),
        "fcprojw": (L, C, 4 * C),
        "fcprojb": (L, C),
        "lnfw": (C,),
        "lnfb": (C,),
    }


def _padded(vocab_size: int) -> int:
    """The rows that the files have of wte: a multiple of 128."""
    return -(-vocab_size // 128) * 128


def _places(config: Mapping[str, Any], Vp: int, start: int, itemsize: int) -> tuple[Places, int]:
    """Where each tensor begins, its shape, and where all end; wte has Vp rows in the file."""
    places = {}
    for name, shape in _shapes(config).items():
        places[name] = start, shape
        rows = Vp if name == "wte" else shape[0]
        start += rows * math.prod(shape[1:]) * itemsize
    return places, start


def _mapped(path: Path, dtype: np.dtype, places: Places) -> dict[str, Parts]:
    return {name: Parts.mapped(name, path, dtype, *place) for name, place in places.items()}


def _read_header(path: Path, magic: bytes, kind: str, count: int) -> tuple[int, ...]:
    """The first `count` integers behind the magic number."""
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    if not header.startswith(magic):
        raise FormatError(
            f"{path} is not an llm.c {kind}, which begins with {int.from_bytes(magic, 'little')}; "
            "give one that its train_gpt2.py has written"
        )
    if len(header) < HEADER_BYTES:
        raise _damaged(path, f"{len(header)} bytes, and a header alone has {HEADER_BYTES}")
    return struct.unpack_from(f"<{count}i", header, len(magic))


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size
    if size != expected:
        raise _damaged(path, f"{size} bytes, and with the model's numbers it must have {expected}")


def _damaged(path: Path, what: str) -> FormatError:
    return FormatError(f"{path} has {what}; it is damaged or not what it should be, so get it anew")
