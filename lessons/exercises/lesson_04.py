"""The exercises of lesson 04, layer normalisation."""

import numpy as np

from exercises import Exercise, Grader

EPS = 1e-5


def statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and 1/sqrt(variance + EPS) of every row."""
    return x.mean(axis=1), 1 / np.sqrt(x.var(axis=1) + EPS)


def scale(norm: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return norm * weight + bias


def layernorm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Without the bias, of which dx knows nothing."""
    mean, rstd = statistics(x)
    return (x - mean[:, None]) * rstd[:, None] * weight


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def scale_backward(
    dout: np.ndarray, norm: np.ndarray, weight: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return dout * weight, (dout * norm).sum(axis=0), dout.sum(axis=0)


def by_hand() -> np.ndarray:
    return three_terms(ROW, DNORM)


def three_terms(
    x: np.ndarray, dnorm: np.ndarray, by_mean: bool = True, by_variance: bool = True
) -> np.ndarray:
    """dx of one row, with no EPS."""
    rstd = 1 / x.std()
    norm = (x - x.mean()) * rstd
    return rstd * (dnorm - by_mean * dnorm.mean() - by_variance * norm * (dnorm * norm).mean())


def layernorm_dx(
    dout: np.ndarray, x: np.ndarray, weight: np.ndarray, mean: np.ndarray, rstd: np.ndarray
) -> np.ndarray:
    norm = (x - mean[:, None]) * rstd[:, None]
    return project(dout * weight, norm) * rstd[:, None]


def project(dnorm: np.ndarray, norm: np.ndarray, axis: int = 1) -> np.ndarray:
    """What is left of `dnorm` without its mean and without its share of `norm`."""
    mean_dnorm = dnorm.mean(axis=axis, keepdims=True)
    return dnorm - mean_dnorm - norm * (dnorm * norm).mean(axis=axis, keepdims=True)


def without(
    term: str,
    dout: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
) -> np.ndarray:
    """What someone computes who leaves something out of `layernorm_dx`."""
    norm, rstd = (x - mean[:, None]) * rstd[:, None], rstd[:, None]
    dnorm = dout if term == "weight" else dout * weight
    dx = rstd * project(dnorm, norm)
    if term == "mean":
        dx += rstd * dnorm.mean(axis=1, keepdims=True)
    elif term == "variance":
        dx += rstd * norm * (dnorm * norm).mean(axis=1, keepdims=True)
    elif term == "1/C":
        dx = rstd * dnorm + x.shape[1] * (dx - rstd * dnorm)
    elif term == "rstd":
        dx /= rstd
    return dx


def unit_dx(dout: np.ndarray, x: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    out = x / length
    return (dout - out * (dout * out).sum(axis=1, keepdims=True)) / length


ROW = np.array([2.0, 4.0, 4.0, 10.0])
DNORM = np.array([0.0, 12.0, 0.0, 0.0])


def cases(*sizes: tuple[int, int]) -> list[dict[str, np.ndarray]]:
    """Arguments for N rows of C channels."""
    rng = np.random.default_rng(4)
    result = []
    for N, C in sizes:
        # Rows of different means and scales.
        x = rng.standard_normal((N, C)) * rng.uniform(0.5, 3, (N, 1)) + rng.standard_normal((N, 1))
        mean, rstd = statistics(x)
        result.append(
            {
                "dout": rng.standard_normal((N, C)),
                "x": x,
                "norm": (x - mean[:, None]) * rstd[:, None],
                "weight": rng.uniform(0.5, 1.5, C),
                "bias": rng.standard_normal(C),
                "mean": mean,
                "rstd": rstd,
            }
        )
    return result


def chosen(*names: str) -> list[dict[str, np.ndarray]]:
    return [{name: case[name] for name in names} for case in cases((3, 5), (4, 7))]


grade = Grader(
    Exercise(
        scale_backward,
        chosen("dout", "norm", "weight", "bias"),
        ["dnorm", "dweight", "dbias"],
        scale,
        mistakes={
            "dweight and dbias are sums over the channels in your function. Each channel has a "
            "weight and a bias of its own; what they share is the rows.": (
                lambda dout, norm, weight, bias: (
                    dout * weight,
                    (dout * norm).sum(axis=1),
                    dout.sum(axis=1),
                )
            ),
            "You took the mean over the rows. A weight and a bias serve every row, so what the "
            "rows ask of them adds up: sum.": lambda dout, norm, weight, bias: (
                dout * weight,
                (dout * norm).mean(axis=0),
                dout.mean(axis=0),
            ),
            "You return a row of dweight for every row of norm. The weight is shared by all rows: "
            "sum over them.": lambda dout, norm, weight, bias: (
                dout * weight,
                dout * norm,
                dout.sum(axis=0),
            ),
        },
    ),
    Exercise(
        by_hand,
        [{}],
        ["dx"],
        mistakes={
            "The path by the mean is missing: each element moves the mean, and so all others.": (
                lambda: three_terms(ROW, DNORM, by_mean=False)
            ),
            "The path by the variance is missing: an element away from the mean changes how far "
            "all others are stretched.": lambda: three_terms(ROW, DNORM, by_variance=False),
            "That is the direct path alone. The two others start at every element, too.": (
                lambda: three_terms(ROW, DNORM, by_mean=False, by_variance=False)
            ),
        },
        factors=lambda: {"rstd": 1 / 3},
    ),
    Exercise(
        layernorm_dx,
        chosen("dout", "x", "weight", "mean", "rstd"),
        ["dx"],
        layernorm,
        mistakes={
            "The term of the mean is missing: does each row of your dx sum to 0?": (
                lambda **case: without("mean", **case)
            ),
            "The term of the variance is missing: is each row of your dx orthogonal to norm?": (
                lambda **case: without("variance", **case)
            ),
            "rstd is missing in front of the bracket.": lambda **case: without("rstd", **case),
            "The weight is missing: what reaches norm is not dout but dnorm = dout * weight.": (
                lambda **case: without("weight", **case)
            ),
            "The weight comes too late. It belongs inside the bracket: dnorm = dout * weight is "
            "what both means are taken of.": lambda dout, x, weight, mean, rstd: (
                weight * without("weight", dout, x, weight, mean, rstd)
            ),
            "You took two sums where the line has two means: both come with 1/C.": (
                lambda **case: without("1/C", **case)
            ),
            "Your two means are taken over the rows of the batch. They belong to one row: over its "
            "channels, axis=1, and keepdims=True.": (
                lambda dout, x, weight, mean, rstd: (
                    project(dout * weight, (x - mean[:, None]) * rstd[:, None], axis=0)
                    * rstd[:, None]
                )
            ),
        },
    ),
    Exercise(
        unit_dx,
        chosen("dout", "x"),
        ["dx"],
        unit,
        mistakes={
            "That would be right if the length were a constant. But x moves it.": (
                lambda dout, x: dout / np.linalg.norm(x, axis=1, keepdims=True)
            ),
            "The term of the length has the wrong sign: a longer x makes every output smaller.": (
                lambda dout, x: (
                    2 * dout / np.linalg.norm(x, axis=1, keepdims=True) - unit_dx(dout, x)
                )
            ),
            "You took a mean over the channels where a sum belongs: a length has no 1/C in it.": (
                lambda dout, x: (
                    (dout - unit(x) * (dout * unit(x)).mean(axis=1, keepdims=True))
                    / np.linalg.norm(x, axis=1, keepdims=True)
                )
            ),
            "The sum over j is missing: x_i moves the length, and the length moves every output.": (
                lambda dout, x: dout * (1 - unit(x) ** 2) / np.linalg.norm(x, axis=1, keepdims=True)
            ),
            "The length seems to be that of the whole array. Every row has its own.": (
                lambda dout, x: unit_dx(dout.reshape(1, -1), x.reshape(1, -1)).reshape(x.shape)
            ),
        },
    ),
)
