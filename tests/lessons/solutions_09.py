"""What a learner may write in lesson 09, right and wrong."""

import numpy as np
from exercises.lesson_09 import (
    attention,
    attention_backward,
    gelu,
    gelu_backward,
    layernorm,
    layernorm_backward,
    linear,
    linear_backward,
)


def residual_dx(dout, x, weight):
    t = np.tanh(x @ weight.T)
    jacobians = np.eye(len(weight)) + (1 - t**2)[:, :, None] * weight
    return np.einsum("noi,no->ni", jacobians, dout)


def stack_backward(dout, x, weights):
    kept = []
    for weight in weights:
        t = np.tanh(x @ weight.T)
        kept.append((x, t, weight))
        x = x + t
    dx, dweights = dout, []
    for x, t, weight in kept[::-1]:
        du = dx * (1 - t**2)
        dweights.insert(0, du.T @ x)
        dx = dx + du @ weight
    return dx, np.array(dweights)


def prenorm_backward(dout, x, norm_weight, norm_bias, weight, bias):
    normed = layernorm(x, norm_weight, norm_bias)
    dnormed, dweight, dbias = linear_backward(dout, normed, weight)
    dx, dnorm_weight, dnorm_bias = layernorm_backward(dnormed, x, norm_weight)
    return dout + dx, dnorm_weight, dnorm_bias, dweight, dbias


def block_backward(dout, x, num_heads, **p):
    ln1 = layernorm(x, p["ln1w"], p["ln1b"])
    qkv = linear(ln1, p["qkvw"], p["qkvb"])
    att = attention(qkv, num_heads)
    r = x + linear(att, p["attprojw"], p["attprojb"])
    ln2 = layernorm(r, p["ln2w"], p["ln2b"])
    fch = linear(ln2, p["fcw"], p["fcb"])
    fch_gelu = gelu(fch)

    g = {}
    dstream = dout.copy()
    dfch_gelu, g["fcprojw"], g["fcprojb"] = linear_backward(dstream, fch_gelu, p["fcprojw"])
    dfch = gelu_backward(dfch_gelu, fch)
    dln2, g["fcw"], g["fcb"] = linear_backward(dfch, ln2, p["fcw"])
    dbranch, g["ln2w"], g["ln2b"] = layernorm_backward(dln2, r, p["ln2w"])
    dstream += dbranch
    datt, g["attprojw"], g["attprojb"] = linear_backward(dstream, att, p["attprojw"])
    dqkv = attention_backward(datt, qkv, num_heads)
    dln1, g["qkvw"], g["qkvb"] = linear_backward(dqkv, ln1, p["qkvw"])
    dbranch, g["ln1w"], g["ln1b"] = layernorm_backward(dln1, x, p["ln1w"])
    dstream += dbranch
    return dstream, *(g[name] for name in p)


def residual_dx_branch_only(dout, x, weight):
    return (dout * (1 - np.tanh(x @ weight.T) ** 2)) @ weight


def residual_dx_around_only(dout, x, weight):
    return dout


def residual_dx_without_tanh(dout, x, weight):
    return dout @ (np.eye(len(weight)) + weight)


def residual_dx_transposed(dout, x, weight):
    t = np.tanh(x @ weight.T)
    return dout + (dout - dout * t * t) @ weight.T


def stack_backward_from_the_top(dout, x, weights):
    dx, dweights = dout.copy(), np.empty_like(weights)
    for i, weight in enumerate(weights):
        t = np.tanh(x @ weight.T)
        du = dout * (1 - t**2)
        dweights[i] = du.T @ x
        dx += du @ weight
        x = x + t
    return dx, dweights


def stack_backward_plain(dout, x, weights):
    kept = []
    for weight in weights:
        kept.append(x)
        x = x + np.tanh(x @ weight.T)
    dweights = np.empty_like(weights)
    for i in reversed(range(len(weights))):
        du = dout * (1 - np.tanh(kept[i] @ weights[i].T) ** 2)
        dweights[i] = du.T @ kept[i]
        dout = du @ weights[i]
    return dout, dweights


