"""What a learner may write in lesson 02, right and wrong."""

import numpy as np


def one_hot(tokens, V):
    P = np.zeros((len(tokens), V))
    P[np.arange(len(tokens)), tokens] = 1
    return P


def embedding_dweight(dout, tokens, weight):
    dweight = np.zeros_like(weight)
    for n, token in enumerate(tokens):
        dweight[token] += dout[n]
    return dweight


def position_dweight(dout, x, weight):
    dweight = 0 * weight
    for sequence in dout:
        dweight[: len(sequence)] += sequence
    return dweight


def scatter_add_sorted(dout, tokens, weight):
    order = np.argsort(tokens, kind="stable")
    present, first = np.unique(tokens[order], return_index=True)
    dweight = np.zeros_like(weight)
    dweight[present] = np.add.reduceat(dout[order], first)
    return dweight


def one_hot_transposed(tokens, V):
    return one_hot(tokens, V).T


def one_hot_shifted(tokens, V):
    P = np.zeros((len(tokens), V))
    P[np.arange(len(tokens)), (tokens + 1) % V] = 1
    return P


def one_hot_in_every_row(tokens, V):
    P = np.zeros((len(tokens), V))
    P[:, tokens] = 1
    return P


def embedding_dweight_plus_equals(dout, tokens, weight):
    dweight = np.zeros_like(weight)
    dweight[tokens] += dout
    return dweight


def embedding_dweight_assigned(dout, tokens, weight):
    dweight = np.zeros_like(weight)
    for token, row in zip(tokens, dout, strict=True):
        dweight[token] = row
    return dweight


def embedding_dweight_mean(dout, tokens, weight):
    rows = [dout[tokens == v] for v in range(len(weight))]
    return np.array([r.mean(axis=0) if len(r) else np.zeros(dout.shape[1]) for r in rows])


def embedding_dweight_row_for_each_token(dout, tokens, weight):
    return embedding_dweight(dout, tokens, weight)[tokens]


def embedding_dweight_onto_the_table(dout, tokens, weight):
    dweight = weight.copy()
    np.add.at(dweight, tokens, dout)
    return dweight


def position_dweight_mean(dout, x, weight):
    dweight = np.zeros_like(weight)
    dweight[: dout.shape[1]] = dout.mean(axis=0)
    return dweight


def position_dweight_assigned(dout, x, weight):
    dweight = np.zeros_like(weight)
    for sequence in dout:
        dweight[: len(sequence)] = sequence
    return dweight


def position_dweight_over_positions(dout, x, weight):
    dweight = np.zeros_like(weight)
    dweight[: dout.shape[1]] += dout.sum(axis=0).sum(axis=0)
    return dweight


def position_dweight_too_short(dout, x, weight):
    return dout.sum(axis=0)


def scatter_add_sorted_not_reordered(dout, tokens, weight):
    present, first = np.unique(np.sort(tokens), return_index=True)
    dweight = np.zeros_like(weight)
    dweight[present] = np.add.reduceat(dout, first)
    return dweight


def scatter_add_sorted_starts_of_the_text(dout, tokens, weight):
    present, first = np.unique(tokens, return_index=True)
    dweight = 0 * weight
    dweight[present] = np.add.reduceat(dout[np.argsort(tokens, kind="stable")], first)
    return dweight


def scatter_add_sorted_packed(dout, tokens, weight):
    order = np.argsort(tokens, kind="stable")
    present, first = np.unique(tokens[order], return_index=True)
    dweight = np.zeros_like(weight)
    dweight[: len(present)] = np.add.reduceat(dout[order], first)
    return dweight


MISTAKES = [
    (one_hot_transposed, "a row for each token"),
    (one_hot_shifted, "token 0 belongs to column 0"),
    (one_hot_in_every_row, "Pair each row with its own column"),
    (embedding_dweight_plus_equals, "only its last row has arrived"),
    (embedding_dweight_assigned, "only its last row has arrived"),
    (embedding_dweight_mean, "adds up: sum"),
    (embedding_dweight_row_for_each_token, "The gradient has the shape of the table"),
    (embedding_dweight_onto_the_table, "begin with zeros"),
    (position_dweight_mean, "adds up: sum"),
    (position_dweight_assigned, "Only the last sequence has arrived"),
    (position_dweight_over_positions, "You summed over the positions as well"),
    (position_dweight_too_short, "their gradient is 0"),
    (scatter_add_sorted_not_reordered, "take dout[order]"),
    (scatter_add_sorted_starts_of_the_text, "Take them from the sorted tokens"),
    (scatter_add_sorted_packed, "belongs into its token's row"),
]
