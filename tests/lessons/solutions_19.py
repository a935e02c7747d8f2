"""What a learner may write in lesson 19, right and wrong."""

import numpy as np


def sees(T, window):
    visible = np.zeros((T, T), bool)
    for t in range(T):
        visible[t, max(0, t - window + 1) : t + 1] = True
    return visible


def window_backward(dout, q, k, v, window):
    T, D = q.shape
    distance = np.arange(T)[:, None] - np.arange(T)  # (T, T)
    scores = np.where((distance >= 0) & (distance < window), q @ k.T / D**0.5, -np.inf)
    probs = np.exp(scores - scores.max(axis=1, keepdims=True))  # (T, T)
    probs /= probs.sum(axis=1, keepdims=True)
    row_sum = ((probs @ v) * dout).sum(axis=1, keepdims=True)  # (T, 1): dout . out
    dscores = probs * (dout @ v.T - row_sum) / D**0.5  # (T, T)
    return dscores @ k, dscores.T @ q, probs.T @ dout


def window_count(T, window):
    return sum(min(t + 1, window) for t in range(T))


def norm_rotate_backward(dout, x, weight, angles):
    turned = (dout.view(complex) * np.exp(-1j * angles)[:, None]).view(float)  # (B, T, H, D)
    rstd = (np.mean(x * x, axis=-1, keepdims=True) + 1e-6) ** -0.5  # (B, T, H, 1)
    dnorm = turned * weight
    dx = dnorm * rstd - x * rstd**3 * np.mean(dnorm * x, axis=-1, keepdims=True)
    return dx, np.einsum("bthd,bthd->d", turned, x * rstd)


def geglu_backward(dout, gate, up):
    inner = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
    t = np.tanh(inner)
    dt = (1 - t * t) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * gate**2)
    return dout * up * (0.5 * (1 + t) + 0.5 * gate * dt), dout * 0.5 * gate * (1 + t)


# --- wrong


def sees_one_more(T, window):
    t, s = np.ogrid[:T, :T]
    return (s <= t) & (t - s <= window)


def sees_one_less(T, window):
    t, s = np.ogrid[:T, :T]
    return (s <= t) & (s > t - window + 1)


def sees_both_sides(T, window):
    t, s = np.ogrid[:T, :T]
    return abs(t - s) < window


def sees_future(T, window):
    t, s = np.ogrid[:T, :T]
    return s > t - window


def sees_causal(T, window):
    return np.tri(T, dtype=bool)


def sees_hidden(T, window):
    t, s = np.ogrid[:T, :T]
    return (s > t) | (s <= t - window)


def sees_columns(T, window):
    s, t = np.ogrid[:T, :T]
    return (s <= t) & (s > t - window)


def sees_infinite(T, window):
    return np.where(sees(T, window), 0, -np.inf)


def probs_of(q, k, window, causal=True, windowed=True, scale=True, hidden=-np.inf):
    t, s = np.ogrid[: len(q), : len(q)]
    seen = ((s <= t) | (not causal)) & ((s > t - window) | (not windowed))
    scores = q @ k.T * (q.shape[1] ** -0.5 if scale else 1)
    exps = np.exp(np.where(seen, scores, hidden))
    return exps / exps.sum(1, keepdims=True)


def finish(dout, q, k, v, probs):
    dprobs = dout @ v.T
    dscores = probs * (dprobs - (dprobs * probs).sum(1, keepdims=True)) * q.shape[1] ** -0.5
    return dscores @ k, dscores.T @ q, probs.T @ dout


def window_backward_causal_only(dout, q, k, v, window):
    return finish(dout, q, k, v, probs_of(q, k, window, windowed=False))


def window_backward_future(dout, q, k, v, window):
    return finish(dout, q, k, v, probs_of(q, k, window, causal=False))


def window_backward_no_mask(dout, q, k, v, window):
    return finish(dout, q, k, v, probs_of(q, k, window, causal=False, windowed=False))


def window_backward_one_more(dout, q, k, v, window):
    return finish(dout, q, k, v, probs_of(q, k, window + 1))


def window_backward_one_less(dout, q, k, v, window):
    return finish(dout, q, k, v, probs_of(q, k, window - 1))


def window_backward_zeros(dout, q, k, v, window):
    return finish(dout, q, k, v, probs_of(q, k, window, hidden=0))


def window_backward_masked_after(dout, q, k, v, window):
    probs = probs_of(q, k, window, windowed=False)
    t, s = np.ogrid[: len(q), : len(q)]
    return finish(dout, q, k, v, probs * (s > t - window))


def window_backward_all_masked_after(dout, q, k, v, window):
    probs = probs_of(q, k, window, causal=False, windowed=False)
    t, s = np.ogrid[: len(q), : len(q)]
    return finish(dout, q, k, v, probs * ((s > t - window) & (s <= t)))


