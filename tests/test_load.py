"""What a file is, is recognised, and of a file that is none of a model's it is said."""

import io
import json
import struct
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from convert import progress, watched, write_checkpoint
from errors import FormatError, UserError
from formats import gguf, hf_tokenizer, huggingface, llama2_c, llm_c, safetensors
from formats.checkpoint import read_meta, save_checkpoint
from formats.families.llama import LLAMA
from formats.state_dict import to_theirs
from formats.tokenizer_files import load_tokenizer
from formats.weights import Parts, Weights
from load import open_model, save_model, tokenizer_of
from models import FAMILIES
from models.gpt2 import GPT2Config
from models.llama2 import Llama2, Llama2Config
from models.model import unpadded_shapes
from tokenizer import BYTE_PIECES, SPECIAL_PIECES, LlamaTokenizer

CONFIG = Llama2Config(dim=96, num_layers=16, num_heads=2, vocab_size=257, seq_len=8)


@pytest.fixture(scope="module")
def weights():
    params = Llama2(CONFIG).params
    tensors = {name: Parts.of(name, tensor) for name, tensor in params}
    return Weights("", "llama2", vars(CONFIG), tensors, load_tokenizer("bytes"))


def test_any_file_of_a_hugging_face_folder_will_do(tmp_path, weights):
    huggingface.write(tmp_path / "model", weights, largest_file=2_000_000)
    files = sorted((tmp_path / "model").iterdir())
    assert len(files) > 4
    for path in (tmp_path / "model", *files):
        source = open_model(path)
        assert (source.kind, source.config) == ("llama2", CONFIG)
    assert open_model(tmp_path / "model" / "config.json").name == "model"
    assert open_model(tmp_path / "model").name == "model"
    other = {**weights.tensors, "wte": Parts.of("wte", weights.tensors["wte"][0] + 1)}
    theirs = to_theirs(replace(weights, tensors=other), LLAMA.naming)
    safetensors.save(tmp_path / "model" / "other.safetensors", theirs)
    named = open_model(tmp_path / "model" / "other.safetensors").weights
    np.testing.assert_array_equal(named.tensors["wte"][0], weights.tensors["wte"][0] + 1)
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(FormatError, match=r"says nothing without its config\.json"):
        open_model(files[-1])


def test_the_ends_of_texts_reach_the_tokenizer_and_stay_with_it(tmp_path, weights):
    huggingface.write(tmp_path / "model", weights)
    said = {"eos_token_id": [7, 256]}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(said), "utf-8")
    source = open_model(tmp_path / "model")
    assert source.tokenizer.ends == {7, 256}
    save_model(tmp_path / "run", source.load(), source.tokenizer)
    assert open_model(tmp_path / "run").tokenizer.ends == {7, 256}
    assert open_model(tmp_path / "run", "bytes").tokenizer.ends == {7, 256}


def test_a_model_that_only_samples_is_saved_in_the_order_of_checkpoints(tmp_path, weights):
    huggingface.write(tmp_path / "model", weights)
    source = open_model(tmp_path / "model")
    model = source.load()
    assert not model.params.w1[0].flags.c_contiguous  # or it proves nothing
    save_model(tmp_path / "run", model, source.tokenizer)
    saved = open_model(tmp_path / "run").load(recompute="none").params.flat
    np.testing.assert_array_equal(saved, source.load(recompute="none").params.flat)


