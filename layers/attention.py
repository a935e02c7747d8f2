"""Causal multi-head attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2).

    scores = q k^T / sqrt(head_size)      probs = softmax(scores)      out = probs v

A query attends to the keys up to its own position. The probabilities are never stored: a tile of
them is made in the forward pass, and made again in the backward pass from the row-wise log-sum-exp,
so that memory grows with T and not with T^2 (Dao 2023, arXiv 2307.08691, sections 2.3 and 3.1).

The keys and values may have fewer heads than the queries (Ainslie et al. 2023, arXiv 2305.13245,
section 2.2). Then each serves a group of G = H / K neighbouring query heads: query head h reads
key/value head h // G. Nothing is copied for that; a group's members take their turns.

Derived in lessons/08_attention_backward.ipynb.
"""

import functools
import itertools
import math

import numpy as np

from errors import UserError
from layers.shapes import check_shapes
from layers.tiles import TILE, run_products, scratch, slices, tile_count

# Queries that share one product with the keys: with fewer, the products are too small to be fast;
# with more, more of the masked half is computed for nothing. Measured at T = 256: 32 and 128 are
# slower; at T = 1024, 128 is level.
QUERIES = 64

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
) -> None:
    """out[t] = sum over s <= start + t of softmax_s(q[t] . k[s] / sqrt(D)) v[s], for each b and h.

    All but `lse` may be strided views, for example of one (N, 3C) projection.

    Args:
        out: (B, T, H, D), written.
        lse: (B, H, T), written; log-sum-exp of each query's scores, saved for the backward pass.
        q: (B, T, H, D): T queries at the positions start, start + 1, ...
        k: (B, S, K, D) with S >= start + T, where K divides H.
        v: (B, S, K, D).
        start: how many earlier positions k and v hold.
        padding: (B,), how many of a sequence's first positions hold nothing; none by default.

    Raises:
        UserError: a shape is another; S is too small, or K does not divide H.
    """
    B, T, _, _ = q.shape
    _, S, K, _ = k.shape
    if not 0 <= start <= S - T:
        raise UserError(
            f"attention_forward: {T} queries from position {start} on are not all among the {S} "
            "positions of k"
        )
    out, q = (_groups_first(x, K) for x in (out, q))
    k, v = (_heads_first(x) for x in (k, v))
    G = q.shape[2]
    lse = lse.reshape(B, K, G, T)  # a view, as always where an axis is only split

    def work(tile: tuple[slice, slice, slice]) -> None:
        b, h, queries = tile
        past = slice(0, start + queries.stop)
        tile_k, tile_v = k[b, h, past], v[b, h, past]
        for g in range(G):
            tile_q, tile_out = q[b, h, g, queries], out[b, h, g, queries]
            (probs,) = scratch(q.dtype, (*tile_q.shape[:3], past.stop))
            _scores(probs, tile_q, tile_k)
            if padding is not None:
                hidden = np.arange(past.stop) < padding[b, None]
                np.copyto(probs, HIDDEN, where=hidden[:, None, None])
            largest = probs.max(axis=-1, keepdims=True)
            probs -= largest
            np.exp(probs, out=probs)
            total = np.einsum("bhqk->bhq", probs)[..., None]  # twice as fast as probs.sum(-1)
            np.matmul(probs, tile_v, out=tile_out)
            tile_out /= total
            lse[b, h, g, queries] = (largest + np.log(total))[..., 0]

    tiles = _head_tiles(B, K, min(T, QUERIES) * (start + T))
    run_products(work, [(b, h, rows) for rows in _query_slices(T) for b, h in tiles])


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
) -> None:
    """The gradients of q, k and v, without earlier positions or padding.

    Dao et al. 2022, arXiv 2205.14135, appendix B.2:

        dv      = probs^T dout
        dprobs  = dout v^T
        dscores = probs (dprobs - the sum of probs dprobs over each query's keys)
        dq      = dscores k / sqrt(D)
        dk      = dscores^T q / sqrt(D)

    The sum in the third line is dout . out of that query, because out = probs v, so no row of
    probs needs to be whole. A key and its value get the sum over the queries of their group.

    Args:
        dq: (B, T, H, D), written.
        dk, dv: (B, T, K, D), written.
        dout: (B, T, H, D).
        q: (B, T, H, D), as k and v an input of the forward pass.
        k, v: (B, T, K, D).
        out: (B, T, H, D), its output.
        lse: (B, H, T), saved by it.

    Raises:
        UserError: a shape is another, or K does not divide H.
    """
    B, T, _, D = q.shape
    K = k.shape[2]
    scale = 1 / math.sqrt(D)
    dq, dout, q, out = (_groups_first(x, K) for x in (dq, dout, q, out))
    dk, dv, k, v = (_heads_first(x) for x in (dk, dv, k, v))
    G = q.shape[2]
    lse = lse.reshape(B, K, G, T)  # a view, as always where an axis is only split

    def work(tile: tuple[slice, slice]) -> None:
        b, h = tile
        # The last queries see every key, so the first of them assign dk and dv; all others add.
        for g, queries in itertools.product(range(G), reversed(_query_slices(T))):
            past = slice(0, queries.stop)
            tile_q, tile_dout = q[b, h, g, queries], dout[b, h, g, queries]
            tile_k, tile_v = k[b, h, past], v[b, h, past]
            shape = (*tile_q.shape[:3], past.stop)
            probs, dscores, product = scratch(q.dtype, shape, shape, tile_k.shape)
            _scores(probs, tile_q, tile_k)
            probs -= lse[b, h, g, queries, None]
            np.exp(probs, out=probs)
            np.matmul(tile_dout, tile_v.swapaxes(2, 3), out=dscores)
            dscores -= np.vecdot(tile_dout, out[b, h, g, queries])[..., None]
            dscores *= probs
            dscores *= scale
            np.matmul(dscores, tile_k, out=dq[b, h, g, queries])
            if g == 0 and queries.stop == T:
                np.matmul(dscores.swapaxes(2, 3), tile_q, out=dk[b, h])
                np.matmul(probs.swapaxes(2, 3), tile_dout, out=dv[b, h])
            else:
                dk[b, h, past] += np.matmul(dscores.swapaxes(2, 3), tile_q, out=product)
                dv[b, h, past] += np.matmul(probs.swapaxes(2, 3), tile_dout, out=product)

    run_products(work, _head_tiles(B, K, min(T, QUERIES) * T))


