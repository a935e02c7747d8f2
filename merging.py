"""Byte-pair merging: neighbouring tokens become one, and which ones do is learnt from a text.

Before, a text is cut where nothing can be merged.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from itertools import pairwise

from tqdm import tqdm

Pair = tuple[int, int]


def merge(tokens: list[int], find: Callable[[Pair], tuple[float, int] | None]) -> list[int]:
    """`tokens` after the best pair was merged, again and again; the leftmost of equals comes first.

    Args:
        tokens: of one word; none is negative.
        find: gives for a pair its cost, of which the lowest is the best, and the token it becomes;
            or None, if it is not merged.
    """
    # A linked list; the -1 behind its end is also what index -1 finds before its start.
    count = len(tokens)
    tokens = [*tokens, -1]
    before, after = list(range(-1, count)), [*range(1, count + 1), count]
    # The best pair is on top. Pairs that a merge has broken stay in the heap, and are known by
    # their tokens no longer being there.
    heap = []

    def consider(left: int) -> None:
        pair = tokens[left], tokens[after[left]]
        if -1 not in pair and (found := find(pair)):
            cost, joined = found
            heappush(heap, (cost, left, pair, joined))

    for left in range(count):
        consider(left)
    while heap:
        _, left, pair, joined = heappop(heap)
        right = after[left]
        if (tokens[left], tokens[right]) == pair:
            tokens[left], tokens[right] = joined, -1
            after[left] = after[right]
            before[after[right]] = left
            consider(before[left])
            consider(left)
    return [token for token in tokens if token >= 0]


def words_between(pieces: Iterable[bytes]) -> re.Pattern[str]:
    """Finds a text in parts that can be merged one by one, since no piece reaches across two.

    A part is some blanks and what follows, up to the next blank. It goes on behind a character that
    has a blank behind it in a piece.
    """
    inside = (piece.decode(errors="replace") for piece in pieces if b" " in piece[1:])
    before = {each for piece in inside for each in re.findall("[^ ](?= )", piece)}
    more = f"(?:(?<=[{''.join(map(re.escape, sorted(before)))}]) +[^ ]*)*" if before else ""
    return re.compile(f" *[^ ]+{more}| +")


def longest_of(texts: set[str], depth: int = 40) -> str:
    """A pattern for the longest of these texts that begins at a place.

    It is a tree by their first characters, of some depth: to try thousands of texts one after the
    other at each place of a text takes a hundred times as long.
    """
    if not texts:
        return "(?!)"
    if not depth:
        return f"(?:{'|'.join(map(re.escape, sorted(texts, key=len, reverse=True)))})"
    behind: dict[str, set[str]] = {}
    for text in texts - {""}:
        behind.setdefault(text[0], set()).add(text[1:])
    branches = [re.escape(first) + longest_of(rest, depth - 1) for first, rest in behind.items()]
    return f"(?:{'|'.join(branches)})" + "?" * ("" in texts)


def learn_merges(words: Sequence[bytes], counts: Sequence[int], num_merges: int) -> list[Pair]:
    """The pairs to merge, best first: the most frequent, and of these that of the smallest tokens.

    The tokens are the 256 bytes, and the pair at place i becomes token 256 + i. There are fewer
    where no pair occurs twice any more.

    Args:
        words: across which no pair reaches.
        counts: how often each word occurs.

    Source: Sennrich et al. 2016 (arXiv 1508.07909), Algorithm 1, on bytes.
    """
    spellings = [list(word) for word in words]
    pair_counts: Counter[Pair] = Counter()
    holders = defaultdict(set)  # pair -> indices of the words that hold it, or once did
    for index, spelling in enumerate(spellings):
        for pair in pairwise(spelling):
            pair_counts[pair] += counts[index]
            holders[pair].add(index)

    merges: list[Pair] = []
    ids = range(256, 256 + num_merges)
    for merged in tqdm(ids, desc="merging pairs", disable=None, leave=False):
        highest = max(pair_counts.values(), default=0)
        if highest < 2:
            break
        best = min(pair for pair, count in pair_counts.items() if count == highest)
        merges.append(best)
        for index in holders.pop(best):
            for pair in pairwise(spellings[index]):
                pair_counts[pair] -= counts[index]
            spellings[index] = _replace(spellings[index], best, merged)
            for pair in pairwise(spellings[index]):
                pair_counts[pair] += counts[index]
                holders[pair].add(index)
        del pair_counts[best]
    return merges


def _replace(spelling: list[int], pair: Pair, merged: int) -> list[int]:
    """`spelling` with every `pair` in it, from left to right, replaced by `merged`."""
    result: list[int] = []
    for token in spelling:
        if result and (result[-1], token) == pair:
            result[-1] = merged
        else:
            result.append(token)
    return result
