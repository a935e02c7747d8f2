"""The exercises of lesson 09, a block and the residual stream; and its layers in their plain form.

The arrays are (B, T, C): sequences, positions, channels. H is the number of heads.
"""

from collections.abc import Iterator

import numpy as np

from exercises import Exercise, Grader

Arrays = tuple[np.ndarray, ...]


def layernorm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    norm = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return norm * weight + bias


def layernorm_backward(dout: np.ndarray, x: np.ndarray, weight: np.ndarray) -> Arrays:
    rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    norm = (x - x.mean(-1, keepdims=True)) * rstd
    dnorm = dout * weight
    by_mean = dnorm.mean(-1, keepdims=True)
    by_variance = norm * (dnorm * norm).mean(-1, keepdims=True)
    return rstd * (dnorm - by_mean - by_variance), (dout * norm).sum((0, 1)), dout.sum((0, 1))


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return x @ weight.T + bias


def linear_backward(dout: np.ndarray, x: np.ndarray, weight: np.ndarray) -> Arrays:
    return dout @ weight, np.einsum("bto,bti->oi", dout, x), dout.sum((0, 1))


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def gelu_backward(dout: np.ndarray, x: np.ndarray) -> np.ndarray:
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    du = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return dout * (1 + t + x * (1 - t**2) * du) / 2


