"""The exercises of lesson 12, text to tokens."""

from collections.abc import Callable
from itertools import pairwise

from exercises import Exercise, Grader

Pair = tuple[int, int]


def utf8(code_point: int) -> list[int]:
    if code_point < 128:
        return [code_point]
    count = 2 if code_point < 2048 else 3 if code_point < 65536 else 4
    first = {2: 192, 3: 224, 4: 240}[count]
    rest = [128 + (code_point >> 6 * i) % 64 for i in reversed(range(count - 1))]
    return [first + (code_point >> 6 * (count - 1)), *rest]


def count_pairs(tokens: list[int]) -> dict[Pair, int]:
    counts: dict[Pair, int] = {}
    for pair in pairwise(tokens):
        counts[pair] = counts.get(pair, 0) + 1
    return counts


def merge(tokens: list[int], pair: Pair, new: int) -> list[int]:
    result, position = [], 0
    while position < len(tokens):
        if tuple(tokens[position : position + 2]) == pair:
            result.append(new)
            position += 2
        else:
            result.append(tokens[position])
            position += 1
    return result


def encode_word(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    return join(word, ranks, min)


def join(word: bytes, ranks: dict[bytes, int], choose: Callable) -> list[int]:
    """The tokens of a word, where `choose` picks one of [(rank, position), ...] again and again."""
    pieces = [bytes([byte]) for byte in word]
    while True:
        unions = [pieces[i] + pieces[i + 1] for i in range(len(pieces) - 1)]
        found = [(ranks[union], i) for i, union in enumerate(unions) if union in ranks]
        if not found:
            return [ranks[piece] for piece in pieces]
        _, i = choose(found)
        pieces[i : i + 2] = [unions[i]]


# Mistakes


def unmarked(code_point: int) -> list[int]:
    return [utf8(code_point)[0], *(byte - 128 for byte in utf8(code_point)[1:])]


def backwards(code_point: int) -> list[int]:
    return utf8(code_point)[::-1]


def always_marked(code_point: int) -> list[int]:
    return utf8(code_point) if code_point > 127 else [192, 128 + code_point]


def upper_bits_left(code_point: int) -> list[int]:
    *first, last = utf8(code_point)
    upper = [128 + (code_point >> 6 * i) for i in range(len(first) - 1, 0, -1)]
    return [*first[:1], *upper, last]


def pairs_apart(tokens: list[int]) -> dict[Pair, int]:
    counts: dict[Pair, int] = {}
    for i in range(0, len(tokens) - 1, 2):
        pair = tokens[i], tokens[i + 1]
        counts[pair] = counts.get(pair, 0) + 1
    return counts


def pairs_without_order(tokens: list[int]) -> dict[Pair, int]:
    counts: dict[Pair, int] = {}
    for pair, count in count_pairs(tokens).items():
        pair = min(pair), max(pair)
        counts[pair] = counts.get(pair, 0) + count
    return counts


def merge_by_one(tokens: list[int], pair: Pair, new: int) -> list[int]:
    """Goes on by one where it should go on by two."""
    return [new if tuple(tokens[i : i + 2]) == pair else token for i, token in enumerate(tokens)]


def merge_once(tokens: list[int], pair: Pair, new: int) -> list[int]:
    for i in range(len(tokens) - 1):
        if (tokens[i], tokens[i + 1]) == pair:
            return [*tokens[:i], new, *tokens[i + 2 :]]
    return tokens


def merge_inside(tokens: list[int], pair: Pair, new: int) -> list[int]:
    """Loses the last token."""
    return merge(tokens, pair, new)[: -1 if tuple(tokens[-2:]) != pair else None]


def longest_first(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    tokens, position = [], 0
    while position < len(word):
        end = max(e for e in range(position + 1, len(word) + 1) if word[position:e] in ranks)
        tokens.append(ranks[word[position:end]])
        position = end
    return tokens


def leftmost_first(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    return join(word, ranks, lambda found: min(found, key=lambda item: item[1]))


def one_pass(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Goes from left to right, once."""
    pieces = [bytes([byte]) for byte in word]
    for i in range(len(pieces)):
        if b"".join(pieces[i : i + 2]) in ranks:
            pieces[i : i + 2] = [b"".join(pieces[i : i + 2])]
    return [ranks[piece] for piece in pieces]


def joined_once(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    pieces = [bytes([byte]) for byte in word]
    found = [i for i in range(len(word) - 1) if word[i : i + 2] in ranks]
    i = min(found, key=lambda i: ranks[word[i : i + 2]])
    pieces[i : i + 2] = [word[i : i + 2]]
    return [ranks[piece] for piece in pieces]


def highest_first(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    return join(word, ranks, max)


def never_merged(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    return [ranks[bytes([byte])] for byte in word]


BYTES = {bytes([byte]): byte for byte in range(256)}
# bc comes before ab; no merges lead to dabc.
FIRST = BYTES | {b"bc": 256, b"ab": 257, b"cd": 258, b"abcd": 259, b"dabc": 260}
SECOND = BYTES | {b"ll": 256, b"he": 257, b"hell": 258, b"el": 259, b"ello": 260, b"lo": 261}

grade = Grader(
    Exercise(
        utf8,
        # Of what is wrong, the first is shown: the longest has most to go wrong in it.
        [{"code_point": c} for c in (0x1F642, 0x20AC, 0xFC, 0x41, 127, 128, 2047, 2048, 65535)],
        ["bytes"],
        mistakes={
            "The bytes after the first lack their mark: each begins with 10, so add 128.": (
                unmarked
            ),
            "A byte after the first holds six bits only: after // 64 or // 4096 take % 64.": (
                upper_bits_left
            ),
            "The bytes are in the wrong order: the upper bits come first.": backwards,
            "Code points below 128 are one byte, just as they are: ASCII is UTF-8.": always_marked,
        },
    ),
    Exercise(
        count_pairs,
        [{"tokens": [5, 3, 5, 3, 3, 3, 5, 9]}, {"tokens": [1, 2, 1, 1, 2]}, {"tokens": [4]}],
        ["counts"],
        mistakes={
            "You went on by two: every token but the first and the last belongs to two pairs.": (
                pairs_apart
            ),
            "A pair has an order: (3, 5) is not (5, 3).": pairs_without_order,
        },
    ),
    Exercise(
        merge,
        [
            {"tokens": [7, 7, 7, 1, 7, 7], "pair": (7, 7), "new": 256},
            {"tokens": [1, 2, 1, 2, 2, 1], "pair": (1, 2), "new": 300},
            {"tokens": [1], "pair": (1, 2), "new": 300},
        ],
        ["tokens"],
        mistakes={
            "After a merge, go on by two: the right token of the pair is used up.": merge_by_one,
            "You replaced the first pair only; go on to the end.": merge_once,
            "The last token got lost: it can stand alone.": merge_inside,
        },
    ),
    Exercise(
        encode_word,
        [
            {"word": b"abcd", "ranks": FIRST},
            {"word": b"hello", "ranks": SECOND},
            {"word": b"abcbcab", "ranks": FIRST},
            {"word": b"dabcx", "ranks": FIRST},
        ],
        ["tokens"],
        mistakes={
            "You take the longest piece that fits. The order in which merges were learnt decides: "
            "of all neighbours, join those of the lowest rank.": longest_first,
            "You join the leftmost neighbours that are in the table. Of all of them, the lowest "
            "rank comes first.": leftmost_first,
            "You go from left to right and join what is in the table. Of all neighbours, the "
            "lowest rank comes first; then look at all of them again.": one_pass,
            "You stopped after one union. Look at the new neighbours, until none of their unions "
            "is in the table.": joined_once,
            "You join the highest rank first. The lowest was learnt first.": highest_first,
            "These are the single bytes; nothing was joined.": never_merged,
        },
    ),
)
