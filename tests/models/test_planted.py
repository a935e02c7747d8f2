"""Planted mistakes in whole models: some lines of the source replaced by wrong ones.

A mistake in the backward pass alone is caught by central differences. One that both passes share
makes another model, right in itself: it is caught by what the reference has computed.
"""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from test_golden import TOLERANCE, read_golden, section

from gradcheck import check_model
from models import gemma3, llama2, mistral, qwen2, qwen3, rotations


@pytest.fixture
def plant(monkeypatch):
    """A model's module, or one that Llama 2's imports, with other lines: the class that results."""

    def make(module, lines):
        source = Path(module.__file__).read_text(encoding="utf-8")
        for line, wrong in lines.items():
            assert source.count(line) == 1, line
            source = source.replace(line, wrong)
        planted = ModuleType(module.__name__)
        monkeypatch.setitem(sys.modules, module.__name__, planted)
        exec(compile(source, module.__file__, "exec"), vars(planted))
        if module is gemma3:
            return planted.Gemma3
        return planted.Llama2 if module is llama2 else make(llama2, {})

    return make


NORMS_BACKWARD = """\
            if self.config.qk_norm:
                d, x, w = a.dk.reshape(-1, D), a.k_rows[i], p.knormw[i]
                rmsnorm_backward(d, g.knormw[i], d, x, w, a.k_rstd[i], accumulate)
                d, x, w = a.dq.reshape(-1, D), a.q_rows[i], p.qnormw[i]
                rmsnorm_backward(d, g.qnormw[i], d, x, w, a.q_rstd[i], accumulate)
"""
ROTATIONS_BACKWARD = """\
            rope_backward(dk, dk, rotations)
            rope_backward(dq, dq, rotations)
"""


GEMMA3_ROTATIONS_BACKWARD = """\
            rope_backward(dk, dk, self._rotations[i][:T])
            rope_backward(dq, dq, self._rotations[i][:T])
"""
GEMMA3_NORMS_BACKWARD = """\
            x, w, rstd = a.k_rows[i], p.knormw[i], a.k_rstd[i]
            rmsnorm_backward(dk_rows, g.knormw[i], dk_rows, x, w, rstd, accumulate)
            x, w, rstd = a.q_rows[i], p.qnormw[i], a.q_rstd[i]
            rmsnorm_backward(dq_rows, g.qnormw[i], dq_rows, x, w, rstd, accumulate)
"""
BEFORE_ATTENTION = {"wte", "rms1w", "wq", "wk", "wv", "qnormw", "knormw"}


@pytest.mark.parametrize(
    ("config", "wrong", "lines"),
    [
        pytest.param(
            gemma3.SMALL[0],
            {"wte"},
            {"        dresidual *= self._embedding_scale\n": ""},
            id="the embedding's scale forgotten",
        ),
        pytest.param(
            gemma3.SMALL[0],
            BEFORE_ATTENTION,
            {"out, a.lse[i], window, scale)": "out, a.lse[i], window + 1, scale)"},
            id="a wider window in Gemma 3",
        ),
        pytest.param(
            gemma3.SMALL[0],
            BEFORE_ATTENTION,
            {"out, a.lse[i], window, scale)": "out, a.lse[i], window)"},
            id="the query's scale forgotten",
        ),
        pytest.param(
            gemma3.SMALL[0],
            BEFORE_ATTENTION - {"wv"},
            {
                GEMMA3_ROTATIONS_BACKWARD + GEMMA3_NORMS_BACKWARD: GEMMA3_NORMS_BACKWARD
                + GEMMA3_ROTATIONS_BACKWARD
            },
            id="Gemma 3's norms before its rotations",
        ),
        pytest.param(
            gemma3.SMALL[0],
            BEFORE_ATTENTION | {"postrms1w", "wo"},
            {
                "rmsnorm_backward(dx, g.postrms1w[i], dbranch, ": (
                    "rmsnorm_backward(dx, g.postrms1w[i], dx, "
                )
            },
            id="the MLP's gradient for attention's norm",
        ),
        pytest.param(
            qwen2.SMALL[0],
            {"bk"},
            {"g.wk[i], dbk[i], a.dk,": "g.wk[i], None, a.dk,"},
            id="a bias without a gradient",
        ),
        pytest.param(
            qwen2.SMALL[0],
            {"bk", "bv"},
            {"dbq, dbk, dbv = ": "dbq, dbv, dbk = "},
            id="gradients of the wrong biases",
        ),
        pytest.param(
            qwen3.SMALL[0],
            {"wte", "rms1w", "wq", "wk", "qnormw", "knormw"},
            {ROTATIONS_BACKWARD + NORMS_BACKWARD: NORMS_BACKWARD + ROTATIONS_BACKWARD},
            id="the norms' derivative before the rotations'",
        ),
        pytest.param(
            qwen3.SMALL[0],
            {"wte", "rms1w", "wq"},
            {"a.q_rows[i], p.qnormw[i]\n": "a.q_rows[i], p.knormw[i]\n"},
            id="another norm's weight",
        ),
        pytest.param(
            mistral.SMALL[0],
            {"wte", "rms1w", "wq", "wk", "wv"},
            {"out, a.lse[i], window)": "out, a.lse[i], window + 1)"},
            id="a wider window",
        ),
    ],
)
def test_a_mistake_in_the_backward_pass(plant, config, wrong, lines):
    """In one layer, as all that backward comes to later is wrong, too."""
    module = gemma3 if isinstance(config, gemma3.Gemma3Config) else llama2
    family = SimpleNamespace(model=plant(module, lines), title="")
    results = check_model(family, replace(config, num_layers=1))
    assert {each.tensor.split()[-1] for each in results if not each.ok} == wrong


