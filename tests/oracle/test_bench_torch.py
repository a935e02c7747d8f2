"""What the benchmarks measure of PyTorch is the same work as ours."""

import argparse

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from dev.bench import sample, train


def test_training_steps_have_the_same_losses():
    args = argparse.Namespace(
        preset="tiny", batch_size=2, seq_len=16, threads=None, recompute="none"
    )
    ours, theirs = train.llm_np_step(args), train.torch_step(args, False)
    losses = [(ours(), theirs()) for _ in range(3)]
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-4)
    assert losses[2][0] < losses[0][0]


@pytest.mark.parametrize("preset", ["tiny", "llama-tiny"])
def test_texts_are_the_same(preset):
    args = argparse.Namespace(
        preset=preset, prompt_tokens=5, max_tokens=8, temperature=0, top_p=1.0
    )
    ours, theirs = sample.llm_np_step(args, 1), sample.torch_step(args)
    for _ in range(4):  # the prompt's part and the rest, of two texts
        assert [texts[0] for texts in ours()] == theirs()
