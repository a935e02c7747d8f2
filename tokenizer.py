"""Text to tokens and back, and vocabularies of byte pairs made from a text.

GPT-2's kind is one table, {bytes: rank}: 256 single bytes, and for every merge the bytes it joins.
A token's id is its rank, and the one special token, `<|endoftext|>`, comes after the last rank.
`tiktoken` does the encoding. Llama's kind is a list of pieces with scores, where `<s>` begins a
text and `</s>` ends it. The third kind is the simplest: every character is a token.

Handled: GPT-2's vocabulary, plain bytes, vocabularies trained here on a text of your own, and
Llama's, each also with special tokens behind it, such as `<pad>`; and the characters of a text.
formats/tokenizer_files.py reads them.
Not handled: special tokens in a text, where even `<|endoftext|>` and `<s>` are plain text. Models
that split a text into other words than GPT-2 have another kind: formats/byte_level.py.
"""

import base64
import codecs
import json
import math
import re
import struct
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import regex
import tiktoken

import own_imports
from errors import RunError, UserError
from files import replacing, without_surrogates
from merging import learn_merges, merge

END_OF_TEXT = "<|endoftext|>"

# Words as GPT-2 splits them, in tiktoken's spelling, which finds the same words faster.
GPT2_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
)
# Characters of white space. Only `\s+(?!\S)` makes tiktoken's pattern engine remember every step,
# and it gives up after too many.
LONGEST_GAP = 1000

# Llama's tokens: <unk>, <s> and </s>, then the 256 bytes, spelled like this, then pieces of texts.
FIRST_BYTE, FIRST_PIECE = 3, 259
SPECIAL_PIECES = [b"<unk>", b"\n<s>\n", b"\n</s>\n"]
BYTE_PIECES = [b"<0x%02X>" % byte for byte in range(256)]


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

    def save(self, path: str | Path) -> None:
        """Write its file; under its own name it is complete or not there."""
        with replacing(Path(path)) as file:
            file.write(self.to_bytes())


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


class BytePairTokenizer(Tokenizer):
    """GPT-2's kind: a table of byte-pair ranks.

    Args:
        ranks: {bytes: rank}, the ranks being 0, 1, 2, ...
        added: special tokens behind `<|endoftext|>`, such as `<pad>`.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
    """

    file_name = "tokenizer.tiktoken"

    def __init__(self, ranks: dict[bytes, int], added: Sequence[str] = ()):
        self.ranks, self.added = ranks, added
        self.begin = len(ranks)
        self.ends = frozenset({self.begin})
        names = [END_OF_TEXT, *added]
        self.special = {name: token for token, name in enumerate(names, start=self.begin)}
        self._token_bytes = [*sorted(ranks, key=ranks.__getitem__), *map(str.encode, names)]
        self.vocab_size = len(self._token_bytes)
        self._encoding = tiktoken.Encoding(
            "llm.np",
            pat_str=GPT2_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: self.begin},
        )

    def encode(self, text: str) -> list[int]:
        encode = self._encoding.encode_ordinary if len(text) < LONGEST_GAP else self._encode_long
        try:
            return encode(text)
        except BaseException as error:
            # When the engine gives up after all, Python is told by no Exception, of no public name.
            if type(error).__name__ != "PanicException":
                raise
            raise RunError(
                f"tiktoken gave up on a text of {len(text):,} characters ({error}); cut it into "
                "shorter documents"
            ) from None

    def _encode_long(self, text: str) -> list[int]:
        """The tokens of `text`, of which long gaps do not pass through tiktoken's engine.

        A gap is a word by itself, but for its last character where something follows: that begins
        the next word or is one. Nor does any word begin before a gap and end in it, so that the
        text before, the gap and the text from its last character on can be encoded one by one.
        """
        tokens, start = [], 0
        for gap in _long_gaps(text):
            tokens += self._encoding.encode_ordinary(text[start : gap.start()])
            start = gap.end() - (gap.end() < len(text))
            tokens += self._encoding._encode_single_piece(text[gap.start() : start])
        return tokens + self._encoding.encode_ordinary(text[start:])

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.ranks == other.ranks

    def to_bytes(self) -> bytes:
        """A line `base64 rank` per token, ranks in order: tiktoken's own format.

        The special tokens follow only where there are others than `<|endoftext|>`.
        """
        tokens = self._token_bytes if self.added else self._token_bytes[: self.begin]
        return b"".join(
            b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens)
        )


def _long_gaps(text: str) -> Iterator[regex.Match]:
    """All that are twice as long as `LONGEST_GAP`, and others that are longer than it."""
    # To look at every character would make encoding take a sixth longer.
    windows = (text[i : i + LONGEST_GAP] for i in range(0, len(text), LONGEST_GAP))
    if any(map(str.isspace, windows)):
        yield from regex.finditer(rf"\s{{{LONGEST_GAP},}}", text)


