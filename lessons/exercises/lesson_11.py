"""The exercises of lesson 11, the optimiser."""

import numpy as np

from exercises import Exercise, Grader

RNG = np.random.default_rng(11)


def moments(
    m: np.ndarray, v: np.ndarray, g: np.ndarray, beta1: float, beta2: float
) -> tuple[np.ndarray, np.ndarray]:
    return beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2


def uncorrected_factor(beta1: float, beta2: float, num_steps: int) -> np.ndarray:
    t = np.arange(1, num_steps + 1)
    return (1 - beta1**t) / np.sqrt(1 - beta2**t)


def adamw_step(
    p: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    g: np.ndarray,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    m, v = moments(m, v, g, beta1, beta2)
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    p = (1 - lr * weight_decay) * p - lr * m_hat / (np.sqrt(v_hat) + eps)
    return p, m, v


def clip(dweight: np.ndarray, dbias: np.ndarray, max_norm: float) -> tuple[np.ndarray, np.ndarray]:
    norm = np.sqrt(np.sum(dweight**2) + np.sum(dbias**2))
    factor = min(1.0, max_norm / (norm + 1e-6))
    return factor * dweight, factor * dbias


def orthogonal(x: np.ndarray, a: float, b: float, c: float, rounds: int) -> np.ndarray:
    x = x / np.sqrt(np.sum(x**2))
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x


# Mistakes


def squared_average(m, v, g, beta1, beta2):
    return beta1 * m + (1 - beta1) * g, (beta2 * np.sqrt(v) + (1 - beta2) * g) ** 2


def step_like(
    decoupled=True, corrected=True, eps_inside=False, decay_with_lr=True, power=None, root=True
):
    """A step of AdamW with things wrong."""

    def step(p, m, v, g, t, lr, beta1, beta2, eps, weight_decay):
        if not decoupled:
            g = g + weight_decay * p
        m, v = moments(m, v, g, beta1, beta2)
        t = power or t
        m_hat, v_hat = (m / (1 - beta1**t), v / (1 - beta2**t)) if corrected else (m, v)
        below = np.sqrt(v_hat + eps) if eps_inside else (np.sqrt(v_hat) if root else v_hat) + eps
        decay = weight_decay * (lr if decay_with_lr else 1) * decoupled
        return (1 - decay) * p - lr * m_hat / below, m, v

    return step


def decayed_late(p, m, v, g, t, lr, beta1, beta2, eps, weight_decay):
    p, m, v = adamw_step(p, m, v, g, t, lr, beta1, beta2, eps, 0.0)
    return (1 - lr * weight_decay) * p, m, v


def not_decayed(p, m, v, g, t, lr, beta1, beta2, eps, weight_decay):
    return adamw_step(p, m, v, g, t, lr, beta1, beta2, eps, 0.0)


def uphill(p, m, v, g, t, lr, beta1, beta2, eps, weight_decay):
    return adamw_step(p, m, v, g, t, -lr, beta1, beta2, eps, -weight_decay)


def corrected_kept(p, m, v, g, t, lr, beta1, beta2, eps, weight_decay):
    p, m, v = adamw_step(p, m, v, g, t, lr, beta1, beta2, eps, weight_decay)
    return p, m / (1 - beta1**t), v / (1 - beta2**t)


def clip_each(dweight, dbias, max_norm):
    return tuple(d * min(1.0, max_norm / (np.sqrt(np.sum(d**2)) + 1e-6)) for d in (dweight, dbias))


def clip_elements(dweight, dbias, max_norm):
    return tuple(np.clip(d, -max_norm, max_norm) for d in (dweight, dbias))


def clip_always(dweight, dbias, max_norm):
    factor = max_norm / (np.sqrt(np.sum(dweight**2) + np.sum(dbias**2)) + 1e-6)
    return factor * dweight, factor * dbias


def clip_by(norm):
    """Clip by something that is not the global norm, from the tensors' sums of squares."""

    def clipped(dweight, dbias, max_norm):
        factor = min(1.0, max_norm / (norm(np.sum(dweight**2), np.sum(dbias**2)) + 1e-6))
        return factor * dweight, factor * dbias

    return clipped


def orthogonal_without_norm(x, a, b, c, rounds):
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x


def orthogonal_normed_again(x, a, b, c, rounds):
    for _ in range(rounds):
        x = orthogonal(x, a, b, c, 1)
    return x


def orthogonal_of_one_gram(x, a, b, c, rounds):
    x = x / np.sqrt(np.sum(x**2))
    gram = x @ x.T
    for _ in range(rounds):
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x


def orthogonal_of_the_largest(x, a, b, c, rounds):
    return orthogonal_without_norm(x / np.linalg.norm(x, ord=2), a, b, c, rounds)


def orthogonal_case(rows: int, columns: int, rounds: int) -> dict[str, np.ndarray | float]:
    x = 0.2 * RNG.standard_normal((rows, columns))
    return {"x": x, "a": 3.4445, "b": -4.7750, "c": 2.0315, "rounds": rounds}


def moment_case(size: int, beta1: float, beta2: float) -> dict[str, np.ndarray | float]:
    m, g = RNG.standard_normal((2, size))
    return {"m": m, "v": RNG.random(size), "g": g, "beta1": beta1, "beta2": beta2}


def step_case(size: int, t: int) -> dict[str, np.ndarray | float]:
    rest = {"lr": 0.02, "eps": 0.01, "weight_decay": 0.5, "t": t}
    return moment_case(size, 0.9, 0.95) | rest | {"p": RNG.standard_normal(size)}


def clip_case(outputs: int, inputs: int, max_norm: float) -> dict[str, np.ndarray | float]:
    dweight, dbias = RNG.standard_normal((outputs, inputs)), RNG.standard_normal(outputs)
    return {"dweight": dweight, "dbias": dbias, "max_norm": max_norm}


grade = Grader(
    Exercise(
        moments,
        [moment_case(5, 0.9, 0.95), moment_case(7, 0.8, 0.999)],
        ["m", "v"],
        mistakes={
            "The second average forgot to square: v is an average of g * g.": (
                lambda m, v, g, beta1, beta2: (
                    beta1 * m + (1 - beta1) * g,
                    beta2 * v + (1 - beta2) * g,
                )
            ),
            "You squared the average. v is the average of the squares: a gradient that changes "
            "its sign must not cancel in it.": squared_average,
            "You added the whole of g. An average takes a share of (1 - beta) of it; else it is a "
            "sum, and grows to 1 / (1 - beta) gradients.": lambda m, v, g, beta1, beta2: (
                beta1 * m + g,
                beta2 * v + g**2,
            ),
            "The shares are exchanged: beta is what is kept of the old average, and 1 - beta "
            "what comes in.": lambda m, v, g, beta1, beta2: (
                (1 - beta1) * m + beta1 * g,
                (1 - beta2) * v + beta2 * g**2,
            ),
        },
    ),
    Exercise(
        uncorrected_factor,
        [
            {"beta1": 0.9, "beta2": 0.95, "num_steps": 5},
            {"beta1": 0.8, "beta2": 0.999, "num_steps": 8},
        ],
        ["factor"],
        mistakes={
            "The root is missing: a step divides by sqrt(v), not by v.": (
                lambda beta1, beta2, num_steps: (
                    uncorrected_factor(beta1, beta2, num_steps)
                    / np.sqrt(1 - beta2 ** np.arange(1, num_steps + 1))
                )
            ),
            "That is the other way round: how much larger the corrected step is than the "
            "uncorrected one.": lambda beta1, beta2, num_steps: (
                1 / uncorrected_factor(beta1, beta2, num_steps)
            ),
        },
    ),
    Exercise(
        adamw_step,
        [step_case(5, 3), step_case(8, 1)],
        ["p", "m", "v"],
        mistakes={
            "The decay is in the gradient, and so gets divided by the root of v: that is L2, not "
            "AdamW. Take it out, and multiply p by (1 - lr * weight_decay).": (
                step_like(decoupled=False)
            ),
            "There is no bias correction: divide m by 1 - beta1**t and v by 1 - beta2**t.": (
                step_like(corrected=False)
            ),
            "The bias correction does not depend on t: the averages are nearly right after many "
            "steps, so it has to fade.": step_like(power=1),
            "eps is inside of the root. It belongs beside it: sqrt(v_hat) + eps.": (
                step_like(eps_inside=True)
            ),
            "The decay forgot the learning rate: p shrinks by lr * weight_decay.": (
                step_like(decay_with_lr=False)
            ),
            "The root is missing: the step divides by sqrt(v_hat), not by v_hat.": (
                step_like(root=False)
            ),
            "The decay came after the step. Both take the old p: decay it first, and then step.": (
                decayed_late
            ),
            "There is no decay: p shrinks by lr * weight_decay of itself.": not_decayed,
            "That goes uphill: the step is to be subtracted from p.": uphill,
            "You returned the corrected averages. The correction is for this step only; the next "
            "one goes on with m and v as they were before it.": corrected_kept,
        },
    ),
    Exercise(
        clip,
        [clip_case(3, 4, 2.0), clip_case(5, 2, 100.0), clip_case(2, 6, 0.5)],
        ["dweight", "dbias"],
        mistakes={
            "Each tensor was clipped by a norm of its own, which turns the direction. Take one "
            "norm over both.": clip_each,
            "Each element was clipped by itself, which turns the direction. All of them need the "
            "same factor.": clip_elements,
            "The root is missing: the norm is the root of the sum of the squares.": (
                clip_by(lambda weight, bias: weight + bias)
            ),
            "You added up the two norms. Add the squares of all elements, and take one root.": (
                clip_by(lambda weight, bias: np.sqrt(weight) + np.sqrt(bias))
            ),
            "Short gradients were made longer: where the norm is below the limit, nothing "
            "changes.": clip_always,
        },
        tolerance=1e-5,  # with 1e-6 beside the norm or without
    ),
    Exercise(
        orthogonal,
        [orthogonal_case(3, 4, 2), orthogonal_case(5, 2, 3), orthogonal_case(2, 2, 5)],
        ["x"],
        mistakes={
            "x was not divided by its norm first: the polynomial is made for singular values up to "
            "1.": orthogonal_without_norm,
            "x is divided by its norm in every round. Once, before the first, is enough; after it "
            "the polynomial keeps the values near 1.": orthogonal_normed_again,
            "gram was made once. After a round x is another matrix, and so is x @ x.T.": (
                orthogonal_of_one_gram
            ),
            "The term of the fifth power is missing: c * gram @ gram @ x.": (
                lambda x, a, b, c, rounds: orthogonal(x, a, b, 0, rounds)
            ),
            "b and c are exchanged: b belongs to the third power.": (
                lambda x, a, b, c, rounds: orthogonal(x, a, c, b, rounds)
            ),
            "You divided by the largest singular value, which nobody knows without finding them "
            "all: divide by the root of the sum of all squares.": orthogonal_of_the_largest,
        },
    ),
)
