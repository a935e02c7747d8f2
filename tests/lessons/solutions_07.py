"""What a learner may write in lesson 07, right and wrong."""

import numpy as np


def causal_softmax(scores):
    probs = np.zeros_like(scores)
    for t in range(len(scores)):
        past = scores[t, : t + 1]  # (t + 1,)
        weights = np.exp(past - past.max())
        probs[t, : t + 1] = weights / weights.sum()
    return probs


def attention(q, k, v):
    T, D = q.shape
    scores = q @ k.T / D**0.5  # (T, D) @ (D, T) -> (T, T)
    scores[np.triu_indices(T, 1)] = -np.inf
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights @ v / weights.sum(1, keepdims=True)  # (T, T) @ (T, D) / (T, 1) -> (T, D)


def multi_head(qkv, num_heads):
    T = len(qkv)
    q, k, v = qkv.reshape(T, 3, num_heads, -1).transpose(1, 2, 0, 3)  # three of (H, T, D)
    scores = q @ k.transpose(0, 2, 1) / q.shape[-1] ** 0.5  # (H, T, D) @ (H, D, T) -> (H, T, T)
    scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ v  # (H, T, T) @ (H, T, D) -> (H, T, D)
    return out.transpose(1, 0, 2).reshape(T, -1)


def by_distance(probs):
    T = len(probs)
    return np.array([sum(probs[t, t - d] for t in range(d, T)) / (T - d) for d in range(T)])


def causal_softmax_masked_late(scores):
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return np.tril(weights / weights.sum(1, keepdims=True))


def causal_softmax_hidden_by_zero(scores):
    scores = np.tril(scores)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def causal_softmax_overflowing(scores):
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.tril(np.exp(scores))
        return weights / weights.sum(1, keepdims=True)


def attention_without_scale(q, k, v):
    weights = np.tril(np.exp(q @ k.T))
    return weights @ v / weights.sum(1, keepdims=True)


def attention_without_square_root(q, k, v):
    weights = np.tril(np.exp(q @ k.T / q.shape[1]))
    return weights @ v / weights.sum(1, keepdims=True)


def attention_without_mask(q, k, v):
    weights = np.exp(q @ k.T / np.sqrt(q.shape[1]))
    return weights @ v / weights.sum(1, keepdims=True)


def attention_scale_late(q, k, v):
    return attention_without_scale(q, k, v) / np.sqrt(q.shape[1])


def attention_mixing_by_columns(q, k, v):
    weights = np.tril(np.exp(q @ k.T / np.sqrt(q.shape[1])))
    return (weights / weights.sum(1, keepdims=True)).T @ v


def multi_head_not_brought_back(qkv, num_heads):
    T = len(qkv)
    q, k, v = qkv.reshape(T, 3, num_heads, -1).transpose(1, 2, 0, 3)
    return np.stack([attention(*head) for head in zip(q, k, v, strict=True)]).reshape(T, -1)


def multi_head_heads_outside(qkv, num_heads):
    T = len(qkv)
    q, k, v = qkv.reshape(T, num_heads, 3, -1).transpose(2, 1, 0, 3)
    out = np.stack([attention(*head) for head in zip(q, k, v, strict=True)])
    return out.transpose(1, 0, 2).reshape(T, -1)


def multi_head_one_reshape(qkv, num_heads):
    T = len(qkv)
    q, k, v = qkv.reshape(3, num_heads, T, -1)
    out = np.stack([attention(*head) for head in zip(q, k, v, strict=True)])
    return out.transpose(1, 0, 2).reshape(T, -1)


def multi_head_without_mask(qkv, num_heads):
    T = len(qkv)
    q, k, v = qkv.reshape(T, 3, num_heads, -1).transpose(1, 2, 0, 3)
    out = np.stack([attention_without_mask(*head) for head in zip(q, k, v, strict=True)])
    return out.transpose(1, 0, 2).reshape(T, -1)


def multi_head_without_scale(qkv, num_heads):
    T = len(qkv)
    q, k, v = qkv.reshape(T, 3, num_heads, -1).transpose(1, 2, 0, 3)
    out = np.stack([attention_without_scale(*head) for head in zip(q, k, v, strict=True)])
    return out.transpose(1, 0, 2).reshape(T, -1)


def by_distance_over_all_queries(probs):
    T = len(probs)
    return np.array([np.trace(probs, -d) / T for d in range(T)])


MISTAKES = [
    (causal_softmax_masked_late, "Hide it before"),
    (causal_softmax_hidden_by_zero, "exp(0) is 1"),
    (causal_softmax_overflowing, "exp of something large"),
    (attention_without_scale, "not divided by sqrt(D)"),
    (attention_without_square_root, "should be by its square root"),
    (attention_without_mask, "There is no mask"),
    (attention_mixing_by_columns, "query t must use row t"),
    (attention_scale_late, "It belongs to the scores"),
    (multi_head_one_reshape, "That reshape mixes tokens"),
    (multi_head_without_mask, "There is no mask"),
    (multi_head_without_scale, "not divided by sqrt(D)"),
    (multi_head_not_brought_back, "(H, T, D) has to become (T, H, D)"),
    (multi_head_heads_outside, "First come all queries"),
    (by_distance_over_all_queries, "Only T - d queries"),
]
