"""The exercises of lesson 15: what Llama 2 does differently."""

import numpy as np

from exercises import Exercise, Grader

EPS = 1e-5
rng = np.random.default_rng(15)


# --- RMSNorm


def rmsnorm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPS) * weight


def root_mean_square(x: np.ndarray) -> np.ndarray:
    return np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPS)


def rmsnorm_dx(
    dout: np.ndarray, x: np.ndarray, weight: np.ndarray, terms: tuple[bool, bool] = (False, True)
) -> np.ndarray:
    """`terms`: whether to take off layernorm's mean(dnorm), and norm mean(dnorm norm)."""
    rstd = 1 / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPS)
    norm, dnorm = x * rstd, dout * weight
    dx = dnorm.copy()
    if terms[0]:
        dx -= dnorm.mean(axis=-1, keepdims=True)
    if terms[1]:
        dx -= norm * (dnorm * norm).mean(axis=-1, keepdims=True)
    return rstd * dx


def rmsnorm_dx_sum(dout: np.ndarray, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    rstd = 1 / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPS)
    norm, dnorm = x * rstd, dout * weight
    return rstd * (dnorm - norm * (dnorm * norm).sum(axis=-1, keepdims=True))


def rmsnorm_cases(*sizes: tuple[int, int]) -> list[dict[str, np.ndarray]]:
    return [
        {
            "dout": rng.standard_normal((N, C)),
            "x": rng.standard_normal((N, C)) + 0.5,
            "weight": rng.standard_normal(C),
        }
        for N, C in sizes
    ]


# --- RoPE


def rope(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    pairs = pairs * np.exp(1j * angles)[:, None]
    return np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape)


def rope_dx(dout: np.ndarray, x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    return rope(dout, -angles)


def rope_angles(T: int, D: int) -> np.ndarray:
    return np.outer(np.arange(T), 100.0 ** (-np.arange(0, D, 2) / D))


def rope_cases(*sizes: tuple[int, int, int, int]) -> list[dict[str, np.ndarray]]:
    return [
        {
            "dout": rng.standard_normal((B, T, H, D)),
            "x": rng.standard_normal((B, T, H, D)),
            "angles": rope_angles(T, D),
        }
        for B, T, H, D in sizes
    ]


# --- SwiGLU


def sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(x / 2)) / 2


def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return gate * sigmoid(gate) * up


