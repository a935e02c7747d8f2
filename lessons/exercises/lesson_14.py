"""The exercises of lesson 14, sampling and the cache."""

import numpy as np

from exercises import Exercise, Grader


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def renormalised(probs: np.ndarray, kept: np.ndarray) -> np.ndarray:
    weights = np.where(kept, probs, 0)
    return weights / weights.sum()


def with_temperature(logits: np.ndarray, temperature: float) -> np.ndarray:
    return softmax(logits / temperature)


def top_k(probs: np.ndarray, k: int) -> np.ndarray:
    return renormalised(probs, probs >= np.sort(probs)[-k])


def likely(probs: np.ndarray, p: float, crossing: bool = True) -> np.ndarray:
    """Which tokens top-p keeps, with the one that crosses p or without it."""
    order = np.argsort(-probs)
    before = np.cumsum(probs[order]) - probs[order] * crossing
    kept = np.zeros(len(probs), bool)
    kept[order] = before < p - 1e-12
    return kept


def top_p(probs: np.ndarray, p: float) -> np.ndarray:
    return renormalised(probs, likely(probs, p))


def penalise(logits: np.ndarray, text: np.ndarray, penalty: float) -> np.ndarray:
    result = logits.copy()
    said = np.unique(text)
    result[said] = np.where(logits[said] > 0, logits[said] / penalty, logits[said] * penalty)
    return result


def sorted_top_p(probs: np.ndarray, p: float) -> np.ndarray:
    return -np.sort(-top_p(probs, p))


def unlikely_top_p(probs: np.ndarray, p: float) -> np.ndarray:
    """Begins with the least likely, with the token that crosses p or without it."""
    return renormalised(probs, np.cumsum(np.sort(probs))[np.argsort(np.argsort(probs))] <= p)


def penalise_each_time(logits: np.ndarray, text: np.ndarray, penalty: float) -> np.ndarray:
    for token in text:
        logits = penalise(logits, np.array([token]), penalty)
    return logits


def divide_all_said(logits: np.ndarray, text: np.ndarray, penalty: float) -> np.ndarray:
    result = logits.copy()
    result[text] = logits[text] / penalty
    return result


def negatives_left(logits: np.ndarray, text: np.ndarray, penalty: float) -> np.ndarray:
    return np.where(logits > 0, penalise(logits, text, penalty), logits)


def work(prompt: int, new: int, cache: bool) -> int:
    lengths = range(prompt, prompt + new)
    return prompt + new - 1 if cache else sum(lengths)


def logit_cases() -> list[np.ndarray]:
    rng = np.random.default_rng(14)
    return [2 * rng.standard_normal(V) for V in (9, 12)]


LOGITS = logit_cases()
PROBS = [softmax(logits) for logits in LOGITS]
TEXTS = [np.array(text) for text in ([1, 4, 4, 4, 7], [0, 2, 3, 5, 8, 11, 5])]

grade = Grader(
    Exercise(
        with_temperature,
        [
            {"logits": logits + large, "temperature": temperature}
            for logits, large, temperature in zip(LOGITS, (0, 1500), (0.6, 1.7), strict=True)
        ],
        ["probs"],
        mistakes={
            "You multiply by the temperature: then heat makes the choice surer. Divide.": (
                lambda logits, temperature: softmax(logits * temperature)
            ),
            "The temperature has no effect: a factor of the probabilities is divided out again. It "
            "belongs to the logits, before the exponential.": (
                lambda logits, temperature: softmax(logits)
            ),
            "The probabilities do not add up to 1: divide the logits, not the probabilities.": (
                lambda logits, temperature: softmax(logits) / temperature
            ),
        },
    ),
    Exercise(
        top_k,
        [{"probs": probs, "k": k} for probs, k in zip(PROBS, (3, 4), strict=True)],
        ["probs"],
        mistakes={
            "What is left does not add up to 1: divide by its sum.": (
                lambda probs, k: np.where(probs >= np.sort(probs)[-k], probs, 0)
            ),
            "You keep the least likely tokens: sorting goes upwards, so the likely come last.": (
                lambda probs, k: renormalised(probs, probs <= np.sort(probs)[k - 1])
            ),
            "You keep one token too few: the k-th itself takes part.": (
                lambda probs, k: renormalised(probs, probs > np.sort(probs)[-k])
            ),
            "You return only the tokens that are kept. Every token keeps its place, and those left "
            "out have 0.": lambda probs, k: np.sort(probs)[::-1][:k] / np.sort(probs)[-k:].sum(),
        },
    ),
    Exercise(
        top_p,
        [{"probs": probs, "p": p} for probs, p in zip(PROBS, (0.8, 0.55), strict=True)],
        ["probs"],
        mistakes={
            "The token that crosses p is missing. Those before it have less than p together, so "
            "it takes part.": (
                lambda probs, p: renormalised(probs, likely(probs, p, crossing=False))
            ),
            "What is left does not add up to 1: divide by its sum.": (
                lambda probs, p: np.where(likely(probs, p), probs, 0)
            ),
            "You add up in the order of the vocabulary. Sort first: the likeliest come first.": (
                lambda probs, p: renormalised(probs, np.cumsum(probs) - probs < p)
            ),
            "Every token keeps its place: put what is left back where it was before you sorted.": (
                sorted_top_p
            ),
            "You begin with the least likely tokens: np.sort and np.argsort go upwards.": (
                unlikely_top_p
            ),
            "You keep each token whose own probability is above a bound. It is their sum that has "
            "to reach p.": lambda probs, p: renormalised(probs, probs >= 1 - p),
        },
    ),
    Exercise(
        penalise,
        [
            {"logits": logits, "text": text, "penalty": penalty}
            for logits, text, penalty in zip(LOGITS, TEXTS, (1.3, 1.1), strict=True)
        ],
        ["logits"],
        mistakes={
            "You divide negative logits, too. That brings them nearer to 0 and makes their tokens "
            "likelier: multiply them.": divide_all_said,
            "You leave negative logits as they are. They have to fall, too: multiply them.": (
                negatives_left
            ),
            "A token that was said three times pays three times. It pays once, however often it "
            "was said.": penalise_each_time,
            "You penalise every token, whether it was said or not.": (
                lambda logits, text, penalty: penalise(logits, np.arange(len(logits)), penalty)
            ),
        },
    ),
    Exercise(
        work,
        [
            {"prompt": prompt, "new": new, "cache": cache}
            for prompt, new, cache in ((5, 4, True), (5, 4, False), (7, 12, True), (7, 12, False))
        ],
        ["rows"],
        mistakes={
            "The last token is written, but never read: nothing follows it, so no pass has it as "
            "input.": lambda prompt, new, cache: (
                prompt + new if cache else sum(range(prompt + 1, prompt + new + 1))
            ),
            "Without a cache it is right. With one, the last token is written, but never read: no "
            "pass has it as input.": lambda prompt, new, cache: work(prompt, new, cache) + cache,
            "Without a cache it is right. With one, the first pass reads the whole prompt.": (
                lambda prompt, new, cache: new if cache else work(prompt, new, cache)
            ),
            "With a cache it is right. Without one, each pass has one row more than the last.": (
                lambda prompt, new, cache: work(prompt, new, cache) if cache else prompt * new
            ),
            "You have not counted the prompt.": lambda prompt, new, cache: (
                new - 1 if cache else sum(range(new))
            ),
        },
    ),
)
