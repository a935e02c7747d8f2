"""Token shards on disk, and the batches a training run reads from them.

A shard is llm.c's .bin file: 256 int32 (20240520, 1, the number of tokens, zeros), then the tokens
as uint16, all little-endian. Where a token does not fit into 16 bits, it is what llm.c has for
Llama 3: it begins with (20240801, 7), and the tokens are uint32. Where llm.c has the first of those
zeros, a shard written here has the tokens' CRC-32. Shards are mapped into memory, never copied into
it.

Source of the format: llm.c, dev/data/data_common.py.
"""

import zlib
from pathlib import Path

import numpy as np

import own_imports
from errors import FormatError, UserError
from files import replacing

NARROW, WIDE = 20240520, 20240801  # how a shard begins
VERSIONS = {NARROW: 1, WIDE: 7}
DTYPES = {NARROW: np.dtype("<u2"), WIDE: np.dtype("<u4")}
HEADER_BYTES = 256 * 4
OTHER_MAGICS = {20240326: "a llm.c model"}
LARGEST_TOKEN = np.iinfo(np.int32).max  # in a batch


def write_shard(path: str | Path, tokens: np.typing.ArrayLike) -> None:
    """Write a shard; under its own name it is complete or not there.

    Args:
        tokens: (count,) integers.

    Raises:
        UserError: a token is none, or larger than any.
        RunError: the file cannot be written.
    """
    path, tokens = Path(path), np.asarray(tokens)
    for token in (tokens.min(initial=0), tokens.max(initial=0)):
        if not 0 <= token <= LARGEST_TOKEN:
            raise UserError(f"cannot write {path}: {token} is no token; give numbers from 0 on")
    magic = NARROW if tokens.max(initial=0) <= np.iinfo(DTYPES[NARROW]).max else WIDE
    tokens = np.ascontiguousarray(tokens, DTYPES[magic])
    header = np.zeros(256, "<u4")
    header[:4] = magic, VERSIONS[magic], tokens.size, zlib.crc32(tokens)
    with replacing(path) as file:
        file.write(header)
        file.write(tokens)


