import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from errors import FormatError, RunError, UserError
from formats import torch_pickle
from formats.huggingface import read, write
from formats.weights import Parts, Weights
from models.gpt2 import GPT2Config
from models.llama2 import Llama2Config
from tokenizer import BytePairTokenizer, LlamaTokenizer

# No two of the numbers are equal, so that none can stand in another's place unnoticed.
GPT2 = GPT2Config(seq_len=7, vocab_size=11, num_layers=2, num_heads=3, channels=12)
LLAMA = {"dim": 36, "hidden_dim": 40, "num_layers": 3, "num_heads": 6, "num_kv_heads": 2}
LLAMA |= {"vocab_size": 20, "seq_len": 5, "norm_eps": 1e-6, "rope_theta": 500.0}
MODELS = {
    "gpt2": GPT2,
    "tied": Llama2Config(**LLAMA, tied=True),
    "untied": Llama2Config(**LLAMA, tied=False),
}
FLOATS = {"float32": "<f4", "float16": "<f2", "bfloat16": ml_dtypes.bfloat16}

EVERY_MODEL = pytest.mark.parametrize("name", MODELS)


def model(name, dtype="float32", tokenizer=None):
    """Weights of a model, and the same tensors as arrays."""
    config, rng = MODELS[name], np.random.default_rng(0)
    shapes = config.param_shapes() | {"wte": (config.vocab_size, config.param_shapes()["wte"][1])}
    tensors = {
        name: rng.standard_normal(shape, np.float32).astype(FLOATS[dtype])
        for name, shape in shapes.items()
    }
    parts = {name: Parts.of(name, tensor) for name, tensor in tensors.items()}
    kind = "gpt2" if name == "gpt2" else "llama2"
    return Weights("a test", kind, dict(vars(config)), parts, tokenizer), tensors


def arrays(weights):
    """Every tensor whole."""
    return {
        name: np.stack(list(parts)).reshape(parts.shape) for name, parts in weights.tensors.items()
    }


def assert_same(weights, expected):
    result = arrays(weights)
    assert result.keys() == expected.keys()
    for name, tensor in expected.items():
        assert weights.tensors[name].dtype == result[name].dtype == tensor.dtype
        np.testing.assert_array_equal(result[name], tensor)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "model"


@pytest.fixture
def pickles(monkeypatch):
    """What files of torch.save have in them, by name."""
    contents = {}
    monkeypatch.setattr(torch_pickle, "load", lambda path: contents[path.name])
    return contents


def config_of(folder):
    return json.loads((folder / "config.json").read_text("utf-8"))


def change_config(folder, **changes):
    (folder / "config.json").write_text(json.dumps(config_of(folder) | changes), "utf-8")


def change_tensors(folder, change):
    """Let `change` do something to the tensors in a folder."""
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors) or tensors, folder / "model.safetensors")


# There and back


@EVERY_MODEL
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("largest_file", [1, 2000, 10**9])
def test_models_come_back_bit_by_bit(folder, name, dtype, largest_file):
    weights, tensors = model(name, dtype)
    write(folder, weights, dtype, largest_file)
    result = read(folder)
    assert result.format == "Hugging Face"
    assert result.kind == weights.kind
    assert result.config == weights.config
    assert_same(result, tensors)


@EVERY_MODEL
def test_a_model_can_be_written_in_another_type(folder, name):
    weights, tensors = model(name)
    write(folder, weights, "bfloat16")
    assert config_of(folder)["torch_dtype"] == "bfloat16"
    assert_same(read(folder), {name: t.astype(ml_dtypes.bfloat16) for name, t in tensors.items()})


