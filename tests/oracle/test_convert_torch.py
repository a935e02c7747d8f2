"""From what PyTorch wrote to every other format, in a process that has never seen torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from formats.tokenizer_files import load_tokenizer
from load import open_model

torch = pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]
# Llama 2 7B but for its sizes: 32 layers, untied, heads as many as keys.
DIM, HIDDEN, LAYERS, HEADS, VOCAB = 32, 48, 32, 4, 512
SLICED = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0}
SLICED |= {"wo": 1, "w2": 1, "tok_embeddings": 1}


@pytest.fixture
def meta(tmp_path, starter):
    """Meta's folder in two shards, with the names of all their tensors, and the tokenizer."""
    folder = tmp_path / "llama-2-7b"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return (torch.randn(shape, generator=generator) * 0.2).to(torch.bfloat16)

    state = {"tok_embeddings.weight": random(VOCAB, DIM), "norm.weight": random(DIM) + 1}
    state |= {"output.weight": random(VOCAB, DIM), "rope.freqs": torch.ones(DIM // HEADS // 2)}
    for layer in range(LAYERS):
        for name in ("wq", "wk", "wv", "wo"):
            state[f"layers.{layer}.attention.{name}.weight"] = random(DIM, DIM)
        state[f"layers.{layer}.feed_forward.w1.weight"] = random(HIDDEN, DIM)
        state[f"layers.{layer}.feed_forward.w2.weight"] = random(DIM, HIDDEN)
        state[f"layers.{layer}.feed_forward.w3.weight"] = random(HIDDEN, DIM)
        state[f"layers.{layer}.attention_norm.weight"] = random(DIM) + 1
        state[f"layers.{layer}.ffn_norm.weight"] = random(DIM) + 1
    for shard in range(2):
        slices = {}
        for name, tensor in state.items():
            axis = SLICED.get(name.split(".")[-2])
            slices[name] = tensor if axis is None else tensor.chunk(2, axis)[shard].clone()
        torch.save(slices, folder / f"consolidated.{shard:02}.pth")
    numbers = {"dim": DIM, "multiple_of": 16, "n_heads": HEADS, "n_layers": LAYERS}
    numbers |= {"norm_eps": 1e-5, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps(numbers), encoding="utf-8")
    load_tokenizer(starter / "tok512.bin").save(folder / "tokenizer.bin")
    return folder, state


def without_torch(program, *arguments):
    """Run a program in a process in which torch, transformers and pickle cannot be imported."""
    code = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(['torch', 'transformers'])\n"
        "import pickle\n"
        "def never(*args, **kwargs): raise AssertionError('something was unpickled')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = never\n"
        f"from {program} import main\n"
        "from errors import run_program\n"
        "run_program(main)"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("output", ["out", "out.gguf", "out.bin", "out.npz"])
def test_metas_llama_converts_and_speaks(meta, tmp_path, output):
    folder, state = meta
    without_torch("convert", folder, tmp_path / output)
    source = open_model(tmp_path / output)
    parts = source.weights.tensors
    np.testing.assert_array_equal(parts["wte"][0], state["tok_embeddings.weight"].float())
    np.testing.assert_array_equal(
        parts["w2"][31], state["layers.31.feed_forward.w2.weight"].float()
    )
    np.testing.assert_array_equal(parts["wcls"][0], state["output.weight"].float())
    said = [
        without_torch("sample", path, "--prompt", "Once", "--max-tokens", 20, "--temperature", 0)
        for path in (folder, tmp_path / output)
    ]
    assert said[0] == said[1]
    assert len(said[0]) > len("Once\n")
    assert "Llama, " in without_torch("convert", folder)
