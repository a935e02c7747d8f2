"""Causal multi-head attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2).

    scores = q k^T scale      probs = softmax(scores)      out = probs v

A query attends to the keys up to its own position; in a window of W, to the last W of these, its
own counted (Beltagy et al. 2020, arXiv 2004.05150, section 3.1; Jiang et al. 2023, Mistral, arXiv
2310.06825, section 2). Of the keys outside, only those are computed that a neighbour sees. The
scale is 1/sqrt(head_size), if no other is given.

The probabilities are never stored: a tile of them is made in the forward pass, and made again in
the backward pass from the row-wise log-sum-exp, so that memory grows with T and not with T^2 (Dao
2023, arXiv 2307.08691, sections 2.3 and 3.1).

The keys and values may have fewer heads than the queries (Ainslie et al. 2023, arXiv 2305.13245,
section 2.2). Then each serves a group of G = H / K neighbouring query heads: query head h reads
key/value head h // G. All queries of a group are the rows of one product with the keys.

Derived in lessons/08_attention_backward.ipynb.
"""

import functools
import math

import numpy as np

from errors import UserError
from layers.shapes import check_shapes
from layers.tiles import TILE, num_threads, run_products, scratch, slices

# Queries, of all heads in a group, that share one product with the keys: with fewer, products are
# small, and threads wait for each other between them; with more, more of the masked half is
# computed for nothing. Measured on two threads: with 3 heads in a group 64 take 1.3 times as long,
# and of 256 positions 192 do, too; with one head, 64 to 256 are level.
QUERIES = 128

# The score of a key that is padding. Not -inf: the rows of the padding itself see no other keys,
# and have to stay numbers, because 0 times what is no number is no number.
HIDDEN = -1e30


@check_shapes
def attention_forward(
    out: np.ndarray,
    lse: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    start: int = 0,
    padding: np.ndarray | None = None,
    window: int | None = None,
    scale: float | None = None,
) -> None:
    """out[t] = sum over s of softmax_s(q[t] . k[s] scale) v[s], for each b and h.

    The sum is over p - window < s <= p, where p = start + t is the position of the query.

    All but `lse` may be strided views, for example of one (N, 3C) projection.

    Args:
        out: (B, T, H, D), written.
        lse: (B, H, T), written; log-sum-exp of each query's scores, saved for the backward pass.
        q: (B, T, H, D): T queries at the positions start, start + 1, ...
        k: (B, S, K, D) with S >= start + T, where K divides H.
        v: (B, S, K, D).
        start: how many earlier positions k and v hold.
        padding: (B,), how many of a sequence's first positions hold nothing; none by default.
        window: how many positions a query sees, its own counted; all up to its own by default.
        scale: of the scores; 1/sqrt(D) by default.

    Raises:
        UserError: a shape is another; S is too small, K does not divide H, or a window of nothing.
    """
    B, T, _, D = q.shape
    _, S, K, _ = k.shape
    if not 0 <= start <= S - T:
        raise UserError(
            f"attention_forward: {T} queries from position {start} on are not all among the {S} "
            "positions of k"
        )
    scale = 1 / math.sqrt(D) if scale is None else scale
    out, q = (_groups_first(x, K) for x in (out, q))
    k, v = (_heads_first(x) for x in (k, v))
    G = q.shape[2]
    lse = lse.reshape(B, K, G, T)  # a view, as always where an axis is only split
    blocks = _blocks(T, G, start, window)

    if T == 1 and lse.size * S <= TILE:
        # All keys come before a single query. Of half as many calls, a text's next token takes half
        # the time with few keys, and with 1,000 five sixths.
        ((_, seen),) = blocks
        probs = np.matmul(q * scale, k[:, :, None, seen].mT)
        if padding is not None:
            _hide(probs, seen, padding)
        total, lse[...] = _softmax(probs)
        np.divide(np.matmul(probs, v[:, :, None, seen]), total, out=out)
        return

    def work(tile: tuple[slice, slice, slice, slice]) -> None:
        queries, seen, b, h = tile
        tile_q, tile_k, tile_v = q[b, h, :, queries], k[b, h, seen], v[b, h, seen]
        shape = (*tile_q.shape[:4], tile_k.shape[2])
        scaled, probs, product = scratch(q.dtype, tile_q.shape, shape, tile_q.shape)
        np.multiply(tile_q, scale, out=scaled)
        _scores(probs, scaled, tile_k, window)
        if padding is not None:
            _hide(probs, seen, padding[b])
        total, lse[b, h, :, queries] = _softmax(probs)
        _matmul(probs, tile_v, out=product)
        np.divide(product, total, out=out[b, h, :, queries])

    # Blocks are shared out among threads, too, so that each may have more heads: fewer calls.
    heads = _head_tiles(B, K, G, blocks, 2 * TILE, len(blocks))
    # The blocks with most keys first, so that no thread is left alone with one of them at the end.
    run_products(work, [(*block, *tile) for block in reversed(blocks) for tile in heads])


