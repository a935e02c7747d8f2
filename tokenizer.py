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
import json
import math
import re
import struct
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import regex
import tiktoken

import own_imports
from errors import RunError, UserError
from files import without_surrogates
from merging import learn_merges, merge, words_between
from vocabulary import Decoder, Pieces, Tokenizer, WordTokenizer

__all__ = [  # what other people's scripts import from here
    "BytePairTokenizer",
    "CharTokenizer",
    "Decoder",
    "LlamaTokenizer",
    "Tokenizer",
    "train_bpe",
]

END_OF_TEXT = "<|endoftext|>"

# Words as GPT-2 splits them, in tiktoken's spelling, which finds the same words faster.
GPT2_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
)
# Characters of white space. Only `\s+(?!\S)` makes tiktoken's pattern engine remember every step,
# and it gives up after too many.
LONGEST_GAP = 1000

# The types of the pieces of Llama's kind, by SentencePiece's numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPECIAL_PIECES = [b"<unk>", b"<s>", b"</s>"]
BYTE_PIECES = [b"<0x%02X>" % byte for byte in range(256)]
# How Llama's vocabulary begins; pieces of texts follow.
LAYOUT = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
NEVER = -1e10  # run.c looks for a score above it, so a piece of this one is never merged

# Control tokens of these names end a text or a turn of a chat, whatever else does.
END_NAMES = [END_OF_TEXT, "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>"]
END_NAMES += ["<end_of_turn>"]
# A token of such a name is for control, also where a file calls it text: who could write it in a
# message would speak for another. llama.cpp's rule, too, and Gemma's file has <start_of_turn> so.
CONTROL_NAME = re.compile(r"<\|.*\|>|<(start|end)_of_turn>", re.DOTALL)


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


