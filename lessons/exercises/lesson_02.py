"""The exercises of lesson 02, the embedding."""

import numpy as np

from exercises import Exercise, Grader

# --- picking rows by a product


def one_hot(tokens: np.ndarray, V: int) -> np.ndarray:
    return (tokens[:, None] == np.arange(V)).astype(np.float64)


# --- the gradient of the table


def embedding(tokens: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weight[tokens]


def embedding_dweight(dout: np.ndarray, tokens: np.ndarray, weight: np.ndarray) -> np.ndarray:
    dweight = np.zeros_like(weight)
    np.add.at(dweight, tokens, dout)
    return dweight


def embedding_dweight_last_only(
    dout: np.ndarray, tokens: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    dweight = np.zeros_like(weight)
    dweight[tokens] += dout
    return dweight


def embedding_dweight_mean(dout: np.ndarray, tokens: np.ndarray, weight: np.ndarray) -> np.ndarray:
    counts = np.bincount(tokens, minlength=len(weight))
    return embedding_dweight(dout, tokens, weight) / np.maximum(counts, 1)[:, None]


def embedding_dweight_gathered(
    dout: np.ndarray, tokens: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """A row for each token of the batch, where one for each row of the table is wanted."""
    return embedding_dweight(dout, tokens, weight)[tokens]


# --- the same without adding to a row twice


def scatter_add_sorted(dout: np.ndarray, tokens: np.ndarray, weight: np.ndarray) -> np.ndarray:
    order = np.argsort(tokens, kind="stable")
    in_order = tokens[order]
    first = np.flatnonzero(np.diff(in_order, prepend=-1))
    dweight = np.zeros_like(weight)
    dweight[in_order[first]] = np.add.reduceat(dout[order], first, axis=0)
    return dweight


def embedding_dweight_not_reordered(
    dout: np.ndarray, tokens: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    in_order = np.sort(tokens)
    first = np.flatnonzero(np.diff(in_order, prepend=-1))
    dweight = np.zeros_like(weight)
    dweight[in_order[first]] = np.add.reduceat(dout, first, axis=0)
    return dweight


def scatter_add_starts_not_reordered(
    dout: np.ndarray, tokens: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    order = np.argsort(tokens, kind="stable")
    present, first = np.unique(tokens, return_index=True)
    dweight = np.zeros_like(weight)
    dweight[present] = np.add.reduceat(dout[order], first, axis=0)
    return dweight


def embedding_dweight_packed(
    dout: np.ndarray, tokens: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """The sums one after another, and not at their tokens' rows."""
    dweight = np.zeros_like(weight)
    present = np.unique(tokens)
    dweight[: len(present)] = embedding_dweight(dout, tokens, weight)[present]
    return dweight


# --- positions


def position(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x + weight[: x.shape[1]]


def position_dweight(dout: np.ndarray, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    dweight = np.zeros_like(weight)
    dweight[: dout.shape[1]] = dout.sum(axis=0)
    return dweight


def position_dweight_scaled(
    dout: np.ndarray, x: np.ndarray, weight: np.ndarray, number: float
) -> np.ndarray:
    return position_dweight(dout, x, weight) * number


def position_dweight_last_sequence(
    dout: np.ndarray, x: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    return position_dweight(dout[-1:], x[-1:], weight)


def position_dweight_everywhere(dout: np.ndarray, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The sum over sequences and positions, given to every position."""
    dweight = np.zeros_like(weight)
    dweight[: dout.shape[1]] = dout.sum(axis=(0, 1))
    return dweight


RNG = np.random.default_rng(2)


def case(tokens: list[int], V: int, C: int) -> dict[str, np.ndarray]:
    return {
        "dout": RNG.standard_normal((len(tokens), C)),
        "tokens": np.array(tokens),
        "weight": RNG.standard_normal((V, C)),
    }


# Token 1 or 5 comes several times, and some rows of the table are not used.
CASES = [case([4, 1, 5, 1, 5, 1], 7, 3), case([2, 5, 0, 5, 5], 8, 4)]
POSITIONS = [
    {
        "dout": RNG.standard_normal((B, T, C)),
        "x": RNG.standard_normal((B, T, C)),
        "weight": RNG.standard_normal((max_T, C)),
    }
    for B, T, C, max_T in ((2, 4, 3, 6), (3, 5, 2, 7))
]
LAST_ONLY = (
    "Where a token comes twice, only its last row has arrived. `dweight[tokens] += dout` reads all "
    "rows, adds, and writes all rows back; the second write covers the first. Add them one by one, "
    "or with np.add.at."
)

grade = Grader(
    Exercise(
        one_hot,
        [{"tokens": case["tokens"], "V": len(case["weight"])} for case in CASES],
        ["the matrix"],
        mistakes={
            "That has a row for each entry of the table. Transpose it: a row for each token.": (
                lambda tokens, V: one_hot(tokens, V).T
            ),
            "The ones are a column too far to the right: token 0 belongs to column 0.": (
                lambda tokens, V: np.roll(one_hot(tokens, V), 1, axis=1)
            ),
            "All rows share their ones: `P[:, tokens] = 1` sets these columns in *every* row. Pair "
            "each row with its own column: `P[np.arange(len(tokens)), tokens] = 1`.": (
                lambda tokens, V: np.tile(one_hot(tokens, V).max(axis=0), (len(tokens), 1))
            ),
        },
    ),
    Exercise(
        embedding_dweight,
        CASES,
        ["dweight"],
        embedding,
        mistakes={
            LAST_ONLY: embedding_dweight_last_only,
            "You took the mean over a token's occurrences. Each of them has used the row, so what "
            "they ask of it adds up: sum.": embedding_dweight_mean,
            "Your sums are added to the table itself. The gradient is another array: begin with "
            "zeros.": lambda dout, tokens, weight: weight + embedding_dweight(dout, tokens, weight),
            "That is a row for each token of the batch. The gradient has the shape of the table: a "
            "row for each token that there is.": embedding_dweight_gathered,
        },
    ),
    Exercise(
        position_dweight,
        POSITIONS,
        ["dweight"],
        position,
        mistakes={
            "You took the mean over the sequences. Each of them has used the row, so what they ask "
            "of it adds up: sum.": (
                lambda dout, x, weight: position_dweight_scaled(dout, x, weight, 1 / len(dout))
            ),
            "Only the last sequence has arrived: with = in a loop, each covers the one before. "
            "Add.": position_dweight_last_sequence,
            "You summed over the positions as well. Each has a row of its own; what they share is "
            "the sequences.": position_dweight_everywhere,
            "The table has more positions than the batch: the rows after T were not used, and "
            "their gradient is 0.": lambda dout, x, weight: dout.sum(axis=0),
        },
    ),
    Exercise(
        scatter_add_sorted,
        CASES,
        ["dweight"],
        embedding,
        mistakes={
            LAST_ONLY: embedding_dweight_last_only,
            "The tokens are in order, but the rows of dout are not: take dout[order].": (
                embedding_dweight_not_reordered
            ),
            "The starts are those of the tokens as the text has them. Take them from the sorted "
            "tokens, tokens[order].": scatter_add_starts_not_reordered,
            "The sums are right, but lie one after another at the top of the table. Each belongs "
            "into its token's row.": embedding_dweight_packed,
        },
    ),
)
