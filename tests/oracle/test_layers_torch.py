"""Every layer against PyTorch, in float32 and in float64."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch.nn import functional as F  # noqa: E402
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb  # noqa: E402

from layers.attention import attention_backward, attention_forward  # noqa: E402
from layers.geglu import geglu_backward, geglu_forward  # noqa: E402
from layers.gelu import gelu_backward, gelu_forward  # noqa: E402
from layers.layernorm import layernorm_backward, layernorm_forward  # noqa: E402
from layers.rmsnorm import rmsnorm_backward, rmsnorm_forward  # noqa: E402
from layers.rope import rope_backward, rope_forward, rope_rotations  # noqa: E402
from layers.softmax_crossentropy import (  # noqa: E402
    softmax_crossentropy_backward,
    softmax_crossentropy_forward,
)
from layers.swiglu import swiglu_backward, swiglu_forward  # noqa: E402


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


def exactly(array):
    """A float64 copy for PyTorch; the reference is better than both types."""
    return torch.from_numpy(array.astype(np.float64))


def leaf(array):
    """The same, to differentiate by."""
    return exactly(array).requires_grad_()


def assert_agree(ours, reference, tolerance):
    """Relative to the largest element."""
    reference = reference.detach().numpy()
    assert abs(ours - reference).max() <= tolerance * abs(reference).max()


def draw(dtype, *shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def torch_attention(q, k, v, **options):
    """PyTorch's, for (B, T, heads, D); query heads in groups if there are fewer of keys."""
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*heads_first, enable_gqa=True, **options).transpose(1, 2)


