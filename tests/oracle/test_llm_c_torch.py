"""llm.c's pairs of files, computed by PyTorch: dev/check_debug_state.py must find them right.

They are written here as llm.c's train_gpt2.py writes them: `pad_vocab`, `write_model`,
`write_state` and `write_tensors`.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

from torch.nn import functional as F  # noqa: E402

from dev.check_debug_state import ten_losses  # noqa: E402
from dev.torch_gpt2 import TorchGPT2  # noqa: E402
from dev.torch_models import load_weights, loss_of, random_weights, weights_of  # noqa: E402
from models.gpt2 import GPT2, GPT2Config  # noqa: E402

CONFIG = GPT2Config(seq_len=24, vocab_size=131, num_layers=3, num_heads=4, channels=20)
B, T = 2, 17
# The tensors of a file in their order; those of layers come layer by layer.
TENSORS = [
    "wte.weight",
    "wpe.weight",
    "h.{}.ln1.weight",
    "h.{}.ln1.bias",
    "h.{}.qkv.weight",
    "h.{}.qkv.bias",
    "h.{}.attproj.weight",
    "h.{}.attproj.bias",
    "h.{}.ln2.weight",
    "h.{}.ln2.bias",
    "h.{}.fc.weight",
    "h.{}.fc.bias",
    "h.{}.fcproj.weight",
    "h.{}.fcproj.bias",
    "lnf.weight",
    "lnf.bias",
]


def tensors_in_order(tensors, dtype):
    """The bytes of all tensors; wte gets rows of zeros up to 256."""
    padding = (0, 0, 0, 256 - CONFIG.vocab_size)
    tensors = tensors | {"wte.weight": F.pad(tensors["wte.weight"], padding)}
    data = b""
    for name in TENSORS:
        for layer in range(CONFIG.num_layers if "{}" in name else 1):
            tensor = tensors[name.format(layer)].detach().to(dtype)
            # NumPy alone has no bfloat16, so its bits pass for an integer's.
            bits = tensor.view(torch.int16) if dtype == torch.bfloat16 else tensor
            data += bits.numpy().tobytes()
    return data


def header(*numbers):
    return np.array([*numbers, *[0] * (256 - len(numbers))], np.int32).tobytes()


def model_file(model, dtype):
    """What `write_model` writes."""
    version = {torch.float32: 3, torch.bfloat16: 5}[dtype]
    numbers = CONFIG.seq_len, CONFIG.vocab_size, CONFIG.num_layers, CONFIG.num_heads
    data = header(20240326, version, *numbers, CONFIG.channels, 256)
    return data + tensors_in_order(dict(model.named_parameters()), dtype)


def state_file(model, tokens, targets):
    """What `write_state` writes."""
    logits = model(torch.from_numpy(tokens))
    loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    model.zero_grad()
    loss.backward()
    data = header(20240327, 2, B, T)
    for array in (tokens, targets):
        data += array.astype(np.int32).tobytes()
    for tensor in (logits, loss):
        data += tensor.detach().numpy().tobytes()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return data + tensors_in_order(grads, torch.float32)


def torch_losses(model, tokens, targets):
    """The losses before ten steps of PyTorch's AdamW as llm.c takes them, on one batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = loss_of(model, tokens, targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def torch_model():
    model = TorchGPT2(CONFIG)
    load_weights(model, random_weights(CONFIG))
    return model


def rounded(model):
    """The model with weights that bfloat16 has."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    return model


@pytest.fixture
def batch():
    return np.random.default_rng(1).integers(0, CONFIG.vocab_size, (2, B, T))


@pytest.fixture
def check(program, tmp_path):
    """Runs the program on two files."""

    def run(model_file, state_file, *options):
        model, state = tmp_path / "model.bin", tmp_path / "state.bin"
        model.write_bytes(model_file)
        state.write_bytes(state_file)
        return program("dev.check_debug_state", model, state, *options)

    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_pytorch_computes_passes(check, batch, dtype):
    model = torch_model() if dtype == torch.float32 else rounded(torch_model())
    files = model_file(model, dtype), state_file(model, *batch)
    losses = torch_losses(model, *batch)
    status, printed, complaint = check(*files, "--losses", *losses)
    assert (status, complaint) == (0, "")
    head, *checks, verdict = printed.splitlines()
    assert verdict == "OK: all 28 checks hold"
    assert len(checks) == 28
    # Nothing passes by the width of llm.c's tolerances.
    found = head.index("difference") + len("difference")
    assert all(float(line[:found].split()[-1]) < 1e-4 for line in checks)


def test_a_state_from_before_the_rounding_to_bfloat16_is_explained(check, batch):
    model = torch_model()
    state = state_file(model, *batch)
    status, _, complaint = check(model_file(model, torch.bfloat16), state)
    assert status == 1
    assert "before it rounds them: check the float32 model" in complaint


def test_the_ten_steps_are_pytorch_s_in_float64(batch):
    reference = torch_model().double()
    model = GPT2(CONFIG, B, T, np.float64, seed=None)
    for name, weight in random_weights(CONFIG).items():
        model.params[name][: len(weight)] = weight
    np.testing.assert_allclose(
        list(ten_losses(model, *batch)), torch_losses(reference, *batch), rtol=0, atol=1e-9
    )
    # Ten steps decay a weight by a hundred-thousandth: here it shows which of them did.
    for name, weight in weights_of(reference).items():
        np.testing.assert_allclose(model.params[name][: len(weight)], weight, rtol=0, atol=1e-9)