def window_backward_unscaled_scores(dout, q, k, v, window):
    return finish(dout, q, k, v, probs_of(q, k, window, scale=False))


def window_backward_unscaled(dout, q, k, v, window):
    dq, dk, dv = window_backward(dout, q, k, v, window)
    return dq * np.sqrt(q.shape[1]), dk * np.sqrt(q.shape[1]), dv


def window_backward_no_scale_at_all(dout, q, k, v, window):
    dq, dk, dv = finish(dout, q, k, v, probs_of(q, k, window, scale=False))
    return dq * np.sqrt(q.shape[1]), dk * np.sqrt(q.shape[1]), dv


def window_backward_first_term_one_more(dout, q, k, v, window):
    probs = probs_of(q, k, window + 1)
    dscores = probs * (dout @ v.T) / np.sqrt(q.shape[1])
    return dscores @ k, dscores.T @ q, probs.T @ dout


def window_backward_dk(dout, q, k, v, window):
    probs = probs_of(q, k, window)
    dscores = probs * (dout @ v.T - (dout * (probs @ v)).sum(1)[:, None]) / np.sqrt(q.shape[1])
    return dscores @ k, dscores @ q, probs.T @ dout


def window_backward_dv(dout, q, k, v, window):
    dq, dk, _ = window_backward(dout, q, k, v, window)
    return dq, dk, probs_of(q, k, window) @ dout


def window_backward_swapped(dout, q, k, v, window):
    dq, dk, dv = window_backward(dout, q, k, v, window)
    return dk, dq, dv


def window_backward_infinite_dprobs(dout, q, k, v, window):
    probs = probs_of(q, k, window)
    dprobs = np.where(probs > 0, dout @ v.T, -np.inf)
    with np.errstate(invalid="ignore"):
        dscores = probs * (dprobs - (dprobs * probs).sum(1, keepdims=True)) / np.sqrt(q.shape[1])
    return dscores @ k, dscores.T @ q, probs.T @ dout


def window_backward_over_queries(dout, q, k, v, window):
    exps = np.exp(np.where(sees(len(q), window), q @ k.T / np.sqrt(q.shape[1]), -np.inf))
    return finish(dout, q, k, v, exps / exps.sum(0))


def window_backward_nothing_before_the_softmax(dout, q, k, v, window):
    return finish(dout, q, k, v, probs_of(q, k, window, causal=False, windowed=False, scale=False))


def window_backward_cut_late(dout, q, k, v, window):
    probs, dprobs = probs_of(q, k, window, windowed=False), dout @ v.T
    dscores = probs * (dprobs - (dprobs * probs).sum(1, keepdims=True)) / np.sqrt(q.shape[1])
    dscores[~sees(len(q), window)] = 0
    return dscores @ k, dscores.T @ q, probs.T @ dout


def window_backward_dict(dout, q, k, v, window):
    return dict(zip("qkv", window_backward(dout, q, k, v, window), strict=True))


def window_count_every(T, window):
    return T * window


def window_count_triangle(T, window):
    return T * (T + 1) // 2


def window_count_wide(T, window):
    return window * (window + 1) // 2 + (T - window) * window


def window_count_off_by_one(T, window):
    w = min(T, window)
    return T * w - w * (w + 1) // 2


def window_count_one_less(T, window):
    return sum(min(t + 1, window) - 1 for t in range(T))


def window_count_one_more(T, window):
    return sum(min(t, window) + 1 for t in range(T))


def normed(dout, x, weight, axis=-1):
    """dx and dweight of a norm alone; the statistic runs over these axes."""
    rstd = 1 / np.sqrt((x**2).mean(axis=axis, keepdims=True) + 1e-6)
    norm, dnorm = x * rstd, dout * weight
    dx = rstd * (dnorm - norm * (dnorm * norm).mean(axis=-1, keepdims=True))
    return dx, (dout * norm).sum(axis=(0, 1, 2))


def turned(x, angles, sign=-1):
    return (np.ascontiguousarray(x).view(complex) * np.exp(sign * 1j * angles)[:, None]).view(float)


def norm_rotate_backward_other_order(dout, x, weight, angles):
    dx, dweight = normed(dout, x, weight)
    return turned(dx, angles), dweight


def norm_rotate_backward_unturned(dout, x, weight, angles):
    return normed(dout, x, weight)


def norm_rotate_backward_forwards(dout, x, weight, angles):
    return normed(turned(dout, angles, 1), x, weight)


def norm_rotate_backward_of_rotated(dout, x, weight, angles):
    dx, dweight = normed(dout, turned(x, angles, 1), weight)
    return turned(dx, angles), dweight


