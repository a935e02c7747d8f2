"""Memory, tiles and threads change no bit of a result, and a step allocates nothing."""

import gc
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import B, T, batch, gradients, lively_model, new_model

from adam import AdamW
from buffers import num_elements
from errors import UserError
from layers import attention, classifier, tiles
from models.gemma3 import Gemma3Config
from models.gpt2 import GPT2Config
from models.llama2 import Llama2Config
from models.model import FORWARD_ONLY, Dropout

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("recompute", ["norms", "blocks"])
@pytest.mark.parametrize(("shape", "p"), [((B, T), 0.0), ((2, 5), 0.0), ((B, T), 0.3)])
def test_what_is_made_again_has_the_same_bits(config, recompute, shape, p):
    config = replace(config, num_layers=4)
    tokens, targets = batch(config, *shape)
    model, other = lively_model(config), lively_model(config, recompute=recompute)
    other.acts.flat.fill(np.nan)
    for dloss in (1.0, 0.5):
        given = tokens, targets, dloss, Dropout(p, row=7)
        np.testing.assert_array_equal(gradients(other, *given), gradients(model, *given))
    np.testing.assert_array_equal(other.forward(tokens), model.forward(tokens))


@pytest.mark.parametrize(
    ("recompute", "widths"),
    [
        # GPT-2: the stream, and of (ln1 qkv att stream ln2 fch gelu) what is kept.
        # Llama 2, with F = 3 C: the stream, and of (rms1 q k v att stream rms2 gate up swiglu).
        # Gemma 3 likewise, and q and k before their norms, attention and MLP before theirs.
        (
            "none",
            {
                "gpt2": 1 + 1 + 3 + 1 + 1 + 1 + 4 + 4,
                "llama2": 1 + 1 + 3 + 1 + 1 + 1 + 3 * 3,
                "gemma3": 1 + 1 + 3 + 1 + 1 + 1 + 3 * 3 + 4,
            },
        ),
        (
            "norms",
            {
                "gpt2": 1 + 3 + 1 + 1 + 4,
                "llama2": 1 + 3 + 1 + 1 + 3 * 2,
                "gemma3": 1 + 3 + 1 + 1 + 3 * 2 + 4,
            },
        ),
        ("blocks", {"gpt2": 1 + 3, "llama2": 1 + 3, "gemma3": 1 + 3}),
        (FORWARD_ONLY, {"gpt2": 3, "llama2": 2, "gemma3": 2}),  # qkv, and k v
    ],
)
def test_what_is_made_again_takes_no_memory(recompute, widths):
    """What another layer adds, in numbers for each row and channel."""
    C, rows = 64, B * T
    configs = {
        "gpt2": GPT2Config(num_heads=1, channels=C, num_layers=5),
        "llama2": Llama2Config(C, 3 * C, num_heads=1, num_layers=5),
        "gemma3": Gemma3Config(C, 3 * C, 5, num_heads=1, head_size=C),
    }
    for name, config in configs.items():
        sizes = [
            num_elements(replace(config, num_layers=L).act_shapes(B, T, recompute=recompute))
            for L in (5, 6)
        ]
        statistics = {"gpt2": 5, "llama2": 3, "gemma3": 7}[name]  # of norms, and the lse
        assert sizes[1] - sizes[0] == (widths[name] * C + statistics) * rows


def test_sampling_with_one_place_for_all_layers(config):
    """A sampler's model: the keys and values of every layer are kept all the same."""
    tokens, _ = batch(config)
    expected = lively_model(config).forward(tokens)
    model = lively_model(config, recompute=FORWARD_ONLY)
    for t in range(T):
        logits = model.forward(tokens[:, t : t + 1], start=t)
        np.testing.assert_allclose(logits[:, 0], expected[:, t], rtol=0, atol=1e-12)
    assert model.forward(tokens, tokens) > 0
    with pytest.raises(UserError, match="was not made to sample only"):
        model.backward()


def test_unknown_ways_to_recompute_are_refused(config):
    with pytest.raises(UserError, match="'all' must be one of none, norms, blocks"):
        new_model(config, recompute="all")


@pytest.mark.parametrize("rows", [1, 7, B * T - 1])
def test_logits_need_not_exist_all_at_once(monkeypatch, config, model, rows):
    tokens, targets = batch(config)
    expected, logits = gradients(model, tokens, targets), model.forward(tokens).copy()
    loss = model.forward(tokens, targets)
    monkeypatch.setattr(classifier, "LOGITS", (rows + 1) * config.vocab_size - 1)
    frugal = lively_model(config)
    assert frugal.acts.logits.shape == (rows, config.vocab_size)
    np.testing.assert_allclose(gradients(frugal, tokens, targets), expected, rtol=0, atol=1e-14)
    assert abs(frugal.forward(tokens, targets) - loss) < 1e-14
    # All of them are to be had all the same.
    np.testing.assert_allclose(frugal.forward(tokens), logits, rtol=0, atol=1e-13)
    last = frugal.forward(tokens, last_only=True)
    np.testing.assert_allclose(last[:, 0], logits[:, -1], rtol=0, atol=1e-13)


