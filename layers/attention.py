"""Causal multi-head attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2).

    scores = q k^T / sqrt(head_size)      probs = softmax(scores)      out = probs v

A query attends to the keys up to its own position. The probabilities are never stored: a tile of
them is made in the forward pass, and made again in the backward pass from the row-wise log-sum-exp,
so that memory grows with T and not with T^2 (Dao 2023, arXiv 2307.08691, sections 2.3 and 3.1).
"""

import functools
import math

import numpy as np

from layers.tiles import run_tiles, slices, tile_count

# Queries that share one product with the keys: with fewer, the products are too small to be fast;
# with more, more of the masked half is computed for nothing. Measured: 32 and 128 are slower.
QUERIES = 64


def attention_forward(
    out: np.ndarray,
    lse: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    start: int = 0,
) -> None:
    """out[t] = sum over s <= start + t of softmax_s(q[t] . k[s] / sqrt(D)) v[s], for each b and h.

    All but `lse` may be strided views, for example of one (N, 3C) projection.

    Args:
        out: (B, T, H, D), written.
        lse: (B, H, T), written; log-sum-exp of each query's scores, saved for the backward pass.
        q: (B, T, H, D): T queries at the positions start, start + 1, ...
        k: (B, S, H, D) with S >= start + T.
        v: (B, S, H, D).
        start: how many earlier positions k and v hold.
    """
    B, T, H, _ = q.shape
    out, q, k, v = (heads_first(x) for x in (out, q, k, v))

    def work(tile: tuple[int, slice, slice]) -> None:
        b, heads, queries = tile
        past = slice(0, start + queries.stop)
        probs = _scores(q[b, heads, queries], k[b, heads, past])
        largest = probs.max(axis=-1, keepdims=True)
        probs -= largest
        np.exp(probs, out=probs)
        total = np.einsum("hqk->hq", probs)[..., None]  # three times as fast as probs.sum(-1)
        tile_out = out[b, heads, queries]
        np.matmul(probs, v[b, heads, past], out=tile_out)
        tile_out /= total
        lse[b, heads, queries] = (largest + np.log(total))[..., 0]

    run_tiles(
        work,
        [
            (b, heads, queries)
            for queries in _query_slices(T)
            for b in range(B)
            for heads in _head_slices(H, T, start + T)
        ],
        products=True,
    )


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
    """The gradients of q, k and v, for start = 0. Derived in lessons/08.

        dv      = probs^T dout
        dprobs  = dout v^T
        dscores = probs (dprobs - the sum of probs dprobs over each query's keys)
        dq      = dscores k / sqrt(D)
        dk      = dscores^T q / sqrt(D)

    The sum in the third line is dout . out of that query, because out = probs v (Dao et al. 2022,
    arXiv 2205.14135, appendix B.2), so no row of probs needs to be whole.

    Args:
        dq, dk, dv: (B, T, H, D), written.
        dout: (B, T, H, D).
        q, k, v: (B, T, H, D), the inputs of the forward pass.
        out: (B, T, H, D), its output.
        lse: (B, H, T), saved by it.
    """
    B, T, H, D = q.shape
    scale = 1 / math.sqrt(D)
    dq, dk, dv, dout, q, k, v, out = (heads_first(x) for x in (dq, dk, dv, dout, q, k, v, out))

    def work(tile: tuple[int, slice]) -> None:
        b, heads = tile
        # The last queries see every key, so they assign dk and dv; the earlier ones add.
        for queries in reversed(_query_slices(T)):
            past = slice(0, queries.stop)
            tile_q, tile_dout = q[b, heads, queries], dout[b, heads, queries]
            probs = _scores(tile_q, k[b, heads, past])
            probs -= lse[b, heads, queries, None]
            np.exp(probs, out=probs)
            dscores = tile_dout @ v[b, heads, past].swapaxes(1, 2)
            dscores -= np.vecdot(tile_dout, out[b, heads, queries])[..., None]
            dscores *= probs
            dscores *= scale
            np.matmul(dscores, k[b, heads, past], out=dq[b, heads, queries])
            if queries.stop == T:
                np.matmul(dscores.swapaxes(1, 2), tile_q, out=dk[b, heads])
                np.matmul(probs.swapaxes(1, 2), tile_dout, out=dv[b, heads])
            else:
                dk[b, heads, past] += dscores.swapaxes(1, 2) @ tile_q
                dv[b, heads, past] += probs.swapaxes(1, 2) @ tile_dout

    run_tiles(
        work,
        [(b, heads) for b in range(B) for heads in _head_slices(H, T, T)],
        products=True,
    )


def heads_first(x: np.ndarray) -> np.ndarray:
    """(B, T, H, D) -> (B, H, T, D), a view: each head's rows become a matrix."""
    return x.transpose(0, 2, 1, 3)


def _scores(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """q k^T / sqrt(D), and -inf where the key comes after the query.

    q: (h, Q, D), k: (h, K, D) -> (h, Q, K). The last key is at the last query's position.
    """
    queries, head_size = q.shape[1:]
    scores = (q * (1 / math.sqrt(head_size))) @ k.swapaxes(1, 2)
    scores[..., -queries:] += _future(queries)
    return scores


@functools.cache
def _future(queries: int) -> np.ndarray:
    """(Q, Q): -inf where the key comes after the query, 0 elsewhere."""
    return np.triu(np.full((queries, queries), -np.inf, np.float32), k=1)


def _query_slices(T: int) -> list[slice]:
    return slices(T, -(-T // QUERIES))


def _head_slices(H: int, T: int, keys: int) -> list[slice]:
    return slices(H, tile_count(H * min(T, QUERIES) * keys))