@check_shapes
def attention_backward(
    dq: np.ndarray,
    dk: np.ndarray,
    dv: np.ndarray,
    dout: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    lse: np.ndarray,
    window: int | None = None,
    scale: float | None = None,
) -> None:
    """The gradients of q, k and v, without earlier positions or padding.

    Dao et al. 2022, arXiv 2205.14135, appendix B.2:

        dv      = probs^T dout
        dprobs  = dout v^T
        dscores = probs (dprobs - the sum of probs dprobs over each query's keys)
        dq      = dscores k scale
        dk      = dscores^T q scale

    The sum in the third line is dout . out of that query, because out = probs v, so no row of
    probs needs to be whole. A key and its value get the sum over the queries that see them, in all
    heads of their group.

    Args:
        dq: (B, T, H, D), written.
        dk, dv: (B, T, K, D), written.
        dout: (B, T, H, D).
        q: (B, T, H, D), as k and v an input of the forward pass.
        k, v: (B, T, K, D).
        out: (B, T, H, D), its output.
        lse: (B, H, T), saved by it.
        window: as in the forward pass.
        scale: likewise.

    Raises:
        UserError: a shape is another, K does not divide H, or a window of nothing.
    """
    B, T, _, D = q.shape
    K = k.shape[2]
    scale = 1 / math.sqrt(D) if scale is None else scale
    dq, dout, q, out = (_groups_first(x, K) for x in (dq, dout, q, out))
    dk, dv, k, v = (_heads_first(x) for x in (dk, dv, k, v))
    G = q.shape[2]
    lse = lse.reshape(B, K, G, T)  # a view, as always where an axis is only split
    blocks = _blocks(T, G, 0, window)

    def work(tile: tuple[slice, slice]) -> None:
        b, h = tile
        dk[b, h] = dv[b, h] = 0
        for queries, seen in blocks:
            tile_q, tile_k, tile_v = q[b, h, :, queries], k[b, h, seen], v[b, h, seen]
            shape = (*tile_q.shape[:4], tile_k.shape[2])
            scaled, tile_dout, probs, dscores, product = scratch(
                q.dtype, tile_q.shape, tile_q.shape, shape, shape, tile_k.shape
            )
            np.multiply(tile_q, scale, out=scaled)
            np.copyto(tile_dout, dout[b, h, :, queries])
            _scores(probs, scaled, tile_k, window)
            probs -= lse[b, h, :, queries, None]
            np.exp(probs, out=probs)
            dv[b, h, seen] += np.matmul(_rows(probs).mT, _rows(tile_dout), out=product)
            _matmul(tile_dout, tile_v.mT, out=dscores)
            dscores -= np.vecdot(tile_dout, out[b, h, :, queries])[..., None]
            dscores *= probs
            dk[b, h, seen] += np.matmul(_rows(dscores).mT, _rows(scaled), out=product)
            tile_dq = tile_dout  # not needed any more
            _matmul(dscores, tile_k, out=tile_dq)
            np.multiply(tile_dq, scale, out=dq[b, h, :, queries])

    run_products(work, _head_tiles(B, K, G, blocks, TILE, 1))


