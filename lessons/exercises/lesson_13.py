"""The exercises of lesson 13, training."""

import math
from typing import Any

import numpy as np

from exercises import Exercise, Grader

# --- exercise 1: the loop


class Table:
    """A model with a GPT2's methods and next to nothing in it: it guesses a number for each token.

    The loss is the mean of the squared errors.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.grads = values, np.zeros_like(values)
        self.accumulate = False

    def zero_grad(self) -> None:
        self.accumulate = False

    def forward(self, tokens: np.ndarray, targets: np.ndarray) -> float:
        self.tokens, self.errors = tokens, self.values[tokens] - targets
        return float(np.mean(self.errors**2))

    def backward(self, dloss: float = 1.0) -> None:
        if not self.accumulate:
            self.grads[:] = 0
        self.accumulate = True
        np.add.at(self.grads, self.tokens, dloss * 2 * self.errors / self.errors.size)


class Descent:
    """An optimiser with AdamW's `step` and plain gradient descent in it."""

    def __init__(self, model: Table) -> None:
        self.model, self.lr = model, 1e-3

    def step(self, lr: float | None = None, max_norm: float = math.inf) -> float:
        norm = float(np.linalg.norm(self.model.grads))
        lr = self.lr if lr is None else lr
        self.model.values -= lr * min(1.0, max_norm / (norm + 1e-6)) * self.model.grads
        return norm


def fit(
    model: Any,
    optimizer: Any,
    batches: list[tuple[np.ndarray, np.ndarray]],
    rates: list[float],
    max_norm: float,
) -> tuple[np.ndarray, np.ndarray]:
    return _fit(model, optimizer, batches, rates, max_norm)


