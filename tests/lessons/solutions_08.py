"""What a learner may write in lesson 08, right and wrong."""

import numpy as np


def on_paper():
    return np.array([-1.0, 1.5, -0.5])


def attention_dv(dout, probs, v):
    return np.einsum("ts,td->sd", probs, dout)  # (T, T), (T, D) -> (T, D)


def attention_dprobs(dout, probs, v):
    return np.einsum("td,sd->ts", dout, v)  # (T, D), (T, D) -> (T, T)


def attention_dscores(dprobs, probs):
    dscores = np.empty_like(probs)
    for t in range(len(probs)):
        row_sum = np.dot(probs[t], dprobs[t])  # (T,) . (T,) -> ()
        dscores[t] = probs[t] * dprobs[t] - row_sum * probs[t]  # (T,)
    return dscores


def attention_dq_dk(dscores, q, k):
    dproducts = dscores / np.sqrt(q.shape[1])  # (T, T)
    return dproducts @ k, dproducts.T @ q  # (T, T) @ (T, D) -> (T, D), twice


def attention_backward(dout, q, k, v):
    T, D = q.shape
    scores = np.where(np.tri(T, dtype=bool), q @ k.T / D**0.5, -np.inf)  # (T, T)
    probs = np.exp(scores - scores.max(axis=1, keepdims=True))  # (T, T)
    probs /= probs.sum(axis=1, keepdims=True)
    dprobs = dout @ v.T  # (T, D) @ (D, T) -> (T, T)
    dscores = probs * (dprobs - np.sum(probs * dprobs, axis=1, keepdims=True))  # (T, T)
    dq = dscores @ k / D**0.5  # (T, T) @ (T, D) -> (T, D)
    dk = dscores.T @ q / D**0.5  # (T, T) @ (T, D) -> (T, D)
    return dq, dk, probs.T @ dout


def row_sums(dout, out):
    return np.einsum("td,td->t", dout, out)  # (T, D), (T, D) -> (T,)


def block_backward(dk, dv, dout, q, k, v, out, lse):
    (R, D), S = q.shape, len(k)
    scores = q @ k.T / np.sqrt(D)  # (R, D) @ (D, S) -> (R, S)
    later = np.arange(S) > np.arange(S - R, S)[:, None]  # (R, S)
    probs = np.where(later, 0, np.exp(scores - lse[:, None]))  # (R, S)
    dscores = probs * (dout @ v.T - np.sum(dout * out, axis=1)[:, None])  # (R, S)
    dk += dscores.T @ q / np.sqrt(D)  # (S, R) @ (R, D) -> (S, D)
    dv += probs.T @ dout  # (S, R) @ (R, D) -> (S, D)
    return dscores @ k / np.sqrt(D), dk, dv  # (R, S) @ (S, D) -> (R, D)


# --- wrong


def make_probs(q, k, scaled=True, masked=True):
    T, D = q.shape
    scores = q @ k.T / (np.sqrt(D) if scaled else 1)
    if masked:
        scores[np.triu_indices(T, 1)] = -np.inf
    probs = np.exp(scores)
    return probs / probs.sum(axis=1, keepdims=True)


def finish(dout, q, k, v, probs, power=1):
    """dq, dk and dv from probs, with that power of the scale."""
    scale = q.shape[1] ** (-power / 2)
    dprobs = dout @ v.T
    dscores = probs * (dprobs - (probs * dprobs).sum(1, keepdims=True)) * scale
    return dscores @ k, dscores.T @ q, probs.T @ dout


def on_paper_first_term():
    return np.array([0.5, 0.25, 0.25]) * np.array([0, 8, 0])


def on_paper_plain_mean():
    return np.array([0.5, 0.25, 0.25]) * (np.array([0, 8, 0]) - 8 / 3)


def on_paper_without_probs():
    return np.array([0, 8, 0]) - 2


def attention_dv_not_transposed(dout, probs, v):
    return probs @ dout


def attention_dv_mean(dout, probs, v):
    return (probs.T / len(probs)) @ dout


def attention_dprobs_transposed(dout, probs, v):
    return v @ dout.T


def attention_dprobs_masked(dout, probs, v):
    return np.where(probs > 0, dout @ v.T, 0)