class LlamaTokenizer(WordTokenizer):
    """Llama's kind: pieces with scores, as SentencePiece trains them and llama2.c stores them.

    Args:
        pieces: what every token is called: a piece of texts is the bytes it stands for, the 256
            single bytes are `<0x00>` to `<0xFF>`, and control tokens have names such as `<s>`.
        scores: the score of every token; of two possible merges, the one to the higher comes first.
        types: the type of every token; by default `<unk>`, `<s>` and `</s>` come first, then the
            bytes, then pieces of texts, but for those of the score -inf, which are control tokens.
            User-defined ones are cut out of a text before anything is merged, at each place the
            longest.
        begin, end: the tokens that begin and end a text.
        adds_begin: as for every tokenizer.

    Beside `begin` and `end`, the control tokens that are in `END_NAMES` end a text.

    Source: llama2.c, run.c and tokenizer.py; Kudo and Richardson 2018 (arXiv 1808.06226);
    SentencePiece, bpe_model.cc.
    """

    file_name = "tokenizer.bin"
    begin, end = 1, 2  # in Llama itself
    drops_blank = True  # when decoding, in front of a text

    def __init__(
        self,
        pieces: Sequence[bytes],
        scores: Sequence[float],
        types: Sequence[int] | None = None,
        begin: int = 1,
        end: int = 2,
        adds_begin: bool = True,
    ):
        # As arrays these take a fifth of the memory that lists take.
        self.scores = array("f", scores)
        self.types = array("B", types or types_in_llama(scores))
        self.vocab_size = len(pieces)
        self.begin, self.end, self.adds_begin = begin, end, adds_begin
        known: dict[int, dict[bytes, int]] = {kind: {} for kind in range(UNKNOWN, BYTE + 1)}
        others = {token for token, kind in enumerate(self.types) if kind != NORMAL}
        for token in sorted(others):
            known[self.types[token]][pieces[token]] = token
        self._byte_tokens = [known[BYTE][name] for name in BYTE_PIECES]
        super().__init__(_by_name(known[USER_DEFINED]))
        self.special = _by_name(known[UNKNOWN] | known[CONTROL])
        by_name = (self.special[name] for name in END_NAMES if name in self.special)
        self.ends = frozenset({begin, end, *by_name})

        self.pieces = self._token_bytes = Pieces(pieces, hidden=others)
        self._bytes_of_others = {
            token: bytes([byte]) for byte, token in enumerate(self._byte_tokens)
        }
        self._bytes_of_others |= {begin: b"", end: b""}
        self._pattern = words_between(
            piece for token, piece in enumerate(pieces) if token not in others
        )

    def normalise(self, text: str) -> str:
        """It has a blank in front."""
        return f" {text}" if text else ""

    def words_of(self, text: str) -> list[str]:
        return self._pattern.findall(text)

    def _encode_word(self, word: str) -> list[int]:
        """The tokens of `word`: one per character, then the best pair merged, again and again."""
        tokens = []
        for character in map(str.encode, word):
            known = self.pieces.find(character)
            tokens += [self._byte_tokens[byte] for byte in character] if known is None else [known]
        return merge(tokens, self._merge_of)

    def _merge_of(self, pair: tuple[int, int]) -> tuple[float, int] | None:
        """What `merge` asks. A table of all pairs would have half a million of Gemma's."""
        left, right = pair
        if self.types[left] == self.types[right] == NORMAL:
            token = self.pieces.find(self.pieces[left] + self.pieces[right])
            if token is not None and self.scores[token] > NEVER:
                return -self.scores[token], token
        return None

    def merges(self) -> list[tuple[int, int]]:
        """The pairs of tokens that are merged, in order: by scores, as Hugging Face ranks them.

        Of equal scores the longest halves come first, which in a run of blanks are the leftmost.

        Source: transformers, convert_slow_tokenizer.py, generate_merges.
        """
        costs: dict[tuple[int, int], float] = {}
        tokens = self.pieces.found()
        for text, joined in tokens.items():
            halves = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
            for left, right in halves if self.scores[joined] > NEVER else ():
                if left in tokens and right in tokens:
                    costs[tokens[left], tokens[right]] = -self.scores[joined]

        def place(pair: tuple[int, int]) -> tuple[float, int, int]:
            left, right = (len(self.pieces[token].decode(errors="replace")) for token in pair)
            return costs[pair], -left, -right

        return sorted(costs, key=place)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, LlamaTokenizer)
            and self.pieces.found() == other.pieces.found()
            and self._byte_tokens == other._byte_tokens
            and self.added == other.added
            and (self.scores == other.scores or self.merges() == other.merges())
        )

    def _bytes_of(self, token: int, previous: int | None) -> bytes:
        """As for every tokenizer, but without the blank that `encode` put in front of the text."""
        piece = self._bytes_of_others.get(token, super()._bytes_of(token, previous))
        begins = self.drops_blank and previous in (None, self.begin)
        return piece.removeprefix(b" ") if begins else piece

    def to_bytes(self) -> bytes:
        """The longest piece's length, then every token's score, length and bytes: llama2.c's.

        It holds none but the types, the begin and the end that are so by default.
        """
        names = [*self.pieces]
        names[1:3] = b"\n<s>\n", b"\n</s>\n"
        behind = zip(self.scores, self.types, strict=True)
        scores = [-math.inf if kind == CONTROL else score for score, kind in behind]
        scores[: len(LAYOUT)] = self.scores[: len(LAYOUT)]
        records = (
            struct.pack("<fI", score, len(name)) + name
            for score, name in zip(scores, names, strict=True)
        )
        return struct.pack("<I", max(map(len, names))) + b"".join(records)


def types_in_llama(scores: Sequence[float]) -> list[int]:
    """The types of tokens laid out as in Llama; of the score -inf are control tokens."""
    behind = scores[len(LAYOUT) :]
    return [*LAYOUT, *(CONTROL if score == -math.inf else NORMAL for score in behind)]


def _by_name(tokens: Mapping[bytes, int]) -> dict[str, int]:
    return {name.decode(errors="replace"): token for name, token in tokens.items()}


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
