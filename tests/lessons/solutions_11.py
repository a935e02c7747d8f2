"""What a learner may write in lesson 11, right and wrong."""

import numpy as np


def moments(m, v, g, beta1, beta2):
    return m + (1 - beta1) * (g - m), v + (1 - beta2) * (g * g - v)


def uncorrected_factor(beta1, beta2, num_steps):
    m = v = 0.0
    factors = np.empty(num_steps)
    for i in range(num_steps):
        m = beta1 * m + (1 - beta1)
        v = beta2 * v + (1 - beta2)
        factors[i] = m / np.sqrt(v)
    return factors


def adamw_step(p, m, v, g, t, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    step = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return p - lr * weight_decay * p - lr * step, m, v


def clip(dweight, dbias, max_norm):
    norm = np.linalg.norm(np.concatenate([dweight.ravel(), dbias.ravel()]))
    factor = max_norm / norm if norm > max_norm else 1.0
    return dweight * factor, dbias * factor


def orthogonal(x, a, b, c, rounds):
    x = x / np.linalg.norm(x)
    for _ in range(rounds):
        third = x @ x.T @ x
        x = a * x + b * third + c * (x @ x.T) @ third
    return x


def moments_sum(m, v, g, beta1, beta2):
    return beta1 * m + g, beta2 * v + g * g


def moments_without_square(m, v, g, beta1, beta2):
    return beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g


def moments_exchanged(m, v, g, beta1, beta2):
    return (1 - beta1) * m + beta1 * g, (1 - beta2) * v + beta2 * g * g


def uncorrected_factor_without_root(beta1, beta2, num_steps):
    t = np.arange(1, num_steps + 1)
    return (1 - beta1**t) / (1 - beta2**t)


def uncorrected_factor_inverse(beta1, beta2, num_steps):
    t = np.arange(1, num_steps + 1)
    return np.sqrt(1 - beta2**t) / (1 - beta1**t)


def adamw_step_l2(p, m, v, g, t, lr, beta1, beta2, eps, weight_decay):
    g = g + weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    return p - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps), m, v