def attention_dscores_first_term(dprobs, probs):
    return probs * dprobs


def attention_dscores_over_queries(dprobs, probs):
    return probs * (dprobs - np.sum(probs * dprobs, axis=0, keepdims=True))


def attention_dscores_without_keepdims(dprobs, probs):
    return probs * (dprobs - np.sum(probs * dprobs, axis=1))


def attention_dscores_plain_sum(dprobs, probs):
    return probs * (dprobs - np.sum(dprobs, axis=1, keepdims=True))


def attention_dscores_sign(dprobs, probs):
    return probs * (np.sum(probs * dprobs, axis=1, keepdims=True) - dprobs)


def attention_dscores_without_probs(dprobs, probs):
    return dprobs - np.sum(probs * dprobs, axis=1, keepdims=True)


def attention_dscores_diagonal(dprobs, probs):
    return dprobs * (probs - probs**2)


def attention_dq_dk_without_scale(dscores, q, k):
    return dscores @ k, dscores.T @ q


def attention_dq_dk_scaled_twice(dscores, q, k):
    scaled = dscores / np.sqrt(q.shape[1])
    return scaled @ k / np.sqrt(q.shape[1]), scaled.T @ q / np.sqrt(q.shape[1])


def attention_dq_dk_only_dk_scaled_twice(dscores, q, k):
    scale = q.shape[1] ** -0.5
    return dscores @ k * scale, dscores.T @ (q * scale) * scale


def attention_dq_dk_swapped(dscores, q, k):
    scale = q.shape[1] ** -0.5
    return dscores.T @ q * scale, dscores @ k * scale


def attention_dq_dk_not_transposed(dscores, q, k):
    scale = q.shape[1] ** -0.5
    return dscores @ k * scale, dscores @ q * scale


def attention_dq_dk_other_factor(dscores, q, k):
    scale = q.shape[1] ** -0.5
    return dscores @ q * scale, dscores.T @ k * scale


def attention_dq_dk_wrong_size(dscores, q, k):
    scale = len(q) ** -0.5
    return dscores @ k * scale, dscores.T @ q * scale


def attention_backward_without_scale(dout, q, k, v):
    return finish(dout, q, k, v, make_probs(q, k), power=0)


def attention_backward_scaled_twice(dout, q, k, v):
    return finish(dout, q, k, v, make_probs(q, k), power=2)


def attention_backward_scores_without_scale(dout, q, k, v):
    return finish(dout, q, k, v, make_probs(q, k, scaled=False))


def attention_backward_without_mask(dout, q, k, v):
    return finish(dout, q, k, v, make_probs(q, k, masked=False))


def attention_backward_swapped(dout, q, k, v):
    dq, dk, dv = finish(dout, q, k, v, make_probs(q, k))
    return dk, dq, dv


def attention_backward_dv_not_transposed(dout, q, k, v):
    probs = make_probs(q, k)
    dq, dk, _ = finish(dout, q, k, v, probs)
    return dq, dk, probs @ dout


def attention_backward_first_term(dout, q, k, v):
    probs = make_probs(q, k)
    dscores = probs * (dout @ v.T) / np.sqrt(q.shape[1])
    return dscores @ k, dscores.T @ q, probs.T @ dout


def attention_backward_without_softmax(dout, q, k, v):
    dscores = dout @ v.T / np.sqrt(q.shape[1])
    return dscores @ k, dscores.T @ q, make_probs(q, k).T @ dout


def attention_backward_order(dout, q, k, v):
    probs, dprobs = make_probs(q, k), dout @ v.T
    dscores = dprobs * (probs - (probs * dprobs).sum(1, keepdims=True)) / np.sqrt(q.shape[1])
    return dscores @ k, dscores.T @ q, probs.T @ dout


def row_sums_over_queries(dout, out):
    return np.sum(dout * out, axis=0)


def row_sums_of_all_pairs(dout, out):
    return dout @ out.T