def test_gpt2_has_its_names_and_transposed_matrices(folder):
    weights, tensors = model("gpt2")
    write(folder, weights)
    theirs = load_file(folder / "model.safetensors")
    assert len(theirs) == 4 + 2 * 12
    for name in ("ln_1.bias", "attn.c_attn.weight", "attn.c_proj.bias", "mlp.c_fc.weight"):
        assert f"transformer.h.1.{name}" in theirs
    np.testing.assert_array_equal(theirs["transformer.wte.weight"], tensors["wte"])
    np.testing.assert_array_equal(theirs["transformer.wpe.weight"], tensors["wpe"])
    np.testing.assert_array_equal(theirs["transformer.h.1.ln_2.weight"], tensors["ln2w"][1])
    modules = {"attn.c_attn": "qkv", "attn.c_proj": "attproj", "mlp.c_fc": "fc"}
    for module, name in (modules | {"mlp.c_proj": "fcproj"}).items():
        matrix, bias = (theirs[f"transformer.h.1.{module}.{kind}"] for kind in ("weight", "bias"))
        np.testing.assert_array_equal(matrix, tensors[f"{name}w"][1].T)
        np.testing.assert_array_equal(bias, tensors[f"{name}b"][1])
    assert config_of(folder)["architectures"] == ["GPT2LMHeadModel"]


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_llama_has_its_names_and_the_pairs_of_a_head_in_halves(folder, name):
    weights, tensors = model(name)
    write(folder, weights)
    theirs = load_file(folder / "model.safetensors")
    assert len(theirs) == (2 if name == "tied" else 3) + 3 * 9
    assert ("lm_head.weight" in theirs) == (name == "untied")
    for module, ours in [("mlp.gate", "w1"), ("mlp.down", "w2"), ("mlp.up", "w3")]:
        matrix = theirs[f"model.layers.2.{module}_proj.weight"]
        np.testing.assert_array_equal(matrix, tensors[ours][2])
    for module, ours, num_heads in [("q", "wq", 6), ("k", "wk", 2)]:
        matrix = theirs[f"model.layers.2.self_attn.{module}_proj.weight"]
        for head in range(num_heads):
            for number, row in enumerate([0, 2, 4, 1, 3, 5]):  # heads of 6
                np.testing.assert_array_equal(
                    matrix[6 * head + number], tensors[ours][2, 6 * head + row]
                )
    assert config_of(folder)["architectures"] == ["LlamaForCausalLM"]


@EVERY_MODEL
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_names_can_have_other_prefixes(folder, name, prefix):
    weights, tensors = model(name)
    write(folder, weights)

    def rename(theirs):
        stems = {name: name.removeprefix("transformer.").removeprefix("model.") for name in theirs}
        return {prefix + stems[name]: tensor for name, tensor in theirs.items()}

    change_tensors(folder, rename)
    assert_same(read(folder), tensors)


@EVERY_MODEL
def test_pytorch_files_are_read(folder, name, pickles):
    weights, tensors = model(name)
    write(folder, weights)
    file = folder / "model.safetensors"
    pickles["pytorch_model.bin"] = load_file(file)
    file.rename(folder / "pytorch_model.bin")
    assert_same(read(folder), tensors)


@EVERY_MODEL
def test_several_pytorch_files_are_read(folder, name, pickles):
    weights, tensors = model(name)
    write(folder, weights)
    theirs = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(theirs)
    pickles["a.bin"] = {name: theirs[name] for name in names[::2]}
    pickles["b.bin"] = {name: theirs[name] for name in names[1::2]}
    places = {name: "ab"[i % 2] + ".bin" for i, name in enumerate(names)}
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}), "utf-8")
    assert_same(read(folder), tensors)


@EVERY_MODEL
def test_what_theirs_has_as_ours_is_mapped(folder, name):
    write(folder, model(name)[0])
    result = read(folder)
    for tensor in ("wte", "attprojw" if name == "gpt2" else "w1"):
        part = result.tensors[tensor][-1]
        assert not part.flags.writeable
        assert np.shares_memory(part, result.tensors[tensor][-1])


# Numbers


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": None, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
        {"rope_theta": 500, "rope_scaling": None},
        {"rope_scaling": {"type": "default"}},
        {"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"rope_theta": 500.0}},
    ],
)
def test_every_spelling_of_theta_is_read(folder, changes):
    weights, _ = model("tied")
    write(folder, weights)
    change_config(folder, **changes)
    assert read(folder).config == weights.config


