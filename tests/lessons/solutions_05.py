"""What a learner may write in lesson 05, right and wrong."""

import math

import numpy as np

# These are in the notebook before the exercises.
SCALE, CUBIC = math.sqrt(2 / math.pi), 0.044715


def Phi(x):
    return (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def phi(x):
    return np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def gelu_exact_dx(dout, x):
    return (x * phi(x) + Phi(x)) * dout


def gelu_dx(dout, x):
    t = np.tanh(SCALE * (x + CUBIC * x * x * x))
    du = SCALE + 3 * SCALE * CUBIC * x * x
    return 0.5 * dout * (1 + t) * (1 + (1 - t) * x * du)


def mlp_backward(dout, x, h, a, fc_weight, fc_bias, proj_weight, proj_bias):
    t = np.tanh(SCALE * (h + CUBIC * h**3))
    slope = (1 + t) * (1 + (1 - t) * h * SCALE * (1 + 3 * CUBIC * h**2)) / 2
    dh = slope * np.einsum("no,oj->nj", dout, proj_weight)
    dfc_weight = np.einsum("nj,ni->ji", dh, x)
    dproj_weight = np.einsum("no,nj->oj", dout, a)
    return dh @ fc_weight, dfc_weight, dh.sum(0), dproj_weight, dout.sum(0)


def mlp_counts(C):
    products = C * 4 * C + 4 * C * C
    return products + 4 * C + C, products, 2 * products


def gelu_exact_dx_half_rule(dout, x):
    return dout * Phi(x)


def gelu_exact_dx_other_half(dout, x):
    return dout * phi(x) * x


def gelu_exact_dx_no_dout(dout, x):
    return Phi(x) + x * phi(x)


def gelu_exact_dx_no_x(dout, x):
    return dout * (Phi(x) + phi(x))


def gelu_dx_no_inner(dout, x):
    t = np.tanh(SCALE * (x + CUBIC * x**3))
    return dout * (0.5 * (1 + t) + 0.5 * x * (1 - t * t))


def gelu_dx_no_scale(dout, x):
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    return dout * ((1 + t) / 2 + x * (1 - t * t) / 2 * (1 + 3 * 0.044715 * x * x))


def gelu_dx_no_x(dout, x):
    s = np.sqrt(2 / np.pi)
    t = np.tanh(s * (x + 0.044715 * x**3))
    return dout * ((1 + t) / 2 + (1 - t * t) / 2 * s * (1 + 3 * 0.044715 * x * x))


def gelu_dx_no_three(dout, x):
    t = np.tanh(SCALE * (x + CUBIC * x**3))
    return dout * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * SCALE * (1 + CUBIC * x**2))


def gelu_dx_half_rule(dout, x):
    return dout * (1 + np.tanh(SCALE * (x + CUBIC * x**3))) / 2


def gelu_dx_exact(dout, x):
    return dout * (Phi(x) + x * phi(x))


def mlp_backward_no_gelu(dout, x, h, a, fc_weight, fc_bias, proj_weight, proj_bias):
    dh = dout @ proj_weight
    return dh @ fc_weight, dh.T @ x, dh.sum(0), dout.T @ a, dout.sum(0)


def mlp_backward_slope_at_a(dout, x, h, a, fc_weight, fc_bias, proj_weight, proj_bias):
    dh = gelu_dx(dout @ proj_weight, a)
    return dh @ fc_weight, dh.T @ x, dh.sum(0), dout.T @ a, dout.sum(0)


def mlp_backward_gelu_itself(dout, x, h, a, fc_weight, fc_bias, proj_weight, proj_bias):
    dh = dout @ proj_weight * a
    return dh @ fc_weight, dh.T @ x, dh.sum(0), dout.T @ a, dout.sum(0)


def mlp_backward_h_for_a(dout, x, h, a, fc_weight, fc_bias, proj_weight, proj_bias):
    dh = gelu_dx(dout @ proj_weight, h)
    return dh @ fc_weight, dh.T @ x, dh.sum(0), dout.T @ h, dout.sum(0)


def mlp_counts_no_biases(C):
    return 8 * C * C, 8 * C * C, 16 * C * C


def mlp_counts_backward_once(C):
    return 8 * C * C + 5 * C, 8 * C * C, 8 * C * C


def mlp_counts_one_layer(C):
    return 4 * C * C + 4 * C, 4 * C * C, 8 * C * C


MISTAKES = [
    (gelu_exact_dx_half_rule, "Phi(x) alone is half of the product rule"),
    (gelu_exact_dx_other_half, "x phi(x) alone is half of the product rule"),
    (gelu_exact_dx_no_dout, "times dout"),
    (gelu_exact_dx_no_x, "the product rule gives one x"),
    (gelu_dx_no_inner, "The derivative of u is missing"),
    (gelu_dx_no_scale, "sqrt(2/pi) is missing"),
    (gelu_dx_no_x, "The second term has lost its x"),
    (gelu_dx_no_three, "The 3 of the cubic term is missing"),
    (gelu_dx_half_rule, "t depends on x, too"),
    (gelu_dx_exact, "That is the derivative of the exact GELU"),
    (mlp_backward_no_gelu, "GELU is missing on the way down"),
    (mlp_backward_slope_at_a, "It belongs to what went into it: h"),
    (mlp_backward_gelu_itself, "You multiply by GELU itself"),
    (mlp_backward_h_for_a, "dproj_weight is off by"),
    (mlp_counts_no_biases, "The biases are missing"),
    (mlp_counts_backward_once, "two products for each one"),
    (mlp_counts_one_layer, "You have counted one of the two layers"),
]
