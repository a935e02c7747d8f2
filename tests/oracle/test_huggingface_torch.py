"""Models of PyTorch and transformers: their files are read here, ours are read there.

The logits agree both ways. nanoGPT's and llama2.c's modules are written here anew, so far as their
tensors' names and what is computed with them go.
"""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # more gain nothing on models so small, and wait for each other

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from convert import write_checkpoint  # noqa: E402
from dev import torch_models  # noqa: E402
from formats import huggingface, state_dict  # noqa: E402
from formats.tokenizer_files import load_tokenizer  # noqa: E402
from formats.weights import Parts, Weights  # noqa: E402
from load import fill, open_model  # noqa: E402
from models import FAMILIES  # noqa: E402
from models.gpt2 import GPT2Config  # noqa: E402
from models.llama2 import Llama2Config  # noqa: E402

# The configs' first numbers are: seq_len, vocab_size, num_layers, num_heads, channels; or dim,
# hidden_dim, num_layers, num_heads, num_kv_heads, vocab_size, seq_len, norm_eps, rope_theta.
CONFIGS = {
    "gpt2": GPT2Config(24, 131, 3, 4, 32),
    "llama_tied": Llama2Config(48, 40, 3, 4, 4, 131, 24),
    "llama_groups": Llama2Config(48, 40, 2, 6, 2, 131, 24, tied=False),
    "llama_groups_tied": Llama2Config(48, 40, 2, 6, 3, 131, 24, 0.03, 20.0),
}
B, T = 2, 19
TOKENS = np.random.default_rng(0).integers(0, 131, (B, T))

EVERY_CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
EVERY_LLAMA = pytest.mark.parametrize("config", [*CONFIGS.values()][1:], ids=[*CONFIGS][1:])
EVERY_TYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
PREFIXES = pytest.mark.parametrize("prefix", ["", "_orig_mod."])  # the second by torch.compile
SHARDED = pytest.mark.parametrize("largest_file", [10**9, 30_000], ids=["whole", "sharded"])


def assert_logits_agree(weights, theirs):
    """Both models compute in float32, whatever type the weights were stored in."""
    family = FAMILIES[weights.kind]
    ours = family.model(family.config(**weights.config), B, T, seed=None)
    fill(ours.params, weights)
    with torch.no_grad():
        logits = torch_models.logits_of(theirs.float().eval(), TOKENS).numpy()
    assert abs(logits).max() > 1
    np.testing.assert_allclose(ours.forward(TOKENS), logits, rtol=0, atol=1e-4)


def transformers_models(config, dtype):
    """One of that type, and in float32 one of the same weights, whose rotations are exact."""
    stored, exact = torch_models.huggingface(config).to(dtype), torch_models.huggingface(config)
    torch_models.load_weights(stored, torch_models.random_weights(config))
    exact.load_state_dict(stored.state_dict())
    return stored, exact


# transformers


@EVERY_CONFIG
@EVERY_TYPE
@SHARDED
def test_what_transformers_writes_is_read(tmp_path, config, dtype, largest_file):
    theirs, exact = transformers_models(config, dtype)
    theirs.save_pretrained(tmp_path, max_shard_size=largest_file)
    assert (tmp_path / "model.safetensors").is_file() == (largest_file == 10**9)
    weights = open_model(tmp_path).weights
    assert {f"torch.{parts.dtype}" for parts in weights.tensors.values()} == {str(dtype)}
    assert_logits_agree(weights, exact)


@EVERY_CONFIG
@EVERY_TYPE
@SHARDED
def test_pytorch_files_are_read(tmp_path, config, dtype, largest_file):
    """As transformers 4 writes them: a tied classifier is saved as well, of the same storage."""
    theirs, exact = transformers_models(config, dtype)
    theirs.config.save_pretrained(tmp_path)
    state = theirs.state_dict()
    assert "lm_head.weight" in state
    if largest_file == 10**9:
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        files = {"pytorch_model-00001-of-00002.bin": {}, "pytorch_model-00002-of-00002.bin": {}}
        places = {}
        for number, (name, tensor) in enumerate(state.items()):
            file = [*files][number % 2]
            files[file][name] = tensor
            places[name] = file
        for file, part in files.items():
            torch.save(part, tmp_path / file)
        index = json.dumps({"metadata": {}, "weight_map": places})
        (tmp_path / "pytorch_model.bin.index.json").write_text(index, "utf-8")
    assert_logits_agree(open_model(tmp_path).weights, exact)