def test_what_an_old_llama_config_lacks_is_as_in_transformers(folder):
    weights, _ = model("untied")
    config = weights.config | {"num_kv_heads": 6}
    tensors = {**weights.tensors, "wk": weights.tensors["wq"], "wv": weights.tensors["wq"]}
    write(folder, Weights("", "llama2", config, tensors))
    numbers = config_of(folder)
    for name in ("num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings"):
        del numbers[name]
    (folder / "config.json").write_text(json.dumps(numbers), "utf-8")
    assert read(folder).config == config | {"norm_eps": 1e-6, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt2", {"activation_function": "gelu_pytorch_tanh", "n_inner": 48, "n_ctx": 7}),
        ("gpt2", {"n_inner": None, "tie_word_embeddings": False, "reorder_and_upcast_attn": True}),
        ("tied", {"head_dim": 6, "attention_bias": False, "mlp_bias": False, "pretraining_tp": 2}),
        ("untied", {"head_dim": None, "sliding_window": None, "attention_dropout": 0.1}),
    ],
)
def test_what_changes_nothing_is_read(folder, name, changes):
    weights, tensors = model(name)
    write(folder, weights)
    change_config(folder, **changes)
    result = read(folder)
    assert result.config == weights.config
    assert_same(result, tensors)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("gpt2", "activation_function", "gelu"),
        ("gpt2", "activation_function", "relu"),
        ("gpt2", "layer_norm_epsilon", 1e-6),
        ("gpt2", "n_inner", 36),
        ("gpt2", "scale_attn_weights", False),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "add_cross_attention", True),
        ("gpt2", "quantization_config", {"bits": 4}),
        ("tied", "hidden_act", "gelu"),
        ("tied", "attention_bias", True),
        ("tied", "mlp_bias", True),
        ("tied", "head_dim", 8),
        ("tied", "sliding_window", 4096),
        ("tied", "partial_rotary_factor", 0.5),
        ("tied", "tie_word_embeddings", "yes"),
        ("tied", "quantization_config", {"bits": 4}),
    ],
)
def test_what_would_compute_something_else_is_refused_by_name(folder, name, key, value):
    write(folder, model(name)[0])
    change_config(folder, **{key: value})
    with pytest.raises(FormatError, match=rf"config\.json: {key} is .* models here have .* only"):
        read(folder)


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("type", "linear"), ("rope_type", "llama3"), ("partial_rotary_factor", 0.5)],
)
def test_other_rotations_are_refused_by_name(folder, place, key, value):
    write(folder, model("tied")[0])
    change_config(folder, **{place: {key: value, "factor": 2.0}})
    with pytest.raises(FormatError, match=rf"config\.json: {key} is {value!r}"):
        read(folder)


@pytest.mark.parametrize("kind", ["mistral", "qwen2", None, ["gpt2"], 10**100])
def test_other_models_are_refused(folder, kind):
    write(folder, model("tied")[0])
    change_config(folder, model_type=kind)
    with pytest.raises(FormatError, match=r"config\.json is of a model of the type .* only gpt2"):
        read(folder)


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", True, [1], {}, 10**30, 2**63])
@EVERY_MODEL
def test_absurd_numbers_are_refused(folder, name, value):
    write(folder, model(name)[0])
    original = config_of(folder)
    gpt2 = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
    llama = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size")
    for key in gpt2 if name == "gpt2" else llama:
        change_config(folder, **original | {key: value})
        # Whether a large number fits the tensors is for load.py to say, but for the layers' and
        # the heads', which are needed to find and to cut them.
        if type(value) is int and value > 0 and key not in ("num_hidden_layers", "n_layer"):
            continue
        with pytest.raises(FormatError, match=r"model"):
            read(folder)


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [0, -1.0, "1", True, [], float("nan"), float("inf"), 10**400])
def test_what_is_no_positive_number_is_refused(folder, key, value):
    write(folder, model("tied")[0])
    change_config(folder, **{key: value})
    with pytest.raises(FormatError, match=rf"config\.json: {key} must be a number above 0, not "):
        read(folder)


@EVERY_MODEL
def test_a_number_that_is_missing_is_named(folder, name):
    write(folder, model(name)[0])
    numbers = config_of(folder)
    for key in ("vocab_size", "n_head" if name == "gpt2" else "num_attention_heads"):
        (folder / "config.json").write_text(json.dumps(numbers | {key: None}), "utf-8")
        with pytest.raises(FormatError, match=rf"config\.json: {key} must be .*, not None"):
            read(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"3",
        b"null",
        b"{",
        b'{"a": "\xff"}',
        b'{"a": 1' + b"0" * 5000 + b"}",
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_what_is_not_an_object_is_refused(folder, file, content):
    write(folder, model("tied")[0], largest_file=1)
    (folder / file).write_bytes(content)
    with pytest.raises(FormatError, match=rf"{file} is (not )?JSON"):
        read(folder)


def test_a_forged_size_is_refused_before_it_is_read(folder):
    write(folder, model("tied")[0])
    with (folder / "config.json").open("r+b") as file:
        file.truncate(10**10)  # of which no byte is on the disk
    with pytest.raises(FormatError, match=r"config\.json has more than 10000000 bytes"):
        read(folder)


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("value", ["linear", 3, [["type", "linear"]]])
def test_rotations_that_are_no_object_are_refused(folder, place, value):
    write(folder, model("tied")[0])
    change_config(folder, **{place: value})
    with pytest.raises(FormatError, match=rf"config\.json: {place} is not names and values"):
        read(folder)


# Tensors


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("gpt2", "transformer.wpe.weight"),
        ("gpt2", "transformer.h.1.mlp.c_fc.bias"),
        ("tied", "model.embed_tokens.weight"),
        ("tied", "model.layers.2.self_attn.k_proj.weight"),
        ("untied", "model.embed_tokens.weight"),
        ("untied", "lm_head.weight"),
    ],
)
def test_a_missing_tensor_is_named(folder, name, missing):
    write(folder, model(name)[0])
    change_tensors(folder, lambda ts: {name: t for name, t in ts.items() if name != missing})
    with pytest.raises(FormatError, match=f"model has no tensor {missing};"):
        read(folder)


