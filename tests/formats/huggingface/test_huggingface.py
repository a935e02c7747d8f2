"""Models in Hugging Face's folders come back bit by bit, and none is left half-written."""

import json

import ml_dtypes
import numpy as np
import pytest
from folders import (
    EVERY_MODEL,
    FLOATS,
    NORMS,
    assert_same,
    change_tensors,
    config_of,
    made,
    model,
)
from safetensors.numpy import load_file

from errors import RunError, UserError
from formats.huggingface import read, write
from tokenizer import BYTE_PIECES, SPECIAL_PIECES, BytePairTokenizer, LlamaTokenizer


@EVERY_MODEL
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("largest_file", [1, 2000, 10**9])
def test_models_come_back_bit_by_bit(folder, name, dtype, largest_file):
    weights, tensors = model(name, dtype)
    write(folder, weights, dtype, largest_file)
    result = read(folder)
    assert result.format == "Hugging Face"
    assert result.kind == weights.kind
    assert made(result) == made(weights)
    assert_same(result, tensors)


@EVERY_MODEL
def test_a_model_can_be_written_in_another_type(folder, name):
    weights, tensors = model(name)
    write(folder, weights, "bfloat16")
    assert config_of(folder)["torch_dtype"] == "bfloat16"
    for tensor, values in tensors.items():
        if name == "gemma3" and tensor in NORMS:
            tensors[tensor] = 1 + (values - 1).astype(ml_dtypes.bfloat16).astype(np.float32)
        else:
            tensors[tensor] = values.astype(ml_dtypes.bfloat16)
    assert_same(read(folder), tensors)


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


# What is written


@EVERY_MODEL
def test_files_are_no_larger_than_they_may_be(folder, name):
    weights, tensors = model(name)
    write(folder, weights, "float16", largest_file=7000)
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
    assert max(sizes) <= 7000
    assert 1 < len(sizes) < sum(sizes) / 3500 + 1  # none is left half empty


def test_a_whole_model_that_fits_is_one_file(folder):
    weights, tensors = model("gpt2")
    write(folder, weights, largest_file=4 * sum(t.size for t in tensors.values()))
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_the_tokens_that_begin_and_end_a_text_are_told(tmp_path):
    bytes_ = BytePairTokenizer({bytes([byte]): byte for byte in range(256)})
    llama = LlamaTokenizer([*SPECIAL_PIECES, *BYTE_PIECES], [0.0] * 259)
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
