"""BPE on bytes as SmolLM2, Llama 3, Qwen and others have it, and the tokenizer.json that says it.

It is like GPT-2's, but ids may be any, merges have an order of their own, and a text becomes words
by other patterns, of which each parts what the ones before it have left. Only the patterns in
`PATTERNS` are known: they mean here what they mean in the library that reads tokenizer.json, but
for letters and digits that Unicode got last, and none of them takes long on any text.

Where Hugging Face differs: it takes the name of a control token in a text for the token, which is
plain text here; and it leaves out a byte that is no token, where we say which character has it.
llama.cpp does not compose characters, as Qwen's tokenizer does before all else.

Sources: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2;
tokenizers, models/bpe and pre_tokenizers; llama.cpp, src/llama-vocab.cpp.
"""

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import regex

from errors import UserError
from formats.byte_pairs import byte_characters, merged_last, merges
from formats.tokenizer_json import begins_with, content_of, unlike
from merging import merge
from tokenizer import CONTROL_NAME, END_NAMES, END_OF_TEXT, BytePairTokenizer
from vocabulary import Pieces, WordTokenizer

DIGIT = r"\p{N}"
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", DIGIT)


@dataclass(frozen=True)
class Words:
    """How a text becomes words.

    Attributes:
        patterns: each parts every piece that the ones before it have left, at the matches' ends.
        nfc: whether characters are composed before that, as Unicode's form NFC has them.
        whole: whether a word that is a token is that token, however it would be merged.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    whole: bool = False


# By the names that they have in GGUF.
WORDS = {
    "gpt-2": Words((GPT2_PATTERN,)),
    "smollm": Words((DIGIT, GPT2_PATTERN)),
    "llama-bpe": Words((LLAMA3_PATTERN,), whole=True),
    "qwen2": Words((QWEN2_PATTERN,), nfc=True),
    "default": Words((r"[\p{P}\$\+<=>\^~\|]+", GPT2_PATTERN, r"\p{N}+", "[0-9][0-9][0-9]")),
}
PATTERNS = {pattern for words in WORDS.values() for pattern in words.patterns}
COVERING = (GPT2_PATTERN, LLAMA3_PATTERN, QWEN2_PATTERN)  # match every character of a text

# The steps of a tokenizer.json.
NFC = {"type": "NFC"}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

BYTE_OF = {character: byte for byte, character in enumerate(byte_characters())}


class ByteLevelTokenizer(WordTokenizer):
    """Bytes merged by pairs that have ranks of their own.

    Args:
        tokens: the bytes of every token; of a special one, its name.
        merges: the pairs of tokens to merge, best first; what they become is also one.
        words: how a text becomes words.
        special: as in `Tokenizer`.
        added: as in `WordTokenizer`.
        begin, adds_begin: as in `Tokenizer`.
        ends: likewise; the first is `end`, the one to name where one is asked for.
    """

    file_name = "tokenizer.json"
    end: int | None = None

    def __init__(
        self,
        tokens: Sequence[bytes],
        merges: Sequence[tuple[int, int]],
        words: Words,
        special: Mapping[str, int],
        added: Mapping[str, int],
        begin: int,
        adds_begin: bool,
        ends: Sequence[int],
    ):
        super().__init__(added)
        self.merges, self.words, self.special = merges, words, special
        self.begin, self.adds_begin = begin, adds_begin
        self.end, self.ends = next(iter(ends), None), frozenset(ends)
        self.tokens = self._token_bytes = Pieces(tokens, {*special.values(), *added.values()})
        self.vocab_size = len(tokens)
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._patterns = [regex.compile(f"({pattern})") for pattern in words.patterns]
        self._byte_tokens = [self.tokens.find(bytes([byte])) for byte in range(256)]
        self._missing = {byte for byte, token in enumerate(self._byte_tokens) if token is None}

    def words_of(self, text: str) -> list[str]:
        pieces = [unicodedata.normalize("NFC", text) if self.words.nfc else text]
        for pattern in self._patterns:
            pieces = [part for piece in pieces for part in pattern.split(piece) if part]
        return pieces

    def _encode_word(self, word: str) -> list[int]:
        data = word.encode()
        if self.words.whole and (token := self.tokens.find(data)) is not None:
            return [token]
        if unknown := self.unknown(word):
            raise UserError(
                f"the model's vocabulary has no bytes for {min(unknown)!r}; write the text without "
                "that character"
            )
        return merge([self._byte_tokens[byte] for byte in data], self._find)

    def _find(self, pair: tuple[int, int]) -> tuple[int, int] | None:
        """The rank of a pair, and what it becomes."""
        rank = self._ranks.get(pair)
        if rank is None:
            return None
        left, right = pair
        return rank, self.tokens.find(self.tokens[left] + self.tokens[right])

    def unknown(self, text: str) -> set[str]:
        if not self._missing:
            return set()
        return {each for each in set(text) if not self._missing.isdisjoint(each.encode())}

    def __eq__(self, other: object) -> bool:
        return (
            type(other) is type(self)
            and self.tokens.found() == other.tokens.found()
            and self._ranks == other._ranks
            and self.words == other.words
            and self.added == other.added
        )

    def to_bytes(self) -> bytes:
        """A tokenizer.json, in whose model is also, unseen by others, how texts begin and end."""
        made = content(self)
        others = sorted(self.ends - {self.end})
        made["model"] |= {"begin": self.begin, "ends": [self.end, *others] if self.ends else []}
        return json.dumps(made).encode()


def make_tokenizer(
    tokens: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    words: Words,
    special: Mapping[str, int],
    added: Mapping[str, int],
    begin: int | None,
    adds_begin: bool,
    ends: Iterable[int],
    source: str | Path,
) -> BytePairTokenizer | ByteLevelTokenizer:
    """The tokenizer that a file describes; GPT-2's kind, where that does the same.

    Args:
        tokens: all of them, in which characters stand for bytes but in special and added ones.
        pairs: the merges, best first, of tokens to another.
        words, special, added, adds_begin: as in `ByteLevelTokenizer`.
        begin: by default the end of a text, as in GPT-2.
        ends: those that the file names, the usual one first.
        source: what error messages call it.

    Raises:
        FormatError: a token does not spell bytes, or none ends a text.
    """
    special = {
        **special,
        **{name: id_ for name, id_ in added.items() if CONTROL_NAME.fullmatch(name)},
    }
    added = {name: id_ for name, id_ in added.items() if name not in special}
    ends = [*ends, *(id_ for name, id_ in special.items() if name in END_NAMES)]
    if begin is None and not ends:
        raise unlike(source, "no token that ends a text")
    if begin is None:
        begin = special.get(END_OF_TEXT, max(ends))
    ends = list(dict.fromkeys([*ends, begin]))

    ids = {token: id_ for id_, token in enumerate(tokens)}
    named = special.keys() | added.keys()
    spelled = [_spelled(token, token in named, source) for token in tokens]
    # A pair that would become a special token is none: no text may become such.
    pairs = [pair for pair in pairs if named.isdisjoint((*pair, "".join(pair)))]
    # Where every token comes of merging, words that are tokens need no rule of their own.
    gpt2 = replace(words, whole=False) == WORDS["gpt-2"]
    if gpt2 and not (added or adds_begin) and ends == [begin]:
        behind = tokens[begin:]
        if behind[0] == END_OF_TEXT and set(behind) == special.keys():
            ranks = {data: rank for rank, data in enumerate(spelled[:begin])}
            joins = [(spelled[ids[left]], spelled[ids[right]]) for left, right in pairs]
            if _in_order_of_ranks(joins, ranks):
                return BytePairTokenizer(ranks, behind[1:])
    merges = [(ids[left], ids[right]) for left, right in pairs]
    return ByteLevelTokenizer(spelled, merges, words, special, added, begin, adds_begin, ends)


def _spelled(token: str, is_name: bool, source: str | Path) -> bytes:
    """The bytes of a token: its name's own, or those that its characters stand for."""
    try:
        return token.encode() if is_name else bytes(map(BYTE_OF.__getitem__, token))
    except KeyError:
        raise unlike(source, f"the token {shortened(token)}, which does not spell bytes") from None