@pytest.mark.parametrize(
    ("name", "superfluous"),
    [
        ("gpt2", "score.weight"),
        ("gpt2", "h.2.ln_1.weight"),
        ("gpt2", "h.1.attn.c_attn.weight_scale"),
        ("tied", "layers.0.self_attn.q_proj.bias"),
        ("tied", "layers.3.mlp.up_proj.weight"),
    ],
)
def test_a_superfluous_tensor_is_named(folder, name, superfluous):
    write(folder, model(name)[0])
    change_tensors(folder, lambda tensors: tensors.update({superfluous: np.ones(3, np.float32)}))
    with pytest.raises(FormatError, match=f"model has a tensor {superfluous}, for which"):
        read(folder)


@pytest.mark.parametrize(
    ("name", "buffer"),
    [
        ("gpt2", "transformer.h.1.attn.bias"),
        ("gpt2", "h.0.attn.masked_bias"),
        ("tied", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("tied", "model.rotary_emb.inv_freq"),
    ],
)
def test_tables_of_masks_and_rotations_are_ignored(folder, name, buffer):
    weights, tensors = model(name)
    write(folder, weights)
    change_tensors(folder, lambda theirs: theirs.update({buffer: np.ones((1, 1, 7, 7), np.uint8)}))
    assert_same(read(folder), tensors)


@pytest.mark.parametrize("name", ["gpt2", "tied"])
def test_a_classifier_that_repeats_the_embedding_is_tied(folder, name):
    weights, tensors = model(name)
    write(folder, weights)
    change_tensors(folder, lambda theirs: theirs.update({"lm_head.weight": tensors["wte"]}))
    result = read(folder)
    assert_same(result, tensors)
    assert result.config == weights.config


@pytest.mark.parametrize("name", ["gpt2", "tied"])
@pytest.mark.parametrize(
    "change",
    [
        lambda table: table[:-1],
        lambda table: table + np.eye(*table.shape, dtype="f4")[::-1],
        lambda table: table[0, 0],
    ],
)
def test_a_classifier_of_its_own_that_must_not_be_is_refused(folder, name, change):
    weights, tensors = model(name)
    write(folder, weights)
    table = np.array(change(tensors["wte"]))
    change_tensors(folder, lambda theirs: theirs.update({"lm_head.weight": table}))
    with pytest.raises(FormatError, match=r"model has a classifier lm_head\.weight that is not"):
        read(folder)


@pytest.mark.parametrize("table", [{}, {"transformer.wte.weight": np.array(1, np.float32)}])
def test_a_classifier_without_the_table_that_it_should_repeat_is_refused(folder, table):
    write(folder, model("gpt2")[0])

    def change(tensors):
        del tensors["transformer.wte.weight"]
        return {**tensors, **table, "lm_head.weight": np.array(1, np.float32)}

    change_tensors(folder, change)
    with pytest.raises(FormatError, match=r"model has a classifier lm_head\.weight that is not"):
        read(folder)


def test_an_untied_classifier_may_equal_the_embedding(folder):
    weights, tensors = model("untied")
    weights.tensors["wcls"] = weights.tensors["wte"]
    write(folder, weights)
    result = read(folder)
    assert result.config["tied"] is False
    assert_same(result, tensors | {"wcls": tensors["wte"]})


@pytest.mark.parametrize("dtype", ["f8", "i1", "u1", "i4"])
def test_other_types_of_numbers_are_refused(folder, dtype):
    write(folder, model("gpt2")[0])
    change_tensors(folder, lambda tensors: {name: t.astype(dtype) for name, t in tensors.items()})
    name = r"transformer\.wte\.weight is of the type (float64|u?int\d+)"
    with pytest.raises(FormatError, match=name):
        read(folder)


@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: t.astype(np.float16)])
def test_layers_that_are_not_alike_are_refused(folder, change):
    write(folder, model("gpt2")[0])
    name = "transformer.h.1.mlp.c_fc.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: change(tensors[name])}))
    with pytest.raises(FormatError, match=r"transformer\.h\.N\.mlp\.c_fc\.weight are not all of"):
        read(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "change"),
    [
        ("gpt2", "attn.c_attn.weight", np.ravel),
        ("tied", "mlp.up_proj.weight", np.ravel),
        ("tied", "self_attn.q_proj.weight", lambda tensor: tensor[None]),
        ("tied", "self_attn.q_proj.weight", lambda tensor: tensor[:-6]),
        ("tied", "self_attn.k_proj.weight", lambda tensor: tensor[:-1]),
    ],
)
def test_matrices_that_cannot_be_cut_are_refused(folder, name, tensor, change):
    write(folder, model(name)[0])
    change_tensors(
        folder, lambda ts: {n: change(t) if n.endswith(tensor) else t for n, t in ts.items()}
    )
    with pytest.raises(FormatError, match=rf"{tensor} is \(.*\), which cannot be"):
        read(folder)


