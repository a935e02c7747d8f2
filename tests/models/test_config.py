"""What a config can be, and how a model begins."""

import numpy as np
import pytest
from tiny import CONFIGS, batch, new_model

from adam import decays
from buffers import num_elements
from errors import UserError
from models import gemma3, gpt2, llama2, llama3, mistral, phi3, qwen2, qwen3
from models.gemma3 import Gemma3Config
from models.gpt2 import GPT2Config
from models.llama2 import Llama2Config


@pytest.mark.parametrize("value", [0, -3, 2.5, "12", True])
@pytest.mark.parametrize(
    ("Config", "name"),
    [
        *((GPT2Config, name) for name in vars(GPT2Config())),
        *((Llama2Config, name) for name in ("dim", "num_layers", "num_heads", "num_kv_heads")),
        *((Llama2Config, name) for name in ("hidden_dim", "vocab_size", "seq_len")),
        *((Gemma3Config, name) for name in ("dim", "hidden_dim", "num_layers", "num_heads")),
        *((Gemma3Config, name) for name in ("num_kv_heads", "head_size", "vocab_size", "seq_len")),
        *((Gemma3Config, name) for name in ("window", "window_pattern", "query_scalar")),
        *((Llama2Config, name) for name in ("head_size", "window")),
    ],
)
def test_a_config_of_nonsense_is_refused(Config, name, value):
    with pytest.raises(UserError, match=f"{name} must be a whole number .* not {value!r}"):
        Config(**{name: value})


@pytest.mark.parametrize("value", [0, -1e-5, float("nan"), float("inf"), "x"])
@pytest.mark.parametrize(
    ("Config", "name"),
    [
        *((Llama2Config, name) for name in ("norm_eps", "rope_theta")),
        *((Gemma3Config, name) for name in ("norm_eps", "rope_theta", "rope_local_theta")),
    ],
)
def test_constants_are_above_zero(Config, name, value):
    with pytest.raises(UserError, match=f"{name} must be a number above 0, not {value!r}"):
        Config(**{name: value})


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        (
            "gpt2",
            {
                "wte": (256, 30),
                "wpe": (24, 30),
                "ln1w": (2, 30),
                "ln1b": (2, 30),
                "qkvw": (2, 90, 30),
                "qkvb": (2, 90),
                "attprojw": (2, 30, 30),
                "attprojb": (2, 30),
                "ln2w": (2, 30),
                "ln2b": (2, 30),
                "fcw": (2, 120, 30),
                "fcb": (2, 120),
                "fcprojw": (2, 30, 120),
                "fcprojb": (2, 30),
                "lnfw": (30,),
                "lnfb": (30,),
            },
        ),
        (
            "llama2",
            {
                "wte": (131, 40),
                "rms1w": (2, 40),
                "wq": (2, 40, 40),
                "wk": (2, 20, 40),
                "wv": (2, 20, 40),
                "wo": (2, 40, 40),
                "rms2w": (2, 40),
                "w1": (2, 41, 40),
                "w2": (2, 40, 41),
                "w3": (2, 41, 40),
                "rmsfw": (40,),
                "wcls": (131, 40),
            },
        ),
        (
            "gemma3",
            {
                "wte": (131, 40),
                "rms1w": (3, 40),
                "wq": (3, 60, 40),
                "wk": (3, 30, 40),
                "wv": (3, 30, 40),
                "qnormw": (3, 6),
                "knormw": (3, 6),
                "wo": (3, 40, 60),
                "postrms1w": (3, 40),
                "rms2w": (3, 40),
                "w1": (3, 41, 40),
                "w2": (3, 40, 41),
                "w3": (3, 41, 40),
                "postrms2w": (3, 40),
                "rmsfw": (40,),
            },
        ),
        (
            "llama2_descendants",
            {
                "wte": (131, 40),
                "rms1w": (2, 40),
                "wq": (2, 60, 40),
                "wk": (2, 30, 40),
                "wv": (2, 30, 40),
                "bq": (2, 60),
                "bk": (2, 30),
                "bv": (2, 30),
                "qnormw": (2, 6),
                "knormw": (2, 6),
                "wo": (2, 40, 60),
                "rms2w": (2, 40),
                "w1": (2, 41, 40),
                "w2": (2, 40, 41),
                "w3": (2, 41, 40),
                "rmsfw": (40,),
            },
        ),
    ],
)
def test_parameters_lie_in_the_order_of_the_files(name, shapes):
    assert list(CONFIGS[name].param_shapes().items()) == list(shapes.items())