@pytest.mark.parametrize("largest_score", [1, 300, 5000])
@pytest.mark.parametrize("T", [1, 64, 128, 129, 200])
@pytest.mark.parametrize(("H", "K"), [(3, 3), (6, 2), (4, 1)])
def test_attention(H, K, T, largest_score, dtype):
    """Also where exp(score) overflows. What a score is rounded by multiplies its probability."""
    B, D = 2, 5
    q, dout = draw(dtype, 2, B, T, H, D)
    k, v = draw(dtype, 2, B, T, K, D, seed=1)
    every_k = np.repeat(k, H // K, axis=2)
    q *= largest_score / abs(np.einsum("bthd,bshd->bhts", q, every_k) / D**0.5).max()
    out, lse = np.empty_like(q), np.empty((B, H, T), dtype)
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    attention_forward(out, lse, q, k, v)
    attention_backward(dq, dk, dv, dout, q, k, v, out, lse)

    leaves = [leaf(x) for x in (q, k, v)]
    expected = torch_attention(*leaves, is_causal=True)
    expected.backward(exactly(dout))
    tolerance = 4 * np.finfo(dtype).eps * (10 + largest_score)
    assert_agree(out, expected, tolerance)
    for ours, x in zip((dq, dk, dv), leaves, strict=True):
        # The gradient of a single query or key is 0 but for rounding: relative to dv, then.
        assert abs(ours - x.grad.numpy()).max() <= tolerance * max(
            abs(x.grad.numpy()).max(), abs(v).max()
        )


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("window", [1, 7, 63, 64, 65, 150, 200])
@pytest.mark.parametrize("T", [1, 64, 65, 200])
@pytest.mark.parametrize(("H", "K"), [(3, 3), (6, 2), (4, 1)])
def test_attention_in_a_window(H, K, T, window, scale, dtype):
    B, D = 2, 5
    q, dout = draw(dtype, 2, B, T, H, D)
    k, v = draw(dtype, 2, B, T, K, D, seed=1)
    out, lse = np.empty_like(q), np.empty((B, H, T), dtype)
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    attention_forward(out, lse, q, k, v, window=window, scale=scale)
    attention_backward(dq, dk, dv, dout, q, k, v, out, lse, window, scale)

    leaves = [leaf(x) for x in (q, k, v)]
    visible = torch.ones(T, T, dtype=torch.bool).tril().triu(1 - window)
    expected = torch_attention(*leaves, attn_mask=visible, scale=scale)
    expected.backward(exactly(dout))
    tolerance = 40 * np.finfo(dtype).eps
    assert_agree(out, expected, tolerance)
    for ours, x in zip((dq, dk, dv), leaves, strict=True):
        # That of a query which sees one key alone is 0 but for rounding: relative to dv, then.
        assert abs(ours - x.grad.numpy()).max() <= tolerance * max(
            abs(x.grad.numpy()).max(), abs(v).max()
        )


@pytest.mark.parametrize("window", [None, 1, 5, 64, 130])
@pytest.mark.parametrize(("start", "T"), [(0, 70), (4, 1), (70, 1), (70, 5), (70, 65), (3, 130)])
@pytest.mark.parametrize("padding", [None, [0, 4]])
@pytest.mark.parametrize(("H", "K"), [(3, 3), (6, 2)])
def test_attention_to_cached_keys(H, K, start, T, padding, window, dtype):
    """Keys after the last query are not even read, padding counts for nothing."""
    B, D = 2, 5
    q = draw(dtype, B, T, H, D)
    k, v = draw(dtype, 2, B, start + T, K, D, seed=1)
    room = np.full((2, B, start + T + 9, K, D), np.nan, dtype)
    room[:, :, : start + T] = k, v
    out, lse = np.empty_like(q), np.empty((B, H, T), dtype)
    padding_array = padding if padding is None else np.array(padding)
    attention_forward(out, lse, q, *room, start, padding_array, window)

    for b, hidden in enumerate(padding or [0, 0]):
        # The queries after the padding, and what each of them may see.
        new = max(hidden - start, 0)
        visible = torch.ones(T, start + T, dtype=torch.bool).tril(start)
        if window is not None:
            visible = visible.triu(start + 1 - window)
        visible = visible[new:, hidden:]
        alone = (exactly(x[None]) for x in (q[b, new:], k[b, hidden:], v[b, hidden:]))
        expected = torch_attention(*alone, attn_mask=visible)
        assert_agree(out[b : b + 1, new:], expected, 40 * np.finfo(dtype).eps)


@pytest.mark.parametrize("mean", [0, 30])
def test_layernorm(mean, dtype):
    N, C = 37, 24
    x, dout = draw(dtype, 2, N, C)
    x += mean
    weight, bias = draw(dtype, 2, C, seed=1)
    out, dx = np.empty_like(x), np.empty_like(x)
    mean_x, rstd = np.empty((2, N), dtype)
    dweight, dbias = np.full((2, C), np.nan, dtype)
    layernorm_forward(out, mean_x, rstd, x, weight, bias)
    layernorm_backward(dx, dweight, dbias, dout, x, weight, mean_x, rstd)

    leaves = [leaf(array) for array in (x, weight, bias)]
    expected = F.layer_norm(leaves[0], (C,), *leaves[1:], eps=1e-5)
    expected.backward(exactly(dout))
    tolerance = 10 * np.finfo(dtype).eps * (1 + mean)
    assert_agree(out, expected, tolerance)
    for ours, x in zip((dx, dweight, dbias), leaves, strict=True):
        assert_agree(ours, x.grad, tolerance)


@pytest.mark.parametrize("eps", [1e-6, 0.1])
@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_rmsnorm(scale, eps, dtype):
    """Where eps is all there is, too, and where it is nothing."""
    N, C = 37, 24
    x, dout = draw(dtype, 2, N, C)
    x *= dtype(scale)
    weight = draw(dtype, C, seed=1)
    out, dx = np.empty_like(x), np.empty_like(x)
    rstd, dweight = np.empty(N, dtype), np.full(C, np.nan, dtype)
    rmsnorm_forward(out, rstd, x, weight, eps)
    rmsnorm_backward(dx, dweight, dout, x, weight, rstd)

    leaves = [leaf(x), leaf(weight)]
    expected = F.rms_norm(leaves[0], (C,), leaves[1], eps=eps)
    expected.backward(exactly(dout))
    tolerance = 10 * np.finfo(dtype).eps
    assert_agree(out, expected, tolerance)
    for ours, x in zip((dx, dweight), leaves, strict=True):
        assert_agree(ours, x.grad, tolerance)


@pytest.mark.parametrize(("T", "D", "theta"), [(200, 10, 10000.0), (2048, 64, 500000.0), (5, 2, 3)])
def test_rope(T, D, theta, dtype):
    """PyTorch's complex multiplication, and transformers' rotation of halves."""
    B, H = 2, 3
    x, dout = draw(dtype, 2, B, T, H, D)
    rotations = rope_rotations(T, D, theta, dtype)
    out, dx = np.empty_like(x), np.empty_like(x)
    rope_forward(out, x, rotations)
    rope_backward(dx, dout, rotations)

    # Two products of rounded numbers and their sum, relative to a pair that may be longer than
    # either; and ours and PyTorch's angles, which grow to T and are products of rounded numbers.
    tolerance = 4 * (np.finfo(dtype).eps + T * np.finfo(np.float64).eps)
    frequencies = float(theta) ** -(torch.arange(0, D, 2, dtype=torch.float64) / D)
    angles = torch.arange(T)[:, None] * frequencies
    turns = torch.polar(torch.ones_like(angles), angles)[:, None]
    input = leaf(x)
    expected = torch.view_as_real(torch.view_as_complex(input.unflatten(-1, (-1, 2))) * turns)
    expected = expected.flatten(-2)
    expected.backward(exactly(dout))
    assert_agree(out, expected, tolerance)
    assert_agree(dx, input.grad, tolerance)

    def halves(x):
        """Neighbours (2i, 2i + 1) to (i, i + D/2)."""
        return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)

    input = leaf(x)
    both = torch.cat([angles, angles], dim=-1)
    theirs, _ = apply_rotary_pos_emb(
        halves(input), halves(input), both.cos(), both.sin(), unsqueeze_dim=-2
    )
    theirs.backward(halves(exactly(dout)))
    assert_agree(halves(torch.from_numpy(out)).numpy(), theirs, tolerance)
    assert_agree(dx, input.grad, tolerance)


