"""What a learner may write in lesson 14, right and wrong."""

import numpy as np


def with_temperature(logits, temperature):
    scaled = logits / temperature
    weights = np.exp(scaled - max(scaled))
    return weights / sum(weights)


def top_k(probs, k):
    kept = np.zeros_like(probs)
    best = np.argsort(probs)[len(probs) - k :]  # (k,)
    kept[best] = probs[best]
    return kept / kept.sum()


def top_p(probs, p):
    kept, total = np.zeros_like(probs), 0
    for token in np.argsort(probs)[::-1]:
        kept[token] = probs[token]
        total += probs[token]
        if total >= p:
            break
    return kept / total


def penalise(logits, text, penalty):
    result = logits.copy()
    for token in set(text):
        result[token] *= penalty if result[token] < 0 else 1 / penalty
    return result


def work(prompt, new, cache):
    if cache:
        return prompt + (new - 1)
    return new * prompt + new * (new - 1) // 2


def with_temperature_multiplied(logits, temperature):
    scaled = logits * temperature
    weights = np.exp(scaled - max(scaled))
    return weights / sum(weights)


def with_temperature_on_probabilities(logits, temperature):
    weights = np.exp(logits - max(logits)) / temperature
    return weights / sum(weights)


def with_temperature_overflowing(logits, temperature):
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.exp(logits / temperature)
        return weights / sum(weights)


def top_k_not_renormalised(probs, k):
    return np.where(probs >= sorted(probs)[-k], probs, 0)


def top_k_of_the_unlikely(probs, k):
    kept = np.where(probs < sorted(probs)[k], probs, 0)
    return kept / kept.sum()


def top_p_one_too_few(probs, p):
    kept, total = np.zeros_like(probs), 0
    for token in np.argsort(probs)[::-1]:
        total += probs[token]
        if total > p:
            break
        kept[token] = probs[token]
    return kept / kept.sum()


def top_p_unsorted(probs, p):
    kept, total = np.zeros_like(probs), 0
    for token in range(len(probs)):
        kept[token] = probs[token]
        total += probs[token]
        if total >= p:
            break
    return kept / total


def top_p_sorted(probs, p):
    falling = np.sort(probs)[::-1]
    kept = np.where(np.cumsum(falling) - falling < p, falling, 0)
    return kept / kept.sum()


def top_p_of_the_unlikely(probs, p):
    order = np.argsort(probs)
    some = order[np.cumsum(probs[order]) <= p]
    kept = np.zeros_like(probs)
    kept[some] = probs[some]
    return kept / kept.sum()


def penalise_only_positive(logits, text, penalty):
    result = logits.copy()
    for token in set(text):
        if result[token] > 0:
            result[token] /= penalty
    return result


def penalise_only_divided(logits, text, penalty):
    result = logits.copy()
    for token in set(text):
        result[token] /= penalty
    return result


def penalise_in_a_loop(logits, text, penalty):
    result = logits.copy()
    for token in text:
        result[token] *= penalty if result[token] < 0 else 1 / penalty
    return result


def work_with_the_last(prompt, new, cache):
    return prompt + new if cache else sum(prompt + i + 1 for i in range(new))


def work_with_the_last_cached(prompt, new, cache):
    return prompt + new if cache else sum(prompt + i for i in range(new))


def work_without_the_first_pass(prompt, new, cache):
    return new if cache else sum(prompt + i for i in range(new))


def work_without_growth(prompt, new, cache):
    return prompt + new - 1 if cache else prompt * new


MISTAKES = [
    (with_temperature_multiplied, "heat makes the choice surer"),
    (with_temperature_on_probabilities, "before the exponential"),
    (with_temperature_overflowing, "exp of something large"),
    (top_k_not_renormalised, "does not add up to 1"),
    (top_k_of_the_unlikely, "sorting goes upwards"),
    (top_p_one_too_few, "The token that crosses p is missing"),
    (top_p_unsorted, "Sort first"),
    (top_p_sorted, "Every token keeps its place"),
    (top_p_of_the_unlikely, "the least likely tokens"),
    (penalise_only_positive, "You leave negative logits"),
    (penalise_only_divided, "makes their tokens likelier"),
    (penalise_in_a_loop, "however often it was said"),
    (work_with_the_last, "written, but never read"),
    (work_with_the_last_cached, "With one, the last token"),
    (work_without_the_first_pass, "the first pass reads the whole prompt"),
    (work_without_growth, "one row more than the last"),
]