class DataLoader:
    """Batches from all shards that match a pattern, epoch after epoch without end.

    A shard of n tokens is cut into (n - 1) // seq_len windows of seq_len + 1 tokens, neighbours
    sharing one: a window's first seq_len tokens are the inputs, its last seq_len the targets. Each
    epoch orders the windows of all shards anew. The next num_ranks * batch_size of that order are
    one global batch, of which every rank takes its own slice, so many ranks see together what one
    rank with a larger batch sees. What does not fill a global batch at an epoch's end is left out,
    unless `drop_last` is false: then the last batch is smaller, and that of some ranks empty.

    Args:
        pattern: a path whose last part may have wildcards, as in "data/pydocs/train_*.bin".
        batch_size: B, windows per batch and rank.
        seq_len: T, tokens per window.
        vocab_size: every token must be below it.
        seed: with the epoch's number it decides the order of the windows.
        shuffle: whether to shuffle; if not, the windows come in the order of the files.
        rank, num_ranks: which of how many processes this loader feeds.
        drop_last: whether all batches must be full.

    Raises:
        FormatError: a shard is damaged or something else.
        UserError: no shard matches, all hold too little for one batch, or an argument is absurd.
    """

    def __init__(
        self,
        pattern: str | Path,
        batch_size: int,
        seq_len: int,
        *,
        vocab_size: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        num_ranks: int = 1,
        drop_last: bool = True,
    ):
        if batch_size < 1 or seq_len < 1:
            raise UserError(
                f"a batch of {batch_size} windows of {seq_len} tokens is empty; "
                "both numbers must be 1 or more"
            )
        if not 0 <= rank < num_ranks:
            raise UserError(f"rank {rank} must be 0 or more and below num_ranks, {num_ranks}")
        if seed < 0:
            raise UserError(f"seed {seed} must be 0 or more")
        self.batch_size, self.seq_len, self.vocab_size = batch_size, seq_len, vocab_size
        self.seed, self.shuffle = seed, shuffle
        self.rank, self.num_ranks = rank, num_ranks
        self.smallest_batch = num_ranks * batch_size if drop_last else 1

        self.paths = _matching_files(Path(pattern))
        self.shards = [_open_shard(path) for path in self.paths]
        windows = [max(0, shard.size - 1) // seq_len for shard in self.shards]
        self.first_windows = np.cumsum([0, *windows[:-1]])
        self.num_windows = sum(windows)
        if not len(self):
            held = sum(shard.size for shard in self.shards)
            raise UserError(
                f"{pattern} holds {held} tokens, and a batch of {self.smallest_batch} x {seq_len} "
                f"needs {self.smallest_batch * seq_len + 1}; lower the batch size or the sequence "
                "length"
            )
        self.reset()

    def __len__(self) -> int:
        """Batches per epoch."""
        together = self.num_ranks * self.batch_size
        return (self.num_windows + together - self.smallest_batch) // together

    def next_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """The next batch: tokens (B, T) and targets (B, T), int32, new arrays every time.

        Without `drop_last`, the last batch of an epoch may have fewer rows, or none.

        Raises:
            FormatError: a token is outside the vocabulary.
        """
        together = self.num_ranks * self.batch_size
        if self.position + self.smallest_batch > self.num_windows:
            self._start_epoch(self.epoch + 1)
        first = self.position + self.rank * self.batch_size
        windows = self.order[first : first + self.batch_size]
        batch = np.empty((len(windows), self.seq_len + 1), np.int32)
        for row, window in zip(batch, windows, strict=True):
            row[:] = self._window(window)
        self.position = min(self.position + together, self.num_windows)
        return batch[:, :-1].copy(), batch[:, 1:].copy()

    def state(self) -> dict[str, int]:
        """Where the loader stands: what `restore` needs to go on with the windows that follow.

        It counts windows, so that another number of ranks, or another batch size, can go on.
        """
        return {"epoch": self.epoch, "read": self.position, "windows": self.num_windows}

    def restore(self, state: dict[str, int]) -> None:
        """Go to where `state` was taken, by a loader of the same shards and windows.

        Raises:
            UserError: no such place can exist.
        """
        if not (
            isinstance(state, dict)
            and state.keys() == {"epoch", "read", "windows"}
            and all(type(number) is int for number in state.values())
            and state["epoch"] >= 0
            and 0 <= state["read"] <= self.num_windows
            and state["windows"] == self.num_windows
        ):
            raise UserError(
                f"the data loader cannot go on from {state}: it needs an epoch of 0 or more and, "
                f"of its {self.num_windows} windows, how many are read; resume with the "
                "data and the sequence length of that run, or begin a new one from its weights, "
                "which is --init-from"
            )
        self._start_epoch(state["epoch"])
        self.position = state["read"]

    def reset(self) -> None:
        """Back to the first batch of epoch 0."""
        self._start_epoch(0)

    def _start_epoch(self, epoch: int) -> None:
        self.epoch, self.position = epoch, 0
        if self.shuffle:
            self.order = np.random.default_rng([self.seed, epoch]).permutation(self.num_windows)
        else:
            self.order = np.arange(self.num_windows)

    def _window(self, window: int) -> np.ndarray:
        """Window number `window`, counted over all shards: (T+1,) int32."""
        shard = np.searchsorted(self.first_windows, window, side="right") - 1
        start = (window - self.first_windows[shard]) * self.seq_len
        tokens = self.shards[shard][start : start + self.seq_len + 1]
        if tokens.max() >= self.vocab_size:
            worst = tokens.argmax()
            raise FormatError(
                f"{self.paths[shard]}: token {tokens[worst]} at position {start + worst} is "
                f"outside the vocabulary of {self.vocab_size} tokens; prepare the data with the "
                "tokenizer of this model"
            )
        return tokens.astype(np.int32)


def count_tokens(pattern: Path) -> list[int]:
    """How many tokens there are in each of the shards that match a pattern.

    Raises:
        UserError: no shard matches.
        FormatError: one is damaged or something else.
    """
    return [_read_header(path)[1] for path in _matching_files(pattern)]


def _matching_files(pattern: Path) -> list[Path]:
    paths = sorted(path for path in pattern.parent.glob(pattern.name) if path.is_file())
    if not paths:
        raise UserError(
            f"no file matches {pattern}; prepare a corpus first, "
            "for example with python dev/data/pydocs.py"
        )
    return paths


def _open_shard(path: Path) -> np.memmap:
    """The tokens of a shard, (count,), mapped read-only.

    Raises:
        FormatError: the file is not a shard, or an empty or a damaged one.
    """
    dtype, count, checksum = _read_header(path)
    if count == 0:
        raise FormatError(f"{path} holds no tokens; prepare the data again from a text")
    tokens = np.memmap(path, dtype, mode="r", offset=HEADER_BYTES)
    if checksum and zlib.crc32(tokens) != checksum:
        raise FormatError(f"{path} is damaged: its checksum is wrong; prepare the data again")
    return tokens


def _read_header(path: Path) -> tuple[np.dtype, int, int]:
    """The type of a shard's tokens, how many there are, and their checksum, or 0."""
    size = path.stat().st_size
    if size < HEADER_BYTES:
        raise FormatError(
            f"{path} has {size} bytes, fewer than the {HEADER_BYTES} of a token file's header; "
            "prepare the data again"
        )
    magic, version, count, checksum = (int(number) for number in np.fromfile(path, "<i4", 4))
    if magic not in VERSIONS:
        found = OTHER_MAGICS.get(magic, "another format, such as nanoGPT's, which has no header")
        raise FormatError(
            f"{path} begins with {magic} instead of {NARROW} or {WIDE}: it looks like {found}; "
            "give token files made by dev/data/"
        )
    if version != VERSIONS[magic]:
        raise FormatError(
            f"{path} is a token file of version {version}, and only {VERSIONS[magic]} is known; "
            "prepare the data again"
        )
    held = (size - HEADER_BYTES) / DTYPES[magic].itemsize
    if held != count:
        raise FormatError(
            f"{path} promises {count} tokens and has {held:g}; "
            "it is damaged, so prepare the data again"
        )
    return DTYPES[magic], count, checksum % 2**32
