"""GGUF as transformers reads it: what is written here has the same logits there, and what is real.

Its `from_pretrained(..., gguf_file=...)` wants one more package; what that calls does not.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # more gain nothing on models so small, and wait for each other

from gguf_files import CONFIGS, model_of  # noqa: E402
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint  # noqa: E402

from dev.download_real_models import cache  # noqa: E402
from dev.torch_models import logits_of  # noqa: E402
from formats import gguf, huggingface  # noqa: E402
from formats.weights import Parts  # noqa: E402
from load import fill, open_model  # noqa: E402
from models import FAMILIES  # noqa: E402


def ours(path):
    weights = gguf.read(path)
    config = FAMILIES[weights.kind].config(**weights.config)
    model = FAMILIES[weights.kind].model(config, seed=None)
    fill(model.params, weights)
    return model


def theirs(config, path):
    """transformers' model with a file's weights, as transformers names and arranges them."""
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    result = model.load_state_dict(tensors, strict=False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


def drawn(kind, **changes):
    """A model whose numbers have their effect."""
    model = model_of(kind, **changes)
    for name, parts in model.tensors.items():
        scale = 0.3 if parts[0].ndim > 1 else 1
        array = np.reshape([part * scale for part in parts], parts.shape)
        model.tensors[name] = Parts.of(name, array)
    return model


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        # Mistral's files are Llama's, and transformers looks there for what Mistral calls them.
        *((kind, {}) for kind in CONFIGS if kind != "mistral"),
        ("gpt2", {"channels": 48}),
        ("llama2", {"tied": True, "head_size": 20}),
        ("qwen2", {"tied": True, "rope_scaling": None}),
        ("phi3", {"rope_scaling": None, "window": None}),
        ("gemma3", {"window_pattern": 3, "num_layers": 5}),
    ],
)
def test_logits_of_what_is_written(tmp_path, kind, changes):
    weights = drawn(kind, **changes)
    gguf.write(tmp_path / "model.gguf", weights)
    huggingface.write(tmp_path / "folder", weights)  # whose config.json others compare
    config = transformers.AutoConfig.from_pretrained(tmp_path / "folder")
    tokens = np.random.default_rng(0).integers(0, 257, (1, 7))
    with torch.no_grad():
        expected = logits_of(theirs(config, tmp_path / "model.gguf"), tokens).numpy()
    logits = ours(tmp_path / "model.gguf").forward(tokens)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


REAL = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        tie_word_embeddings=True,
    ),
    "gemma-3-270m-q4_k_m.gguf": transformers.Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_logits_of_real_models(name):
    path = cache() / name
    if not path.is_file():
        pytest.skip("needs real models: python dev/download_real_models.py")
    tokens = np.random.default_rng(0).integers(0, REAL[name].vocab_size, (1, 64))
    with torch.no_grad():
        expected = logits_of(theirs(REAL[name], path), tokens).numpy()
    logits = open_model(path).load(seq_len=64).forward(tokens)
    np.testing.assert_allclose(logits, expected, atol=1e-3 * np.abs(expected).max())
    assert (logits.argmax(-1) == expected.argmax(-1)).all()
