"""What a learner may write in lesson 04, right and wrong."""

import numpy as np


def scale_backward(dout, norm, weight, bias):
    dweight = np.einsum("nc,nc->c", dout, norm)
    return dout * weight, dweight, np.ones(len(dout)) @ dout


def by_hand():
    return [-4 / 3, 26 / 9, -10 / 9, -4 / 9]


def layernorm_dx(dout, x, weight, mean, rstd):
    C = x.shape[1]
    dx = np.empty_like(x)
    for n in range(len(x)):
        norm = (x[n] - mean[n]) * rstd[n]
        jacobian = rstd[n] * (np.eye(C) - 1 / C - np.outer(norm, norm) / C)
        dx[n] = jacobian @ (dout[n] * weight)
    return dx


def unit_dx(dout, x):
    squares = np.vecdot(x, x)[:, None]
    return dout / np.sqrt(squares) - x * np.vecdot(x, dout)[:, None] / squares**1.5


def scale_backward_over_channels(dout, norm, weight, bias):
    return dout * weight, (dout * norm).sum(1), dout.sum(1)


def scale_backward_mean(dout, norm, weight, bias):
    return dout * weight, (dout * norm).mean(0), dout.mean(0)


def scale_backward_rows(dout, norm, weight, bias):
    return dout * weight, dout * norm, dout.sum(0)


def scale_backward_unscaled(dout, norm, weight, bias):
    return dout, (dout * norm).sum(0), dout.sum(0)


def by_hand_no_mean():
    return [-1 / 3, 35 / 9, -1 / 9, 5 / 9]


def by_hand_no_variance():
    return [-1, 3, -1, -1]


def by_hand_direct():
    return [0, 4, 0, 0]


def by_hand_no_rstd():
    return [-4, 26 / 3, -10 / 3, -4 / 3]


def layernorm_dx_no_mean(dout, x, weight, mean, rstd):
    norm, dnorm = (x - mean[:, None]) * rstd[:, None], dout * weight
    return rstd[:, None] * (dnorm - norm * (dnorm * norm).mean(1)[:, None])


def layernorm_dx_no_variance(dout, x, weight, mean, rstd):
    dnorm = dout * weight
    return rstd[:, None] * (dnorm - dnorm.mean(1)[:, None])


def layernorm_dx_no_rstd(dout, x, weight, mean, rstd):
    norm, dnorm = (x - mean[:, None]) * rstd[:, None], dout * weight
    return dnorm - dnorm.mean(1)[:, None] - norm * (dnorm * norm).mean(1)[:, None]


def layernorm_dx_no_weight(dout, x, weight, mean, rstd):
    norm = (x - mean[:, None]) * rstd[:, None]
    return rstd[:, None] * (dout - dout.mean(1)[:, None] - norm * (dout * norm).mean(1)[:, None])


def layernorm_dx_weight_late(dout, x, weight, mean, rstd):
    norm = (x - mean[:, None]) * rstd[:, None]
    bracket = dout - dout.mean(1)[:, None] - norm * (dout * norm).mean(1)[:, None]
    return rstd[:, None] * bracket * weight


def layernorm_dx_sums(dout, x, weight, mean, rstd):
    norm, dnorm = (x - mean[:, None]) * rstd[:, None], dout * weight
    return rstd[:, None] * (dnorm - dnorm.sum(1)[:, None] - norm * (dnorm * norm).sum(1)[:, None])


def layernorm_dx_over_rows(dout, x, weight, mean, rstd):
    norm, dnorm = (x - mean[:, None]) * rstd[:, None], dout * weight
    return rstd[:, None] * (dnorm - dnorm.mean(0) - norm * (dnorm * norm).mean(0))


def layernorm_dx_no_keepdims(dout, x, weight, mean, rstd):
    return (dout * weight - (dout * weight).mean(1)) * rstd


def unit_dx_constant_length(dout, x):
    return dout / np.sqrt((x * x).sum(1, keepdims=True))


def unit_dx_wrong_sign(dout, x):
    squares = np.vecdot(x, x)[:, None]
    return dout / np.sqrt(squares) + x * np.vecdot(x, dout)[:, None] / squares**1.5


def unit_dx_mean(dout, x):
    length = np.sqrt((x * x).sum(1, keepdims=True))
    return dout / length - x * (x * dout).mean(1, keepdims=True) / length**3


def unit_dx_no_sum(dout, x):
    length = np.sqrt((x * x).sum(1, keepdims=True))
    return dout / length - x * x * dout / length**3


def unit_dx_whole_array(dout, x):
    length = np.sqrt((x * x).sum())
    return dout / length - x * (x * dout).sum() / length**3


MISTAKES = [
    (scale_backward_over_channels, "what they share is the rows"),
    (scale_backward_mean, "adds up: sum"),
    (scale_backward_rows, "The weight is shared by all rows"),
    (scale_backward_unscaled, "dweight is right"),
    (by_hand_no_mean, "The path by the mean is missing"),
    (by_hand_no_variance, "The path by the variance is missing"),
    (by_hand_direct, "That is the direct path alone"),
    (by_hand_no_rstd, "rstd is missing"),
    (layernorm_dx_no_mean, "The term of the mean is missing"),
    (layernorm_dx_no_variance, "The term of the variance is missing"),
    (layernorm_dx_no_rstd, "rstd is missing in front of the bracket"),
    (layernorm_dx_no_weight, "The weight is missing"),
    (layernorm_dx_weight_late, "The weight comes too late"),
    (layernorm_dx_sums, "both come with 1/C"),
    (layernorm_dx_over_rows, "keepdims=True"),
    (layernorm_dx_no_keepdims, "it stopped with ValueError"),
    (unit_dx_constant_length, "But x moves it"),
    (unit_dx_wrong_sign, "wrong sign"),
    (unit_dx_mean, "no 1/C in it"),
    (unit_dx_no_sum, "The sum over j is missing"),
    (unit_dx_whole_array, "Every row has its own"),
]