@EVERY_CONFIG
def test_a_model_without_its_classifier_is_read(tmp_path, config):
    """GPT2Model's and LlamaModel's tensors have no prefix."""
    theirs, _ = transformers_models(config, torch.float32)
    theirs.base_model.save_pretrained(tmp_path)
    if getattr(config, "tied", True):
        assert_logits_agree(open_model(tmp_path).weights, theirs)
    else:
        with pytest.raises(ValueError, match=r"no tensor lm_head\.weight"):
            open_model(tmp_path)


@EVERY_CONFIG
@EVERY_TYPE
@SHARDED
def test_transformers_reads_what_is_written(tmp_path, config, dtype, largest_file):
    kind = "gpt2" if isinstance(config, GPT2Config) else "llama2"
    tensors = torch_models.random_weights(config)
    parts = {name: Parts.of(name, tensor) for name, tensor in tensors.items()}
    name = str(dtype).removeprefix("torch.")
    weights = Weights("", kind, dict(vars(config)), parts)
    huggingface.write(tmp_path, weights, name, largest_file)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, torch_dtype="auto"
    )
    assert not any(report.values())
    assert type(theirs) is type(torch_models.huggingface(config))
    assert theirs.dtype is dtype
    assert_logits_agree(open_model(tmp_path).weights, theirs)
    assert theirs.config.tie_word_embeddings == getattr(config, "tied", True)
    if dtype is torch.float32:
        for name, tensor in torch_models.weights_of(theirs).items():
            np.testing.assert_array_equal(tensor, tensors[name])


@EVERY_CONFIG
def test_transformers_gets_the_positions_that_were_trained(program, tmp_path, config):
    kind = "gpt2" if isinstance(config, GPT2Config) else "llama2"
    config = replace(config, vocab_size=257)
    tensors = torch_models.random_weights(config)
    parts = {name: Parts.of(name, tensor) for name, tensor in tensors.items()}
    weights = Weights("", kind, vars(config), parts, load_tokenizer("bytes"))
    write_checkpoint(tmp_path / "run.npz", weights, "float32", positions=T)
    status, _, err = program("convert", tmp_path / "run.npz", tmp_path / "theirs")
    assert status == 0, err
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "theirs", output_loading_info=True
    )
    assert not any(report.values())
    assert theirs.config.max_position_embeddings == T < config.seq_len
    assert_logits_agree(weights, theirs)


# nanoGPT


class NanoGPT(nn.Module):
    """nanoGPT's names; source: nanoGPT, model.py."""

    def __init__(self, config, bias=True, gelu="tanh"):
        super().__init__()
        self.gelu = gelu  # nanoGPT's own is the exact one, "none"
        C = config.channels
        self.num_heads = config.num_heads
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, C),
                "wpe": nn.Embedding(config.seq_len, C),
                "h": nn.ModuleList(self.block(C, bias) for _ in range(config.num_layers)),
                "ln_f": nn.LayerNorm(C, bias=bias),
            }
        )
        self.lm_head = nn.Linear(C, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    @staticmethod
    def block(C, bias):
        attn = {"c_attn": nn.Linear(C, 3 * C, bias), "c_proj": nn.Linear(C, C, bias)}
        mlp = {"c_fc": nn.Linear(C, 4 * C, bias), "c_proj": nn.Linear(4 * C, C, bias)}
        return nn.ModuleDict(
            {
                "ln_1": nn.LayerNorm(C, bias=bias),
                "attn": nn.ModuleDict(attn),
                "ln_2": nn.LayerNorm(C, bias=bias),
                "mlp": nn.ModuleDict(mlp),
            }
        )

    def forward(self, tokens):
        x = self.transformer.wte(tokens) + self.transformer.wpe.weight[: tokens.shape[1]]
        for block in self.transformer.h:
            q, k, v = (
                each.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
                for each in block.attn.c_attn(block.ln_1(x)).chunk(3, dim=2)
            )
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block.attn.c_proj(out.transpose(1, 2).flatten(2))
            hidden = F.gelu(block.mlp.c_fc(block.ln_2(x)), approximate=self.gelu)
            x = x + block.mlp.c_proj(hidden)
        return self.lm_head(self.transformer.ln_f(x))


@PREFIXES
@pytest.mark.parametrize("bias", [False, True])
def test_nanogpts_checkpoint_is_read(tmp_path, bias, prefix):
    config = CONFIGS["gpt2"]
    torch.manual_seed(0)
    model = NanoGPT(config, bias)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.from_numpy(TOKENS)).sum().backward()
    optimizer.step()
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    args = {"block_size": 24, "vocab_size": 131, "n_layer": 3, "n_head": 4, "n_embd": 32}
    checkpoint = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "model_args": args | {"bias": bias, "dropout": 0.0},
        "iter_num": 100,
        "best_val_loss": torch.tensor(1.5),
        "config": {"out_dir": "out", "learning_rate": 6e-4},
    }
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    weights = open_model(tmp_path / "ckpt.pt").weights
    assert weights.format == "nanoGPT checkpoint"
    assert weights.config == dict(vars(config))
    assert_logits_agree(weights, model)


