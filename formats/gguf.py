"""GGUF, the files of llama.cpp: a header that describes a model entirely, then its tensors.

The header has keys with values (the model's numbers, its tokenizer), then the name, shape, type and
place of every tensor. Matrices have rows of inputs as ours do, but a shape is written columns
first; queries and keys are rotated in pairs of neighbours, as ours are.

Handled: GPT-2 and Llama with their tokenizers; versions 2 and 3 of the format; float32, float16 and
bfloat16, and to read also every quantised type that the library `gguf` can turn into floats.
Not handled: big-endian files, models in several files, tokenizers that are not laid out like ours
(the model is then said to have none), and what our models do not compute, such as experts and
stretched rotations: a model with a key or a tensor that is not known here is refused.

The library writes and dequantises. It does not read: it believes every length in a file, and makes
an array of every value.

Source of the format: ggml, docs/gguf.md; of the keys and tensors: llama.cpp, src/llama-model.cpp,
src/llama-vocab.cpp and conversion/.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from errors import FormatError, UserError
from files import replacing
from formats.hf_tokenizer import byte_characters, merges
from formats.sentencepiece_model import BLANK, Settings, make_tokenizer, settings_of
from formats.weights import FLOATS, SINGLE, Parts, Weights, as_type, missing
from tokenizer import (
    BYTE_PIECES,
    END_OF_TEXT,
    FIRST_BYTE,
    FIRST_PIECE,
    SPECIAL_PIECES,
    BytePairTokenizer,
    CharTokenizer,
    LlamaTokenizer,
    Tokenizer,
)

DTYPES = tuple(FLOATS)

# Llama 3's header, with 128,000 tokens, has 8 MB. What a forged one can cost is bounded so.
MAX_HEADER_BYTES = 10_000_000
MAX_ENTRIES = 1 << 16
MAX_NAME_BYTES = 256  # of a key, a tensor or one of Llama's tokens

# The types of values, by their numbers in the file.
SCALARS = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
STRING, ARRAY = 8, 9

# The types of tensors that are not quantised, by their numbers in the file.
FLOAT_TYPES = {0: FLOATS["float32"], 1: FLOATS["float16"], 30: FLOATS["bfloat16"]}

KINDS = {"gpt2": "gpt2", "llama": "llama2"}  # our names of its architectures
TENSORS = {
    "gpt2": {
        "wte": "token_embd.weight",
        "wpe": "position_embd.weight",
        "ln1w": "blk.{}.attn_norm.weight",
        "ln1b": "blk.{}.attn_norm.bias",
        "qkvw": "blk.{}.attn_qkv.weight",
        "qkvb": "blk.{}.attn_qkv.bias",
        "attprojw": "blk.{}.attn_output.weight",
        "attprojb": "blk.{}.attn_output.bias",
        "ln2w": "blk.{}.ffn_norm.weight",
        "ln2b": "blk.{}.ffn_norm.bias",
        "fcw": "blk.{}.ffn_up.weight",
        "fcb": "blk.{}.ffn_up.bias",
        "fcprojw": "blk.{}.ffn_down.weight",
        "fcprojb": "blk.{}.ffn_down.bias",
        "lnfw": "output_norm.weight",
        "lnfb": "output_norm.bias",
    },
    "llama": {
        "wte": "token_embd.weight",
        "rms1w": "blk.{}.attn_norm.weight",
        "wq": "blk.{}.attn_q.weight",
        "wk": "blk.{}.attn_k.weight",
        "wv": "blk.{}.attn_v.weight",
        "wo": "blk.{}.attn_output.weight",
        "rms2w": "blk.{}.ffn_norm.weight",
        "w1": "blk.{}.ffn_gate.weight",
        "w2": "blk.{}.ffn_down.weight",
        "w3": "blk.{}.ffn_up.weight",
        "rmsfw": "output_norm.weight",
        "wcls": "output.weight",
    },
}

# The keys of a model's numbers, each behind the architecture's name and a point.
COUNTS = {
    "gpt2": {
        "seq_len": "context_length",
        "num_layers": "block_count",
        "num_heads": "attention.head_count",
        "channels": "embedding_length",
    },
    "llama": {
        "dim": "embedding_length",
        "hidden_dim": "feed_forward_length",
        "num_layers": "block_count",
        "num_heads": "attention.head_count",
        "num_kv_heads": "attention.head_count_kv",
        "seq_len": "context_length",
    },
}
CONSTANTS = {
    "gpt2": {},
    "llama": {
        "norm_eps": ("attention.layer_norm_rms_epsilon", 1e-5),
        "rope_theta": ("rope.freq_base", 10000.0),
    },
}

# Other keys, and the only value of each that means what our models compute.
NEUTRAL = {
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,
    "rope.scale_linear": 1.0,
}
UNUSED = {"vocab_size", "tensor_data_layout"}  # the tensors tell the same


class _Stored(NamedTuple):
    """How and where a tensor lies in a file; `kind` is the number of its type."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def read(path: Path) -> Weights:
    """What is in a file: floats are views of it, quantised tensors become float32 part by part.

    Raises:
        FormatError: it is not a GGUF file, a damaged one, or a model that is not handled here.
        UserError: it has quantised tensors, and the library `gguf` is not installed.
    """
    version, values, stored = _Header(path).read()
    architecture = _get(path, values, "general.architecture", str, None)
    if architecture not in KINDS:
        raise FormatError(
            f"{path} is a model of the architecture {architecture!s:.60}, and only gpt2 and llama "
            "are known here; give another"
        )
    if _get(path, values, "split.count", int, 1) > 1:
        raise FormatError(
            f"{path} is one of a model's files; join them with llama.cpp's llama-gguf-split --merge"
        )
    config = _read_config(path, architecture, values)
    tensors = _read_tensors(path, architecture, config["num_layers"], stored)
    config["vocab_size"] = tensors["wte"].shape[0]
    if architecture == "llama":
        config["tied"] = "wcls" not in tensors
    tokenizer = _read_tokenizer(path, values, config["vocab_size"])
    return Weights(f"GGUF, version {version}", KINDS[architecture], config, tensors, tokenizer)