# GPT-2: Hugging Face's models. Llama 2: V C + L (2 C + 2 C C + 2 KD C + 3 C F) + C, and V C more
# for a classifier of its own; llama2.c and Meta give the same. The others: their model cards.
@pytest.mark.parametrize(
    ("presets", "name", "size"),
    [
        (gpt2.PRESETS, "gpt2", 124_439_808),
        (gpt2.PRESETS, "gpt2-medium", 354_823_168),
        (gpt2.PRESETS, "gpt2-large", 774_030_080),
        (gpt2.PRESETS, "gpt2-xl", 1_557_611_200),
        (llama2.PRESETS, "stories260K", 260_032),
        (llama2.PRESETS, "stories15M", 15_191_712),
        (llama2.PRESETS, "stories42M", 41_689_600),
        (llama2.PRESETS, "stories110M", 109_529_856),
        (llama2.PRESETS, "llama2-7b", 6_738_415_616),
        (gemma3.PRESETS, "gemma3-270m", 268_098_176),
        (gemma3.PRESETS, "gemma3-1b", 999_885_952),
        (llama3.PRESETS, "smollm2-135m", 134_515_008),
        (llama3.PRESETS, "smollm2-360m", 361_821_120),
        (llama3.PRESETS, "llama3.2-1b", 1_235_814_400),
        (mistral.PRESETS, "mistral-7b-v0.1", 7_241_732_096),
        (qwen2.PRESETS, "qwen2.5-0.5b", 494_032_768),
        (qwen3.PRESETS, "qwen3-0.6b", 596_049_920),
        (phi3.PRESETS, "phi3-mini-4k", 3_821_079_552),
    ],
)
def test_presets_have_the_published_sizes(presets, name, size):
    shapes = presets[name].param_shapes()
    rows, channels = shapes["wte"]
    assert num_elements(shapes) - (rows - presets[name].vocab_size) * channels == size


def test_the_seed_decides_every_bit(config):
    weights = new_model(config, seed=5).params.flat
    np.testing.assert_array_equal(weights, new_model(config, batch_size=2, seed=5).params.flat)
    other = new_model(config, seed=6).params
    assert (new_model(config, seed=5).params.wte != other.wte)[: config.vocab_size].all()
    assert not new_model(config, seed=None).params.flat.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("config", "others", "projections"),
    [
        (
            GPT2Config(seq_len=200, vocab_size=1000, num_layers=8, num_heads=2, channels=64),
            {"wte", "wpe", "qkvw", "fcw"},
            {"attprojw", "fcprojw"},
        ),
        (
            Llama2Config(64, 96, 8, 4, 2, vocab_size=1000, seq_len=200, tied=False),
            {"wte", "wq", "wk", "wv", "w1", "w3", "wcls"},
            {"wo", "w2"},
        ),
        (
            Gemma3Config(64, 96, 8, 4, 2, 16, vocab_size=1000, seq_len=200),
            {"wte", "wq", "wk", "wv", "wo", "w1", "w2", "w3"},
            set(),
        ),
        (
            Llama2Config(*(64, 96, 8, 4, 2, 1000, 200), qkv_bias=True, qk_norm=True),
            {"wte", "wq", "wk", "wv", "w1", "w3"},
            {"wo", "w2"},
        ),
    ],
    ids=["gpt2", "llama2", "gemma3", "llama2_descendants"],
)
def test_initial_weights_are_gpt2_s(config, others, projections, dtype):
    params = new_model(config, seq_len=1, dtype=dtype).params
    for name, tensor in params:
        if name in others | projections:
            values = tensor[:1000] if name == "wte" else tensor
            deviation = 0.02 / 4 if name in projections else 0.02  # 4 = sqrt(2 * 8 layers)
            # Five standard errors of the mean and of the deviation of so many normal numbers.
            slack = 5 * deviation / np.sqrt(values.size)
            assert abs(values.mean()) < slack
            assert abs(values.std() - deviation) < slack
        else:
            is_norm = name.endswith("w") and not decays(name)
            joins_stream = name.startswith("postrms")  # in the place of Gemma 3's projections
            assert (tensor == (1 / 4 if joins_stream else is_norm)).all()
    assert not params.wte[1000:].any()


def test_an_untrained_model_knows_nothing(config):
    tokens, targets = batch(config, 8, 24)
    loss = new_model(config, 8).forward(tokens, targets)
    assert loss == pytest.approx(np.log(config.vocab_size), abs=0.05)
