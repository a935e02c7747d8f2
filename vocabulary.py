"""What all tokenizers share: from tokens back to text, and what begins and ends one."""

import codecs
import re
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np

import own_imports
from errors import UserError
from files import replacing, without_surrogates
from merging import longest_of


class Tokenizer(ABC):
    """What all kinds share.

    Attributes:
        file_name: what its file is called in a corpus's folder.
        vocab_size: how many tokens there are.
        begin: the token that begins a new text.
        adds_begin: whether it also stands in front of a text that is to be continued.
        ends: the tokens that end a text, if there are any.
        special: the control tokens by their names; no text becomes one of them.
    """

    file_name: str
    vocab_size: int
    begin: int
    adds_begin: bool = False
    ends: frozenset[int]
    special: Mapping[str, int]

    @property
    def end(self) -> int | None:
        """The one of `ends` to name where one is asked for; None if there are none."""
        return max(self.ends - {self.begin} or self.ends, default=None)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The tokens of `text` alone; what looks like a special token in it is plain text.

        A lone surrogate, which no UTF-8 can hold, becomes U+FFFD.

        Raises:
            UserError: the text has a character that the vocabulary cannot spell.
        """

    def unknown(self, text: str) -> set[str]:
        """The characters of `text` that the vocabulary cannot spell."""
        return set()

    @abstractmethod
    def __eq__(self, other: object) -> bool:
        """Whether every text has the same tokens in both: equal pieces, merged in the same order.

        Special tokens, which no text becomes, do not count.
        """

    @abstractmethod
    def to_bytes(self) -> bytes:
        """The content of its file."""

    def encode_prompt(self, text: str | None) -> list[int]:
        """The tokens that a model is given so that it continues `text`; None begins a new text.

        Raises:
            UserError: `text` is empty, or has a character that the vocabulary cannot spell.
        """
        if text is None:
            return [self.begin]
        if not text:
            raise UserError("the prompt is empty; give some text, or leave the prompt out")
        tokens = self.encode(text)
        return [self.begin, *tokens] if self.adds_begin else tokens

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`; bytes that are not UTF-8 become U+FFFD.

        Raises:
            UserError: a token is outside the vocabulary.
        """
        return "".join(self.stream(tokens))

    def stream(self, tokens: Iterable[int], previous: int | None = None) -> Iterator[str]:
        """The text of `tokens`, piece by piece as they come.

        A token that ends inside a character is held back until the character or the text ends.

        Args:
            previous: the token before these; None means that a text begins here.

        Raises:
            UserError: a token is outside the vocabulary.
        """
        decoder = Decoder(self, previous)
        for token in tokens:
            if text := decoder.feed(token):
                yield text
        if text := decoder.finish():
            yield text

    def _bytes_of(self, token: int, previous: int | None) -> bytes:
        """The bytes of a token that comes after `previous`."""
        if not 0 <= token < self.vocab_size:
            raise UserError(
                f"token {token} is outside the vocabulary of {self.vocab_size} tokens; "
                "use the tokenizer the model was trained with"
            )
        return self._token_bytes[token]

    def byte_lengths(self) -> list[int]:
        """How many bytes of a text each token stands for; a special one stands for none."""
        special = set(self.special.values())
        # Behind itself, and so not at the beginning of a text, where a blank may be dropped.
        tokens = range(self.vocab_size)
        return [0 if token in special else len(self._bytes_of(token, token)) for token in tokens]

    def save(self, path: str | Path) -> None:
        """Write its file; under its own name it is complete or not there."""
        with replacing(Path(path)) as file:
            file.write(self.to_bytes())


class Pieces(Sequence[bytes]):
    """What tokens stand for, one behind the other in one string, and found by their hashes.

    For Gemma's 262,144 tokens this takes 6 MB, where a list and a dict would take 33.

    Args:
        pieces: of all tokens.
        hidden: tokens that are not to be found.
    """

    def __init__(self, pieces: Sequence[bytes], hidden: Collection[int] = ()):
        self._data, self._hidden = b"".join(pieces), hidden
        self._starts = array("I", accumulate(map(len, pieces), initial=0))
        hashes = np.fromiter(map(hash, pieces), np.int64, len(pieces))
        # Views, since single numbers of an array would be NumPy's, and slow to compare.
        self._tokens = memoryview(hashes.argsort().astype(np.int32))
        hashes.sort()
        self._hashes = memoryview(hashes)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, token: int) -> bytes:
        return self._data[self._starts[token] : self._starts[token + 1]]

    def find(self, piece: bytes) -> int | None:
        """The token that stands for this, if there is one."""
        wanted, hashes = hash(piece), self._hashes
        for place in range(bisect_left(hashes, wanted), bisect_right(hashes, wanted)):
            token = self._tokens[place]
            if self[token] == piece and token not in self._hidden:
                return token
        return None

    def found(self) -> dict[bytes, int]:
        """All that `find` finds."""
        return {each: token for token, each in enumerate(self) if token not in self._hidden}


class WordTokenizer(Tokenizer):
    """A tokenizer that encodes a text word by word, and a frequent word only once.

    Args:
        added: tokens that are cut out of a text before, at each place the longest.
    """

    def __init__(self, added: Mapping[str, int]):
        self.added = added
        self._cut = re.compile(f"({longest_of({*added} - {''})})")
        self._encode_word = lru_cache(maxsize=1 << 16)(self._encode_word)

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = []
        for number, part in enumerate(self._cut.split(self.normalise(without_surrogates(text)))):
            if number % 2:  # between the others, what was found
                tokens.append(self.added[part])
            else:
                for word in self.words_of(part):
                    tokens += self._encode_word(word)
        return tokens

    def normalise(self, text: str) -> str:
        """What is encoded in the place of a text."""
        return text

    @abstractmethod
    def words_of(self, text: str) -> list[str]:
        """The words of a text without added tokens."""

    @abstractmethod
    def _encode_word(self, word: str) -> list[int]:
        """The tokens of a word."""


class Decoder:
    """What `Tokenizer.stream` uses, for who gets the tokens of several texts in turn."""

    def __init__(self, tokenizer: Tokenizer, previous: int | None = None):
        self.tokenizer, self.previous = tokenizer, previous
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """The text that is complete with this token; it may be empty."""
        data = self.tokenizer._bytes_of(token, self.previous)
        self.previous = token
        return self._decoder.decode(data, final=token in self.tokenizer.ends)

    def finish(self) -> str:
        """What a character that was cut short leaves."""
        return self._decoder.decode(b"", final=True)