ROTATE = """\
            rope_forward(q, a.q_unrotated[i], rotations)
            rope_forward(a.k_heads[i], a.k_unrotated[i], rotations)
"""
NORM = """\
            if self.config.qk_norm:
                rmsnorm_forward(a.q_norm[i], a.q_rstd[i], a.q_rows[i], p.qnormw[i], eps)
                rmsnorm_forward(a.k_norm[i], a.k_rstd[i], a.k_rows[i], p.knormw[i], eps)
"""
ROTATE_AND_NORM = """\
            shape, other = a.q_unrotated[i].shape, a.k_unrotated[i].shape
            q, k = a.q_proj[i].reshape(shape), a.k_proj[i].reshape(other)
            rope_forward(q, q, rotations)
            rope_forward(k, k, rotations)
            rmsnorm_forward(a.q_norm[i], a.q_rstd[i], a.q_rows[i], p.qnormw[i], eps)
            rmsnorm_forward(a.k_norm[i], a.k_rstd[i], a.k_rows[i], p.knormw[i], eps)
            a.q_heads[i][...], a.k_heads[i][...] = a.q_unrotated[i], a.k_unrotated[i]
"""


GEMMA3_NORM = """\
            rmsnorm_forward(a.q_norm[i], a.q_rstd[i], a.q_rows[i], p.qnormw[i], eps)
            rmsnorm_forward(a.k_norm[i], a.k_rstd[i], a.k_rows[i], p.knormw[i], eps)
            rotations = self._rotations[i][start : start + T]
            rope_forward(a.q_heads[i], a.q_unrotated[i], rotations)
            rope_forward(a.k_heads[i], a.k_unrotated[i], rotations)
"""
GEMMA3_ROTATE_AND_NORM = "            rotations = self._rotations[i][:T]\n" + ROTATE_AND_NORM
LONG = '"long_factor" if is_long else "short_factor"'
SILU = """\
from layers.swiglu import swiglu_backward as geglu_backward
from layers.swiglu import swiglu_forward as geglu_forward
"""
SWAPPED_LAYERS = "[*config.windows[1:], config.windows[0]]"
SHARED = {
    "Gemma 3's norms behind its rotations": (
        "gemma3",
        gemma3,
        {GEMMA3_NORM: GEMMA3_ROTATE_AND_NORM},
    ),
    "thetas swapped": (
        "gemma3",
        gemma3,
        {"nearby if window else everywhere": "everywhere if window else nearby"},
    ),
    "the scaling in every layer": (
        "gemma3",
        gemma3,
        {"config.rope_local_theta, dtype)": "config.rope_local_theta, dtype, config.rope_scaling)"},
    ),
    "another layer that sees all": (
        "gemma3",
        gemma3,
        {"_windows = config.windows\n": f"_windows = {SWAPPED_LAYERS}\n"},
    ),
    "Gemma 3's window without the own position": (
        "gemma3",
        gemma3,
        {"_windows = config.windows\n": "_windows = [w and w + 1 for w in config.windows]\n"},
    ),
    "an embedding of its own size": (
        "gemma3",
        gemma3,
        {"        x *= self._embedding_scale\n": ""},
    ),
    "scores by the head size": (
        "gemma3",
        gemma3,
        {"math.sqrt(config.query_scalar)": "math.sqrt(config.head_size)"},
    ),
    "a gate with SiLU": (
        "gemma3",
        gemma3,
        {"from layers.geglu import geglu_backward, geglu_forward\n": SILU},
    ),
    "norms behind the rotations": ("qwen3", llama2, {NORM: "", ROTATE: ROTATE_AND_NORM}),
    "the keys' norm for queries": (
        "qwen3",
        llama2,
        {"a.q_rows[i], p.qnormw[i], eps": "a.q_rows[i], p.knormw[i], eps"},
    ),
    "keys with the values' bias": (
        "qwen2",
        llama2,
        {"return buffer.bq, buffer.bk, buffer.bv": "return buffer.bq, buffer.bv, buffer.bk"},
    ),
    "a window without the own position": (
        "mistral",
        llama2,
        {"window = self.config.window\n": "window = self.config.window + 1\n"},
    ),
    "a window that is counted from 0": (
        "mistral",
        llama2,
        {"window = self.config.window\n": "window = self.config.window - 1\n"},
    ),
    "the fast frequencies scaled": (
        "llama3",
        rotations,
        {"kept + (1 - kept) / scaling": "1 - kept + kept / scaling"},
    ),
    "waves counted in radians": ("llama3", rotations, {" / (2 * math.pi)": ""}),
    "no frequency between": (
        "llama3",
        rotations,
        {"kept = np.clip(": "kept = np.rint(np.clip(", "0, 1)\n": "0, 1))\n"},
    ),
    "the lists swapped": (
        "phi3",
        rotations,
        {LONG: '"short_factor" if is_long else "long_factor"'},
    ),
    "the border one too low": (
        "phi3_short",
        rotations,
        {"num_positions > scaling[": "num_positions >= scaling["},
    ),
    "no amplitude": ("phi3", rotations, {"factors, amplitude)": "factors)"}),
}


@pytest.mark.parametrize(("name", "module", "lines"), SHARED.values(), ids=SHARED)
def test_a_mistake_in_both_passes(plant, name, module, lines):
    golden = read_golden(name)
    model = plant(module, lines)(golden["config"], *golden["tokens"].shape, np.float64, seed=None)
    for each, weight in section(golden, "param_").items():
        model.params[each] = weight
    error = abs(model.forward(golden["tokens"]) - golden["logits"]).max()
    assert error > 100 * TOLERANCE[np.float64]
