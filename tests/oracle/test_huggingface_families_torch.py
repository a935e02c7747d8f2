"""Each family as transformers saves and loads it: the same logits there and here, both ways."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # more gain nothing on models so small, and wait for each other

from dev.torch_models import logits_of, random_weights  # noqa: E402
from formats import huggingface  # noqa: E402
from formats.families import gemma3, llama  # noqa: E402
from formats.tokenizer_files import load_tokenizer  # noqa: E402
from formats.weights import Parts, Weights  # noqa: E402
from load import fill, open_model  # noqa: E402
from models import FAMILIES  # noqa: E402
from models.llama2 import Llama2Config  # noqa: E402

B, T, V = 2, 19, 131
TOKENS = np.random.default_rng(0).integers(0, V, (B, T))
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 12}
LINEAR = {"rope_type": "linear", "factor": 4.0}
# More than their positions before the scaling are 19 in one, and in the other not.
LISTS = {"short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 3.0, 7.0]}
LONG, SHORT = ({"rope_type": "longrope", **LISTS} for _ in range(2))
ORIGINAL = "original_max_position_embeddings"

# As transformers has their numbers: name -> type and what differs from `COMMON`.
COMMON = {"vocab_size": V, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 3}
COMMON |= {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 24}
COMMON |= {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
THEIRS = {
    "llama linear": ("llama", {"rope_scaling": LINEAR, "rope_theta": 300.0}),
    "llama3": ("llama", {"rope_scaling": LLAMA3, "head_dim": 10, "tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": 5, "head_dim": 10, "rms_norm_eps": 0.02}),
    "mistral without": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    ),
    "qwen3": ("qwen3", {"head_dim": 10, "rope_parameters": {"rope_theta": 1e6}}),
    "qwen3 heads of 128": ("qwen3", {}),
    "phi3": ("phi3", {"sliding_window": 5}),
    "phi3 long": ("phi3", {"rope_scaling": LONG, ORIGINAL: 12}),
    "phi3 short": ("phi3", {"rope_scaling": SHORT, ORIGINAL: 24, "tie_word_embeddings": True}),
    "gemma3": ("gemma3_text", {"head_dim": 10, "sliding_window": 5, "query_pre_attn_scalar": 7}),
    "gemma3 scaled": (
        "gemma3_text",
        {"head_dim": 6, "sliding_window": 3, "sliding_window_pattern": 2, "rope_scaling": LINEAR}
        | {"rope_theta": 500.0, "rope_local_base_freq": 20.0, "attn_logit_softcapping": 1.0},
    ),
}
EVERY_ONE = pytest.mark.parametrize("name", THEIRS)
EVERY_TYPE = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
SHARDED = pytest.mark.parametrize("largest_file", [10**9, 30_000], ids=["whole", "sharded"])


def made(name):
    """transformers' model with random weights, each of which has its effect."""
    kind, numbers = THEIRS[name]
    config = transformers.AutoConfig.for_model(kind, **COMMON | json.loads(json.dumps(numbers)))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each, parameter in model.named_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            if "norm" in each and kind != "gemma3_text":
                parameter += 1
    return model


