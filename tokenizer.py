"""Text to tokens and back, and the byte-pair trainer that makes a vocabulary.

Every tokenizer here is one table, {bytes: rank}: 256 single bytes, and for every merge the bytes it
joins. A token's id is its rank, and the one special token, `<|endoftext|>`, comes after the last
rank. `tiktoken` does the encoding.

Handled: GPT-2's vocabulary, plain bytes, and vocabularies trained here on a text of your own.
Not handled: other special tokens (in a text even `<|endoftext|>` is plain text), other ways of
splitting a text into words, SentencePiece vocabularies such as Llama's, and runs of hundreds of
thousands of blanks, on which tiktoken's pattern engine gives up.
"""

import base64
import codecs
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import regex
import tiktoken
from tqdm import tqdm

from errors import FormatError, UserError
from files import replacing

END_OF_TEXT = "<|endoftext|>"

# Words as GPT-2 splits them, in tiktoken's spelling, which finds the same words faster.
GPT2_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
)

STARTER_VOCABULARY = Path(__file__).resolve().parent / "data" / "starter" / "tiktoken"


class Tokenizer:
    """A table of byte-pair ranks, and what can be done with it.

    Attributes:
        ranks: {bytes: rank}, the ranks being 0, 1, 2, ...
        end_of_text: the id of `<|endoftext|>`, which is the number of ranks.
        vocab_size: the number of ranks, plus one.
    """

    def __init__(self, ranks: dict[bytes, int]):
        self.ranks = ranks
        self.end_of_text = len(ranks)
        self.vocab_size = len(ranks) + 1
        self._token_bytes = [*sorted(ranks, key=ranks.__getitem__), END_OF_TEXT.encode()]
        self._encoding = tiktoken.Encoding(
            "llm.np",
            pat_str=GPT2_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: self.end_of_text},
        )

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`, in which `<|endoftext|>` is plain text like any other.

        A lone surrogate, which no UTF-8 can hold, becomes U+FFFD.
        """
        return self._encoding.encode_ordinary(text)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`; bytes that are not UTF-8 become U+FFFD.

        Raises:
            UserError: a token is outside the vocabulary.
        """
        return b"".join(map(self._bytes_of, tokens)).decode("utf-8", errors="replace")

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of `tokens`, piece by piece as they come; the pieces join to `decode(tokens)`.

        A token that ends inside a character is held back until the character is complete.

        Raises:
            UserError: a token is outside the vocabulary.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in tokens:
            if text := decoder.decode(self._bytes_of(token)):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def _bytes_of(self, token: int) -> bytes:
        if not 0 <= token < self.vocab_size:
            raise UserError(
                f"token {token} is outside the vocabulary of {self.vocab_size} tokens; "
                "use the tokenizer the model was trained with"
            )
        return self._token_bytes[token]

    def to_text(self) -> str:
        """The table as a .tiktoken file has it: a line `base64 rank` per token, ranks in order."""
        tokens = self._token_bytes[: self.end_of_text]
        return "".join(
            f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)
        )

    @classmethod
    def from_text(cls, text: str, source: str | Path) -> "Tokenizer":
        """The tokenizer whose `to_text` is `text`; `source` is what error messages call it.

        Raises:
            FormatError: a line is not `base64 rank`, a token comes twice, the ranks are not
                0, 1, 2, ..., or a single byte is missing.
        """
        ranks: dict[bytes, int] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                token_base64, rank = line.split()
                token, rank = base64.b64decode(token_base64, validate=True), int(rank)
            except ValueError:
                raise FormatError(
                    f"{source}, line {number}: {line[:60]!r} is not a token in base64 and its "
                    "rank; give a .tiktoken file"
                ) from None
            if rank != len(ranks):
                raise FormatError(
                    f"{source}, line {number}: rank {rank} where {len(ranks)} is next; "
                    "the ranks must count up from 0, line by line"
                )
            if token in ranks:
                raise FormatError(
                    f"{source}, line {number}: the token {token!r} is already on line "
                    f"{ranks[token] + 1}; train the vocabulary again"
                )
            ranks[token] = rank
        for byte in range(256):
            if bytes([byte]) not in ranks:
                raise FormatError(
                    f"{source}: the byte {byte} has no rank, so not every text could be encoded; "
                    "train the vocabulary again"
                )
        return cls(ranks)

    def save(self, path: str | Path) -> None:
        """Write the .tiktoken file; under its own name it is complete or not there."""
        with replacing(Path(path)) as file:
            file.write(self.to_text().encode())

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a .tiktoken file.

        Raises:
            FormatError: it is not one; see `from_text`.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"{path} is not text; give a .tiktoken file") from None
        return cls.from_text(text, path)


def load_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer called "gpt2" or "bytes", or the one in the .tiktoken file of that name.

    Raises:
        UserError: there is no such tokenizer, or GPT-2's vocabulary cannot be had.
        FormatError: the file is not a .tiktoken file.
    """
    if name == "gpt2":
        return _load_gpt2()
    if name == "bytes":
        return Tokenizer({bytes([byte]): byte for byte in range(256)})
    if not Path(name).is_file():
        raise UserError(f"there is no tokenizer {name}; give gpt2, bytes or a .tiktoken file")
    return Tokenizer.load(name)