def test_two_tensors_of_one_name_are_refused(folder):
    write(folder, model("gpt2")[0])
    change_tensors(folder, lambda tensors: tensors.update({"wte.weight": np.ones(3, np.float32)}))
    with pytest.raises(FormatError, match=r"model\.safetensors has two tensors wte\.weight"):
        read(folder)


# Files


def test_missing_files_are_named(folder):
    with pytest.raises(UserError, match=r"there is no file .*config\.json"):
        read(folder)
    write(folder, model("tied")[0], largest_file=3000)
    shard = min(folder.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(UserError, match=rf"there is no file .*{shard.name}"):
        read(folder)
    for file in folder.glob("model*"):
        file.unlink()
    with pytest.raises(UserError, match=r"model has none of model\.safetensors, "):
        read(folder)


@pytest.mark.parametrize(
    "file",
    [
        "../model.safetensors",
        "..\\model.safetensors",
        "/etc/model.safetensors",
        "C:model.safetensors",
        "sub/model.safetensors",
        "..safetensors",
        ".safetensors",
        "model.safetensors\n",
        "config.json",
        "",
        None,
        3,
        ["model.safetensors"],
    ],
)
def test_an_index_cannot_lead_out_of_its_folder(folder, file):
    write(folder, model("tied")[0], largest_file=1)
    index = folder / "model.safetensors.index.json"
    shutil.copy(folder / "model-00001-of-00029.safetensors", folder.parent / "model.safetensors")
    places = json.loads(index.read_text("utf-8"))["weight_map"]
    places["model.embed_tokens.weight"] = file
    index.write_text(json.dumps({"weight_map": places}), "utf-8")
    with pytest.raises(FormatError, match=r"index\.json wants a file .* no file of weights"):
        read(folder)


@pytest.mark.parametrize("places", [None, [], "model.safetensors", 3])
def test_an_index_without_places_is_refused(folder, places):
    write(folder, model("tied")[0], largest_file=1)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}), "utf-8")
    with pytest.raises(FormatError, match=r"index\.json has no weight_map"):
        read(folder)


@pytest.mark.parametrize("content", [None, [], 3, {1: np.ones(3)}, {"a": 3}, {"a": {"b": 3}}])
def test_pickles_of_something_else_are_refused(folder, pickles, content):
    write(folder, model("tied")[0])
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    pickles["pytorch_model.bin"] = content
    with pytest.raises(
        FormatError, match=r"pytorch_model\.bin has (no tensors|an entry .* no ten)"
    ):
        read(folder)


# What is written


@EVERY_MODEL
def test_files_are_no_larger_than_they_may_be(folder, name):
    weights, tensors = model(name)
    write(folder, weights, "float16", largest_file=3000)
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    assert index["metadata"] == {"total_size": 2 * sum(t.size for t in tensors.values())}
    files = sorted(folder.glob("*.safetensors"))
    names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    assert [file.name for file in files] == names
    places, sizes = {}, []
    for file in files:
        theirs = load_file(file)
        places |= dict.fromkeys(theirs, file.name)
        sizes.append(sum(t.nbytes for t in theirs.values()))
    assert index["weight_map"] == places
    assert max(sizes) <= 3000
    assert len(sizes) < sum(sizes) / 1500 + 1  # none is left half empty