def _groups_first(x: np.ndarray, K: int) -> np.ndarray:
    """(B, T, H, D) -> (B, K, G, T, D), a view: as `_heads_first`, the heads in K groups."""
    B, T, H, D = x.shape
    if H % K:
        raise UserError(f"attention: {K} heads of keys cannot serve {H} of queries in equal groups")
    return x.reshape(B, T, K, H // K, D).transpose(0, 2, 3, 1, 4)


def _heads_first(x: np.ndarray) -> np.ndarray:
    """(B, T, H, D) -> (B, H, T, D), a view: each head's rows become a matrix."""
    return x.transpose(0, 2, 1, 3)


def _rows(x: np.ndarray) -> np.ndarray:
    """(b, h, G, Q, X) -> (b, h, G Q, X), a view of contiguous memory: a group is one matrix."""
    b, h, G, Q, X = x.shape
    return x.reshape(b, h, G * Q, X)


def _matmul(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    """out = x y for all heads of a group. x: (b, h, G, Q, X), y: (b, h, X, Y).

    A single query is multiplied head by head: BLAS has a product of its own for vectors, 1.3 times
    as fast with the keys and twice with the values (measured with groups of 3 and 4).
    """
    if x.shape[3] == 1:
        np.matmul(x, y[:, :, None], out=out)
    else:
        np.matmul(_rows(x), y, out=_rows(out))


def _scores(out: np.ndarray, q: np.ndarray, k: np.ndarray, window: int | None) -> None:
    """out = q k^T, and -inf where the key comes after the query, or before its window.

    out: (b, h, G, Q, S), q: (b, h, G, Q, D), k: (b, h, S, D). The last key is at the last query's
    place. So only the last Q keys can be too late; too early, only those before its window.
    """
    Q, S = out.shape[3:]
    _matmul(q, k.mT, out=out)
    if Q > 1:  # of one alone, no key comes after it
        out[..., -Q:] += _future(Q)
    if window is not None and S > window:
        out[..., : S - window] += _past(Q, S - window)


def _hide(scores: np.ndarray, seen: slice, padding: np.ndarray) -> None:
    """Leave nothing of the scores, (b, h, G, Q, S), of those keys at `seen` that are padding."""
    hidden = np.arange(seen.start, seen.stop) < padding[:, None]
    np.copyto(scores, HIDDEN, where=hidden[:, None, None, None])


def _softmax(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make scores, (b, h, G, Q, S), probabilities, but for a division by their totals.

    Returns:
        The totals, (b, h, G, Q, 1), and the log-sum-exp of the scores, (b, h, G, Q).
    """
    largest = scores.max(axis=-1, keepdims=True)
    scores -= largest
    np.exp(scores, out=scores)
    total = np.einsum("bhgqk->bhgq", scores)[..., None]  # twice as fast as scores.sum(-1)
    return total, (largest + np.log(total))[..., 0]


@functools.cache
def _future(Q: int) -> np.ndarray:
    """(Q, Q): -inf where the key comes after the query, 0 elsewhere."""
    return np.triu(np.full((Q, Q), -np.inf, np.float32), k=1)


@functools.cache
def _past(Q: int, early: int) -> np.ndarray:
    """(Q, early): -inf where the key comes before the query's window, as all do for the last."""
    return np.tril(np.full((Q, early), -np.inf, np.float32), k=early - Q)


def _blocks(T: int, G: int, start: int, window: int | None) -> list[tuple[slice, slice]]:
    """Blocks of queries, and for each the positions of the keys that any of them sees."""
    if window is not None and window < 1:
        raise UserError(f"attention: a window must be at least 1, the own position, not {window}")
    blocks = []
    for queries in slices(T, -(-T * G // QUERIES)):
        first = 0 if window is None else max(0, start + queries.start - window + 1)
        blocks.append((queries, slice(first, start + queries.stop)))
    return blocks


def _head_tiles(
    B: int, K: int, G: int, blocks: list[tuple[slice, slice]], most: int, times: int
) -> list[tuple[slice, slice]]:
    """Slices of the sequences and of their K groups, of at most `most` scores for a block.

    There are enough for every thread, if each stands for `times` pieces of work.
    """
    queries, seen = blocks[-1]
    scores = B * K * G * (queries.stop - queries.start) * (seen.stop - seen.start)
    count = -(-scores // most)
    if scores > TILE // 16:  # for each, D elements are multiplied; for fewer, none is waked
        least = -(-num_threads() // times)
        count = -(-count // least) * least
    sequences = slices(B, count)
    heads = slices(K, -(-count // len(sequences)))
    return [(b, h) for b in sequences for h in heads]