def test_another_format_in_a_hugging_face_folder_is_what_it_is(tmp_path, weights):
    huggingface.write(tmp_path / "model", weights)
    llama2_c.write(tmp_path / "model" / "model.bin", weights)
    assert open_model(tmp_path / "model" / "model.bin").weights.format == "llama2.c, version 0"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("old.pth", b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", "before 1.6"),
        ("text.bin", b"Once upon a time" * 100, "not a llama2.c model"),
        ("empty", b"", "not a llama2.c model"),
        ("a.gguf", b"GGUF" + bytes(9), "a.gguf"),
        ("a.bin", b"\xd8\x2855\x01", "a.bin"),
        ("a.safetensors", b"\x08" + bytes(7) + b"{" * 8, "config.json"),
        ("checkpoint.npz", b"PK\3\4" + bytes(26) + b"meta.json", "checkpoint.npz is damaged"),
        ("checkpoint.npz", b"PK\3\4", "checkpoint.npz is damaged"),
        ("other.zip", b"PK\3\4" + bytes(50), "other.zip"),
        ("x.json", b"{}", "config.json"),
        ("lfs.bin", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ],
)
def test_what_is_no_model(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        open_model(tmp_path / name)


def test_folders_and_files_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"there is no model .*gone"):
        open_model(tmp_path / "gone")
    with pytest.raises(
        UserError, match=r"no checkpoint\.npz, ckpt\.pt, config\.json or params\.json"
    ):
        open_model(tmp_path)


def test_gpt2s_vocabulary_is_known_by_its_size(starter, tmp_path):
    config = GPT2Config(seq_len=2, num_layers=1, num_heads=1, channels=2)
    shapes = config.param_shapes() | {"wte": (50257, 2)}
    tensors = {name: Parts.of(name, np.zeros(shape, "f4")) for name, shape in shapes.items()}
    llm_c.write(tmp_path / "model.bin", Weights("", "gpt2", vars(config), tensors))
    source = open_model(tmp_path / "model.bin")
    assert source.tokenizer.encode(" the") == [262]
    assert source.tokenizer_source == "gpt2"


def test_gpt2s_vocabulary_is_known_by_its_size_rounded_up(starter, tmp_path):
    for rows, known in ((50304, True), (50305, False), (50256, False)):
        config = GPT2Config(seq_len=2, vocab_size=rows, num_layers=1, num_heads=1, channels=2)
        shapes = unpadded_shapes(config)
        tensors = {name: Parts.of(name, np.zeros(shape, "f4")) for name, shape in shapes.items()}
        llm_c.write(tmp_path / "model.bin", Weights("", "gpt2", vars(config), tensors))
        source = open_model(tmp_path / "model.bin")
        assert source.tokenizer_source == ("gpt2" if known else "none is in the file or beside it")


@pytest.mark.parametrize(
    ("rows", "beside", "taken"),
    [
        (300, {"tokenizer.bin": 300, "tokenizer.json": 299}, "tokenizer.bin"),
        (300, {"tokenizer.bin": 298, "tokenizer.json": 299}, "tokenizer.json"),
        (300, {"tokenizer.bin": 298, "tokenizer.json": 301}, "tokenizer.bin"),
        (300, {"model.tokenizer.bin": 299, "tokenizer.bin": 299}, "model.tokenizer.bin"),
        (300, {"tokenizer.bin": 271}, "tokenizer.bin"),
        (300, {"tokenizer.bin": 270}, None),
        (600, {"tokenizer.bin": 300}, None),
        (300, {"tokenizer.bin": 301}, None),
    ],
)
def test_which_tokenizer_beside_a_model_is_its_own(tmp_path, rows, beside, taken):
    config = Llama2Config(2, 2, 1, 1, vocab_size=rows, seq_len=2)
    tensors = {name: Parts.of(name, tensor) for name, tensor in Llama2(config).params}
    llama2_c.write(tmp_path / "model.bin", Weights("", "llama2", vars(config), tensors))
    for name, count in beside.items():
        pieces = [*SPECIAL_PIECES, *BYTE_PIECES, *(b"%d" % each for each in range(count - 259))]
        tokenizer = LlamaTokenizer(pieces, [0.0] * count)
        if name.endswith(".json"):
            hf_tokenizer.write(tmp_path, tokenizer)
        else:
            tokenizer.save(tmp_path / name)
    source = open_model(tmp_path / "model.bin")
    if taken:
        assert source.tokenizer_source == str(tmp_path / taken)
        assert source.tokenizer.vocab_size == beside[taken]
    else:
        assert source.tokenizer is None
        assert "tokenizer.bin has" in source.tokenizer_source


