"""GPT-2's kind of vocabulary as files of other systems have it: characters for bytes, and merges.

Source: GPT-2, encoder.py.
"""

from collections.abc import Container, Iterator
from functools import cache
from typing import AnyStr

from errors import UserError


@cache
def byte_characters() -> list[str]:
    """The printable character that stands for each of the 256 bytes in GPT-2's files.

    Source: GPT-2, encoder.py, bytes_to_unicode.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The two tokens that each token of several bytes is made of, in order of rank.

    Args:
        ranks: of a `BytePairTokenizer`.

    Raises:
        UserError: there is a token that merging never makes.
    """
    halves: dict[bytes, tuple[bytes, bytes]] = {}
    for token in sorted(ranks, key=ranks.__getitem__):
        for left, right in cuts(token, ranks):
            if merged_last(left, right, ranks, halves):
                halves[token] = left, right
                break
        else:
            if len(token) > 1:
                raise UserError(
                    f"the tokenizer has the token {token!r}, which no merge of two earlier ones "
                    "makes, and such tokens cannot be written; use another tokenizer"
                )
    return list(halves.values())


def cuts(text: AnyStr, tokens: Container[AnyStr]) -> Iterator[tuple[AnyStr, AnyStr]]:
    """All pairs of tokens that are `text` when joined, the shortest left one first."""
    for cut in range(1, len(text)):
        left, right = text[:cut], text[cut:]
        if left in tokens and right in tokens:
            yield left, right


def merged_last(
    left: bytes, right: bytes, ranks: dict[bytes, int], halves: dict[bytes, tuple[bytes, bytes]]
) -> bool:
    """Whether merging makes `left` and `right` of their bytes before it merges across the border.

    The merges are undone here, the last one first. The tokens that then meet at the border must not
    be a pair that comes before the merge just undone: one of a lower rank, or of the same rank but
    further left.

    Args:
        halves: what each token of several bytes is made of; without those that are still to come.
    """
    while left in halves or right in halves:
        left_rank = ranks[left] if left in halves else -1
        right_rank = ranks[right] if right in halves else -1
        if left_rank > right_rank:
            left, limit = halves[left][1], left_rank
        else:
            right, limit = halves[right][0], right_rank + 1
        if ranks.get(left + right, limit) < limit:
            return False
    return len(left) == len(right) == 1
