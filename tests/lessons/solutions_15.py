"""What a learner may write in lesson 15, right and wrong."""

import numpy as np


def rmsnorm_dx(dout, x, weight):
    C = x.shape[1]
    rstd = (np.vecdot(x, x) / C + 1e-5) ** -0.5  # (N,)
    dnorm = dout * weight  # (N, C)
    # x rather than norm: the second term has rstd three times
    return dnorm * rstd[:, None] - x * (np.vecdot(dnorm, x) * rstd**3 / C)[:, None]


def rmsnorm_dx_direct(dout, x, weight):
    return dout * weight / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5)


def rmsnorm_dx_layernorm(dout, x, weight):
    return rmsnorm_dx(dout, x, weight) - (dout * weight).mean(axis=1, keepdims=True) / np.sqrt(
        (x**2).mean(axis=1, keepdims=True) + 1e-5
    )


def rmsnorm_dx_sum(dout, x, weight):
    rstd = 1 / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5)
    norm, dnorm = x * rstd, dout * weight
    return (dnorm - norm * (dnorm * norm).sum(axis=1, keepdims=True)) * rstd


def rmsnorm_dx_without_rstd(dout, x, weight):
    return rmsnorm_dx(dout, x, weight) * np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5)


def rope_dx(dout, x, angles):
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]  # (T, 1, D/2)
    even, odd = dout[..., 0::2], dout[..., 1::2]  # (B, T, H, D/2)
    dx = np.empty_like(dout)
    dx[..., 0::2] = even * cos + odd * sin
    dx[..., 1::2] = odd * cos - even * sin
    return dx


def rope_dx_forwards(dout, x, angles):
    return rope_dx(dout, x, -angles)


def rope_dx_of_x(dout, x, angles):
    return rope_dx(x, x, angles)


def swiglu_backward(dout, gate, up):
    s = 1 / (1 + np.exp(-gate))
    silu = gate * s
    return dout * up * (s + silu * (1 - s)), dout * silu


def swiglu_backward_swapped(dout, gate, up):
    dgate, dup = swiglu_backward(dout, gate, up)
    return dup, dgate


def swiglu_backward_sigmoid(dout, gate, up):
    s = 1 / (1 + np.exp(-gate))
    return dout * up * (s - s**2), dout * gate * s


def swiglu_backward_without_up(dout, gate, up):
    s = 1 / (1 + np.exp(-gate))
    return dout * s * (1 + gate * (1 - s)), dout * gate * s


def repeat_heads_backward(dout, k, G):
    return sum(dout[:, :, g::G] for g in range(G))


def repeat_heads_backward_apart(dout, k, G):
    K = k.shape[2]
    return sum(dout[:, :, g * K : (g + 1) * K] for g in range(G))


def repeat_heads_backward_first(dout, k, G):
    return dout[:, :, ::G]


def repeat_heads_backward_mean(dout, k, G):
    return repeat_heads_backward(dout, k, G) / G


def llama_attention_backward(dout, q, k, v, angles):
    (B, T, H, D), K = q.shape, k.shape[2]
    turn = np.exp(1j * angles)[:, None]  # (T, 1, D/2)
    rotated_q = (q.view(complex) * turn).view(float)
    rotated_k = (k.view(complex) * turn).view(float)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for b in range(B):
        for h in range(H):
            group = h * K // H
            key, value = rotated_k[b, :, group], v[b, :, group]  # (T, D)
            scores = rotated_q[b, :, h] @ key.T / np.sqrt(D)  # (T, D) @ (D, T) -> (T, T)
            weights = np.exp(scores) * np.tri(T)
            probs = weights / weights.sum(axis=1, keepdims=True)
            dprobs = dout[b, :, h] @ value.T  # (T, D) @ (D, T) -> (T, T)
            dscores = probs * (dprobs - (probs * dprobs).sum(axis=1, keepdims=True))
            dq[b, :, h] = dscores @ key / np.sqrt(D)  # (T, T) @ (T, D) -> (T, D)
            dk[b, :, group] += dscores.T @ rotated_q[b, :, h] / np.sqrt(D)
            dv[b, :, group] += probs.T @ dout[b, :, h]  # (T, T) @ (T, D) -> (T, D)
    dq = (dq.view(complex) * turn.conj()).view(float)
    dk = (dk.view(complex) * turn.conj()).view(float)
    return dq, dk, dv


def llama_attention_backward_unturned(dout, q, k, v, angles):
    dq, dk, dv = llama_attention_backward(dout, q, k, v, angles)
    turn = np.exp(1j * angles)[:, None]
    return (dq.view(complex) * turn).view(float), (dk.view(complex) * turn).view(float), dv


def llama_attention_backward_values_turned(dout, q, k, v, angles):
    dq, dk, dv = llama_attention_backward(dout, q, k, v, angles)
    return dq, dk, (dv.view(complex) * np.exp(-1j * angles)[:, None]).view(float)


def llama_attention_backward_forwards(dout, q, k, v, angles):
    dq, dk, dv = llama_attention_backward(dout, q, k, v, angles)
    turn = np.exp(2j * angles)[:, None]
    return (dq.view(complex) * turn).view(float), (dk.view(complex) * turn).view(float), dv


def llama_attention_backward_not_rotated(dout, q, k, v, angles):
    dq, dk, dv = llama_attention_backward(dout, q, k, v, np.zeros_like(angles))
    turn = np.exp(-1j * angles)[:, None]
    return (dq.view(complex) * turn).view(float), (dk.view(complex) * turn).view(float), dv


def llama_attention_backward_scale(dout, q, k, v, angles):
    dq, dk, dv = llama_attention_backward(dout, q, k, v, angles)
    return dq, dk / np.sqrt(q.shape[3]), dv


def cache_bytes(num_layers, num_kv_heads, head_size, positions, bytes_each):
    numbers_of_a_token = (num_kv_heads * head_size) * 2  # keys and values
    return positions * num_layers * numbers_of_a_token * bytes_each


def cache_bytes_keys(num_layers, num_kv_heads, head_size, positions, bytes_each):
    return positions * num_layers * num_kv_heads * head_size * bytes_each


def cache_bytes_numbers(num_layers, num_kv_heads, head_size, positions, bytes_each):
    return positions * num_layers * num_kv_heads * head_size * 2


MISTAKES = [
    (rmsnorm_dx_without_rstd, "The factor rstd in front"),
    (rope_dx_of_x, "You turned x"),
    (llama_attention_backward_forwards, "turned forwards once more"),
    (llama_attention_backward_not_rotated, "has to be given the rotated"),
    (cache_bytes_numbers, "how many numbers are kept"),
    (rmsnorm_dx_direct, "The second term is missing"),
    (rmsnorm_dx_layernorm, "layernorm's third term"),
    (rmsnorm_dx_sum, "The mean square is a mean"),
    (rope_dx_forwards, "You turned forwards once more"),
    (swiglu_backward_swapped, "They are swapped"),
    (swiglu_backward_sigmoid, "silu is a product"),
    (swiglu_backward_without_up, "dgate lacks `up`"),
    (repeat_heads_backward_apart, "the members of a group are neighbours"),
    (repeat_heads_backward_first, "You took one member of each group"),
    (repeat_heads_backward_mean, "what they ask of it adds up: sum"),
    (llama_attention_backward_unturned, "turn them back"),
    (llama_attention_backward_values_turned, "values are never rotated"),
    (llama_attention_backward_scale, "a factor 1/sqrt(D): did you apply it twice?"),
    (cache_bytes_keys, "keys and values are both kept"),
]
