"""Pickles are replaced by what is in them; tests/oracle has those that torch writes."""

import json

import ml_dtypes
import numpy as np
import pytest
from folders import FLOATS, assert_same, made, model

from errors import FormatError, UserError
from formats import torch_pickle
from formats.state_dict import read, read_meta
from models.llama2 import Llama2Config

GPT2_ARGS = {"block_size": 7, "vocab_size": 11, "n_layer": 2, "n_head": 3, "n_embd": 12}
GPT2_ARGS |= {"bias": True, "dropout": 0.1}
LLAMA_ARGS = {"dim": 36, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 20}
LLAMA_ARGS |= {"multiple_of": 8, "norm_eps": 1e-6, "rope_theta": 500.0}
LLAMA2_C_ARGS = LLAMA_ARGS | {"max_seq_len": 5, "dropout": 0.0}

# Theirs by ours.
LINEAR = {"qkv": "attn.c_attn", "attproj": "attn.c_proj", "fc": "mlp.c_fc", "fcproj": "mlp.c_proj"}
MODULES = LINEAR | {"ln1": "ln_1", "ln2": "ln_2"}
ATTENTION = {name: f"attention.{name}" for name in ("wq", "wk", "wv", "wo")}
MLP = {name: f"feed_forward.{name}" for name in ("w1", "w2", "w3")}
MATRICES = ATTENTION | MLP


def nanogpt(tensors, biases=True):
    """nanoGPT's state dict."""
    state = {
        "transformer.wte.weight": tensors["wte"],
        "transformer.wpe.weight": tensors["wpe"],
        "transformer.ln_f.weight": tensors["lnfw"],
        "lm_head.weight": tensors["wte"],
    }
    if biases:
        state["transformer.ln_f.bias"] = tensors["lnfb"]
    for ours, theirs in MODULES.items():
        for i in range(2):
            state[f"transformer.h.{i}.{theirs}.weight"] = tensors[f"{ours}w"][i]
            if biases:
                state[f"transformer.h.{i}.{theirs}.bias"] = tensors[f"{ours}b"][i]
    return state


def llama(tensors):
    """llama2.c's state dict, and Meta's."""
    state = {
        "tok_embeddings.weight": tensors["wte"],
        "norm.weight": tensors["rmsfw"],
        "output.weight": tensors.get("wcls", tensors["wte"]),
    }
    for i in range(len(tensors["rms1w"])):
        state[f"layers.{i}.attention_norm.weight"] = tensors["rms1w"][i]
        state[f"layers.{i}.ffn_norm.weight"] = tensors["rms2w"][i]
        for ours, theirs in MATRICES.items():
            state[f"layers.{i}.{theirs}.weight"] = tensors[ours][i]
    return state


@pytest.fixture
def pickles(monkeypatch):
    """What files of torch.save have in them, by name."""
    contents = {}
    monkeypatch.setattr(torch_pickle, "load", lambda path: contents[path.name])
    return contents


@pytest.fixture
def load(tmp_path, pickles):
    """Reads a ckpt.pt with these things in it."""

    def load(state, args, **others):
        pickles["ckpt.pt"] = {"model": state, "model_args": args, **others}
        return read(tmp_path / "ckpt.pt")

    return load


# nanoGPT and llama2.c


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "_orig_mod.module."])
def test_nanogpt(load, prefix, dtype):
    weights, tensors = model("gpt2", dtype)
    state = {prefix + name: tensor for name, tensor in nanogpt(tensors).items()}
    state[f"{prefix}transformer.h.1.attn.bias"] = np.ones((1, 1, 7, 7), np.float32)  # its mask
    result = load(state, GPT2_ARGS, iter_num=3, optimizer={})
    assert (result.format, result.kind) == ("nanoGPT checkpoint", "gpt2")
    assert made(result) == made(weights)
    assert_same(result, tensors)


@pytest.mark.parametrize("dtype", FLOATS)
def test_nanogpt_without_biases_has_zeros(load, dtype):
    _, tensors = model("gpt2", dtype)
    result = load(nanogpt(tensors, biases=False), GPT2_ARGS | {"bias": False})
    biases = {name: np.zeros_like(x) for name, x in tensors.items() if name.endswith("b")}
    assert len(biases) == 7
    assert_same(result, tensors | biases)


def test_biases_that_should_not_be_there_are_refused(load):
    _, tensors = model("gpt2")
    with pytest.raises(FormatError, match=r"ckpt\.pt has a tensor (ln_f|h\.[01]\..*)\.bias, for"):
        load(nanogpt(tensors), GPT2_ARGS | {"bias": False})


def test_a_checkpoint_of_the_first_nanogpt_has_biases(load):
    _, tensors = model("gpt2")
    args = {name: value for name, value in GPT2_ARGS.items() if name != "bias"}
    assert_same(load(nanogpt(tensors), args), tensors)