def block(dk, dv, dout, q, k, v, out, shift, masked=True, power=1):
    """A block with something else than lse subtracted, or without the mask."""
    (R, D), S = q.shape, len(k)
    scores = q @ k.T / np.sqrt(D)
    if masked:
        scores = np.where(np.tri(R, S, S - R, dtype=bool), scores, -np.inf)
    probs = np.exp(scores - (scores.max(1) if shift is None else shift)[:, None])
    dscores = probs * (dout @ v.T - (dout * out).sum(1)[:, None]) * D ** (-power / 2)
    return dscores @ k, dk + dscores.T @ q, dv + probs.T @ dout


def block_backward_without_mask(dk, dv, dout, q, k, v, out, lse):
    return block(dk, dv, dout, q, k, v, out, lse, masked=False)


def block_backward_lse_sign(dk, dv, dout, q, k, v, out, lse):
    return block(dk, dv, dout, q, k, v, out, -lse)


def block_backward_largest(dk, dv, dout, q, k, v, out, lse):
    return block(dk, dv, dout, q, k, v, out, None)


def block_backward_without_scale(dk, dv, dout, q, k, v, out, lse):
    return block(dk, dv, dout, q, k, v, out, lse, power=0)


def block_backward_first_term(dk, dv, dout, q, k, v, out, lse):
    return block(dk, dv, dout, q, k, v, 0 * out, lse)


def block_backward_assigned(dk, dv, dout, q, k, v, out, lse):
    return block(np.zeros_like(dk), np.zeros_like(dv), dout, q, k, v, out, lse)


MISTAKES = [
    (on_paper_first_term, "the second term of the softmax Jacobian"),
    (on_paper_plain_mean, "each dprob counts with its probability"),
    (on_paper_without_probs, "The last step is missing"),
    (attention_dv_not_transposed, "probs has to be transposed"),
    (attention_dv_mean, "what they ask of it adds up: sum"),
    (attention_dprobs_transposed, "dprobs is transposed"),
    (attention_dprobs_masked, "exercise 4 multiplies by a probability of 0"),
    (attention_dscores_first_term, "the second term of the softmax Jacobian"),
    (attention_dscores_over_queries, "over the queries. Each query has a softmax of its own"),
    (attention_dscores_without_keepdims, "They belong to rows: use keepdims=True"),
    (attention_dscores_without_probs, "The last step is missing: multiply by probs"),
    (attention_dscores_diagonal, "only the Jacobian's diagonal"),
    (attention_dscores_plain_sum, "sum probs * dprobs"),
    (attention_dscores_sign, "dscores is right up to a factor of -1: look at the signs"),
    (attention_dq_dk_without_scale, "dk is right up to a factor: 1/sqrt(head_size) is missing"),
    (
        attention_dq_dk_scaled_twice,
        "dk is right up to a factor 1/sqrt(head_size): did you apply it twice?",
    ),
    (attention_dq_dk_only_dk_scaled_twice, "dq is right.\n  dk is right up to a factor 1/sqrt"),
    (attention_dq_dk_swapped, "You swapped dq and dk"),
    (attention_dq_dk_not_transposed, "dscores has to be transposed"),
    (attention_dq_dk_other_factor, "q and k have changed places"),
    (attention_dq_dk_wrong_size, "You divided by sqrt(T)"),
    (attention_backward_without_scale, "dq is right up to a factor: 1/sqrt(head_size) is missing"),
    (attention_backward_scaled_twice, "did you apply it twice?"),
    (attention_backward_scores_without_scale, "1/sqrt(head_size) in the recomputed scores"),
    (attention_backward_without_mask, "the mask in the recomputed probabilities"),
    (attention_backward_swapped, "You swapped dq and dk"),
    (attention_backward_dv_not_transposed, "probs has to be transposed"),
    (attention_backward_first_term, "the second term of the softmax Jacobian"),
    (attention_backward_without_softmax, "You left out the softmax"),
    (attention_backward_order, "attention_dscores takes dprobs first"),
    (row_sums_over_queries, "Each query has a row of its own"),
    (row_sums_of_all_pairs, "which is the diagonal"),
    (block_backward_without_mask, "the mask in the recomputed probabilities"),
    (block_backward_lse_sign, "The sign of lse is wrong"),
    (block_backward_largest, "lse, which the forward pass saved, does both at once"),
    (block_backward_without_scale, "dq and dk lack a factor"),
    (block_backward_first_term, "the second term of the softmax Jacobian"),
    (block_backward_assigned, "you assigned them"),
]
