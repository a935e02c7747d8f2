"""The tensors and files of a folder: found, or named."""

import json
import shutil

import numpy as np
import pytest
from folders import (
    assert_same,
    change_tensors,
    made,
    model,
)

from errors import FormatError, UserError
from formats.huggingface import read, write


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
    assert made(result) == made(weights)


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
        ("tied", "self_attn.q_proj.weight", lambda tensor: tensor[:-3]),
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