class LlamaTokenizer(Tokenizer):
    """Llama's kind: pieces with scores, as SentencePiece trains them and llama2.c stores them.

    Args:
        pieces: the bytes of every token: `<unk>`, `<s>` and `</s>`, then `<0x00>` to `<0xFF>`,
            which stand for single bytes, then pieces of texts.
        scores: the score of every token; of two possible merges, the one to the higher comes first.
            A piece of the score -inf is a special token, such as `<pad>`.

    Source: llama2.c, run.c and tokenizer.py; Kudo and Richardson 2018 (arXiv 1808.06226).
    """

    file_name = "tokenizer.bin"
    begin, end = 1, 2
    adds_begin = True
    ends = frozenset({begin, end})
    drops_blank = True  # when decoding, in front of a text

    def __init__(self, pieces: list[bytes], scores: list[float]):
        self.pieces, self.scores = pieces, scores
        self.vocab_size = len(pieces)
        single_bytes = [bytes([byte]) for byte in range(256)]
        self._token_bytes = [pieces[0], b"", b"", *single_bytes, *pieces[FIRST_PIECE:]]

        self.special = {"<unk>": 0, "<s>": self.begin, "</s>": self.end}
        self._tokens: dict[bytes, int] = {}
        for token, text in enumerate(pieces[FIRST_PIECE:], start=FIRST_PIECE):
            if scores[token] == -math.inf:
                self.special[text.decode(errors="replace")] = token
            else:
                self._tokens[text] = token
        self._merges: dict[tuple[int, int], tuple[float, int]] = {}
        for joined, token in self._tokens.items():
            for cut in range(1, len(joined)):
                pair = self._tokens.get(joined[:cut]), self._tokens.get(joined[cut:])
                # run.c looks for a score above -1e10, so a piece below it is never merged.
                if None not in pair and scores[token] > -1e10:
                    self._merges[pair] = -scores[token], token

        # Where no piece has a blank after something else, no merge crosses such a place. A text
        # can then be encoded word by word, and a frequent word needs the work only once.
        crossed = any(re.search(rb"[^ ] ", text) for text in self._tokens)
        self._words = re.compile("(?s:.+)" if crossed else " *[^ ]+| +")
        self._encode_word = lru_cache(maxsize=1 << 16)(self._encode_word)

    def encode(self, text: str) -> list[int]:
        words = self._words.findall(self.normalise(without_surrogates(text)))
        return [token for word in words for token in self._encode_word(word)]

    def normalise(self, text: str) -> str:
        """What is encoded in the place of a text: it has a blank in front."""
        return f" {text}" if text else ""

    def _encode_word(self, word: str) -> list[int]:
        """The tokens of `word`: one per character, then the best pair merged, again and again."""
        tokens = []
        for character in map(str.encode, word):
            known = self._tokens.get(character)
            tokens += [FIRST_BYTE + byte for byte in character] if known is None else [known]
        return merge(tokens, self._merges)

    def merges(self) -> list[tuple[int, int]]:
        """The pairs of tokens that are merged, in order: by scores, as Hugging Face ranks them.

        Of equal scores the longest halves come first, which in a run of blanks are the leftmost.

        Source: transformers, convert_slow_tokenizer.py, generate_merges.
        """

        def place(pair: tuple[int, int]) -> tuple[float, int, int]:
            left, right = (len(self.pieces[token].decode(errors="replace")) for token in pair)
            return self._merges[pair][0], -left, -right

        return sorted(self._merges, key=place)

    def __eq__(self, other: object) -> bool:
        return (
            type(other) is type(self)
            and self._tokens == other._tokens
            and self.merges() == other.merges()
        )

    def _bytes_of(self, token: int, previous: int | None) -> bytes:
        """As for every tokenizer, but without the blank that `encode` put in front of the text."""
        piece = super()._bytes_of(token, previous)
        begins = self.drops_blank and previous in (None, self.begin)
        return piece.removeprefix(b" ") if begins else piece

    def to_bytes(self) -> bytes:
        """The longest piece's length, then every token's score, length and bytes: llama2.c's."""
        records = (
            struct.pack("<fI", score, len(piece)) + piece
            for score, piece in zip(self.scores, self.pieces, strict=True)
        )
        return struct.pack("<I", max(map(len, self.pieces))) + b"".join(records)


class CharTokenizer(Tokenizer):
    """The characters of a text, as nanoGPT's character models have them: no token is special.

    A text begins after a line end, or, where no character is one, after the first of them. Nothing
    ends it.

    Args:
        characters: the characters in the order of their tokens, each once.

    Source: nanoGPT, data/shakespeare_char/prepare.py.
    """

    file_name = "characters.json"
    ends = frozenset()
    special = MappingProxyType({})

    def __init__(self, characters: str):
        self.characters = characters
        self.vocab_size = len(characters)
        self._tokens = {character: token for token, character in enumerate(characters)}
        self._token_bytes = [character.encode() for character in characters]
        self.begin = self._tokens.get("\n", 0)

    def unknown(self, text: str) -> set[str]:
        return set(text) - self._tokens.keys()

    def encode(self, text: str) -> list[int]:
        try:
            return [self._tokens[character] for character in without_surrogates(text)]
        except KeyError as error:
            raise UserError(
                f"the model's vocabulary of {self.vocab_size} characters has no {error}; write the "
                "text without it"
            ) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharTokenizer) and self.characters == other.characters

    def to_bytes(self) -> bytes:
        """The characters as one JSON string."""
        return json.dumps(self.characters).encode()


def train_bpe(texts: str | Iterable[str], num_merges: int) -> BytePairTokenizer:
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
    spellings = [word.encode("utf-8", errors="replace") for word in words]
    tokens = [bytes([byte]) for byte in range(256)]
    for left, right in learn_merges(spellings, list(words.values()), num_merges):
        tokens.append(tokens[left] + tokens[right])
    return BytePairTokenizer({token: rank for rank, token in enumerate(tokens)})