@pytest.fixture(scope="module")
def shakespeare(starter, tmp_path_factory):
    """A character model of nanoGPT, trained for a moment, and its folder."""
    text = (starter / "tinyshakespeare.txt").read_text(encoding="utf-8")
    chars = sorted(set(text))
    stoi = {ch: i for i, ch in enumerate(chars)}
    meta = {"vocab_size": len(chars), "itos": dict(enumerate(chars)), "stoi": stoi}
    data = torch.tensor([stoi[c] for c in text])
    config = GPT2Config(seq_len=32, vocab_size=65, num_layers=2, num_heads=2, channels=32)
    torch.manual_seed(0)
    model = NanoGPT(config, gelu="none")
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.constant_(parameter, float("ln" in name and name.endswith("weight")))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        starts = torch.randint(len(data) - 32, (12, 1)) + torch.arange(33)
        logits = model(data[starts][:, :-1])
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), data[starts][:, 1:].flatten()).backward()
        optimizer.step()
    args = {"block_size": 32, "vocab_size": 65, "n_layer": 2, "n_head": 2, "n_embd": 32}
    folder = tmp_path_factory.mktemp("out-shakespeare-char")
    torch.save({"model": model.state_dict(), "model_args": args}, folder / "ckpt.pt")
    with (folder / "meta.pkl").open("wb") as file:
        pickle.dump(meta, file)
    return folder, model, data


def test_nanogpts_character_model_speaks(program, shakespeare):
    folder, model, data = shakespeare
    said = data[:20].tolist()
    with torch.no_grad():
        for _ in range(12):
            said.append(model(torch.tensor([said]))[0, -1].argmax().item())
    tokenizer = open_model(folder).tokenizer
    arguments = ["--prompt", tokenizer.decode(said[:20]), "--temperature", 0, "--max-tokens", 12]
    status, out, _ = program("sample", folder, *arguments)
    assert status == 0
    assert out == tokenizer.decode(said) + "\n"


def test_nanogpts_own_gelu_makes_the_difference_that_is_told(program, shakespeare, tmp_path):
    folder, model, data = shakespeare
    source = open_model(folder)
    tokens = data[:320].view(10, 32)
    with torch.no_grad():
        theirs = model(tokens).numpy()
    ours = source.load(10).forward(tokens.numpy())
    assert 1e-4 < np.abs(ours - theirs).max() < 2e-3
    assert np.abs(ours - theirs).mean() < 2e-4
    for arguments in ([folder], [folder, tmp_path / "out.npz"]):
        status, out, _ = program("convert", *arguments)
        assert status == 0
        assert "logits differ by up to about 0.001" in out
    assert "GELU" not in program("convert", tmp_path / "out.npz")[1]


# llama2.c and Meta


