"""What a learner may write in lesson 06, right and wrong."""

import numpy as np


def stable_softmax(z):
    z = z - np.max(z, axis=1, keepdims=True)
    return np.exp(z) / np.sum(np.exp(z), axis=1, keepdims=True)


def cross_entropy(logits, targets):
    losses = []
    for row, target in zip(logits, targets, strict=True):
        shifted = row - row.max()
        losses.append(np.log(np.sum(np.exp(shifted))) - shifted[target])
    return np.array(losses)


def softmax_dz(dout, z, p):
    weighted = dout * p
    return weighted - p * weighted.sum(1)[:, None]


def cross_entropy_dlogits(dout, logits, targets):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = exponentials / exponentials.sum(axis=1, keepdims=True)
    p[np.arange(len(p)), targets] -= 1
    return p * dout[:, None]


def classifier_backward(dout, x, weight, targets):
    logits = x @ weight.T
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    dlogits = exponentials / exponentials.sum(axis=1, keepdims=True)
    dlogits[np.arange(len(x)), targets] -= 1
    dlogits *= dout / len(x)
    return dlogits @ weight, dlogits.T @ x


def stable_softmax_overflowing(z):
    with np.errstate(over="ignore", invalid="ignore"):
        return np.nan_to_num(np.exp(z) / np.exp(z).sum(axis=1, keepdims=True), nan=-1)


def stable_softmax_over_everything(z):
    exponentials = np.exp(z - z.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum()


def cross_entropy_positive(logits, targets):
    return -cross_entropy(logits, targets)


def cross_entropy_mean(logits, targets):
    return cross_entropy(logits, targets).mean()


def cross_entropy_log_of_softmax(logits, targets):
    return -np.log(stable_softmax(logits)[np.arange(len(targets)), targets])


def cross_entropy_without_maximum(logits, targets):
    sums = np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
    return np.log(sums) - logits[np.arange(len(targets)), targets]


def softmax_dz_direct(dout, z, p):
    return p * dout


def softmax_dz_diagonal(dout, z, p):
    return (p - p**2) * dout


def softmax_dz_unweighted(dout, z, p):
    return p * (dout - dout.sum(1, keepdims=True))


def softmax_dz_plain_mean(dout, z, p):
    return p * (dout - dout.mean(1, keepdims=True))


def softmax_dz_half_bracket(dout, z, p):
    return p * dout - (p * dout).sum(1, keepdims=True)


def softmax_dz_over_rows(dout, z, p):
    return p * (dout - (dout * p).sum(0))


def softmax_dz_sign(dout, z, p):
    return p * (dout + (dout * p).sum(1, keepdims=True))


def softmax_dz_of_one_row(dout, z, p):
    return (np.diag(p[0]) - np.outer(p[0], p[0])) @ dout[0]


def cross_entropy_dlogits_all_pairs(dout, logits, targets):
    p = stable_softmax(logits)
    p[:, targets] -= 1
    return p * dout[:, None]


def cross_entropy_dlogits_mean(dout, logits, targets):
    return cross_entropy_dlogits(dout, logits, targets) / len(targets)


def cross_entropy_dlogits_without_target(dout, logits, targets):
    return stable_softmax(logits) * dout[:, None]


def cross_entropy_dlogits_dout_first(dout, logits, targets):
    p = stable_softmax(logits) * dout[:, None]
    p[np.arange(len(p)), targets] -= 1
    return p


def cross_entropy_dlogits_downhill(dout, logits, targets):
    return -cross_entropy_dlogits(dout, logits, targets)


def cross_entropy_dlogits_without_dout(dout, logits, targets):
    return cross_entropy_dlogits(np.ones(len(dout)), logits, targets)


def classifier_backward_of_the_sum(dout, x, weight, targets):
    dx, dweight = classifier_backward(dout, x, weight, targets)
    return dx * len(x), dweight * len(x)


def classifier_backward_without_dout(dout, x, weight, targets):
    return classifier_backward(1.0, x, weight, targets)


MISTAKES = [
    (stable_softmax_overflowing, "take each row's maximum off first"),
    (stable_softmax_over_everything, "Each row has to add up to 1 by itself"),
    (cross_entropy_positive, "*negative* logarithm"),
    (cross_entropy_mean, "Return the loss of every row"),
    (cross_entropy_log_of_softmax, "The logarithm comes too late"),
    (cross_entropy_without_maximum, "Add it to the logarithm again"),
    (softmax_dz_direct, "The second term is missing"),
    (softmax_dz_diagonal, "the diagonal of the Jacobian alone"),
    (softmax_dz_unweighted, "the probability is missing in it"),
    (softmax_dz_plain_mean, "weighted with the probabilities"),
    (softmax_dz_half_bracket, "in front of the whole bracket"),
    (softmax_dz_over_rows, "Rows know nothing of each other"),
    (softmax_dz_sign, "wrong sign"),
    (softmax_dz_of_one_row, "has shape (5,), and should have (3, 5)"),
    (cross_entropy_dlogits_all_pairs, "Each row has one target"),
    (cross_entropy_dlogits_mean, "You have divided by N"),
    (cross_entropy_dlogits_without_target, "the 1 at each row's target"),
    (cross_entropy_dlogits_dout_first, "First p − y"),
    (cross_entropy_dlogits_downhill, "The gradient points uphill"),
    (cross_entropy_dlogits_without_dout, "its own dout"),
    (classifier_backward_without_dout, "dout is missing"),
    (classifier_backward_of_the_sum, "divide dout by N, once, at the top"),
]