def test_a_whole_model_that_fits_is_one_file(folder):
    weights, tensors = model("gpt2")
    write(folder, weights, largest_file=4 * sum(t.size for t in tensors.values()))
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_the_tokens_that_begin_and_end_a_text_are_told(tmp_path):
    bytes_ = BytePairTokenizer({bytes([byte]): byte for byte in range(256)})
    llama = LlamaTokenizer(
        [b"<unk>", b"", b"", *(b"<0x%02X>" % i for i in range(256))], [0.0] * 259
    )
    for name, tokenizer, expected in [
        ("gpt2", bytes_, (256, 256)),
        ("tied", llama, (1, 2)),
        ("untied", None, (None, None)),
    ]:
        write(tmp_path / name, model(name, tokenizer=tokenizer)[0])
        config = config_of(tmp_path / name)
        assert (config["bos_token_id"], config["eos_token_id"]) == expected


def test_what_is_there_stays_there(folder):
    folder.mkdir()
    write(folder, model("gpt2")[0])  # into an empty one
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for target in (folder, folder / "config.json"):
        with pytest.raises(UserError, match="there is something already"):
            write(target, model("tied")[0])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("fails_at", [1, 3, 31])
def test_after_an_error_nothing_is_left(folder, monkeypatch, fails_at):
    calls = []

    def full_disk(_):
        calls.append(None)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(RunError, match="No space left"):
        write(folder, model("tied")[0], largest_file=1)
    assert len(calls) == fails_at
    assert not folder.exists()


def test_numbers_that_are_too_large_are_refused(folder):
    weights, tensors = model("tied")
    tensors["w2"][1, 2, 3] = 1e6
    with pytest.raises(UserError, match="too large for float16"):
        write(folder, weights, "float16")
    assert not folder.exists()


# Mutations

VALUES = [
    0,
    -1,
    1,
    2,
    3,
    10**9,
    10**40,
    1.5,
    1e-300,
    True,
    False,
    None,
    "",
    "gpt2",
    "llama",
    [],
    {},
]
KEYS = ["n_layer", "n_head", "n_embd", "n_positions", "model_type", "num_attention_heads"]
KEYS += ["hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size", "rope_theta"]
KEYS += ["rms_norm_eps", "tie_word_embeddings", "rope_scaling", "head_dim", "n_inner"]
WORDS = [b"0", b"9", b"-1", b"99", b"null", b'"', b"]", b"}", b",", b"F16", b"I8", b"\xff"]
CHANGES = st.tuples(st.floats(0, 1), st.integers(0, 4), st.sampled_from(WORDS))


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp("fuzz") / name for name in MODELS}
    for name, folder in folders.items():
        write(folder, model(name)[0])
    return {
        folder: {file.name: file.read_bytes() for file in folder.iterdir()}
        for folder in folders.values()
    }


def assert_read_or_refused(folder):
    try:
        weights = read(folder)
    except FormatError:
        return
    for parts in weights.tensors.values():
        for part in parts:
            assert part.shape in (parts.shape, parts.shape[1:])


@settings(max_examples=300)
@given(
    which=st.integers(0, 2), changes=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES))
)
def test_a_config_with_other_values_is_read_or_refused(originals, which, changes):
    folder = list(originals)[which]
    for file, content in originals[folder].items():
        (folder / file).write_bytes(content)
    change_config(folder, **changes)
    assert_read_or_refused(folder)


@settings(max_examples=500)
@given(
    which=st.integers(0, 2),
    file=st.sampled_from(["config.json", "model.safetensors"]),
    changes=st.lists(CHANGES, min_size=1, max_size=3),
)
def test_a_mutated_folder_is_read_or_refused(originals, which, file, changes):
    folder = list(originals)[which]
    for name, content in originals[folder].items():
        (folder / name).write_bytes(content)
    content = bytearray(originals[folder][file])
    end = content.index(b"}}") if file == "model.safetensors" else len(content)
    for place, count, new in changes:
        start = round(place * end)
        content[start : start + count] = new
    (folder / file).write_bytes(content)
    assert_read_or_refused(folder)
