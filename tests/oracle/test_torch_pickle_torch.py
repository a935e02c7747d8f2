"""formats/torch_pickle.py against torch.load, of files that torch.save writes."""

import collections

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from dev.make_golden import GOLDEN, checkpoint  # noqa: E402
from errors import FormatError  # noqa: E402
from formats.torch_pickle import load  # noqa: E402


def as_array(tensor) -> np.ndarray:
    """A tensor as what `load` makes of it, by way of its numbers."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy()


def assert_same(ours, theirs) -> None:
    if isinstance(theirs, torch.Tensor):
        expected = as_array(theirs)
        assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(ours, expected)
    elif isinstance(theirs, dict):
        assert type(ours) is dict
        assert list(ours) == list(theirs)
        assert_same([*ours.values()], [*theirs.values()])
    elif isinstance(theirs, list | tuple):
        assert type(ours) is (list if isinstance(theirs, list) else tuple)
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_same(our, their)
    elif isinstance(theirs, torch.device):
        assert ours == str(theirs)
    elif isinstance(theirs, torch.dtype):
        assert ours == as_array(torch.empty(0, dtype=theirs)).dtype
    else:
        assert type(ours) is type(theirs)
        assert ours == theirs


@pytest.fixture
def both(tmp_path):
    """What we and what torch make of a file of torch.save."""

    def saved(value):
        path = tmp_path / "saved.pt"
        torch.save(value, path)
        return load(path), torch.load(path, weights_only=False)

    return saved


def test_the_golden_file_is_what_torch_saves(both, tmp_path):
    ours, theirs = both(checkpoint())
    assert_same(ours, theirs)
    torch.save(checkpoint(), tmp_path / "torch_save.pt")
    assert_same(load(GOLDEN / "torch_save.pt"), theirs)


def train(model, *inputs):
    """A model and its optimizer after a step, as nanoGPT and llama2.c save them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    model(*inputs).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "model_args": {"n_layer": 2, "bias": False, "vocab_size": None, "dropout": 0.0},
        "iter_num": 1,
        "best_val_loss": torch.tensor(2.5),
        "config": {"out_dir": "out", "learning_rate": 6e-4, "compile": True},
    }


def test_a_trainers_checkpoint(both):
    ours, theirs = both(train(torch.nn.Linear(3, 2), torch.ones(4, 3)))
    assert_same(ours, theirs)
    assert ours["optimizer"]["state"][0]["exp_avg"].shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_transformers_model(both, dtype):
    sizes = {"n_embd": 8, "n_head": 2, "n_layer": 2, "vocab_size": 50, "n_positions": 16}
    config = transformers.GPT2Config(bos_token_id=0, eos_token_id=0, **sizes)
    model = transformers.GPT2LMHeadModel(config).to(dtype)
    ours, theirs = both(model.state_dict())
    assert_same(ours, theirs)
    assert np.shares_memory(ours["lm_head.weight"], ours["transformer.wte.weight"])


def test_schedulers_and_generators(both):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
    states = [scheduler.state_dict(), optimizer.state_dict(), torch.get_rng_state()]
    assert_same(*both(states))


def test_whole_values(both):
    for value in (torch.arange(3), torch.nn.Parameter(torch.ones(2)), collections.OrderedDict()):
        assert_same(*both(value))


def test_a_list_that_is_in_two_places(both):
    same = [torch.ones(2)]
    ours, _ = both([same, same])
    assert ours[0] is ours[1]


@settings(max_examples=100)
@given(data=st.data())
def test_any_view(tmp_path_factory, data):
    shape = data.draw(st.lists(st.integers(1, 4), max_size=4))
    start, rest = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    size = int(np.prod(shape))
    storage = torch.arange(start + size + rest)
    view = storage[start : start + size].view(shape)
    view = view.permute(data.draw(st.permutations(range(len(shape)))))
    for dimension in range(view.dim()):
        low, step = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 3))
        view = view[(slice(None),) * dimension + (slice(low, None, step),)]
    path = tmp_path_factory.getbasetemp() / "view.pt"
    torch.save([view, storage], path)
    ours, whole = load(path)
    np.testing.assert_array_equal(ours, view.numpy())
    np.testing.assert_array_equal(whole, storage.numpy())
    assert ours.size == 0 or np.shares_memory(ours, whole)


def test_without_checksums(both):
    torch.serialization.set_crc32_options(False)
    try:
        assert_same(*both([torch.arange(3)]))
    finally:
        torch.serialization.set_crc32_options(True)


def test_more_members_than_a_short_table_of_contents_can_count(both):
    assert_same(*both([torch.tensor(i) for i in range(3000)]))


# What is not handled


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (torch.nn.Linear(2, 2), r"wants to call torch\.nn\.modules\.linear\.Linear,"),
        (np.arange(3), r"wants to call numpy\.(_core|core)\.multiarray\._reconstruct,"),
        (torch.eye(2).to_sparse(), r"wants to call torch\._utils\._rebuild_sparse_tensor,"),
        (torch.ones(1).expand(5), "elements overlap"),
        (torch.ones(2, dtype=torch.complex64).conj(), "is a conjugate or negative"),
        ({(1, 2): 3}, "with a tuple as a key"),
    ],
)
def test_what_is_not_handled_is_refused(tmp_path, value, sentence):
    torch.save(value, tmp_path / "saved.pt")
    with pytest.raises(FormatError, match=rf"saved\.pt .*{sentence}"):
        load(tmp_path / "saved.pt")


def test_the_protocol_of_python_3_is_read(tmp_path):
    value = {"model": torch.nn.Linear(3, 2).state_dict(), "model_args": {"n_layer": 1}}
    torch.save(value, tmp_path / "saved.pt", pickle_protocol=4)
    assert_same(load(tmp_path / "saved.pt"), value)


def test_the_oldest_protocol_is_refused(tmp_path):
    torch.save({"a": 1}, tmp_path / "saved.pt", pickle_protocol=0)
    with pytest.raises(FormatError, match="has the instruction"):
        load(tmp_path / "saved.pt")


def test_the_format_before_1_6_is_refused(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "saved.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(FormatError, match=r"saved\.pt has the format of PyTorch before 1\.6"):
        load(tmp_path / "saved.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "saved.pt")
    with pytest.raises(FormatError, match=r"saved\.pt is a TorchScript archive"):
        load(tmp_path / "saved.pt")