def norm_rotate_backward_no_weight(dout, x, weight, angles):
    back = turned(dout, angles)
    return normed(back, x, 1)[0], normed(back, x, weight)[1]


def norm_rotate_backward_all_heads(dout, x, weight, angles):
    return normed(turned(dout, angles), x, weight, axis=(2, 3))


def norm_rotate_backward_direct(dout, x, weight, angles):
    back, rstd = turned(dout, angles), 1 / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return back * weight * rstd, (back * x * rstd).sum((0, 1, 2))


def norm_rotate_backward_direct_forwards(dout, x, weight, angles):
    return norm_rotate_backward_direct(turned(dout, angles, 2), x, weight, angles)


def norm_rotate_backward_mean(dout, x, weight, angles):
    dx, dweight = norm_rotate_backward(dout, x, weight, angles)
    return dx, dweight / (x.size / len(weight))


def norm_rotate_backward_not_summed(dout, x, weight, angles):
    back, rstd = turned(dout, angles), 1 / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return normed(back, x, weight)[0], back * x * rstd


def norm_rotate_backward_heads_apart(dout, x, weight, angles):
    back, rstd = turned(dout, angles), 1 / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return normed(back, x, weight)[0], (back * x * rstd).sum((0, 1))


def norm_rotate_backward_dweight_unturned(dout, x, weight, angles):
    return normed(turned(dout, angles), x, weight)[0], normed(dout, x, weight)[1]


def norm_rotate_backward_rstd(dout, x, weight, angles):
    dx, dweight = norm_rotate_backward(dout, x, weight, angles)
    return dx * np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6), dweight


def norm_rotate_backward_x_for_norm(dout, x, weight, angles):
    back, rstd = turned(dout, angles), 1 / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    dnorm = back * weight
    dx = rstd * (dnorm - x * (dnorm * x).mean(-1, keepdims=True))
    return dx, (back * x * rstd).sum((0, 1, 2))


def norm_rotate_backward_dx_unturned(dout, x, weight, angles):
    return normed(dout, x, weight)[0], normed(turned(dout, angles), x, weight)[1]


def norm_rotate_backward_swapped(dout, x, weight, angles):
    return norm_rotate_backward(dout, x, weight, angles)[::-1]


def tanh_of(gate):
    return np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))


def geglu_backward_silu(dout, gate, up):
    s = 1 / (1 + np.exp(-gate))
    return dout * up * s * (1 + gate * (1 - s)), dout * gate * s


def geglu_backward_silu_slope(dout, gate, up):
    s = 1 / (1 + np.exp(-gate))
    return dout * up * s * (1 + gate * (1 - s)), dout * gate * (1 + tanh_of(gate)) / 2


def geglu_backward_one_term(dout, gate, up):
    t = tanh_of(gate)
    return dout * up * (1 + t) / 2, dout * gate * (1 + t) / 2


def geglu_backward_other_term(dout, gate, up):
    t, slope = tanh_of(gate), np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * gate**2)
    return dout * up * gate / 2 * (1 - t**2) * slope, dout * gate * (1 + t) / 2


def geglu_backward_no_inner(dout, gate, up):
    t = tanh_of(gate)
    return dout * up * ((1 + t) / 2 + gate / 2 * (1 - t**2)), dout * gate * (1 + t) / 2


def geglu_backward_no_three(dout, gate, up):
    t, slope = tanh_of(gate), np.sqrt(2 / np.pi) * (1 + 0.044715 * gate**2)
    return dout * up * ((1 + t) / 2 + gate / 2 * (1 - t**2) * slope), dout * gate * (1 + t) / 2


def geglu_backward_no_square(dout, gate, up):
    t, slope = tanh_of(gate), np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * gate**2)
    return dout * up * ((1 + t) / 2 + gate / 2 * (1 - t) * slope), dout * gate * (1 + t) / 2


def geglu_backward_no_up(dout, gate, up):
    return geglu_backward(dout, gate, np.ones_like(up))


def geglu_backward_swapped(dout, gate, up):
    return geglu_backward(dout, gate, up)[::-1]


def geglu_backward_plain_product(dout, gate, up):
    return geglu_backward(dout, gate, up)[0], dout * gate


def geglu_backward_gelu_twice(dout, gate, up):
    gelu = gate * (1 + tanh_of(gate)) / 2
    return dout * up * gelu, dout * gelu


def geglu_backward_half(dout, gate, up):
    t, slope = tanh_of(gate), np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * gate**2)
    return dout * up * ((1 + t) / 2 + gate * (1 - t**2) * slope), dout * gate * (1 + t) / 2