def write(path: Path, weights: Weights, dtype: str = "float32") -> None:
    """Write a model with its tokenizer; only matrices are in another type than float32.

    Raises:
        UserError: the model has no tokenizer, or one with other tokens; a weight is too large for
            the type; or the library `gguf` is not installed.
        RunError: it cannot be written; what was there before is unharmed.
    """
    gguf = _library(path)
    architecture = next(name for name, kind in KINDS.items() if kind == weights.kind)
    writer = gguf.GGUFWriter(None, architecture)
    _add_config(writer, architecture, weights.config)
    _add_tokenizer(writer, path, weights)
    dtypes = {}
    for name, template in TENSORS[architecture].items():
        if name not in weights.tensors:  # the classifier of a tied model
            continue
        parts = weights.tensors[name]
        shape = parts.shape if name in SINGLE else parts.shape[1:]
        # llama.cpp wants vectors in float32, and so it gets the table of positions.
        dtypes[name] = dtype if len(shape) == 2 and name != "wpe" else "float32"
        stored = FLOATS[dtypes[name]]
        kind = next(kind for kind, each in FLOAT_TYPES.items() if each == stored)
        size = math.prod(shape) * stored.itemsize
        for layer in range(len(parts)):
            stored_name = template.format(layer)
            writer.add_tensor_info(
                stored_name, shape, stored, size, gguf.GGMLQuantizationType(kind)
            )
    with replacing(path) as file:
        writer.fout, writer.state = [file], gguf.WriterState.EMPTY  # as if it had opened the file
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, each in dtypes.items():
            for part in weights.tensors[name]:
                writer.write_tensor_data(as_type(part, each, path))


def _library(path: Path) -> ModuleType:
    try:
        import gguf
    except ImportError:
        raise UserError(
            f'{path} needs the library gguf, which is not installed: pip install -e ".[gguf]"'
        ) from None
    return gguf


def _damaged(path: Path, what: str) -> FormatError:
    return FormatError(f"{path} has {what}; it is damaged or not a GGUF file, so get it anew")


# The header