def test_rows_for_which_there_is_no_token_stay(load):
    _, tensors = model("gpt2")
    tensors["wte"] = np.arange(50304 * 6, dtype=np.float32).reshape(50304, 6)
    result = load(nanogpt(tensors), GPT2_ARGS | {"vocab_size": 50304})
    assert result.config["vocab_size"] == 50304
    assert_same(result, tensors)


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module."])
@pytest.mark.parametrize("name", ["tied", "untied"])
def test_llama2_c(load, name, prefix):
    weights, tensors = model(name)
    state = {prefix + name: tensor for name, tensor in llama(tensors).items()}
    for buffer in ("freqs_cos", "freqs_sin", "layers.0.attention.mask"):
        state[prefix + buffer] = np.ones((5, 2), np.float32)
    result = load(state, LLAMA2_C_ARGS, iter_num=3, config={})
    assert (result.format, result.kind) == ("llama2.c checkpoint", "llama2")
    assert made(result) == made(weights)
    assert_same(result, tensors)


def test_what_llama2_c_does_not_tell_is_as_in_llama2_c(load):
    weights, tensors = model("tied")
    tensors |= {"wk": tensors["wq"], "wv": tensors["wq"]}
    args = {name: LLAMA2_C_ARGS[name] for name in ("dim", "n_layers", "n_heads", "max_seq_len")}
    result = load(llama(tensors), args | {"n_kv_heads": None})
    defaults = {"num_kv_heads": 6, "norm_eps": 1e-5, "rope_theta": 10000.0}
    assert made(result) == made(weights, **defaults)
    assert_same(result, tensors)


def test_a_classifier_that_differs_in_its_last_number_is_not_tied(load):
    _, tensors = model("tied")
    tensors["wcls"] = tensors["wte"].copy()
    tensors["wcls"][-1, -1] += 1
    result = load(llama(tensors), LLAMA2_C_ARGS)
    assert result.config["tied"] is False
    assert_same(result, tensors)


@pytest.mark.parametrize("name", ["block_size", "vocab_size", "n_layer", "n_head", "n_embd"])
@pytest.mark.parametrize("value", [None, 0, -1, 2.0, "2", True, [2]])
def test_nanogpt_with_absurd_numbers_is_refused(load, name, value):
    _, tensors = model("gpt2")
    with pytest.raises(FormatError, match=rf"ckpt\.pt: {name} must be a whole number from 1"):
        load(nanogpt(tensors), GPT2_ARGS | {name: value})


@pytest.mark.parametrize("name", ["dim", "n_layers", "n_heads", "n_kv_heads", "max_seq_len"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "2", True, [2]])
def test_llama2_c_with_absurd_numbers_is_refused(load, name, value):
    _, tensors = model("tied")
    with pytest.raises(FormatError, match=rf"ckpt\.pt: {name} must be a whole number from 1"):
        load(llama(tensors), LLAMA2_C_ARGS | {name: value})


def test_a_number_of_many_digits_is_not_shown_whole(load):
    _, tensors = model("tied")
    with pytest.raises(FormatError) as refusal:
        load(llama(tensors), LLAMA2_C_ARGS | {"n_heads": "9" * 10**6})
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize("num_layers", [4, 10**7])
def test_layers_that_are_not_there_are_refused(load, num_layers):
    _, tensors = model("tied")
    name = r"layers\.3\.attention_norm\.weight"
    with pytest.raises(FormatError, match=f"ckpt.pt has no tensor {name};"):
        load(llama(tensors), LLAMA2_C_ARGS | {"n_layers": num_layers})


@pytest.mark.parametrize(
    "content",
    [
        3,
        [],
        {},
        {"model": {}},
        {"model_args": {}},
        {"model": 3, "model_args": {}},
        {"model": {}, "model_args": 3},
        {"model": np.ones(3), "model_args": {}},
        llama(model("tied")[1]),
    ],
)
def test_what_does_not_tell_its_heads_is_refused(tmp_path, pickles, content):
    pickles["ckpt.pt"] = content
    with pytest.raises(FormatError, match=r"ckpt\.pt has (a \w+ and no model|no .*how many heads)"):
        read(tmp_path / "ckpt.pt")


@pytest.mark.parametrize("state", [{}, {"model.embed_tokens.weight": np.ones((3, 3), "f4")}])
def test_other_names_are_refused(load, state):
    with pytest.raises(FormatError, match=r"ckpt\.pt has neither nanoGPT's nor llama2\.c's tenso"):
        load(state, GPT2_ARGS)


# Meta's folder


def cut(tensors, count):
    """The state dicts of `count` files, as fairscale's parallel layers cut them."""
    columns = ("wo.", "w2.", "tok_embeddings")
    states = [{"rope.freqs": np.ones(2, np.float32)} for _ in range(count)]
    for name, tensor in llama(tensors).items():
        axis = 1 if any(each in name for each in columns) else 0
        slices = [tensor] * count if "norm" in name else np.split(tensor, count, axis)
        for state, each in zip(states, slices, strict=True):
            state[name] = each
    return states