# --- tiles, threads and memory


def test_tiles_do_not_change_the_result(monkeypatch, config, model):
    tokens, targets = batch(config)

    def results():
        grads = gradients(model, tokens, targets)
        logits = model.forward(tokens).copy()
        model.forward(tokens, targets)
        model.backward()  # the second adds, which is other code
        return grads, logits, model.grads.flat.copy()

    expected = results()
    monkeypatch.setattr(tiles, "TILE", 64)
    monkeypatch.setattr(attention, "QUERIES", 3)
    assert len(attention._blocks(T, G=1, start=0, window=None)) == 6
    for tiled, untiled in zip(results(), expected, strict=True):
        np.testing.assert_allclose(tiled, untiled, rtol=0, atol=1e-13)


def test_step_flops_are_those_of_the_matrix_products(monkeypatch, config, model):
    """With one query to a block, so that none of the masked half is computed."""
    flops = []
    matmul = np.matmul

    def counting(x, y, out):
        flops.append(2 * x.shape[-1] * out.size)
        return matmul(x, y, out=out)

    monkeypatch.setattr(np, "matmul", counting)
    monkeypatch.setattr(attention, "QUERIES", 1)
    model.forward(*batch(config))
    model.backward()
    # Of W keys, and of as many queries, W (W + 1) / 2 scores are not masked, and not W W / 2.
    alike = config.num_layers * [getattr(config, "window", None)]
    windows = getattr(config, "windows", alike)
    diagonal = 7 * B * model.acts.att.shape[-1] * sum(window or T for window in windows)
    assert sum(flops) == config.step_flops(B, T) + diagonal


TWO_BATCHES = """
import hashlib
import numpy as np
from adam import AdamW
from models.gpt2 import GPT2, GPT2Config
from models.llama2 import Llama2, Llama2Config

sizes = {"num_layers": 2, "vocab_size": 1000, "seq_len": 64}
tokens, targets = np.random.default_rng(0).integers(0, 1000, (2, 16, 64))
for model in (
    GPT2(GPT2Config(num_heads=4, channels=128, **sizes), 16),
    Llama2(Llama2Config(128, num_heads=4, num_kv_heads=2, **sizes), 16),
):
    optimizer = AdamW(model.params, model.grads)
    for _ in range(2):
        loss = model.forward(tokens, targets)
        model.backward()
    norm = optimizer.step(max_norm=1.0)
    print(loss, norm, hashlib.sha256(model.grads.flat).hexdigest(),
          hashlib.sha256(model.params.flat).hexdigest())
"""


@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_same_threads_give_the_same_bits(num_threads):
    def run():
        return subprocess.run(
            [sys.executable, "-c", TWO_BATCHES],
            env={**os.environ, "OMP_NUM_THREADS": str(num_threads), "PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    assert run() == run()


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(seq_len=256, vocab_size=300, num_layers=1, num_heads=4, channels=256),
        Llama2Config(256, None, 1, 4, num_kv_heads=2, vocab_size=300, seq_len=256),
        Gemma3Config(256, 512, 1, 4, 2, head_size=64, vocab_size=300, seq_len=256, window=100),
    ],
    ids=["gpt2", "llama2", "gemma3"],
)
def test_a_step_allocates_no_activation(monkeypatch, config):
    """Two micro-batches, the optimiser, and a sample; measured after a first such step.

    An activation is here (N, C): 2 MiB, four tiles of float32. On one thread, because every
    thread has its own scratch and their number is the machine's. That scratch, which the first
    step leaves behind, must not hold an activation either.
    """
    monkeypatch.setattr(tiles, "num_threads", lambda: 1)
    monkeypatch.setattr(tiles, "_thread", tiles._Thread())  # not what other tests left
    B, T = 8, 256
    model = new_model(config, B)
    optimizer = AdamW(model.params, model.grads)
    tokens, targets = batch(config, B, T)

    def step():
        model.zero_grad()
        for row in 0, B * T:
            model.forward(tokens, targets, drop=Dropout(0.1, row=row))
            model.backward(dloss=0.5)
        optimizer.step(max_norm=1.0)
        model.forward(tokens[:, :-1])
        model.forward(tokens[:, -1:], start=T - 1)

    def traced():
        gc.collect()  # the interpreter keeps freed tuples for later, which are not ours
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        step()
        before = traced()
        tracemalloc.reset_peak()
        step()
        peak = tracemalloc.get_traced_memory()[1]
        step()
        growth = traced() - before
    finally:
        tracemalloc.stop()
    activation = model.acts.att[0].nbytes
    assert activation >= 4 * tiles.TILE * 4  # or the comparison below says nothing
    assert peak - before < activation
    assert tiles._thread.block.nbytes < activation
    assert growth < 10_000