def swiglu_backward(
    dout: np.ndarray, gate: np.ndarray, up: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    s = sigmoid(gate)
    return dout * up * s * (1 + gate * (1 - s)), dout * gate * s


def swiglu_cases(*sizes: tuple[int, int]) -> list[dict[str, np.ndarray]]:
    return [
        {name: 2 * rng.standard_normal(size) for name in ("dout", "gate", "up")} for size in sizes
    ]


# --- grouped heads


def repeat_heads(k: np.ndarray, G: int) -> np.ndarray:
    return np.repeat(k, G, axis=2)


def repeat_heads_backward(dout: np.ndarray, k: np.ndarray, G: int) -> np.ndarray:
    B, T, K, D = k.shape
    return dout.reshape(B, T, K, G, D).sum(axis=3)


def repeat_cases(*sizes: tuple[int, int, int, int, int]) -> list[dict[str, np.ndarray | int]]:
    return [
        {
            "dout": rng.standard_normal((B, T, K * G, D)),
            "k": rng.standard_normal((B, T, K, D)),
            "G": G,
        }
        for B, T, K, D, G in sizes
    ]


# --- Llama's attention


def _probs(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """(B, T, H, D), (B, T, H, D) -> (B, H, T, T)"""
    T, D = q.shape[1], q.shape[3]
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(D)
    scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def llama_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, angles: np.ndarray) -> np.ndarray:
    G = q.shape[2] // k.shape[2]
    probs = _probs(rope(q, angles), repeat_heads(rope(k, angles), G))
    return np.einsum("bhts,bshd->bthd", probs, repeat_heads(v, G))


def llama_attention_backward(
    dout: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    angles: np.ndarray,
    rotate: str = "qk",
    inner: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`rotate`: which gradients to turn back; `inner`: by what q and k were turned."""
    G = q.shape[2] // k.shape[2]
    inner = angles if inner is None else inner
    rotated = rope(q, inner), repeat_heads(rope(k, inner), G)
    probs = _probs(*rotated)
    dprobs = np.einsum("bthd,bshd->bhts", dout, repeat_heads(v, G))
    dscores = probs * (dprobs - (probs * dprobs).sum(axis=-1, keepdims=True))
    dscores /= np.sqrt(q.shape[3])
    dq = np.einsum("bhts,bshd->bthd", dscores, rotated[1])
    dk = repeat_heads_backward(np.einsum("bhts,bthd->bshd", dscores, rotated[0]), k, G)
    dv = repeat_heads_backward(np.einsum("bhts,bthd->bshd", probs, dout), v, G)
    gradients = {"q": dq, "k": dk, "v": dv}
    return tuple(
        rope(gradient, -angles) if name in rotate else gradient
        for name, gradient in gradients.items()
    )


def turned_forwards(
    dout: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, angles: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    dq, dk, dv = llama_attention_backward(dout, q, k, v, angles, rotate="")
    return rope(dq, angles), rope(dk, angles), dv


def attention_cases(*sizes: tuple[int, int, int, int, int]) -> list[dict[str, np.ndarray]]:
    return [
        {
            "dout": rng.standard_normal((B, T, K * G, D)),
            "q": rng.standard_normal((B, T, K * G, D)),
            "k": rng.standard_normal((B, T, K, D)),
            "v": rng.standard_normal((B, T, K, D)),
            "angles": rope_angles(T, D),
        }
        for B, T, K, D, G in sizes
    ]


# --- the cache


def cache_bytes(
    num_layers: int, num_kv_heads: int, head_size: int, positions: int, bytes_each: int
) -> int:
    return 2 * num_layers * num_kv_heads * head_size * positions * bytes_each


CACHE_CASES = [
    {
        "num_layers": 80,
        "num_kv_heads": 8,
        "head_size": 128,
        "positions": 4096,
        "bytes_each": 2,
    },
    {"num_layers": 5, "num_kv_heads": 4, "head_size": 10, "positions": 512, "bytes_each": 4},
]


grade = Grader(
    Exercise(
        rmsnorm_dx,
        rmsnorm_cases((4, 6), (7, 3)),
        ["dx"],
        rmsnorm,
        mistakes={
            "That is the direct path alone, dnorm rstd. But x is in rstd, too: each number of a "
            "row makes the whole row smaller. The second term is missing.": (
                lambda dout, x, weight: rmsnorm_dx(dout, x, weight, (False, False))
            ),
            "You took the mean of dnorm off. That is layernorm's third term, the way back through "
            "its mean; RMSNorm takes no mean off.": (
                lambda dout, x, weight: rmsnorm_dx(dout, x, weight, (True, True))
            ),
            "You summed dnorm norm over the row. The mean square is a mean: there is a 1/C in "
            "it.": rmsnorm_dx_sum,
            "The factor rstd in front of the bracket is missing.": (
                lambda dout, x, weight: rmsnorm_dx(dout, x, weight) * root_mean_square(x)
            ),
            "`weight` is missing: the gradient of the normalised row is dout weight.": (
                lambda dout, x, weight: rmsnorm_dx(dout, x, np.ones_like(weight))
            ),
        },
    ),
    Exercise(
        rope_dx,
        rope_cases((2, 5, 3, 4), (1, 3, 2, 6)),
        ["dx"],
        rope,
        mistakes={
            "You turned forwards once more. The way back turns by the opposite angle: look at the "
            "signs of the sines.": lambda dout, x, angles: rope(dout, angles),
            "You turned x. What has to be turned back is the gradient, dout.": (
                lambda dout, x, angles: rope(x, -angles)
            ),
            "That is dout as it came: nothing is turned.": lambda dout, x, angles: dout,
        },
    ),
    Exercise(
        swiglu_backward,
        swiglu_cases((4, 5), (3, 7)),
        ["dgate", "dup"],
        swiglu,
        mistakes={
            "They are swapped: dgate comes first, then dup.": (
                lambda dout, gate, up: swiglu_backward(dout, gate, up)[::-1]
            ),
            "dup is right. In dgate the derivative of silu is that of sigmoid, s (1 - s): silu is "
            "a product, gate times s, and has a product's two terms.": (
                lambda dout, gate, up: (
                    dout * up * sigmoid(gate) * (1 - sigmoid(gate)),
                    dout * gate * sigmoid(gate),
                )
            ),
            "dup is right. dgate lacks `up`: what the gate's slope is worth depends on what it "
            "lets through.": (lambda dout, gate, up: swiglu_backward(dout, gate, np.ones_like(up))),
            "dup is right. In dgate, the term gate s (1 - s) is missing: the gate is also inside "
            "of the sigmoid.": (
                lambda dout, gate, up: (dout * up * sigmoid(gate), dout * gate * sigmoid(gate))
            ),
        },
    ),
    Exercise(
        repeat_heads_backward,
        repeat_cases((2, 3, 4, 5, 2), (1, 4, 2, 3, 5)),
        ["dk"],
        repeat_heads,
        mistakes={
            "You took heads that are K apart for a group. Query head h reads key head h // G: the "
            "members of a group are neighbours.": (
                lambda dout, k, G: dout.reshape(*k.shape[:2], G, *k.shape[2:]).sum(axis=2)
            ),
            "You took the mean over the group. Each member reads the same key, so what they ask of "
            "it adds up: sum.": lambda dout, k, G: repeat_heads_backward(dout, k, G) / G,
            "You took one member of each group. All of them read the key, so all have a say.": (
                lambda dout, k, G: dout[:, :, ::G]
            ),
        },
    ),
    Exercise(
        llama_attention_backward,
        attention_cases((2, 5, 2, 4, 3), (1, 4, 3, 6, 2)),
        ["dq", "dk", "dv"],
        llama_attention,
        mistakes={
            "dv is right. dq and dk are the gradients of the rotated queries and keys: turn them "
            "back.": lambda *_, **a: llama_attention_backward(**a, rotate=""),
            "dq and dv are right. dk is not turned back.": (
                lambda *_, **a: llama_attention_backward(**a, rotate="q")
            ),
            "dk and dv are right. dq is not turned back.": (
                lambda *_, **a: llama_attention_backward(**a, rotate="k")
            ),
            "dv is right. dq and dk are turned forwards once more. The way back turns by the "
            "opposite angle: use rope_dx.": turned_forwards,
            "attention_backward has to be given the rotated queries and keys, as attention was.": (
                lambda angles, **a: llama_attention_backward(
                    **a, angles=angles, inner=np.zeros_like(angles)
                )
            ),
            "dq and dk are right. You turned dv back, too, but values are never rotated.": (
                lambda *_, **a: llama_attention_backward(**a, rotate="qkv")
            ),
        },
        factors=lambda q, **_: {"1/sqrt(D)": q.shape[3] ** -0.5},
    ),
    Exercise(
        cache_bytes,
        CACHE_CASES,
        ["bytes"],
        mistakes={
            "That is half of it: keys and values are both kept.": (
                lambda **a: cache_bytes(**a) // 2
            ),
            "That is how many numbers are kept. Each takes `bytes_each` bytes.": (
                lambda bytes_each, **a: cache_bytes(**a, bytes_each=1)
            ),
            "That is the cache of one layer. Each layer has keys and values of its own.": (
                lambda num_layers, **a: cache_bytes(1, **a)
            ),
        },
    ),
)