def test_a_tokenizer_of_another_model_beside_it_is_not_taken(starter, tmp_path):
    (tmp_path / "model.bin").write_bytes((starter / "stories260K.bin").read_bytes())
    (tmp_path / "tokenizer.bin").write_bytes((starter / "llama2_tokenizer.bin").read_bytes())
    assert open_model(str(tmp_path / "model.bin")).tokenizer is None
    (tmp_path / "tokenizer.bin").write_bytes((starter / "tok512.bin").read_bytes())
    assert open_model(tmp_path / "model.bin").tokenizer.vocab_size == 512


def test_a_tokenizer_in_the_file_with_more_tokens_than_the_model(tmp_path, weights):
    config = replace(CONFIG, vocab_size=256)
    tensors = {name: Parts.of(name, tensor) for name, tensor in Llama2(config).params}
    few = replace(weights, config=vars(config), tensors=tensors)
    write_checkpoint(tmp_path / "own.npz", few, "float32")
    with pytest.raises(
        FormatError, match=r"own\.npz has a tokenizer of 257 tokens and a model of 256"
    ):
        open_model(tmp_path / "own.npz")


def test_of_an_unknown_tokenizer_in_the_file_it_is_said_which(program, tmp_path, weights):
    pytest.importorskip("gguf")
    gguf.write(tmp_path / "model.gguf", weights)
    data = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(data.replace(b"gpt-2", b"other"))
    reason = "its tokenizer splits a text into words as 'other', which is unknown here"
    assert open_model(tmp_path / "model.gguf").tokenizer_source == reason
    assert f"unknown: {reason}" in program("convert", tmp_path / "model.gguf")[1]
    status, _, err = program("sample", tmp_path / "model.gguf")
    assert status == 2
    assert f"does not say how it writes text ({reason}); give its --tokenizer" in err
    weights.tokenizer.save(tmp_path / "model.tokenizer.tiktoken")
    assert open_model(tmp_path / "model.gguf").tokenizer == weights.tokenizer


def test_a_model_serves_as_the_name_of_its_tokenizer(tmp_path, weights):
    huggingface.write(tmp_path / "model", weights)
    write_checkpoint(tmp_path / "own.npz", weights, "float32")
    llama2_c.write(tmp_path / "model.bin", weights)
    weights.tokenizer.save(tmp_path / "model.tokenizer.tiktoken")
    for name in ("model", "own.npz", "model.bin"):
        assert tokenizer_of(tmp_path / name).to_bytes() == load_tokenizer("bytes").to_bytes()
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="model has no tokenizer: none is in the file or beside it"):
        tokenizer_of(tmp_path / "model")
    (tmp_path / "letter").write_bytes(b"Dear reader")
    with pytest.raises(FormatError, match=r"letter, line 1: .* is not a token"):
        tokenizer_of(tmp_path / "letter")


def test_whose_pickle_it_is(tmp_path):
    """None has a model in it, and who says so is who was asked."""
    pickle = (Path(__file__).parent / "golden" / "torch_save.pt").read_bytes()
    (tmp_path / "ckpt.pt").write_bytes(pickle)
    with pytest.raises(FormatError, match=r'ckpt\.pt has no "model"'):
        open_model(tmp_path)  # nanoGPT's and llama2.c's output folder
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    with pytest.raises(FormatError, match=r'ckpt\.pt has no "model"'):
        open_model(tmp_path / "ckpt.pt")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle)
    with pytest.raises(FormatError, match=r"pytorch_model\.bin has an entry"):
        open_model(tmp_path / "pytorch_model.bin")
    (tmp_path / "params.json").write_text("{}", encoding="utf-8")
    with pytest.raises(FormatError, match=r"must have consolidated\.00\.pth"):
        open_model(tmp_path / "params.json")