def _groups_first(x: np.ndarray, K: int) -> np.ndarray:
    """(B, T, H, D) -> (B, K, G, T, D), a view: as `_heads_first`, the heads in K groups."""
    B, T, H, D = x.shape
    if H % K:
        raise UserError(f"attention: {K} heads of keys cannot serve {H} of queries in equal groups")
    return x.reshape(B, T, K, H // K, D).transpose(0, 2, 3, 1, 4)


def _heads_first(x: np.ndarray) -> np.ndarray:
    """(B, T, H, D) -> (B, H, T, D), a view: each head's rows become a matrix."""
    return x.transpose(0, 2, 1, 3)


def _scores(out: np.ndarray, q: np.ndarray, k: np.ndarray) -> None:
    """out = q k^T / sqrt(D), and -inf where the key comes after the query.

    out: (b, h, Q, K), q: (b, h, Q, D), k: (b, h, K, D). The last key is at the last query's place.
    """
    queries, head_size = q.shape[2:]
    np.matmul(q, k.swapaxes(2, 3), out=out)
    out *= 1 / math.sqrt(head_size)
    if queries > 1:  # of one alone, no key comes after it
        out[..., -queries:] += _future(queries)


@functools.cache
def _future(queries: int) -> np.ndarray:
    """(Q, Q): -inf where the key comes after the query, 0 elsewhere."""
    return np.triu(np.full((queries, queries), -np.inf, np.float32), k=1)


def _query_slices(T: int) -> list[slice]:
    return slices(T, -(-T // QUERIES))


def _head_tiles(B: int, K: int, scores: int) -> list[tuple[slice, slice]]:
    """Slices of the sequences and of their K heads, each of which has `scores` scores at once."""
    count = tile_count(B * K * scores, worth=TILE // 16)  # for each, D elements are multiplied
    sequences = slices(B, count)
    heads = slices(K, -(-count // len(sequences)))
    return [(b, h) for b in sequences for h in heads]