def _fit(
    model: Any,
    optimizer: Any,
    batches: list[tuple[np.ndarray, np.ndarray]],
    rates: list[float],
    max_norm: float,
    zero: bool = True,
    one_rate: bool = False,
    step_first: bool = False,
    same_batch: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """With an option: one of the mistakes."""
    losses, norms = [], []
    for (tokens, targets), rate in zip(batches, rates, strict=True):
        if same_batch:
            tokens, targets = batches[0]
        if zero:
            model.zero_grad()
        losses.append(model.forward(tokens, targets))
        if not step_first:
            model.backward()
        norms.append(optimizer.step(lr=None if one_rate else rate, max_norm=max_norm))
        if step_first:
            model.backward()
    return np.array(losses), np.array(norms)


def fit_with_limited_norms(max_norm: float, **rest: Any) -> tuple[np.ndarray, np.ndarray]:
    losses, norms = _fit(max_norm=max_norm, **rest)
    return losses, np.minimum(norms, max_norm)


def fit_cases() -> list[dict[str, Any]]:
    cases = []
    for seed, (num_steps, values) in enumerate(((4, 5), (6, 3))):
        rng = np.random.default_rng(seed)
        model = Table(rng.standard_normal(values))
        batches = [
            (rng.integers(0, values, (2, 3)), 5 * rng.standard_normal((2, 3)))
            for _ in range(num_steps)
        ]
        rates = list(np.linspace(0.3, 0.1, num_steps))
        cases.append(
            {"model": model, "optimizer": Descent(model), "batches": batches}
            | {"rates": rates, "max_norm": 1.5}
        )
    return cases


# --- exercise 2: the schedule


def learning_rates(num_steps: int, lr: float, min_lr: float, warmup: int) -> np.ndarray:
    return _learning_rates(num_steps, lr, min_lr, warmup, first=1, begin=warmup)


def _learning_rates(
    num_steps: int,
    lr: float,
    min_lr: float,
    warmup: int,
    first: int,
    begin: int,
    end: int | None = None,
    half: float = 0.5,
) -> np.ndarray:
    steps = np.arange(num_steps)
    progress = (steps - begin) / (num_steps - begin if end is None else end)
    falling = min_lr + (lr - min_lr) * (1 + np.cos(np.pi * progress)) * half
    return np.where(steps < warmup, lr * (steps + first) / max(1, warmup), falling)


SCHEDULES = [
    dict(zip(("num_steps", "lr", "min_lr", "warmup"), numbers, strict=True))
    for numbers in ((10, 2.0, 0.5, 4), (17, 0.5, 0.1, 5), (6, 1.0, 0.2, 0))
]

# --- exercise 3: a running mean


def smooth(values: np.ndarray, beta: float) -> np.ndarray:
    return _smooth(values, beta) / (1 - beta ** np.arange(1, len(values) + 1))


def _smooth(values: np.ndarray, beta: float, first: float = 0.0) -> np.ndarray:
    mean, means = first, []
    for value in values:
        mean = beta * mean + (1 - beta) * value
        means.append(mean)
    return np.array(means)


def correction_kept(values: np.ndarray, beta: float) -> np.ndarray:
    """Goes on with the corrected mean."""
    mean, means = 0.0, []
    for s, value in enumerate(values):
        mean = (beta * mean + (1 - beta) * value) / (1 - beta ** (s + 1))
        means.append(mean)
    return np.array(means)


CURVES = [
    {"values": np.random.default_rng(0).standard_normal(7) + 4, "beta": 0.9},
    {"values": np.random.default_rng(1).standard_normal(4), "beta": 0.5},
]

# --- exercise 4: dropout


def dropout(
    x: np.ndarray, dout: np.ndarray, chances: np.ndarray, p: float
) -> tuple[np.ndarray, np.ndarray]:
    mask = (chances >= p) / (1 - p)
    return x * mask, dout * mask


def _dropout(
    x: np.ndarray,
    dout: np.ndarray,
    chances: np.ndarray,
    p: float,
    scale: float,
    above: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """With another factor, or another half dropped: one of the mistakes."""
    mask = ((chances >= p) == above) * scale
    return x * mask, dout * mask


def dropout_cases() -> list[dict[str, Any]]:
    cases = []
    for seed, p in enumerate((0.3, 0.6)):
        rng = np.random.default_rng(seed)
        x, dout = rng.standard_normal((2, 4, 5))
        cases.append({"x": x, "dout": dout, "chances": rng.random((4, 5)), "p": p})
    return cases


# --- exercise 5: bits per byte


def bits_per_byte(loss: float, num_tokens: int, num_bytes: int) -> float:
    return loss / math.log(2) * num_tokens / num_bytes


TEXTS = [
    {"loss": 3.0, "num_tokens": 100, "num_bytes": 350},
    {"loss": 1.5, "num_tokens": 900, "num_bytes": 1000},
]

grade = Grader(
    Exercise(
        fit,
        fit_cases(),
        ["losses", "norms"],
        mistakes={
            "The gradients of all steps add up: call model.zero_grad() in every step, before "
            "model.backward().": lambda **a: _fit(**a, zero=False),
            "Each step has a learning rate of its own: hand it to the optimiser, "
            "optimizer.step(lr=...).": lambda **a: _fit(**a, one_rate=True),
            "The gradients are not clipped: hand max_norm to optimizer.step.": (
                lambda max_norm, **a: _fit(**a, max_norm=math.inf)
            ),
            "The optimiser stepped before the backward pass, with the gradients of the step "
            "before.": lambda **a: _fit(**a, step_first=True),
            "Every step used the first batch. Each rate has a batch of its own.": (
                lambda **a: _fit(**a, same_batch=True)
            ),
            "Losses and norms changed places: the losses come first.": lambda **a: _fit(**a)[::-1],
            "These are the norms after clipping. Return what optimizer.step returns, which is from "
            "before it: else a jump would not show.": fit_with_limited_norms,
        },
    ),
    Exercise(
        learning_rates,
        SCHEDULES,
        ["rates"],
        mistakes={
            "The warm-up begins at 0, so the first step is wasted: (s + 1) / W.": (
                lambda warmup, **a: _learning_rates(**a, warmup=warmup, first=0, begin=warmup)
            ),
            "The cosine runs over all steps. It begins where the warm-up ends: "
            "(s - W) / (S - W).": lambda **a: _learning_rates(**a, first=1, begin=0),
            "The cosine takes S - W steps from its top to its floor, not S.": lambda **a: (
                _learning_rates(**a, first=1, begin=a["warmup"], end=a["num_steps"])
            ),
            "Your last step is at the floor already. By the formula the step after the last would "
            "be: divide by S - W.": lambda **a: _learning_rates(
                **a, first=1, begin=a["warmup"], end=a["num_steps"] - a["warmup"] - 1
            ),
            "The cosine begins at twice its height: 1 + cos goes from 2 to 0, so halve it.": (
                lambda **a: _learning_rates(**a, first=1, begin=a["warmup"], half=1.0)
            ),
            "The floor is missing: the cosine falls to min_lr, not to 0.": (
                lambda min_lr, **a: learning_rates(**a, min_lr=0.0)
            ),
        },
    ),
    Exercise(
        smooth,
        CURVES,
        ["means"],
        mistakes={
            "The correction is missing: the mean starts from 0, and the first ones are far too "
            "small. Divide by 1 - beta ** (s + 1).": _smooth,
            "The correction's power is off by one: after the first value it is beta ** 1.": (
                lambda values, beta: (
                    _smooth(values, beta) / (1 - beta ** np.arange(2, len(values) + 2))
                )
            ),
            "You went on with the corrected mean. The correction is for the result only; the next "
            "mean is made of the uncorrected one.": correction_kept,
            "You started from the first value, which then counts ten times as much as the second "
            "if beta is 0.9. Start from 0, and correct.": (
                lambda values, beta: _smooth(values, beta, values[0])
            ),
        },
    ),
    Exercise(
        dropout,
        dropout_cases(),
        ["out", "dx"],
        mistakes={
            "What stays must be made larger, or the mean shrinks: divide by 1 - p.": (
                lambda **a: _dropout(**a, scale=1.0)
            ),
            "You divided by p, the share that is dropped. Divide by 1 - p, the share that stays.": (
                lambda p, **a: _dropout(**a, p=p, scale=1 / p)
            ),
            "You kept what should be dropped: where the number is below p, there is a 0.": (
                lambda p, **a: _dropout(**a, p=p, scale=1 / (1 - p), above=False)
            ),
            "dx is not masked: what was dropped gets no gradient.": lambda p, **a: (
                dropout(p=p, **a)[0],
                a["dout"] / (1 - p),
            ),
            "dx lacks the factor 1 / (1 - p): it is a part of the derivative, too.": lambda **a: (
                dropout(**a)[0],
                _dropout(**a, scale=1.0)[1],
            ),
        },
    ),
    Exercise(
        bits_per_byte,
        TEXTS,
        ["the number"],
        mistakes={
            "These are nats per byte: divide by log 2.": lambda loss, num_tokens, num_bytes: (
                loss * num_tokens / num_bytes
            ),
            "You multiplied by log 2. A nat is more than a bit, so there are more bits than nats: "
            "divide.": lambda loss, num_tokens, num_bytes: (
                loss * math.log(2) * num_tokens / num_bytes
            ),
            "Tokens and bytes changed places: a byte has less than a token.": (
                lambda loss, num_tokens, num_bytes: loss / math.log(2) * num_bytes / num_tokens
            ),
            "These are bits per token: multiply by tokens per byte.": (
                lambda loss, num_tokens, num_bytes: loss / math.log(2)
            ),
        },
    ),
)