def geglu_backward_no_gate(dout, gate, up):
    t, slope = tanh_of(gate), np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * gate**2)
    return dout * up * ((1 + t) / 2 + 0.5 * (1 - t**2) * slope), dout * gate * (1 + t) / 2


def geglu_backward_no_up_one_term(dout, gate, up):
    t = tanh_of(gate)
    return dout * (1 + t) / 2, dout * gate * (1 + t) / 2


MISTAKES = [
    (sees_one_more, "one key too many"),
    (sees_one_less, "one key too few"),
    (sees_both_sides, "looks both ways"),
    (sees_future, "Only the window's far end is masked"),
    (sees_causal, "only causal"),
    (sees_hidden, "That is what is hidden"),
    (sees_columns, "Rows are queries"),
    (sees_infinite, "Here True and False are asked"),
    (window_backward_causal_only, "only causal"),
    (window_backward_future, "Only the window's far end is masked"),
    (window_backward_no_mask, "Nothing is masked"),
    (window_backward_one_more, "one key too many"),
    (window_backward_one_less, "one key too few"),
    (window_backward_zeros, "exp(0) is 1"),
    (window_backward_masked_after, "do not add up to 1"),
    (window_backward_all_masked_after, "do not add up to 1. Hide the scores before it"),
    (window_backward_unscaled_scores, "1/sqrt(head_size) in the recomputed scores"),
    (window_backward_unscaled, "dq and dk lack 1/sqrt(head_size)"),
    (window_backward_no_scale_at_all, "Second: dq and dk lack 1/sqrt(head_size)"),
    (window_backward_first_term_one_more, "Second: You forgot the second term of the softmax"),
    (window_backward_dk, "dscores has to be transposed"),
    (window_backward_dv, "probs has to be transposed"),
    (window_backward_swapped, "You swapped dq and dk"),
    (window_backward_infinite_dprobs, "You masked dprobs with -inf"),
    (window_backward_over_queries, "Your softmax runs over the queries"),
    (window_backward_nothing_before_the_softmax, "Second: You forgot 1/sqrt(head_size)"),
    (window_backward_cut_late, "You cut off dscores"),
    (window_backward_dict, "it should return dq, dk, dv; it returned a dict"),
    (window_count_every, "The first window - 1 queries have fewer"),
    (window_count_triangle, "the window is not in it"),
    (window_count_wide, "wider than the text"),
    (window_count_off_by_one, "window (window - 1) / 2"),
    (window_count_one_less, "Each query sees its own position, too"),
    (window_count_one_more, "yours has one more"),
    (norm_rotate_backward_other_order, "The rotation came last, so the way back begins with it"),
    (norm_rotate_backward_unturned, "Nothing is turned back"),
    (norm_rotate_backward_forwards, "You turned forwards once more"),
    (norm_rotate_backward_of_rotated, "the way back of the other order"),
    (norm_rotate_backward_no_weight, "`weight` is missing"),
    (norm_rotate_backward_all_heads, "Each head is normalised by itself"),
    (norm_rotate_backward_direct, "the direct path alone"),
    (norm_rotate_backward_direct_forwards, "First: You turned forwards once more"),
    (norm_rotate_backward_mean, "what they ask of it adds up: sum"),
    (norm_rotate_backward_not_summed, "dweight is not summed"),
    (norm_rotate_backward_heads_apart, "One weight serves every head, too"),
    (norm_rotate_backward_dweight_unturned, "dweight, too, is made of the gradient"),
    (norm_rotate_backward_rstd, "The factor rstd"),
    (norm_rotate_backward_x_for_norm, "you took x where the normalised row belongs"),
    (norm_rotate_backward_dx_unturned, "dx: Nothing is turned back: "),
    (norm_rotate_backward_swapped, "All is right but the order"),
    (geglu_backward_silu, "Second: dup has SiLU of the gate"),
    (geglu_backward_silu_slope, "In dgate the slope is that of SiLU"),
    (geglu_backward_one_term, "the gate is inside of the tanh, too"),
    (geglu_backward_other_term, "only the way through the tanh"),
    (geglu_backward_no_inner, "the inner derivative du/dgate is missing"),
    (geglu_backward_no_three, "the 3 is missing"),
    (geglu_backward_no_square, "yours is 1 - tanh u"),
    (geglu_backward_no_up, "dgate lacks `up`"),
    (geglu_backward_swapped, "They are swapped"),
    (geglu_backward_plain_product, "dup is dout times the gate as it came"),
    (geglu_backward_gelu_twice, "In dgate there is GELU itself"),
    (geglu_backward_half, "1/2 of GELU is missing in the second term"),
    (geglu_backward_no_gate, "the factor gate of the second term"),
    (geglu_backward_no_up_one_term, "Second: dgate lacks `up`"),
]
