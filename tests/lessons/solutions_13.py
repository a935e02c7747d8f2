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


def smooth_without_correction(values, beta):
    mean, means = 0.0, []
    for value in values:
        mean = beta * mean + (1 - beta) * value
        means.append(mean)
    return np.array(means)


def bits_per_byte_in_nats(loss, num_tokens, num_bytes):
    return loss * num_tokens / num_bytes


def bits_per_byte_upside_down(loss, num_tokens, num_bytes):
    return loss / math.log(2) * num_bytes / num_tokens


MISTAKES = [
    (fit_without_zero_grad, "The gradients of all steps add up"),
    (fit_without_clipping, "The gradients are not clipped"),
    (fit_stepping_first, "before the backward pass"),
    (learning_rates_from_zero, "the first step is wasted"),
    (learning_rates_over_all_steps, "It begins where the warm-up ends"),
    (smooth_without_correction, "The correction is missing"),
    (bits_per_byte_in_nats, "divide by log 2"),
    (bits_per_byte_upside_down, "changed places"),
]