class _Header:
    """The header of a file, read from front to back."""

    def __init__(self, path: Path) -> None:
        self.path, self.position = path, 0
        with path.open("rb") as file:
            self.data = file.read(MAX_HEADER_BYTES)

    def read(self) -> tuple[int, dict[str, Any], dict[str, _Stored]]:
        """The version, the values by key, and the tensors by name.

        A string is a str, but one in a list is bytes, since tokens need not be whole characters.
        """
        if self.take(4) != b"GGUF":
            raise _damaged(self.path, "not the first four bytes of a GGUF file")
        version = self.integer(4)
        if version not in (2, 3):
            raise FormatError(
                f"{self.path} is a GGUF file of version {version} or a big-endian one; only "
                "little-endian files of version 2 and 3 are known, so convert it with llama.cpp"
            )
        num_tensors, num_values = self.integer(8), self.integer(8)
        if max(num_tensors, num_values) > MAX_ENTRIES:
            raise _damaged(self.path, f"{num_tensors} tensors and {num_values} keys")
        values = {self.name(): self.value() for _ in range(num_values)}
        tensors = [self.tensor() for _ in range(num_tensors)]
        alignment = _get(self.path, values, "general.alignment", int, 32)
        if alignment < 1:
            raise _damaged(self.path, f"an alignment of {alignment}")
        start = -(-self.position // alignment) * alignment
        stored = {each.name: each._replace(offset=start + each.offset) for each in tensors}
        if len(values) < num_values or len(stored) < num_tensors:
            raise _damaged(self.path, "a key or a tensor twice")
        return version, values, stored

    def tensor(self) -> _Stored:
        """A tensor's description; its offset counts from the end of the header."""
        name = self.name()
        num_dims = self.integer(4)
        if not 1 <= num_dims <= 4:
            raise _damaged(self.path, f"a tensor {name} of {num_dims} dimensions")
        shape = tuple(self.integer(8) for _ in range(num_dims))[::-1]
        if 0 in shape:
            raise _damaged(self.path, f"a tensor {name} of the shape {shape}")
        return _Stored(name, shape, kind=self.integer(4), offset=self.integer(8))

    def value(self) -> Any:
        kind = self.integer(4)
        if kind == STRING:
            return self.string().decode("utf-8", errors="replace")
        if kind != ARRAY:
            number = self.numbers(kind, 1)[0]
            # The shortest number that float32 makes this one of: 1e-05, not 9.999999747378752e-06.
            return float(str(number)) if number.dtype == np.float32 else number.item()
        kind, count = self.integer(4), self.integer(8)
        if kind == STRING:
            return [self.string() for _ in range(count)]
        return self.numbers(kind, count)

    def numbers(self, kind: int, count: int) -> np.ndarray:
        if kind not in SCALARS:
            raise _damaged(self.path, f"a value of the unknown type {kind}")
        dtype = np.dtype(SCALARS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def name(self) -> str:
        name = self.string()
        if len(name) > MAX_NAME_BYTES:
            raise _damaged(self.path, f"a name of {len(name)} bytes")
        return name.decode("utf-8", errors="replace")

    def string(self) -> bytes:
        return self.take(self.integer(8))

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def take(self, size: int) -> bytes:
        start, self.position = self.position, self.position + size
        if self.position > len(self.data):
            raise _damaged(self.path, f"no end of its header in the first {len(self.data)} bytes")
        return self.data[start : self.position]


def _get(path: Path, values: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    """The value of a key, which must be of the type `kind`, or `default` if there is none."""
    value = values.get(key, default)
    if type(value) is not kind and value is not default:
        raise _damaged(path, f"a {key} of {value!s:.60}")
    return value


# The model's numbers


def _implied(architecture: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of keys that follow from the model's numbers."""
    if architecture == "gpt2":
        return {
            "feed_forward_length": 4 * config["channels"],
            "attention.head_count_kv": config["num_heads"],
            "attention.layer_norm_epsilon": 1e-5,
        }
    head_size = config["dim"] // config["num_heads"]
    return dict.fromkeys(
        ("rope.dimension_count", "attention.key_length", "attention.value_length"), head_size
    )


def _read_config(path: Path, architecture: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a model, but for those that are seen from its tensors."""
    config: dict[str, Any] = {}
    for name, key in COUNTS[architecture].items():
        # There need not be a number of key/value heads; it comes after that of the heads.
        default = config["num_heads"] if name == "num_kv_heads" else 0
        config[name] = _get(path, values, f"{architecture}.{key}", int, default)
        if config[name] < 1:
            raise _damaged(path, f"a {architecture}.{key} of {config[name]}")
    for name, (key, default) in CONSTANTS[architecture].items():
        config[name] = _get(path, values, f"{architecture}.{key}", float, default)

    known = {*COUNTS[architecture].values(), *(key for key, _ in CONSTANTS[architecture].values())}
    expected = NEUTRAL | _implied(architecture, config)
    for key, value in values.items():
        prefix, _, key = key.partition(".")
        if prefix != architecture or key in known | UNUSED:
            continue
        # Types first, since a list of numbers, one for each layer, is not simply equal or not.
        if type(value) is not type(expected.get(key)) or value != expected[key]:
            raise FormatError(
                f"{path} has {architecture}.{key} = {value!s:.60}, which is not what the models "
                "here compute; give another"
            )
    return config


def _add_config(writer: Any, architecture: str, config: Mapping[str, Any]) -> None:
    numbers = {key: config[name] for name, key in COUNTS[architecture].items()}
    for name, (key, _) in CONSTANTS[architecture].items():
        numbers[key] = config[name]
    for key, number in (numbers | _implied(architecture, config)).items():
        add = writer.add_float32 if isinstance(number, float) else writer.add_uint32
        add(f"{architecture}.{key}", number)


# Tensors


def _read_tensors(
    path: Path, architecture: str, num_layers: int, stored: Mapping[str, _Stored]
) -> dict[str, Parts]:
    if num_layers > len(stored):
        raise _damaged(path, f"{num_layers} layers, but only {len(stored)} tensors")
    tensors, others = {}, dict(stored)
    for name, template in TENSORS[architecture].items():
        if name == "wcls" and template not in stored:
            continue
        layers = []
        for layer in range(1 if name in SINGLE else num_layers):
            stored_name = template.format(layer)
            if stored_name not in stored:
                raise missing(path, stored_name)
            layers.append(others.pop(stored_name))
        tensors[name] = _parts(path, name, layers)
    if others:
        raise FormatError(
            f"{path} has a tensor {next(iter(others))}, which the models here do not have; give "
            "another"
        )
    return tensors


def _parts(path: Path, name: str, layers: Sequence[_Stored]) -> Parts:
    """One of our tensors; it is float32 where its layers are quantised or of different types."""
    shape = layers[0].shape
    if any(stored.shape != shape for stored in layers):
        raise _damaged(path, f"layers whose {name} is not {shape} as in the first")
    kinds = {stored.kind for stored in layers}
    dtype = FLOAT_TYPES.get(layers[0].kind) if len(kinds) == 1 else None
    makers = []
    for stored in layers:
        row_bytes = _row_bytes(path, stored)
        end, size = stored.offset + math.prod(shape[:-1]) * row_bytes, path.stat().st_size
        if end > size:
            raise _damaged(path, f"{size} bytes, but its tensor {stored.name} ends at {end}")
        makers.append(partial(_part, path, stored, row_bytes, dtype or np.float32))
    quantised = [_library(path).GGMLQuantizationType(k).name for k in kinds - FLOAT_TYPES.keys()]
    whole = shape if name in SINGLE else (len(layers), *shape)
    return Parts(whole, dtype or np.float32, makers, " ".join(sorted(quantised)))


def _row_bytes(path: Path, stored: _Stored) -> int:
    """How many bytes a row takes, when it is certain that it can become floats."""
    columns = stored.shape[-1]
    if stored.kind in FLOAT_TYPES:
        return columns * FLOAT_TYPES[stored.kind].itemsize
    gguf = _library(path)
    try:
        kind = gguf.GGMLQuantizationType(stored.kind)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except (ValueError, NotImplementedError):
        raise FormatError(
            f"{path}: the tensor {stored.name} is of the type {stored.kind}, which the library "
            "gguf does not turn into floats; convert it with llama.cpp's llama-quantize"
        ) from None
    if columns % block:
        raise _damaged(path, f"rows of {columns} in {stored.name}, in blocks of {block}")
    return columns // block * block_bytes


def _part(path: Path, stored: _Stored, row_bytes: int, dtype: np.dtype) -> np.ndarray:
    if stored.kind in FLOAT_TYPES:
        part = np.memmap(path, FLOAT_TYPES[stored.kind], "r", stored.offset, stored.shape)
        return part.astype(dtype, copy=False)
    gguf = _library(path)
    rows = np.memmap(path, np.uint8, "r", stored.offset, (*stored.shape[:-1], row_bytes))
    with np.errstate(all="ignore"):  # whatever a file has for a scale
        return gguf.dequantize(rows, gguf.GGMLQuantizationType(stored.kind))


# Tokenizers


def _read_tokenizer(path: Path, values: Mapping[str, Any], vocab_size: int) -> Tokenizer | None:
    """A model's tokenizer, if it is laid out like one of ours.

    Raises:
        FormatError: it is damaged.
    """

    def get(name: str, kind: type, default: Any) -> Any:
        return _get(path, values, f"tokenizer.ggml.{name}", kind, default)

    model, tokens = get("model", str, None), get("tokens", list, [])
    if model != "llama" and (model, get("pre", str, None)) != ("gpt2", "gpt-2"):
        return None
    if len(tokens) != vocab_size:
        raise _damaged(path, f"{len(tokens)} tokens, but embeddings of {vocab_size}")
    if model == "gpt2":
        return _read_byte_pairs(tokens, get("merges", list, []))
    scores = get("scores", np.ndarray, np.empty(0))
    if len(scores) != vocab_size:
        raise _damaged(path, f"{len(scores)} scores of {vocab_size} tokens")
    if max(map(len, tokens)) > MAX_NAME_BYTES:  # a token is cut in two in every way
        raise _damaged(path, f"a token of more than {MAX_NAME_BYTES} bytes")
    ends = get("bos_token_id", int, 1), get("eos_token_id", int, 2)
    if (
        ends != (LlamaTokenizer.begin, LlamaTokenizer.end)
        or tokens[FIRST_BYTE:FIRST_PIECE] != BYTE_PIECES
    ):
        return None
    pieces = [token.replace(BLANK, b" ") for token in tokens]
    pieces[1:FIRST_BYTE] = SPECIAL_PIECES[1:]
    # For this model, llama.cpp looks at no other setting.
    settings = Settings(add_dummy_prefix=get("add_space_prefix", bool, True))
    return make_tokenizer(pieces, scores.tolist(), settings)


def _read_byte_pairs(tokens: list[bytes], joins: list[bytes]) -> BytePairTokenizer | None:
    """A tokenizer whose tokens are the bytes, what each merge makes, and the end of a text."""
    made = [join.replace(b" ", b"") for join in joins if join]
    if tokens[256:] != [*made, END_OF_TEXT.encode()]:
        return None
    values = {character: byte for byte, character in enumerate(byte_characters())}
    try:
        texts = [bytes(values[each] for each in token.decode()) for token in tokens[:-1]]
    except (UnicodeDecodeError, KeyError):
        return None
    ranks = {text: rank for rank, text in enumerate(texts)}
    complete = len(ranks) == len(texts) and all(len(text) == 1 for text in texts[:256])
    return BytePairTokenizer(ranks) if complete else None


def _add_tokenizer(writer: Any, path: Path, weights: Weights) -> None:
    tokenizer, vocab_size = weights.tokenizer, weights.config["vocab_size"]
    if tokenizer is None:
        raise UserError(f"cannot write {path} without the model's tokenizer; add --tokenizer")
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"cannot write {path}: the tokenizer has {tokenizer.vocab_size:,} tokens, but the "
            f"model {vocab_size:,}; give the --tokenizer that it was trained with"
        )
    if isinstance(tokenizer, CharTokenizer):
        raise UserError(
            f"cannot write {path}: no tokenizer of GGUF's has characters as its tokens; write a "
            "folder for Hugging Face, or .npz"
        )
    add = _add_llama if isinstance(tokenizer, LlamaTokenizer) else _add_byte_pairs
    tokens = add(writer, tokenizer)
    if len(set(tokens)) < vocab_size:  # llama.cpp would end itself
        raise UserError(f"cannot write {path}: two tokens of its tokenizer look the same")
    writer.add_token_list(tokens)
    writer.add_bos_token_id(tokenizer.begin)
    writer.add_eos_token_id(max(tokenizer.ends))


def _add_llama(writer: Any, tokenizer: LlamaTokenizer) -> list[bytes]:
    from gguf import TokenType

    settings = settings_of(tokenizer)
    if settings.remove_extra_whitespaces or settings.charsmap:
        raise UserError(
            "a GGUF cannot say that this tokenizer replaces characters or removes blanks, for with "
            "its kind llama.cpp does neither; choose another format"
        )
    pieces = [piece.replace(b" ", BLANK) for piece in tokenizer.pieces]
    types = [TokenType.BYTE] * 256 + [TokenType.NORMAL] * (len(pieces) - FIRST_PIECE)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores(tokenizer.scores)
    writer.add_token_types([TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *types])
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(settings.add_dummy_prefix)
    return [pieces[0], b"<s>", b"</s>", *pieces[FIRST_BYTE:]]


def _add_byte_pairs(writer: Any, tokenizer: BytePairTokenizer) -> list[str]:
    from gguf import TokenType

    characters = byte_characters()

    def spelled(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    joins = [" ".join(map(spelled, pair)) for pair in merges(tokenizer.ranks)]
    types = [TokenType.NORMAL] * len(tokenizer.ranks)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    # llama.cpp wants a list, and the library writes no empty one; an empty merge joins nothing.
    writer.add_token_merges(joins or [""])
    writer.add_token_types([*types, TokenType.CONTROL])
    writer.add_add_bos_token(False)
    return [*map(spelled, sorted(tokenizer.ranks, key=tokenizer.ranks.get)), END_OF_TEXT]
