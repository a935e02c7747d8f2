"""What a learner may write in lesson 13, right and wrong."""

import math

import numpy as np


def fit(model, optimizer, batches, rates, max_norm):
    result = np.empty((2, len(rates)))
    for i, lr in enumerate(rates):
        model.zero_grad()
        result[0, i] = model.forward(*batches[i])
        model.backward()
        result[1, i] = optimizer.step(lr=lr, max_norm=max_norm)
    return result[0], result[1]


def learning_rates(num_steps, lr, min_lr, warmup):
    rates = []
    for step in range(num_steps):
        if step < warmup:
            rates.append(lr * (step + 1) / warmup)
        else:
            angle = math.pi * (step - warmup) / (num_steps - warmup)
            rates.append(min_lr + (lr - min_lr) / 2 * (1 + math.cos(angle)))
    return np.array(rates)


def smooth(values, beta):
    # The mean with the weights 1, beta, beta^2, ... of the last value, the one before it, ...
    weights = [beta ** np.arange(i, -1, -1) for i in range(len(values))]
    return np.array([w @ values[: len(w)] / w.sum() for w in weights])


def dropout(x, dout, chances, p):
    out, dx = x / (1 - p), dout / (1 - p)
    out[chances < p] = 0
    dx[chances < p] = 0
    return out, dx


def bits_per_byte(loss, num_tokens, num_bytes):
    total_bits = num_tokens * loss * np.log2(np.e)
    return total_bits / num_bytes


def fit_without_zero_grad(model, optimizer, batches, rates, max_norm):
    losses, norms = [], []
    for (tokens, targets), lr in zip(batches, rates, strict=True):
        losses.append(model.forward(tokens, targets))
        model.backward()
        norms.append(optimizer.step(lr=lr, max_norm=max_norm))
    return losses, norms


def fit_without_clipping(model, optimizer, batches, rates, max_norm):
    losses, norms = [], []
    for (tokens, targets), lr in zip(batches, rates, strict=True):
        model.zero_grad()
        losses.append(model.forward(tokens, targets))
        model.backward()
        norms.append(optimizer.step(lr=lr))
    return losses, norms


def fit_stepping_first(model, optimizer, batches, rates, max_norm):
    losses, norms = [], []
    for (tokens, targets), lr in zip(batches, rates, strict=True):
        model.zero_grad()
        losses.append(model.forward(tokens, targets))
        norms.append(optimizer.step(lr=lr, max_norm=max_norm))
        model.backward()
    return losses, norms


def fit_norms_first(model, optimizer, batches, rates, max_norm):
    losses, norms = fit(model, optimizer, batches, rates, max_norm)
    return norms, losses


def fit_with_clipped_norms(model, optimizer, batches, rates, max_norm):
    losses, norms = fit(model, optimizer, batches, rates, max_norm)
    return losses, [min(norm, max_norm) for norm in norms]


def learning_rates_from_zero(num_steps, lr, min_lr, warmup):
    rates = []
    for step in range(num_steps):
        if step < warmup:
            rates.append(lr * step / warmup)
        else:
            angle = math.pi * (step - warmup) / (num_steps - warmup)
            rates.append(min_lr + (lr - min_lr) / 2 * (1 + math.cos(angle)))
    return np.array(rates)


def learning_rates_over_all_steps(num_steps, lr, min_lr, warmup):
    steps = np.arange(num_steps)
    rates = min_lr + (lr - min_lr) / 2 * (1 + np.cos(np.pi * steps / num_steps))
    rates[:warmup] = lr * (steps[:warmup] + 1) / max(1, warmup)
    return rates


def learning_rates_like(s, num_steps, lr, min_lr, warmup, length, factor=0.5):
    if s < warmup:
        return lr * (s + 1) / warmup
    return min_lr + factor * (lr - min_lr) * (1 + math.cos(math.pi * (s - warmup) / length))


def learning_rates_too_slow(num_steps, lr, min_lr, warmup):
    args = num_steps, lr, min_lr, warmup, num_steps
    return np.array([learning_rates_like(s, *args) for s in range(num_steps)])


def learning_rates_to_the_floor(num_steps, lr, min_lr, warmup):
    args = num_steps, lr, min_lr, warmup, num_steps - 1 - warmup
    return np.array([learning_rates_like(s, *args) for s in range(num_steps)])


def learning_rates_not_halved(num_steps, lr, min_lr, warmup):
    args = num_steps, lr, min_lr, warmup, num_steps - warmup, 1
    return np.array([learning_rates_like(s, *args) for s in range(num_steps)])


def smooth_going_on_corrected(values, beta):
    mean, means = 0.0, []
    for s, value in enumerate(values):
        mean = beta * mean + (1 - beta) * value
        mean /= 1 - beta ** (s + 1)
        means.append(mean)
    return means


def smooth_without_correction(values, beta):
    mean, means = 0.0, []
    for value in values:
        mean = beta * mean + (1 - beta) * value
        means.append(mean)
    return np.array(means)


def dropout_not_made_larger(x, dout, chances, p):
    return np.where(chances < p, 0, x), np.where(chances < p, 0, dout)


def dropout_divided_by_p(x, dout, chances, p):
    return np.where(chances < p, 0, x / p), np.where(chances < p, 0, dout / p)


def dropout_of_the_others(x, dout, chances, p):
    return (chances < p) * x / (1 - p), (chances < p) * dout / (1 - p)


def dropout_with_a_whole_gradient(x, dout, chances, p):
    return dropout(x, dout, chances, p)[0], dout / (1 - p)


def dropout_with_a_small_gradient(x, dout, chances, p):
    return dropout(x, dout, chances, p)[0], (chances >= p) * dout


def bits_per_byte_in_nats(loss, num_tokens, num_bytes):
    return loss * num_tokens / num_bytes


def bits_per_byte_upside_down(loss, num_tokens, num_bytes):
    return loss / math.log(2) * num_bytes / num_tokens


MISTAKES = [
    (fit_without_zero_grad, "The gradients of all steps add up"),
    (fit_without_clipping, "The gradients are not clipped"),
    (fit_stepping_first, "before the backward pass"),
    (fit_norms_first, "changed places: the losses"),
    (fit_with_clipped_norms, "the norms after clipping"),
    (learning_rates_from_zero, "the first step is wasted"),
    (learning_rates_over_all_steps, "It begins where the warm-up ends"),
    (learning_rates_too_slow, "takes S - W steps"),
    (learning_rates_to_the_floor, "at the floor already"),
    (learning_rates_not_halved, "twice its height"),
    (smooth_going_on_corrected, "You went on with the corrected mean"),
    (smooth_without_correction, "The correction is missing"),
    (dropout_not_made_larger, "or the mean shrinks"),
    (dropout_divided_by_p, "You divided by p"),
    (dropout_of_the_others, "kept what should be dropped"),
    (dropout_with_a_whole_gradient, "dx is not masked"),
    (dropout_with_a_small_gradient, "dx lacks the factor"),
    (bits_per_byte_in_nats, "divide by log 2"),
    (bits_per_byte_upside_down, "changed places"),
]
