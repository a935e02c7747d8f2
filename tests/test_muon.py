"""Muon against the formula written plainly with a singular value decomposition, and refusals."""

import math

import numpy as np
import pytest

from adam import AdamW
from buffers import Buffer
from errors import DivergedError, UserError
from layers import tiles
from muon import COEFFICIENTS, EPS, ROUNDS, Muon, matrix_scale, newton_schulz

SHAPES = {
    "wte": (9, 8),
    "ln1w": (2, 8),
    "qkvw": (2, 24, 8),
    "qkvb": (2, 24),
    "fcw": (2, 20, 8),
    "fcprojw": (2, 8, 20),
}
MATRICES = ("qkvw", "fcw", "fcprojw")
OPTIONS = {"betas": (0.8, 0.97), "eps": 1e-3, "weight_decay": 0.3}


def orthogonal(x):
    """What rounds of the polynomial make of a matrix, from its singular values."""
    a, b, c = COEFFICIENTS
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    s = s / max(np.sqrt((s**2).sum()), EPS)
    for _ in range(ROUNDS):
        s = a * s + b * s**3 + c * s**5
    return u * s @ vt


def buffers(dtype=np.float64):
    """Random parameters, and gradients still zero."""
    params = Buffer(SHAPES, dtype)
    params.flat[:] = np.random.default_rng(0).standard_normal(params.flat.size)
    return params, params.like()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 5), (2, 4, 9), (2, 9, 4), (1, 1, 6)])
def test_newton_schulz_moves_singular_values_only(shape):
    x = np.random.default_rng(1).standard_normal(shape)
    expected = [orthogonal(matrix) for matrix in x]
    newton_schulz(x)
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-12)


def test_singular_values_come_next_to_one():
    """Of a random matrix; what was nearly zero takes more rounds."""
    x = np.random.default_rng(2).standard_normal((1, 30, 80))
    newton_schulz(x)
    values = np.linalg.svd(x[0], compute_uv=False)
    assert 0.6 < values.min() and values.max() < 1.3


@pytest.mark.parametrize("max_norm", [math.inf, 3.0])
@pytest.mark.parametrize("adjust_lr", ["match_rms_adamw", "original"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("tile", [tiles.TILE, 100])
def test_steps_are_the_formula(monkeypatch, dtype, tolerance, adjust_lr, max_norm, tile):
    monkeypatch.setattr("muon.TILE", tile)
    params, grads = buffers(dtype)
    same, same_grads = buffers(dtype)
    p = {name: params[name].astype(np.float64) for name in MATRICES}
    m = {name: np.zeros_like(p[name]) for name in MATRICES}
    optimizer = Muon(params, grads, momentum=0.9, adjust_lr=adjust_lr, **OPTIONS)
    adamw = AdamW(same, same_grads, **OPTIONS)
    rng = np.random.default_rng(3)
    for lr in (0.1, 0.05, 0.2):
        grads.flat[:] = same_grads.flat[:] = rng.standard_normal(grads.flat.size)
        clip = min(1.0, max_norm / (np.linalg.norm(grads.flat) + 1e-6))
        for name in MATRICES:
            m[name] = 0.9 * m[name] + 0.1 * clip * same_grads[name]
            update = 0.1 * clip * same_grads[name] + 0.9 * m[name]
            apart = [part for each in update for part in np.split(each, 3 if name == "qkvw" else 1)]
            scale = matrix_scale(adjust_lr, *apart[0].shape)
            step = np.concatenate([orthogonal(x) for x in apart]).reshape(update.shape)
            p[name] = p[name] * (1 - lr * 0.3) - lr * scale * step
        assert optimizer.step(lr, max_norm) == adamw.step(lr, max_norm)
    for name, tensor in params:
        if name in MATRICES:
            np.testing.assert_allclose(tensor, p[name], rtol=0, atol=10 * tolerance, err_msg=name)
        else:  # what is no matrix is AdamW's, whatever lies between in memory
            np.testing.assert_array_equal(tensor, same[name], err_msg=name)


def test_memory_is_less_than_adamws():
    optimizer = Muon(*buffers())
    assert optimizer.m.size == optimizer.v.size == 9 * 8 + 2 * 8 + 2 * 24
    assert optimizer.momentum.flat.size + optimizer.m.size == optimizer.params.flat.size
    assert {name: array.size for name, array in optimizer.state.items()} == {
        "m": optimizer.m.size,
        "v": optimizer.v.size,
        "momentum": optimizer.momentum.flat.size,
    }


def test_scales_of_the_learning_rate():
    assert matrix_scale("match_rms_adamw", 4, 25) == matrix_scale("match_rms_adamw", 25, 4) == 1.0
    assert matrix_scale("original", 4, 16) == 1.0
    assert matrix_scale("original", 16, 4) == 2.0
    with pytest.raises(UserError, match="adjust_lr must be match_rms_adamw or original, not 'x'"):
        Muon(*buffers(), adjust_lr="x")


def test_gradients_that_are_no_numbers_change_nothing():
    params, grads = buffers()
    optimizer = Muon(params, grads)
    grads.flat[:] = 1
    optimizer.step()
    before = [array.copy() for array in (params.flat, *optimizer.state.values())]
    grads.fcw[1, 2, 3] = np.nan
    with pytest.raises(DivergedError):
        optimizer.step()
    after = [params.flat, *optimizer.state.values()]
    assert all(map(np.array_equal, before, after)) and optimizer.num_steps == 1


def test_a_matrix_without_a_gradient_only_decays():
    params, grads = buffers()
    before = params.fcw.copy()
    Muon(params, grads, weight_decay=0.5).step(lr=0.1)
    np.testing.assert_allclose(params.fcw, 0.95 * before, rtol=1e-12)
