"""The exercises of lesson 06, softmax and cross-entropy."""

import numpy as np

from exercises import Exercise, Grader


def stable_softmax(z: np.ndarray) -> np.ndarray:
    exponentials = np.exp(z - z.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    largest = logits.max(axis=1)
    lse = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    return lse - logits[np.arange(len(logits)), targets]


def softmax_dz(dout: np.ndarray, z: np.ndarray, p: np.ndarray) -> np.ndarray:
    return p * (dout - (dout * p).sum(axis=1, keepdims=True))


def cross_entropy_dlogits(dout: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return (stable_softmax(logits) - np.eye(logits.shape[1])[targets]) * dout[:, None]


def mean_loss(x: np.ndarray, weight: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return cross_entropy(x @ weight.T, targets).mean()


def classifier_backward(
    dout: float, x: np.ndarray, weight: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    rows = np.full(len(x), dout / len(x))
    dlogits = cross_entropy_dlogits(rows, x @ weight.T, targets)
    return dlogits @ weight, dlogits.T @ x


def overflowing_softmax(z: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        exponentials = np.exp(z)
        return np.nan_to_num(exponentials / exponentials.sum(axis=1, keepdims=True), nan=-1)


RNG = np.random.default_rng(6)
SOFTMAX_CASES = [
    {"z": 2 * RNG.standard_normal((3, 5))},
    {"z": RNG.standard_normal((2, 4)) + np.array([[1000.0], [-1000.0]])},
]
JACOBIAN_CASES = [
    {"dout": RNG.standard_normal(z.shape), "z": z, "p": stable_softmax(z)}
    for z in (RNG.standard_normal((3, 5)), RNG.standard_normal((4, 2)))
]
CASES = [
    {
        "dout": RNG.standard_normal(N),
        "logits": 2 * RNG.standard_normal((N, V)),
        "targets": RNG.integers(0, V, N),
    }
    for N, V in ((3, 5), (4, 7))
]
LOSS_CASES = [
    *({name: case[name] for name in ("logits", "targets")} for case in CASES),
    # exp overflows, and the targets' probabilities are so small that hardly a bit of them is left.
    {
        "logits": 1000 + np.array([[0.0, -743.7, -50, -90], [-742.9, -60, 0, -80]]),
        "targets": np.array([1, 0]),
    },
]
CLASSIFIER_CASES = [
    {
        "dout": 0.7,
        "x": RNG.standard_normal((N, C)),
        "weight": RNG.standard_normal((V, C)),
        "targets": RNG.integers(0, V, N),
    }
    for N, C, V in ((3, 4, 5), (5, 2, 6))
]

grade = Grader(
    Exercise(
        stable_softmax,
        SOFTMAX_CASES,
        ["p"],
        mistakes={
            "It is right for small logits, and overflows for large ones: take each row's maximum "
            "off first.": overflowing_softmax,
            "You divided by the sum of everything. Each row has to add up to 1 by itself: "
            "axis=1, keepdims=True.": lambda z: (
                np.exp(z - z.max(axis=1, keepdims=True))
                / np.exp(z - z.max(axis=1, keepdims=True)).sum()
            ),
        },
    ),
    Exercise(
        cross_entropy,
        LOSS_CASES,
        ["losses"],
        mistakes={
            "The sign: a loss is the *negative* logarithm of the target's probability.": (
                lambda logits, targets: -cross_entropy(logits, targets)
            ),
            "You took the mean. Return the loss of every row; the mean comes later.": (
                lambda logits, targets: cross_entropy(logits, targets).mean()
            ),
            "The logarithm comes too late: the target's probability has been rounded to next to "
            "nothing. Subtract instead: lse less the target's logit.": lambda logits, targets: (
                -np.log(stable_softmax(logits)[np.arange(len(logits)), targets])
            ),
            "You took off each row's maximum inside the sum. Add it to the logarithm again.": (
                lambda logits, targets: cross_entropy(logits, targets) - logits.max(axis=1)
            ),
            "That is log-sum-exp. The target's own logit is still to be taken off.": (
                lambda logits, targets: (
                    cross_entropy(logits, targets) + logits[np.arange(len(logits)), targets]
                )
            ),
        },
    ),
    Exercise(
        softmax_dz,
        JACOBIAN_CASES,
        ["dz"],
        stable_softmax,
        mistakes={
            "The second term is missing: a logit moves the sum, and with it every probability of "
            "its row.": lambda dout, z, p: dout * p,
            "That is the diagonal of the Jacobian alone, p (1 - p). A logit moves the other "
            "probabilities, too.": lambda dout, z, p: dout * p * (1 - p),
            "The sum in the bracket is one of p * dout: the probability is missing in it.": (
                lambda dout, z, p: p * (dout - dout.sum(axis=1, keepdims=True))
            ),
            "You took the plain mean of dout. The average is weighted with the probabilities: "
            "(dout * p).sum.": lambda dout, z, p: p * (dout - dout.mean(axis=1, keepdims=True)),
            "p stands in front of the whole bracket: of the average, too.": lambda dout, z, p: (
                p * dout - (dout * p).sum(axis=1, keepdims=True)
            ),
            "The sum in the bracket runs over the rows of the batch. Rows know nothing of each "
            "other: over the vocabulary, axis=1, keepdims=True.": (
                lambda dout, z, p: p * (dout - (dout * p).sum(axis=0))
            ),
            "The second term has the wrong sign: what one probability gains the others lose.": (
                lambda dout, z, p: p * (dout + (dout * p).sum(axis=1, keepdims=True))
            ),
        },
    ),
    Exercise(
        cross_entropy_dlogits,
        CASES,
        ["dlogits"],
        cross_entropy,
        mistakes={
            "You take 1 off every target's column in every row: p[:, targets] pairs all rows with "
            "all targets. Each row has one target: p[np.arange(N), targets].": (
                lambda dout, logits, targets: (
                    (stable_softmax(logits) - np.eye(logits.shape[1])[targets].any(axis=0))
                    * dout[:, None]
                )
            ),
            "You have divided by N. That comes with dout, once; here every row has a dout of its "
            "own.": lambda dout, logits, targets: cross_entropy_dlogits(
                dout / len(dout), logits, targets
            ),
            "That is p: the 1 at each row's target is still to be taken off.": (
                lambda dout, logits, targets: stable_softmax(logits) * dout[:, None]
            ),
            "You took the 1 off after multiplying by dout. First p − y, then every row times its "
            "dout.": lambda dout, logits, targets: (
                stable_softmax(logits) * dout[:, None] - np.eye(logits.shape[1])[targets]
            ),
            "That is y − p, the way downhill. The gradient points uphill: p − y.": (
                lambda dout, logits, targets: -cross_entropy_dlogits(dout, logits, targets)
            ),
            "p − y is right, but every row has to be multiplied by what comes from above, its "
            "own dout.": lambda dout, logits, targets: cross_entropy_dlogits(
                np.ones_like(dout), logits, targets
            ),
        },
    ),
    Exercise(
        classifier_backward,
        CLASSIFIER_CASES,
        ["dx", "dweight"],
        mean_loss,
        factors=lambda dout, x, weight, targets: {"dout": dout, "1/N": 1 / len(x)},
        mistakes={
            "Those are the gradients of the *sum* of the losses. Of the mean they are smaller by "
            "the number of rows: divide dout by N, once, at the top.": (
                lambda dout, x, weight, targets: classifier_backward(
                    dout * len(x), x, weight, targets
                )
            ),
        },
    ),
)