def adamw_step_uncorrected(p, m, v, g, t, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    return p - lr * weight_decay * p - lr * m / (np.sqrt(v) + eps), m, v


def adamw_step_eps_inside(p, m, v, g, t, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    step = (m / (1 - beta1**t)) / np.sqrt(v / (1 - beta2**t) + eps)
    return p - lr * weight_decay * p - lr * step, m, v


def adamw_step_decay_without_lr(p, m, v, g, t, lr, beta1, beta2, eps, weight_decay):
    p_new, m, v = adamw_step(p, m, v, g, t, lr, beta1, beta2, eps, 0.0)
    return p_new - weight_decay * p, m, v


def adamw_step_keeps_the_corrected(p, m, v, g, t, lr, beta1, beta2, eps, weight_decay):
    m = (beta1 * m + (1 - beta1) * g) / (1 - beta1**t)
    v = (beta2 * v + (1 - beta2) * g * g) / (1 - beta2**t)
    return p - lr * weight_decay * p - lr * m / (np.sqrt(v) + eps), m, v


def adamw_step_without_root(p, m, v, g, t, lr, beta1, beta2, eps, weight_decay):
    m, v = moments(m, v, g, beta1, beta2)
    step = (m / (1 - beta1**t)) / (v / (1 - beta2**t) + eps)
    return p - lr * weight_decay * p - lr * step, m, v


def adamw_step_then_decay(p, m, v, g, t, lr, beta1, beta2, eps, weight_decay):
    p, m, v = adamw_step(p, m, v, g, t, lr, beta1, beta2, eps, 0.0)
    return p - lr * weight_decay * p, m, v


def adamw_step_without_decay(p, m, v, g, t, lr, beta1, beta2, eps, weight_decay):
    return adamw_step(p, m, v, g, t, lr, beta1, beta2, eps, 0.0)


def adamw_step_uphill(p, m, v, g, t, lr, beta1, beta2, eps, weight_decay):
    m, v = moments(m, v, g, beta1, beta2)
    step = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return p - lr * weight_decay * p + lr * step, m, v


def clip_tensor_by_tensor(dweight, dbias, max_norm):
    result = []
    for d in (dweight, dbias):
        norm = np.linalg.norm(d)
        result.append(d * (max_norm / norm if norm > max_norm else 1.0))
    return tuple(result)


def clip_element_by_element(dweight, dbias, max_norm):
    return np.clip(dweight, -max_norm, max_norm), np.clip(dbias, -max_norm, max_norm)


def clip_short_ones_too(dweight, dbias, max_norm):
    norm = np.sqrt(np.sum(dweight**2) + np.sum(dbias**2))
    return dweight * max_norm / norm, dbias * max_norm / norm


def clip_without_root(dweight, dbias, max_norm):
    norm = np.sum(dweight**2) + np.sum(dbias**2)
    return dweight * min(1.0, max_norm / norm), dbias * min(1.0, max_norm / norm)


def clip_by_the_sum_of_norms(dweight, dbias, max_norm):
    norm = np.linalg.norm(dweight) + np.linalg.norm(dbias)
    return dweight * min(1.0, max_norm / norm), dbias * min(1.0, max_norm / norm)


def orthogonal_with_long_values(x, a, b, c, rounds):
    for _ in range(rounds):
        x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
    return x


def orthogonal_with_a_norm_each_round(x, a, b, c, rounds):
    for _ in range(rounds):
        x = x / np.linalg.norm(x)
        x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
    return x


def orthogonal_with_the_first_gram(x, a, b, c, rounds):
    x = x / np.linalg.norm(x)
    gram = x @ x.T
    for _ in range(rounds):
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x


def orthogonal_of_third_powers(x, a, b, c, rounds):
    x = x / np.linalg.norm(x)
    for _ in range(rounds):
        x = a * x + b * x @ x.T @ x
    return x


def orthogonal_exchanged(x, a, b, c, rounds):
    return orthogonal(x, a, c, b, rounds)


def orthogonal_by_the_largest(x, a, b, c, rounds):
    return orthogonal_with_long_values(x / np.linalg.svd(x, compute_uv=False)[0], a, b, c, rounds)


MISTAKES = [
    (moments_sum, "You added the whole of g"),
    (moments_without_square, "forgot to square"),
    (moments_exchanged, "The shares are exchanged"),
    (uncorrected_factor_without_root, "The root is missing"),
    (uncorrected_factor_inverse, "the other way round"),
    (adamw_step_l2, "that is L2, not AdamW"),
    (adamw_step_uncorrected, "There is no bias correction"),
    (adamw_step_eps_inside, "eps is inside of the root"),
    (adamw_step_decay_without_lr, "The decay forgot the learning rate"),
    (adamw_step_keeps_the_corrected, "You returned the corrected averages"),
    (adamw_step_without_root, "The root is missing: the step"),
    (adamw_step_then_decay, "The decay came after the step"),
    (adamw_step_without_decay, "There is no decay"),
    (adamw_step_uphill, "That goes uphill"),
    (clip_tensor_by_tensor, "Take one norm over both"),
    (clip_element_by_element, "All of them need the same factor"),
    (clip_without_root, "the root of the sum of the squares"),
    (clip_by_the_sum_of_norms, "You added up the two norms"),
    (clip_short_ones_too, "Short gradients were made longer"),
    (orthogonal_with_long_values, "not divided by its norm first"),
    (orthogonal_with_a_norm_each_round, "in every round"),
    (orthogonal_with_the_first_gram, "gram was made once"),
    (orthogonal_of_third_powers, "The term of the fifth power is missing"),
    (orthogonal_exchanged, "b and c are exchanged"),
    (orthogonal_by_the_largest, "the largest singular value"),
]