def test_gelu(dtype):
    """From where it is 0 over where it bends to where it is x."""
    x = np.linspace(-100, 100, 4001, dtype=dtype)[:, None]
    dout = draw(dtype, *x.shape)
    out, dx = np.empty_like(x), np.empty_like(x)
    gelu_forward(out, x)
    gelu_backward(dx, dout, x)

    input = leaf(x)
    expected = F.gelu(input, approximate="tanh")
    expected.backward(exactly(dout))
    eps = np.finfo(dtype).eps
    assert (abs(out - expected.detach().numpy()) <= 4 * eps * abs(x)).all()
    # Against 80-bit arithmetic ours is off by up to 1.5 eps, PyTorch's own by up to 21.
    assert (abs(dx - input.grad.numpy()) <= 23 * eps * abs(dout)).all()


def test_geglu(dtype):
    """From where gelu is 0 over where it bends to where it is x; bounds as in the two beside it."""
    gate = np.linspace(-100, 100, 4001, dtype=dtype)[:, None]
    up, dout = draw(dtype, 2, *gate.shape)
    out, dgate, dup = np.empty((3, *gate.shape), dtype)
    geglu_forward(out, gate, up)
    geglu_backward(dgate, dup, dout, gate, up)

    leaves = [leaf(gate), leaf(up)]
    expected = F.gelu(leaves[0], approximate="tanh") * leaves[1]
    expected.backward(exactly(dout))
    eps = np.finfo(dtype).eps
    assert (abs(out - expected.detach().numpy()) <= 5 * eps * abs(gate * up)).all()
    assert (abs(dup - leaves[1].grad.numpy()) <= 5 * eps * abs(gate * dout)).all()
    assert (abs(dgate - leaves[0].grad.numpy()) <= 34 * eps * abs(up * dout)).all()


def test_swiglu(dtype):
    """From where silu is 0 over where it bends to where it is x."""
    gate = np.linspace(-100, 100, 4001, dtype=dtype)[:, None]
    up, dout = draw(dtype, 2, *gate.shape)
    out, dgate, dup = np.empty((3, *gate.shape), dtype)
    swiglu_forward(out, gate, up)
    swiglu_backward(dgate, dup, dout, gate, up)

    leaves = [leaf(gate), leaf(up)]
    expected = F.silu(leaves[0]) * leaves[1]
    expected.backward(exactly(dout))
    eps = np.finfo(dtype).eps
    # Against 80-bit arithmetic ours is off by up to 1.3 of these units, the slope by up to 0.9.
    assert (abs(out - expected.detach().numpy()) <= 2 * eps * abs(gate * up)).all()
    assert (abs(dup - leaves[1].grad.numpy()) <= 2 * eps * abs(gate * dout)).all()
    error = abs(dgate - leaves[0].grad.numpy())
    assert (error <= 2 * eps * (1 + abs(gate)) * abs(up * dout)).all()


@pytest.mark.parametrize("scale", [1, 100, 10000])
def test_cross_entropy(scale, dtype):
    N, V = 29, 131
    logits = draw(dtype, N, V) * dtype(scale)
    targets = np.random.default_rng(1).integers(0, V, N)
    losses, lse = np.empty((2, N), dtype)
    dlogits = np.empty_like(logits)
    softmax_crossentropy_forward(losses, lse, logits, targets)
    softmax_crossentropy_backward(dlogits, 1 / N, logits, targets, lse)

    input = leaf(logits)
    expected = F.cross_entropy(input, torch.from_numpy(targets), reduction="none")
    expected.mean().backward()
    tolerance = 4 * np.finfo(dtype).eps * (4 + scale)
    assert_agree(losses, expected, tolerance)
    assert_agree(dlogits, input.grad, tolerance)