def test_more_positions_than_any_model_has(tmp_path, weights):
    llama2_c.write(tmp_path / "model.bin", weights, version=1)
    content = bytearray((tmp_path / "model.bin").read_bytes())
    content[32:36] = (2**25).to_bytes(4, "little")
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(FormatError, match="33554432 of 33554432 positions"):
        open_model(tmp_path / "model.bin")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_size": 92}, "must be"),
        ({"num_hidden_layers": 10**9}, "model"),
        ({"vocab_size": 258}, r"wte is \(257, 96\), and .* must be \(258, 96\)"),
        ({"head_dim": 49}, r"q_proj\.weight is \(96, 96\), which cannot be"),
    ],
)
def test_numbers_that_the_tensors_contradict(tmp_path, weights, changes, sentence):
    huggingface.write(tmp_path / "model", weights)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), encoding="utf-8")
    with pytest.raises(FormatError, match=sentence):
        open_model(tmp_path / "model")


@pytest.mark.parametrize("target", ["huggingface", "gguf", "llama2.c", "llama2.c-2"])
def test_a_conversion_needs_the_memory_of_a_part(program, tmp_path, weights, target):
    """All but our own format, which whoever uses it has in memory."""
    llama2_c.write(tmp_path / "model.bin", weights)
    size = 4 * sum(int(np.prod(parts.shape)) for parts in weights.tensors.values())
    arguments = [tmp_path / "model.bin", "--to", target, "--tokenizer", "bytes"]
    assert program("convert", *arguments, tmp_path / "first")[0] == 0  # imports what it needs
    tracemalloc.start()
    status, _, err = program("convert", *arguments, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert status == 0, err
    assert peak < size / 4


META = {"model": "llama2", "config": vars(CONFIG), "positions": 8, "tokenizer": "gpt2"}


@pytest.mark.parametrize("name", META)
@pytest.mark.parametrize("value", [None, 0, "x", [], {"a": 1}, "漢", 2**70, True])
def test_a_checkpoint_that_describes_no_model(tmp_path, name, value):
    params = np.zeros(sum(map(np.prod, CONFIG.param_shapes().values())), np.float32)
    meta = META | {"tokenizer": load_tokenizer("bytes").to_bytes().decode("latin-1")}
    save_checkpoint(tmp_path / "checkpoint.npz", meta, {"params": params})
    assert open_model(tmp_path).positions == 8
    save_checkpoint(tmp_path / "checkpoint.npz", meta | {name: value}, {"params": params})
    with pytest.raises(FormatError, match=r"checkpoint\.npz"):
        open_model(tmp_path)
    del meta[name]
    save_checkpoint(tmp_path / "checkpoint.npz", meta, {"params": params})
    if name != "positions":
        with pytest.raises(FormatError, match=r"checkpoint\.npz"):
            open_model(tmp_path)


@pytest.mark.parametrize("ends", [["x"], [-1], [1.5], [True], [[]], 3, None])
def test_a_checkpoint_whose_texts_end_with_no_tokens(tmp_path, weights, ends):
    write_checkpoint(tmp_path / "model.npz", weights, "float32")
    meta = read_meta(tmp_path / "model.npz") | {"ends": ends}
    params = np.zeros(sum(map(np.prod, CONFIG.param_shapes().values())), np.float32)
    save_checkpoint(tmp_path / "model.npz", meta, {"params": params})
    with pytest.raises(FormatError, match=r"model\.npz"):
        open_model(tmp_path / "model.npz")


def test_a_checkpoint_of_a_model_that_cannot_be(tmp_path):
    meta = META | {"config": vars(CONFIG) | {"num_heads": 7}}
    save_checkpoint(tmp_path / "checkpoint.npz", meta, {"params": np.zeros(1, np.float32)})
    with pytest.raises(
        FormatError, match=r"checkpoint\.npz holds a model that cannot be: 2 key/val"
    ):
        open_model(tmp_path)


def test_a_checkpoint_whose_numbers_end_too_early(tmp_path):
    """Where the checksum is right: of what somebody has put together anew."""
    count = sum(map(np.prod, CONFIG.param_shapes().values()))
    header = np.lib.format.header_data_from_array_1_0(np.zeros(count, np.float32))
    np.lib.format.write_array_header_1_0(member := io.BytesIO(), header)
    meta = META | {"tokenizer": load_tokenizer("bytes").to_bytes().decode("latin-1")}
    save_checkpoint(tmp_path / "checkpoint.npz", meta, {})
    with zipfile.ZipFile(tmp_path / "checkpoint.npz", "a") as archive:
        archive.writestr("params.npy", member.getvalue() + bytes(4 * (count - 1)))
    with pytest.raises(FormatError, match=r"checkpoint\.npz: params ends too early"):
        open_model(tmp_path)


def test_a_description_that_would_fill_the_memory(tmp_path):
    with zipfile.ZipFile(tmp_path / "checkpoint.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.json", b" " * 10**8)
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"a meta\.json of 100000000 bytes"):
        open_model(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_more_layers_than_any_model_has(tmp_path):
    header = struct.pack("<7i", 2, 1, 200_000, 1, 1, 1, 1)
    path = tmp_path / "model.bin"
    path.write_bytes(header)
    with path.open("r+b") as file:
        file.truncate(28 + 4 * (2 + 200_000 * (4 + 4 * 4 + 6) + 2 + 2))
    with pytest.raises(FormatError, match="200000 layers, which cannot be"):
        open_model(path)


def test_a_forged_name_does_not_reach_the_console(program, tmp_path, weights):
    huggingface.write(tmp_path / "model", weights)
    theirs = to_theirs(weights, LLAMA.naming)
    theirs["\x1b[2J" * 999] = Parts.of("wte", np.zeros(1, np.float32))
    safetensors.save(tmp_path / "model" / "model.safetensors", theirs)
    status, _, err = program("sample", tmp_path / "model")
    assert status == 2
    assert "has a tensor ?[2J" in err
    assert "\x1b" not in err
    assert len(err) < 2100


def test_the_bar_reaches_its_end(weights):
    with tqdm(total=progress("", weights).total, file=io.StringIO()) as bar:
        for parts in watched(weights, bar).tensors.values():
            list(parts)
        assert bar.n == bar.total > 0


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_model_of_a_program_is_saved_and_trained_on(program, corpus, tmp_path, kind):
    """As a run of the trainer: it speaks, and goes on learning."""
    tokenizer, folder = load_tokenizer(corpus / "tokenizer.tiktoken"), tmp_path / "mine"
    config = next(iter(FAMILIES[kind].presets.values()))
    config = replace(config, num_layers=1, vocab_size=tokenizer.vocab_size)
    model = FAMILIES[kind].model(config, batch_size=2, seq_len=16)
    save_model(folder, model, tokenizer, kind)
    assert (open_model(folder).kind, open_model(folder).positions) == (kind, 16)
    sampler, trainer = open_model(folder).load(), open_model(folder).load(2, recompute="none")
    assert np.array_equal(trainer.params.flat, model.params.flat)
    assert all(np.array_equal(tensor, model.params[name]) for name, tensor in sampler.params)
    tokens = np.arange(32).reshape(2, 16) % config.vocab_size
    assert trainer.forward(tokens, tokens) == model.forward(tokens, tokens)
    trainer.backward()
    model.backward()
    assert np.array_equal(trainer.grads.flat, model.grads.flat)
    assert program("sample", folder, "--max-tokens", 2)[0] == 0
    arguments = ["--init-from", folder, "--data", corpus, "--out", tmp_path / "run"]
    assert program("train", kind, *arguments, "--steps", 1, "--seq-len", 16)[0] == 0


def test_weights_are_held_once(starter, tmp_path):
    """Nothing as large as the weights is allocated while loading, but the weights themselves."""
    config = Llama2Config(dim=64, num_layers=1, num_heads=2, vocab_size=40_000, seq_len=8)
    params = Llama2(config).params
    tensors = {name: Parts.of(name, tensor) for name, tensor in params}
    llama2_c.write(tmp_path / "model.bin", Weights("", "llama2", vars(config), tensors))
    source = open_model(tmp_path / "model.bin")
    size = params.flat.nbytes
    tracemalloc.start()
    model = source.load(seq_len=8)
    allocated = tracemalloc.get_traced_memory()[1] - model.acts.flat.nbytes
    tracemalloc.stop()
    assert size <= allocated < 1.1 * size