@pytest.fixture
def folder(tmp_path, pickles):
    """Makes a folder of that many files."""

    def make(count=2, dtype="float32", args=None):
        for i, state in enumerate(cut(model("untied", dtype)[1], count)):
            pickles[f"consolidated.{i:02}.pth"] = state
            (tmp_path / f"consolidated.{i:02}.pth").touch()
        args = json.dumps(args or LLAMA_ARGS | {"vocab_size": -1})
        (tmp_path / "params.json").write_text(args, "utf-8")
        return tmp_path

    return make


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_metas_files_are_joined(folder, count, dtype):
    path = folder(count, dtype)
    weights, tensors = model("untied", dtype)
    for result in (read_meta(path), read(path / "consolidated.00.pth")):
        assert (result.format, result.kind) == ("Meta's Llama", "llama2")
        assert made(result) == made(weights, seq_len=4096)
        assert_same(result, tensors)


def test_metas_oldest_numbers(folder):
    """As of its 7B, which has as many heads for keys as for queries."""
    path = folder(args={"dim": 36, "n_layers": 3, "n_heads": 6, "norm_eps": 1e-5, "vocab_size": -1})
    config = read_meta(path).config
    assert (config["num_kv_heads"], config["norm_eps"], config["rope_theta"]) == (6, 1e-5, 1e4)


def test_one_file_is_not_copied(folder):
    result = read_meta(folder(1))
    for name in ("wq", "wo", "wte", "rms1w"):
        assert np.shares_memory(result.tensors[name][0], result.tensors[name][0])


@pytest.mark.parametrize("lost", ["params.json", "consolidated.00.pth", "consolidated.01.pth"])
def test_a_lost_file_is_named(folder, lost):
    path = folder(4)
    (path / lost).unlink()
    with pytest.raises(UserError, match=r"params\.json|must have consolidated\.00\.pth, and from"):
        read_meta(path)


def test_a_folder_without_weights_is_refused(folder):
    path = folder(1)
    (path / "consolidated.00.pth").unlink()
    with pytest.raises(FormatError, match=r"must have consolidated\.00\.pth"):
        read_meta(path)


def test_scaled_rotations_of_nobody_knows_what_factor_are_refused(folder):
    path = folder(args=LLAMA_ARGS | {"use_scaled_rope": True})
    with pytest.raises(
        FormatError, match=r"params\.json says use_scaled_rope, but .* 36 wide of 3 "
    ):
        read_meta(path)


@pytest.mark.parametrize(
    ("dim", "num_layers", "factor"), [(2048, 16, 32.0), (3072, 28, 32.0), (4096, 32, 8.0)]
)
def test_rotations_of_metas_own_models_are_scaled(folder, pickles, dim, num_layers, factor):
    args = {"dim": dim, "n_layers": num_layers, "n_heads": 32, "use_scaled_rope": True}
    path = folder(1, args=args)
    shapes = Llama2Config(dim, 8, num_layers, vocab_size=5, tied=False).param_shapes()
    pickles["consolidated.00.pth"] = llama(
        {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    )
    config = made(read_meta(path))
    scaling = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": factor}
    original = {"original_max_position_embeddings": 8192}
    assert config.rope_scaling == {"rope_type": "llama3", **scaling, **original}
    assert config.seq_len == 131072


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("layers.1.attention.wq.weight", lambda t: t[:-1], "are not all of one shape"),
        ("layers.1.ffn_norm.weight", lambda t: t[:-1], "are not all of one shape"),
        ("output.weight", lambda t: t.astype(ml_dtypes.bfloat16), "are not all of one shape and t"),
        ("norm.weight", None, r"has no tensor norm\.weight"),
        ("output.weight", None, r"has no tensor output\.weight"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(folder, pickles, name, change, sentence):
    path = folder(2)
    state = pickles["consolidated.01.pth"]
    if change:
        state[name] = change(state[name])
    else:
        del state[name]
    with pytest.raises(FormatError, match=sentence):
        read_meta(path)


def test_a_folder_without_a_classifier_is_refused(folder, pickles):
    path = folder(2)
    for state in pickles.values():
        del state["output.weight"]
    with pytest.raises(FormatError, match=r"has no tensor output\.weight"):
        read_meta(path)


def test_a_tensor_that_only_one_file_has_is_refused(folder, pickles):
    path = folder(2)
    pickles["consolidated.01.pth"]["layers.3.ffn_norm.weight"] = np.ones(36, np.float32)
    with pytest.raises(FormatError, match=r"has a tensor layers\.3\.ffn_norm\.weight, for which"):
        read_meta(path)


def test_tensors_without_axes_are_refused(folder, pickles):
    path = folder(2)
    for state in pickles.values():
        state["output.weight"] = np.array(1, np.float32)
    with pytest.raises(FormatError, match=r"output\.weight is \(\), which cannot be"):
        read_meta(path)