class Norm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class Llama(nn.Module):
    """llama2.c's and Meta's names; source: llama2.c, model.py."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(self.block(config) for _ in range(config.num_layers))
        self.norm = Norm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tied:
            self.tok_embeddings.weight = self.output.weight
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    @staticmethod
    def block(config):
        C, Fc, KD = config.dim, config.hidden_dim, config.num_kv_heads * config.head_size
        sizes = {"wq": (C, C), "wk": (C, KD), "wv": (C, KD), "wo": (C, C)}
        attention = {name: nn.Linear(*size, bias=False) for name, size in sizes.items()}
        sizes = {"w1": (C, Fc), "w2": (Fc, C), "w3": (C, Fc)}
        feed_forward = {name: nn.Linear(*size, bias=False) for name, size in sizes.items()}
        return nn.ModuleDict(
            {
                "attention": nn.ModuleDict(attention),
                "feed_forward": nn.ModuleDict(feed_forward),
                "attention_norm": Norm(C, config.norm_eps),
                "ffn_norm": Norm(C, config.norm_eps),
            }
        )

    def rotated(self, x):
        """Neighbours as complex numbers, turned."""
        D = self.config.head_size
        frequencies = self.config.rope_theta ** (-torch.arange(0, D, 2) / D)
        angles = torch.outer(torch.arange(x.shape[1]), frequencies)
        pairs = torch.view_as_complex(x.unflatten(3, (D // 2, 2)).contiguous())
        turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.view_as_real(turned).flatten(3)

    def forward(self, tokens):
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            attention, mlp, normed = layer.attention, layer.feed_forward, layer.attention_norm(x)
            q, k, v = (
                attention[name](normed).unflatten(2, (-1, self.config.head_size))
                for name in ("wq", "wk", "wv")
            )
            out = F.scaled_dot_product_attention(
                self.rotated(q).transpose(1, 2),
                self.rotated(k).transpose(1, 2),
                v.transpose(1, 2),
                is_causal=True,
                enable_gqa=True,
            )
            x = x + attention.wo(out.transpose(1, 2).flatten(2))
            normed = layer.ffn_norm(x)
            x = x + mlp.w2(F.silu(mlp.w1(normed)) * mlp.w3(normed))
        return self.output(self.norm(x))


@EVERY_LLAMA
@PREFIXES
def test_llama2_cs_checkpoint_is_read(tmp_path, config, prefix):
    torch.manual_seed(0)
    model = Llama(config)
    args = {
        "dim": config.dim,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": 8,
        "max_seq_len": config.seq_len,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,  # llama2.c has neither of the two, but others do
    }
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({"model": state, "model_args": args, "iter_num": 100}, tmp_path / "ckpt.pt")
    weights = open_model(tmp_path / "ckpt.pt").weights
    assert weights.format == "llama2.c checkpoint"
    assert weights.config == dict(vars(config))
    assert_logits_agree(weights, model)


# In fairscale's layers, by the dimension that is cut.
PARALLEL = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "wo": 1, "w2": 1, "tok_embeddings": 1}
NUMBER_OF_FILES = pytest.mark.parametrize("count", [1, 2])


@EVERY_TYPE
@NUMBER_OF_FILES
def test_metas_folder_is_read(tmp_path, dtype, count):
    """The shape of Llama-2-70B's, which has fewer heads for keys, made small."""
    config = Llama2Config(64, 48, 3, 8, 2, 132, 4096, 1e-5, tied=False)
    torch.manual_seed(0)
    model = Llama(config).to(dtype)
    for number in range(count):
        state = {"rope.freqs": torch.ones(4)}
        for name, tensor in model.state_dict().items():
            axis = (PARALLEL | {"output": 0}).get(name.split(".")[-2])
            # Meta's are views of one storage no more, hence contiguous.
            state[name] = tensor if axis is None else tensor.chunk(count, axis)[number].contiguous()
        torch.save(state, tmp_path / f"consolidated.{number:02}.pth")
    params = {"dim": 64, "multiple_of": 16, "n_heads": 8, "n_kv_heads": 2, "n_layers": 3}
    params |= {"norm_eps": 1e-05, "vocab_size": -1, "ffn_dim_multiplier": 1.3}
    (tmp_path / "params.json").write_text(json.dumps(params), "utf-8")
    for weights in (
        open_model(tmp_path).weights,
        state_dict.read(tmp_path / "consolidated.00.pth"),
    ):
        assert Llama2Config(**weights.config) == config
        assert_logits_agree(weights, model)
