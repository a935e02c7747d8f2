"""What a learner may write in lesson 10, right and wrong."""

import numpy as np
from exercises.lesson_10 import layernorm, layernorm_backward, softmax


def count_parameters(num_layers, channels, vocab_size, seq_len):
    norms = 2 * channels
    attention = 4 * channels * (channels + 1)
    mlp = 8 * channels * channels + 5 * channels
    embeddings = (vocab_size + seq_len) * channels
    return embeddings + num_layers * (2 * norms + attention + mlp) + norms


def embed_backward(dout, tokens, wte, wpe):
    one_hot = np.eye(len(wte))[tokens]  # (B, T, V)
    dwpe = np.zeros_like(wpe)
    for sequence in dout:
        dwpe[: len(sequence)] += sequence
    return np.einsum("btv,btc->vc", one_hot, dout), dwpe


def classify_backward(dout, x, lnfw, lnfb, wte, targets):
    B, T = targets.shape
    lnf = layernorm(x, lnfw, lnfb)
    dlogits = softmax(lnf @ wte.T)
    for b in range(B):
        for t in range(T):
            dlogits[b, t, targets[b, t]] -= 1
    dlogits *= dout / (B * T)
    dx, dlnfw, dlnfb = layernorm_backward(dlogits @ wte, x, lnfw)
    dwte = dlogits.reshape(B * T, -1).T @ lnf.reshape(B * T, -1)
    return dx, dlnfw, dlnfb, dwte


def first_suspect(errors, tolerance):
    wrong = [name for name, error in errors if not error < tolerance]
    return wrong[-1] if wrong else None


def count_parameters_untied(num_layers, channels, vocab_size, seq_len):
    block = 12 * channels**2 + 13 * channels
    return (2 * vocab_size + seq_len + 2) * channels + num_layers * block


def count_parameters_without_vectors(num_layers, channels, vocab_size, seq_len):
    return (vocab_size + seq_len) * channels + 12 * num_layers * channels**2


def count_parameters_short_vectors(num_layers, channels, vocab_size, seq_len):
    block = 12 * channels**2 + 8 * channels
    return (vocab_size + seq_len + 2) * channels + num_layers * block


def embed_backward_once(dout, tokens, wte, wpe):
    dwte, dwpe = np.zeros_like(wte), np.zeros_like(wpe)
    dwte[tokens] += dout
    dwpe[: tokens.shape[1]] += dout.sum(axis=0)
    return dwte, dwpe


def embed_backward_short(dout, tokens, wte, wpe):
    dwte = np.zeros_like(wte)
    np.add.at(dwte, tokens, dout)
    return dwte, dout.sum(axis=0)


def classify_backward_sum(dout, x, lnfw, lnfb, wte, targets):
    lnf = layernorm(x, lnfw, lnfb)
    dlogits = dout * (softmax(lnf @ wte.T) - np.eye(len(wte))[targets])
    dwte = np.einsum("btv,btc->vc", dlogits, lnf)
    return *layernorm_backward(dlogits @ wte, x, lnfw), dwte


def classify_backward_without_dout(dout, x, lnfw, lnfb, wte, targets):
    lnf = layernorm(x, lnfw, lnfb)
    dlogits = (softmax(lnf @ wte.T) - np.eye(len(wte))[targets]) / targets.size
    dwte = np.einsum("btv,btc->vc", dlogits, lnf)
    return *layernorm_backward(dlogits @ wte, x, lnfw), dwte


def classify_backward_of_x(dout, x, lnfw, lnfb, wte, targets):
    lnf = layernorm(x, lnfw, lnfb)
    dlogits = dout * (softmax(lnf @ wte.T) - np.eye(len(wte))[targets]) / targets.size
    dwte = np.einsum("btv,btc->vc", dlogits, x)
    return *layernorm_backward(dlogits @ wte, x, lnfw), dwte


def classify_backward_at_the_normed(dout, x, lnfw, lnfb, wte, targets):
    _, _, _, dwte = classify_backward(dout, x, lnfw, lnfb, wte, targets)
    lnf = layernorm(x, lnfw, lnfb)
    dlogits = dout * (softmax(lnf @ wte.T) - np.eye(len(wte))[targets]) / targets.size
    return *layernorm_backward(dlogits @ wte, lnf, lnfw), dwte


def first_suspect_forward(errors, tolerance):
    for name, error in errors:
        if not error < tolerance:
            return name
    return None


def first_suspect_without_nan(errors, tolerance):
    for name, error in reversed(errors):
        if error > tolerance:
            return name
    return None


MISTAKES = [
    (count_parameters_untied, "You counted the table twice"),
    (count_parameters_without_vectors, "eight vectors"),
    (count_parameters_short_vectors, "Not all of the eight vectors have C elements"),
    (embed_backward_once, "was counted once"),
    (embed_backward_short, "dwpe has shape (4, 3), and should have (6, 3)"),
    (classify_backward_sum, "1/(B T) is missing"),
    (classify_backward_without_dout, "dout is missing"),
    (classify_backward_of_x, "what wte was multiplied by is lnf"),
    (classify_backward_at_the_normed, "needs the norm's input, which is x"),
    (first_suspect_forward, "backward goes from the end"),
    (first_suspect_without_nan, "NaN is wrong as well"),
]
