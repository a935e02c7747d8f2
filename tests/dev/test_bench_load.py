"""dev/bench/load.py: both contenders make floats of everything, and what is printed adds up."""

import re

import numpy as np
import pytest

from dev.bench.load import dequantize_step, load_step
from dev.bench.machine import as_weights
from formats import gguf
from formats.tokenizer_files import load_tokenizer
from models.gpt2 import GPT2Config
from models.model import unpadded_shapes

CONFIG = GPT2Config(seq_len=300, vocab_size=257, num_layers=2, num_heads=2, channels=32)


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    shapes = unpadded_shapes(CONFIG)
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    weights = as_weights("gpt2", CONFIG, tensors, load_tokenizer("bytes"))
    gguf.write(tmp_path / "model.gguf", weights, "float16")
    return tmp_path / "model.gguf"


def test_both_contenders_make_floats_of_all_weights(path):
    padding = CONFIG.padded_vocab_size - CONFIG.vocab_size
    assert dequantize_step(path)() + padding * CONFIG.channels == load_step(path)()


def test_it_prints_times_and_the_peak(program, path):
    status, out, err = program("dev.bench.load", path, "--rounds", 1, "--max-tokens", 5)
    assert status == 0, err
    peak, size, more = (
        int(number.replace(",", ""))
        for number in re.search(
            r"said 5: (\S+) MiB, the weights' (\S+) and (\S+) more", out
        ).groups()
    )
    assert abs(peak - size - more) <= 1
    assert peak >= more > 10  # Python and NumPy alone take as much