def _load_gpt2() -> Tokenizer:
    if STARTER_VOCABULARY.is_dir():
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(STARTER_VOCABULARY))
    try:
        return Tokenizer(tiktoken.get_encoding("gpt2")._mergeable_ranks)
    except (OSError, ValueError) as error:  # no network, or something else sent in its place
        raise UserError(
            f"tiktoken cannot download GPT-2's vocabulary ({type(error).__name__}); set "
            "TIKTOKEN_CACHE_DIR to a folder that has it (dev/download_starter_pack.py makes "
            "data/starter/tiktoken), or use a vocabulary trained here, such as bpe:1024"
        ) from error


def train_bpe(texts: str | Iterable[str], num_merges: int) -> Tokenizer:
    """Learn a vocabulary of 256 bytes and `num_merges` merges from one text or several.

    Again and again the pair of neighbouring tokens that is most frequent becomes a new token; of
    equally frequent pairs, the one with the smaller ids. It ends early when no pair occurs twice.
    Pairs never reach across words, so equal words are counted once and merged once.

    Source: Sennrich et al. 2016 (arXiv 1508.07909), Algorithm 1, on bytes and with the words of
    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
    """
    words: Counter[str] = Counter()
    for text in [texts] if isinstance(texts, str) else texts:
        words.update(regex.findall(GPT2_PATTERN, text))
    counts = list(words.values())
    spellings = [list(word.encode("utf-8", errors="replace")) for word in words]

    pair_counts: Counter[tuple[int, int]] = Counter()
    holders = defaultdict(set)  # pair -> indices of the words that hold it, or once did
    for index, spelling in enumerate(spellings):
        for pair in pairwise(spelling):
            pair_counts[pair] += counts[index]
            holders[pair].add(index)

    tokens = [bytes([byte]) for byte in range(256)]
    merges = range(256, 256 + num_merges)
    for merged in tqdm(merges, desc="merging pairs", disable=None, leave=False):
        highest = max(pair_counts.values(), default=0)
        if highest < 2:
            break
        best = min(pair for pair, count in pair_counts.items() if count == highest)
        tokens.append(tokens[best[0]] + tokens[best[1]])
        for index in holders.pop(best):
            for pair in pairwise(spellings[index]):
                pair_counts[pair] -= counts[index]
            spellings[index] = _merge(spellings[index], best, merged)
            for pair in pairwise(spellings[index]):
                pair_counts[pair] += counts[index]
                holders[pair].add(index)
        del pair_counts[best]
    return Tokenizer({token: rank for rank, token in enumerate(tokens)})


def _merge(spelling: list[int], pair: tuple[int, int], merged: int) -> list[int]:
    """`spelling` with every `pair` in it, from left to right, replaced by `merged`."""
    result = []
    position = 0
    while position < len(spelling):
        if tuple(spelling[position : position + 2]) == pair:
            result.append(merged)
            position += 2
        else:
            result.append(spelling[position])
            position += 1
    return result