def split_heads(qkv: np.ndarray, num_heads: int) -> np.ndarray:
    """(B, T, 3C) -> (3, B, H, T, D)."""
    B, T, width = qkv.shape
    return qkv.reshape(B, T, 3, num_heads, width // 3 // num_heads).transpose(2, 0, 3, 1, 4)


def attention_probs(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    T, D = q.shape[-2:]
    scores = np.where(np.tri(T, dtype=bool), q @ k.swapaxes(-1, -2) / np.sqrt(D), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention(qkv: np.ndarray, num_heads: int) -> np.ndarray:
    q, k, v = split_heads(qkv, num_heads)
    return (attention_probs(q, k) @ v).transpose(0, 2, 1, 3).reshape(*qkv.shape[:2], -1)


def attention_backward(dout: np.ndarray, qkv: np.ndarray, num_heads: int) -> np.ndarray:
    q, k, v = split_heads(qkv, num_heads)
    probs = attention_probs(q, k)
    B, T, C = dout.shape
    dout = dout.reshape(B, T, num_heads, -1).transpose(0, 2, 1, 3)
    dprobs = dout @ v.swapaxes(-1, -2)
    dscores = probs * (dprobs - (probs * dprobs).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
    dqkv = dscores @ k, dscores.swapaxes(-1, -2) @ q, probs.swapaxes(-1, -2) @ dout
    return np.stack(dqkv).transpose(1, 3, 0, 2, 4).reshape(B, T, 3 * C)


# --- exercise 1: a residual connection


def residual(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x + np.tanh(x @ weight.T)


def residual_dx(dout: np.ndarray, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return dout + tanh_dx(dout, x, weight)


def tanh_dx(
    dout: np.ndarray, x: np.ndarray, weight: np.ndarray, back: np.ndarray | None = None
) -> np.ndarray:
    return (dout * (1 - np.tanh(x @ weight.T) ** 2)) @ (weight if back is None else back)


# --- exercise 2: a stack of them


def stack(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    for weight in weights:
        x = residual(x, weight)
    return x


def stack_backward(dout: np.ndarray, x: np.ndarray, weights: np.ndarray) -> Arrays:
    return _stack_backward(dout, x, weights)


def _stack_backward(
    dout: np.ndarray,
    x: np.ndarray,
    weights: np.ndarray,
    adds: bool = True,
    upwards: bool = False,
    first_only: bool = False,
    last_only: bool = False,
    from_top: bool = False,
) -> Arrays:
    """With an option: one of the mistakes."""
    inputs = [x]
    for weight in weights:
        inputs.append(residual(inputs[-1], weight))
    dx, dweights = dout, np.zeros_like(weights)
    layers = range(len(weights))
    for layer in layers if upwards else reversed(layers):
        here = inputs[0] if first_only else inputs[-1] if last_only else inputs[layer]
        du = (dout if from_top else dx) * (1 - np.tanh(here @ weights[layer].T) ** 2)
        dweights[layer] = du.T @ here
        dx = adds * dx + du @ weights[layer]
    return dx, dweights


# --- exercise 3: a pre-norm branch


def prenorm(
    x: np.ndarray,
    norm_weight: np.ndarray,
    norm_bias: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
) -> np.ndarray:
    return x + linear(layernorm(x, norm_weight, norm_bias), weight, bias)


def prenorm_backward(
    dout: np.ndarray,
    x: np.ndarray,
    norm_weight: np.ndarray,
    norm_bias: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
) -> Arrays:
    return _prenorm_backward(dout, x, norm_weight, norm_bias, weight)


def _prenorm_backward(
    dout: np.ndarray,
    x: np.ndarray,
    norm_weight: np.ndarray,
    norm_bias: np.ndarray,
    weight: np.ndarray,
    direct: bool = True,
    stream_inside: bool = False,
    not_normed: bool = False,
    norm_of_normed: bool = False,
) -> Arrays:
    normed = layernorm(x, norm_weight, norm_bias)
    dnormed, dweight, dbias = linear_backward(dout, x if not_normed else normed, weight)
    inner = dnormed + dout if stream_inside else dnormed
    into = normed if norm_of_normed else x
    dx, dnorm_weight, dnorm_bias = layernorm_backward(inner, into, norm_weight)
    return dx + dout * (direct and not stream_inside), dnorm_weight, dnorm_bias, dweight, dbias


# --- exercise 4: the block

BLOCK = (
    *("ln1w", "ln1b", "qkvw", "qkvb", "attprojw", "attprojb"),
    *("ln2w", "ln2b", "fcw", "fcb", "fcprojw", "fcprojb"),
)


def block(
    x: np.ndarray,
    num_heads: int,
    ln1w: np.ndarray,
    ln1b: np.ndarray,
    qkvw: np.ndarray,
    qkvb: np.ndarray,
    attprojw: np.ndarray,
    attprojb: np.ndarray,
    ln2w: np.ndarray,
    ln2b: np.ndarray,
    fcw: np.ndarray,
    fcb: np.ndarray,
    fcprojw: np.ndarray,
    fcprojb: np.ndarray,
) -> np.ndarray:
    att = attention(linear(layernorm(x, ln1w, ln1b), qkvw, qkvb), num_heads)
    r = x + linear(att, attprojw, attprojb)
    return r + linear(gelu(linear(layernorm(r, ln2w, ln2b), fcw, fcb)), fcprojw, fcprojb)


def block_backward(dout: np.ndarray, x: np.ndarray, num_heads: int, **p: np.ndarray) -> Arrays:
    return _block_backward(dout, x, num_heads, p)


def _block_backward(
    dout: np.ndarray,
    x: np.ndarray,
    num_heads: int,
    p: dict[str, np.ndarray],
    first: bool = True,
    second: bool = True,
    fresh_attention: bool = False,
    wrong_stream: bool = False,
    around_both: bool = False,
) -> Arrays:
    ln1 = layernorm(x, p["ln1w"], p["ln1b"])
    qkv = linear(ln1, p["qkvw"], p["qkvb"])
    att = attention(qkv, num_heads)
    r = x + linear(att, p["attprojw"], p["attprojb"])
    ln2 = layernorm(r, p["ln2w"], p["ln2b"])
    fch = linear(ln2, p["fcw"], p["fcb"])

    g = {}
    d, g["fcprojw"], g["fcprojb"] = linear_backward(dout, gelu(fch), p["fcprojw"])
    d = gelu_backward(d, fch)
    d, g["fcw"], g["fcb"] = linear_backward(d, ln2, p["fcw"])
    d, g["ln2w"], g["ln2b"] = layernorm_backward(d, x if wrong_stream else r, p["ln2w"])
    dr = second * dout + d
    into = dout if fresh_attention else dr
    d, g["attprojw"], g["attprojb"] = linear_backward(into, att, p["attprojw"])
    d = attention_backward(d, qkv, num_heads)
    d, g["qkvw"], g["qkvb"] = linear_backward(d, ln1, p["qkvw"])
    d, g["ln1w"], g["ln1b"] = layernorm_backward(d, x, p["ln1w"])
    return first * (dout if around_both else dr) + d, *(g[name] for name in BLOCK)


# --- arguments


def arrays(seed: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def block_shapes(C: int) -> dict[str, tuple[int, ...]]:
    attention_shapes = (C,), (C,), (3 * C, C), (3 * C,), (C, C), (C,)
    mlp_shapes = (C,), (C,), (4 * C, C), (4 * C,), (C, 4 * C), (C,)
    return dict(zip(BLOCK, attention_shapes + mlp_shapes, strict=True))


def cases(kind: str) -> Iterator[dict]:
    for seed, (N, C, L) in enumerate(((4, 3, 2), (2, 5, 3))):
        shape = (2, N + 1, C) if kind == "prenorm" else (N, C)
        made = arrays(seed, dout=shape, x=shape)
        if kind == "residual":
            made |= arrays(seed + 9, weight=(C, C))
        elif kind == "stack":
            made |= arrays(seed + 9, weights=(L, C, C))
        else:
            made |= arrays(seed + 9, norm_weight=(C,), norm_bias=(C,), weight=(C, C), bias=(C,))
        yield made


def block_cases() -> Iterator[dict]:
    for seed, (B, T, H, C) in enumerate(((1, 3, 2, 4), (2, 4, 1, 3))):
        yield {
            **arrays(seed, dout=(B, T, C), x=(B, T, C)),
            "num_heads": H,
            **{n: 0.7 * w for n, w in arrays(seed + 9, **block_shapes(C)).items()},
        }


grade = Grader(
    Exercise(
        residual_dx,
        list(cases("residual")),
        ["dx"],
        residual,
        mistakes={
            "That is what the branch says about x. But x is used twice: the addition passes dout "
            "on as it is, and the two add up.": tanh_dx,
            "Only the way around the branch is in it. What does the branch say about x?": (
                lambda dout, x, weight: dout
            ),
            "The branch's gradient stops before the matrix product: (1 - t**2) has to be applied "
            "first, and then weight.": lambda dout, x, weight: (
                dout + dout @ weight * (1 - np.tanh(x @ weight.T) ** 2)
            ),
            "The derivative of tanh is missing in the branch: what reaches the matrix product is "
            "dout * (1 - t**2).": lambda dout, x, weight: dout + dout @ weight,
            "Forward multiplies by weight.T, so backward multiplies by weight.": (
                lambda dout, x, weight: dout + tanh_dx(dout, x, weight, weight.T)
            ),
            "You multiplied what the two uses say. They add up.": lambda dout, x, weight: (
                dout * tanh_dx(dout, x, weight)
            ),
        },
    ),
    Exercise(
        stack_backward,
        list(cases("stack")),
        ["dx", "dweights"],
        stack,
        mistakes={
            "In each layer dx was replaced by what the branch says: that is a plain stack. Add it "
            "to what arrives from above.": lambda **a: _stack_backward(**a, adds=False),
            "You went from the first layer to the last. What arrives at a layer has to have passed "
            "those above it: begin with the last.": lambda **a: _stack_backward(**a, upwards=True),
            "Every branch was given dout, the gradient at the top. Give it the running sum dx, in "
            "which the layers above have had their say.": (
                lambda **a: _stack_backward(**a, from_top=True)
            ),
            "Every layer's gradient was computed at the first layer's input. Keep the input of "
            "each layer on the way forward.": lambda **a: _stack_backward(**a, first_only=True),
            "Every layer's gradient was computed at the stack's output. Keep the input of each "
            "layer on the way forward.": lambda **a: _stack_backward(**a, last_only=True),
        },
    ),
    Exercise(
        prenorm_backward,
        list(cases("prenorm")),
        ["dx", "dnorm_weight", "dnorm_bias", "dweight", "dbias"],
        prenorm,
        mistakes={
            "dx has only the branch's part. The stream goes around the branch: add dout.": (
                lambda bias, **a: _prenorm_backward(**a, direct=False)
            ),
            "You sent the stream's gradient through the norm. In pre-norm the norm stands in the "
            "branch: add dout after layernorm_backward, not before it.": (
                lambda bias, **a: _prenorm_backward(**a, stream_inside=True)
            ),
            "layernorm_backward needs the norm's input, which is x; you gave it its output.": (
                lambda bias, **a: _prenorm_backward(**a, norm_of_normed=True)
            ),
            "All is right but dweight: the linear layer's input was the normalised x, not x.": (
                lambda bias, **a: _prenorm_backward(**a, not_normed=True)
            ),
        },
    ),
    Exercise(
        block_backward,
        list(block_cases()),
        ["dx", *(f"d{name}" for name in BLOCK)],
        block,
        mistakes={
            "The MLP's half is right, and everything below it is not: dr is what goes around the "
            "MLP plus what comes out of it. Add dout.": lambda dout, x, num_heads, **p: (
                _block_backward(dout, x, num_heads, p, second=False)
            ),
            "All is right but dx: it has only what comes out of ln1. x also goes around attention: "
            "add dr.": lambda dout, x, num_heads, **p: _block_backward(
                dout, x, num_heads, p, first=False
            ),
            "All is right but dx: what goes around attention is dr, in which the MLP has had its "
            "say, and not dout.": lambda dout, x, num_heads, **p: _block_backward(
                dout, x, num_heads, p, around_both=True
            ),
            "Attention's branch was given dout. What the MLP says about r has to reach it too: "
            "give it dr.": lambda dout, x, num_heads, **p: _block_backward(
                dout, x, num_heads, p, fresh_attention=True
            ),
            "The backward pass of ln2 needs ln2's input, which is r, the stream after attention; "
            "you gave it x.": lambda dout, x, num_heads, **p: _block_backward(
                dout, x, num_heads, p, wrong_stream=True
            ),
        },
    ),
)