def stack_backward_from_the_first(dout, x, weights):
    dweights = np.empty_like(weights)
    for i, weight in enumerate(weights):
        t = np.tanh(x @ weight.T)
        du = dout * (1 - t**2)
        dweights[i] = du.T @ x
        x, dout = x + t, dout + du @ weight
    return dout, dweights


def prenorm_backward_through_the_norm(dout, x, norm_weight, norm_bias, weight, bias):
    normed = layernorm(x, norm_weight, norm_bias)
    dnormed, dweight, dbias = linear_backward(dout, normed, weight)
    dx, dnorm_weight, dnorm_bias = layernorm_backward(dnormed + dout, x, norm_weight)
    return dx, dnorm_weight, dnorm_bias, dweight, dbias


def prenorm_backward_at_the_normed(dout, x, norm_weight, norm_bias, weight, bias):
    normed = layernorm(x, norm_weight, norm_bias)
    dnormed, dweight, dbias = linear_backward(dout, normed, weight)
    dx, dnorm_weight, dnorm_bias = layernorm_backward(dnormed, normed, norm_weight)
    return dout + dx, dnorm_weight, dnorm_bias, dweight, dbias


def block_backward_dx_from_dout(dout, x, num_heads, **p):
    r = x + linear(
        attention(linear(layernorm(x, p["ln1w"], p["ln1b"]), p["qkvw"], p["qkvb"]), num_heads),
        p["attprojw"],
        p["attprojb"],
    )
    fch = linear(layernorm(r, p["ln2w"], p["ln2b"]), p["fcw"], p["fcb"])
    dfch = gelu_backward(dout @ p["fcprojw"], fch)
    through_mlp = layernorm_backward(dfch @ p["fcw"], r, p["ln2w"])[0]
    dx, *others = block_backward(dout, x, num_heads, **p)
    return dx - through_mlp, *others


def block_backward_without_around_the_mlp(dout, x, num_heads, **p):
    ln1 = layernorm(x, p["ln1w"], p["ln1b"])
    qkv = linear(ln1, p["qkvw"], p["qkvb"])
    att = attention(qkv, num_heads)
    r = x + linear(att, p["attprojw"], p["attprojb"])
    ln2 = layernorm(r, p["ln2w"], p["ln2b"])
    fch = linear(ln2, p["fcw"], p["fcb"])

    g = {}
    d, g["fcprojw"], g["fcprojb"] = linear_backward(dout, gelu(fch), p["fcprojw"])
    d, g["fcw"], g["fcb"] = linear_backward(gelu_backward(d, fch), ln2, p["fcw"])
    dr, g["ln2w"], g["ln2b"] = layernorm_backward(d, r, p["ln2w"])
    d, g["attprojw"], g["attprojb"] = linear_backward(dr, att, p["attprojw"])
    d, g["qkvw"], g["qkvb"] = linear_backward(attention_backward(d, qkv, num_heads), ln1, p["qkvw"])
    d, g["ln1w"], g["ln1b"] = layernorm_backward(d, x, p["ln1w"])
    return dr + d, *(g[name] for name in p)


MISTAKES = [
    (residual_dx_branch_only, "x is used twice"),
    (residual_dx_around_only, "What does the branch say about x?"),
    (residual_dx_without_tanh, "The derivative of tanh is missing"),
    (residual_dx_transposed, "so backward multiplies by weight."),
    (stack_backward_from_the_top, "Give it the running sum dx"),
    (stack_backward_plain, "that is a plain stack"),
    (stack_backward_from_the_first, "begin with the last"),
    (prenorm_backward_through_the_norm, "the norm stands in the branch"),
    (prenorm_backward_at_the_normed, "needs the norm's input, which is x"),
    (block_backward_dx_from_dout, "what goes around attention is dr"),
    (block_backward_without_around_the_mlp, "Add dout"),
]
