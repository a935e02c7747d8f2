"""Tables with more rows than tokens, as transformers and nanoGPT make them."""

import numpy as np
import pytest

from formats import hf_tokenizer
from formats.tokenizer_files import load_tokenizer
from load import open_model
from tokenizer import train_bpe

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("multiple", [None, 16])
def test_a_padding_token_and_the_rows_that_transformers_makes_for_it(program, tmp_path, multiple):
    tokenizer = train_bpe("abc abcd abcde " * 9, 20)
    hf_tokenizer.write(tmp_path / "tokenizer", tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    sizes = {"n_positions": 32, "n_embd": 24, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(vocab_size=len(theirs), **sizes)
    model = transformers.GPT2LMHeadModel(config)
    theirs.add_special_tokens({"pad_token": "[PAD]"})
    model.resize_token_embeddings(len(theirs), pad_to_multiple_of=multiple)
    model.save_pretrained(tmp_path / "model")
    theirs.save_pretrained(tmp_path / "model")
    rows = model.get_input_embeddings().weight.shape[0]

    source = open_model(tmp_path / "model")
    assert source.config.vocab_size == rows
    assert source.tokenizer.vocab_size == len(theirs) == tokenizer.vocab_size + 1
    assert source.tokenizer.decode([theirs.pad_token_id]) == "[PAD]"
    tokens = np.array([source.tokenizer.encode("abc abcde [PAD]")])
    with torch.no_grad():
        expected = model.eval()(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(source.load().forward(tokens), expected, atol=1e-5)
    for name in ("model.gguf", "model.bin", "model.npz", "again"):
        assert program("convert", tmp_path / "model", tmp_path / name)[0] == 0
        status, _, err = program("sample", tmp_path / name, "--num-samples", 3)
        assert (status, "stay in the model" in err) == (0, rows > len(theirs))
    loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "again")
    assert loaded.get_input_embeddings().weight.shape[0] == rows


@pytest.mark.parametrize(("rows", "options"), [(50304, []), (51200, ["--tokenizer", "gpt2"])])
def test_nanogpts_table_is_rounded_up(program, starter, tmp_path, rows, options):
    sizes = {"block_size": 16, "n_layer": 1, "n_head": 1, "n_embd": 4}
    shapes = {"ln_1.weight": [4], "ln_2.weight": [4]}
    shapes |= {"attn.c_attn.weight": [12, 4], "attn.c_proj.weight": [4, 4]}
    shapes |= {"mlp.c_fc.weight": [16, 4], "mlp.c_proj.weight": [4, 16]}
    state = {f"transformer.h.0.{name}": torch.randn(shape) for name, shape in shapes.items()}
    table = torch.randn(rows, 4)
    table[50257:] *= 100  # nobody has trained these
    state |= {"transformer.wte.weight": table, "lm_head.weight": table}
    state |= {"transformer.wpe.weight": torch.randn(16, 4)}
    state |= {"transformer.ln_f.weight": torch.randn(4)}
    numbers = {**sizes, "vocab_size": rows, "bias": False}
    torch.save({"model": state, "model_args": numbers}, tmp_path / "ckpt.pt")
    for name in ("ckpt.pt", "model.gguf"):
        if name != "ckpt.pt":
            assert program("convert", tmp_path / "ckpt.pt", tmp_path / name, *options)[0] == 0
            options = []
        status, _, err = program("sample", tmp_path / name, "--num-samples", 3, *options)
        assert status == 0, err
        assert f"the model has {rows:,} tokens, and its tokenizer 50,257" in err
    weights = open_model(tmp_path / "model.gguf").weights
    np.testing.assert_array_equal(weights.tensors["wte"][0], table)
    assert open_model(tmp_path / "model.gguf").tokenizer == load_tokenizer("gpt2")