def _in_order_of_ranks(joins: Sequence[tuple[bytes, bytes]], ranks: Mapping[bytes, int]) -> bool:
    """Whether to merge by ranks, as GPT-2's kind does, is to merge these pairs in this order."""
    if not all(bytes([byte]) in ranks for byte in range(256)):
        return False
    if [left + right for left, right in joins] != [data for data in ranks if len(data) > 1]:
        return False
    halves: dict[bytes, tuple[bytes, bytes]] = {}
    for left, right in joins:
        if not merged_last(left, right, ranks, halves):
            return False
        halves[left + right] = left, right
    return True


def of_ranks(tokenizer: BytePairTokenizer) -> ByteLevelTokenizer:
    """The same tokenizer of GPT-2's kind, but with its merges.

    Raises:
        UserError: there is a token that merging never makes.
    """
    ranks, begin = tokenizer.ranks, tokenizer.begin
    names = map(str.encode, tokenizer.special)
    return ByteLevelTokenizer(
        [*sorted(ranks, key=ranks.__getitem__), *names],
        [(ranks[left], ranks[right]) for left, right in merges(ranks)],
        WORDS["gpt-2"],
        tokenizer.special,
        {},
        begin,
        tokenizer.adds_begin,
        [*tokenizer.ends],
    )


def spelling(tokenizer: ByteLevelTokenizer) -> tuple[list[str], list[tuple[str, str]]]:
    """Its tokens and merges as files have them: characters stand for bytes, but not in names."""
    characters = byte_characters()
    tokens = ["".join(characters[byte] for byte in data) for data in tokenizer.tokens]
    for name, id_ in (*tokenizer.special.items(), *tokenizer.added.items()):
        tokens[id_] = name
    return tokens, [(tokens[left], tokens[right]) for left, right in tokenizer.merges]


def content(tokenizer: ByteLevelTokenizer) -> dict[str, Any]:
    """A tokenizer.json."""
    words, begin = tokenizer.words, tokenizer.begin
    tokens, pairs = spelling(tokenizer)
    made = content_of(tokens, pairs, [*tokenizer.special], [*tokenizer.added])
    made["model"]["ignore_merges"] = words.whole
    # The step that spells bytes has GPT-2's pattern itself.
    has_last = words.patterns[-1] == GPT2_PATTERN
    patterns = words.patterns[:-1] if has_last else words.patterns
    splits = [SPLIT | {"pattern": {"Regex": pattern}} for pattern in patterns]
    last = BYTES | {"use_regex": has_last}
    steps = {"type": "Sequence", "pretokenizers": [*splits, last]}
    return made | {
        "normalizer": NFC if words.nfc else None,
        "pre_tokenizer": steps if splits else last,
        "post_processor": begins_with(tokens[begin], begin) if tokenizer.adds_begin else BYTES,
        "decoder": BYTES,
    }