def loaded(folder):
    """transformers' model of a folder, in float32 from the beginning: a cast turns rotations."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values())
    return model


def assert_logits_agree(weights, theirs):
    family = FAMILIES[weights.kind]
    ours = family.model(family.config(**weights.config), B, T, seed=None)
    fill(ours.params, weights)
    with torch.no_grad():
        logits = logits_of(theirs.eval(), TOKENS).numpy()
    assert abs(logits).max() > 1
    np.testing.assert_allclose(ours.forward(TOKENS), logits, rtol=0, atol=1e-4)


@EVERY_ONE
@EVERY_TYPE
@SHARDED
def test_what_transformers_writes_is_read(tmp_path, name, dtype, largest_file):
    made(name).to(getattr(torch, dtype)).save_pretrained(tmp_path, max_shard_size=largest_file)
    assert (tmp_path / "model.safetensors").is_file() == (largest_file == 10**9)
    weights = open_model(tmp_path).weights
    assert {parts.stored for parts in weights.tensors.values()} == {dtype}
    assert_logits_agree(weights, loaded(tmp_path))


@EVERY_ONE
@EVERY_TYPE
@SHARDED
def test_it_comes_back_as_it_was(tmp_path, name, dtype, largest_file):
    """Its numbers, and each weight: bit by bit, unless 1 is added and taken off again."""
    theirs = made(name).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "theirs")
    weights = open_model(tmp_path / "theirs").weights
    huggingface.write(tmp_path / "ours", weights, dtype, largest_file)
    ours = loaded(tmp_path / "ours")
    assert type(ours) is type(theirs)
    assert vars(open_model(tmp_path / "ours").config) == weights.config
    for (each, tensor), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        plus_one = "norm" in each and name.startswith("gemma3")
        torch.testing.assert_close(
            tensor, expected.float(), rtol=0, atol=2**-23 if plus_one else 0, msg=each
        )
    assert_logits_agree(weights, ours)


OURS = {
    f"{kind} {number}": (kind, config)
    for kind, family in FAMILIES.items()
    for number, config in enumerate(family.small)
    # What transformers has no model for: biases and norms of heads, and a width that they divide.
    if (kind, number) not in {("qwen3", 1), ("gemma3", 1)}
}


@pytest.mark.parametrize("name", OURS)
def test_transformers_reads_what_is_written(tmp_path, name):
    kind, config = OURS[name]
    tensors = {key: Parts.of(key, tensor) for key, tensor in random_weights(config).items()}
    weights = Weights("", kind, dict(vars(config)), tensors)
    huggingface.write(tmp_path / "model", weights)
    theirs = loaded(tmp_path / "model").eval()
    tokens = TOKENS[:, : config.seq_len] % config.vocab_size
    ours = FAMILIES[kind].model(config, *tokens.shape, seed=None)
    fill(ours.params, weights)
    with torch.no_grad():
        logits = logits_of(theirs, tokens).numpy()
    np.testing.assert_allclose(ours.forward(tokens), logits, rtol=0, atol=1e-4)


NEEDED = {"hidden_size", "num_attention_heads", "vocab_size", "num_hidden_layers"}
NEEDED |= {"intermediate_size", "max_position_embeddings"}


@pytest.mark.parametrize("kind", [*llama.HUGGINGFACE, gemma3.GEMMA3], ids=lambda kind: kind.name)
def test_what_a_config_leaves_out_is_as_in_transformers(tmp_path, kind):
    """But for what says how large a model is, which every file but Gemma's says."""
    numbers = {key: COMMON[key] for key in NEEDED if kind is not gemma3.GEMMA3}
    theirs = transformers.AutoConfig.for_model(kind.name, **numbers)
    ours = kind.read(tmp_path / "config.json", numbers)
    shared = COMMON["hidden_size"] // COMMON["num_attention_heads"]
    for name, number in kind.numbers.items():
        # Of the heads of Qwen2 and Phi-3 there need be no number.
        assert ours[name] == getattr(theirs, number.name, shared), number.name


def test_generation_ends_at_each_end_that_is_written(tmp_path):
    kind, config = "mistral", Llama2Config(48, 40, 2, 4, 2, 257, 24, window=5)
    tensors = {key: Parts.of(key, tensor) for key, tensor in random_weights(config).items()}
    tokenizer = load_tokenizer("bytes")
    prompt = torch.tensor([[3, 4, 5]])

    def continued(folder):
        weights = Weights("", kind, dict(vars(config)), tensors, tokenizer)
        huggingface.write(folder, weights)
        options = {"max_new_tokens": 12, "do_sample": False}
        return loaded(folder).generate(prompt, **options)[0].tolist()[3:]

    whole = continued(tmp_path / "whole")
    assert len(whole) == 12
    for end in (whole[5], whole[7]):
        tokenizer.ends = frozenset({256, 255, end})
        stop = whole.index(end) + 1
        assert continued(tmp_path / f"ends at {end}") == whole[:stop]
    assert whole[5] != whole[7]
