"""GPT-2's kind of tokenizer in Hugging Face's files: BPE on bytes.

Every byte is spelled as a printable character.

Source of the format: GPT-2, encoder.py.
"""

from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from formats.byte_pairs import byte_characters, merged_last, merges
from formats.tokenizer_json import content_of, cut_added, entry, read_pairs, unlike, vocabulary
from tokenizer import END_OF_TEXT, BytePairTokenizer

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
SPLIT = {
    "type": "Split",
    "pattern": {"Regex": GPT2_PATTERN},
    "behavior": "Isolated",
    "invert": False,
}


def read(content: dict[str, Any], source: str | Path) -> BytePairTokenizer:
    """The tokenizer in a tokenizer.json.

    Raises:
        FormatError: it is damaged, or not laid out like GPT-2's.
    """
    tokens, entries = vocabulary(content, source)
    tokens, added = cut_added(tokens, entries, [END_OF_TEXT], source)
    pairs = read_pairs(entry(content["model"], "merges", list, source), tokens, source)
    steps = {key: content.get(key) for key in ("normalizer", "pre_tokenizer")}
    if not _splits_like_gpt2(**steps):
        raise unlike(source, f"the steps {shortened(steps)} before its model")
    return BytePairTokenizer(ranks_of(tokens, pairs, source), added)


def _splits_like_gpt2(normalizer: Any, pre_tokenizer: Any) -> bool:
    """Whether a text is split into words as GPT-2 does it, and nothing else is done to it."""
    for trim in (True, False):  # about positions in the text, not tokens
        step = BYTE_LEVEL | {"trim_offsets": trim}
        split = {"type": "Sequence", "pretokenizers": [SPLIT, step | {"use_regex": False}]}
        if pre_tokenizer in (step, step | {"use_regex": True}, split):
            return normalizer is None
    return False


def ranks_of(
    tokens: list[str], pairs: list[tuple[str, str]], source: str | Path
) -> dict[bytes, int]:
    """The ranks, if to merge by them is to merge these pairs in this order."""
    if tokens[-1:] != [END_OF_TEXT]:
        raise unlike(source, f"a last token that is not {END_OF_TEXT}")
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}

    def spelled(token: str) -> bytes:
        try:
            return bytes([byte_of[character] for character in token])
        except KeyError:
            raise unlike(
                source, f"the token {shortened(token)}, which does not spell bytes"
            ) from None

    ranks = {spelled(token): rank for rank, token in enumerate(tokens[:-1])}
    for byte, character in enumerate(byte_characters()):
        if bytes([byte]) not in ranks:
            raise unlike(source, f"no token {character} for the byte {byte}")
    if ["".join(pair) for pair in pairs] != [token for token in tokens[:-1] if len(token) > 1]:
        raise unlike(source, "tokens whose ids are not in the order of the merges")
    halves: dict[bytes, tuple[bytes, bytes]] = {}
    for pair in pairs:
        left, right = map(spelled, pair)
        if not merged_last(left, right, ranks, halves):
            raise unlike(source, f"the merge {shortened(pair)}, which other merges make impossible")
        halves[left + right] = left, right
    return ranks


def content(tokenizer: BytePairTokenizer) -> dict[str, Any]:
    """A tokenizer.json."""
    ranks, special = tokenizer.ranks, [END_OF_TEXT, *tokenizer.added]
    characters = byte_characters()

    def spell(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    tokens = [spell(token) for token in sorted(ranks, key=ranks.__getitem__)]
    pairs = [(spell(left), spell(right)) for left, right in merges(ranks)]
    step = BYTE_LEVEL | {"use_regex": True}
    made = content_of([*tokens, *special], pairs, special)
    return made | {"pre_tokenizer": step, "post_processor": step, "decoder": step}
