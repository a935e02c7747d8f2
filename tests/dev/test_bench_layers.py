"""The benchmarks of single layers, and of how a step grows: on tiny models, without PyTorch."""

import argparse
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

import layers
from dev.bench import roofline, scaling
from dev.bench.layers import DIRECTIONS, arguments, gpt2_cases, llama2_cases, our_calls
from files import save_figure
from models.gpt2 import PRESETS

BENCH = Path(__file__).parents[2] / "dev" / "bench"
TINY = "--preset", "tiny", "--batch-size", 1, "--seq-len", 8


def options(preset="gpt2", batch_size=4, seq_len=256):
    return argparse.Namespace(preset=preset, batch_size=batch_size, seq_len=seq_len)


@pytest.fixture
def in_this_process(monkeypatch):
    """Workers without a process, whose steps all take 2 ms and whose peak is 3 MiB."""

    class Worker:
        def __init__(self, name, make_step, *args):
            self.do_step, self.result = make_step(*args), None

        def step(self, *args):
            self.result = self.do_step(*args)
            return 2e-3

        def finish(self):
            return self.result, 3 * 2**20

    for module in ("layers", "roofline", "scaling"):
        monkeypatch.setattr(f"dev.bench.{module}.Worker", Worker)


def test_every_layer_takes_part():
    modules = (
        importlib.import_module(f"layers.{m.name}") for m in pkgutil.iter_modules(layers.__path__)
    )
    functions = {
        name.removesuffix("_forward")
        for module in modules
        for name in vars(module)
        if name.endswith("_forward") and not name.startswith("_")
    }
    cases = gpt2_cases(options()) | llama2_cases(options())
    assert {name for name, _ in cases.values()} == functions
    assert {name for name, _ in gpt2_cases(options()).values()} == set(roofline.COUNTS)


def test_arguments_are_float32_and_as_a_model_has_them():
    values = arguments("attention", {"B": 2, "T": 5, "H": 6, "K": 3, "D": 4})
    assert {x.dtype for x in values.values() if isinstance(x, np.ndarray)} == {np.dtype("f4")}
    assert not values["k"].flags.c_contiguous  # a view of a wider projection
    assert values["dk"].shape == (2, 5, 3, 4)
    sizes = {"N": 5, "I": 7, "O": 3}
    values = arguments("linear", {**sizes, "bias": None})
    assert values["bias"] is values["dbias"] is None
    assert np.array_equal(values["x"], arguments("linear", sizes)["x"])


def test_operations_of_the_linear_layer():
    N, I, O = 2, 3, 5  # noqa: E741
    products = sum(2 for _ in range(N) for _ in range(I) for _ in range(O))
    (forward, _), (backward, _) = roofline.COUNTS["linear"](N, I, O, None)
    assert (forward, backward) == (products, 2 * products)


def test_operations_of_attention():
    B, T, H, D = 2, 5, 3, 4
    scores = B * H * sum(1 for t in range(T) for s in range(T) if s <= t)
    (forward, _), (backward, _) = roofline.COUNTS["attention"](B, T, H, H, D)
    # A product of D numbers for the score, one with D values; each number, 5 for the softmax.
    assert forward == scores * (2 * D + 2 * D + 5)
    assert backward == scores * (5 * 2 * D + 6)


def test_operations_of_a_step_are_those_that_the_trainer_counts():
    """But for what is no matrix product, and half of the diagonal of the scores."""
    config, args = PRESETS["gpt2"], options()
    total = 0
    for label, (name, sizes) in gpt2_cases(args).items():
        if name in ("linear", "attention"):
            times = 1 if label == "linear classifier" else config.num_layers
            total += times * sum(operations for operations, _ in roofline.COUNTS[name](**sizes))
    assert total == pytest.approx(config.step_flops(args.batch_size, args.seq_len), rel=5e-3)


@pytest.mark.parametrize(
    "label", [label for label in gpt2_cases(options()) if label not in ("embedding", "position")]
)
def test_moved_are_all_arrays(label):
    """But for those with one number for a row or a column."""
    name, sizes = gpt2_cases(options("tiny", 2, 64))[label]
    for (_, numbers), function in zip(
        roofline.COUNTS[name](**sizes), our_calls(name, sizes).values(), strict=True
    ):
        sizes = [x.size for x in function.args if isinstance(x, np.ndarray) and x.ndim > 1]
        assert numbers == pytest.approx(sum(sizes), rel=0.01)


def test_a_table_of_our_times_where_there_is_no_pytorch(program, in_this_process, monkeypatch):
    monkeypatch.setattr("dev.bench.layers.has_torch", lambda: False)
    status, out, err = program("dev.bench.layers", *TINY, "--pairs", 2)
    assert (status, err) == (0, "")
    assert "PyTorch is not installed" in out
    assert "ratio" not in out
    rows = [line.rsplit(maxsplit=2) for line in out.splitlines()[3:]]
    cases = gpt2_cases(options()) | llama2_cases(options())
    assert [row[0] for row in rows[::2]] == list(cases)
    assert {tuple(row[1:]) for row in rows} == {(each, "2.000") for each in DIRECTIONS}


def test_the_roofline(program, in_this_process, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(
        "dev.bench.roofline.save_figure", lambda *args: drawn.append(args[0]) or save_figure(*args)
    )
    monkeypatch.setattr("dev.bench.roofline.matmul_peak", lambda: 100.0)
    monkeypatch.setattr("dev.bench.roofline.memory_bandwidth", lambda: 20.0)
    status, out, err = program("dev.bench.roofline", *TINY, "--out", tmp_path / "r.png")
    assert (status, err) == (0, "")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    # 8 rows of 4 * 192 numbers; 8 operations and 2 float32 numbers moved for each, in 2 ms.
    (row,) = (
        line.split() for line in out.splitlines() if line.startswith("gelu") and "forward" in line
    )
    assert row[2:6] == ["1.00", "FLOP/byte", "0.02", "GFLOP/s"]
    assert not any(line.startswith("embedding             forward") for line in out.splitlines())
    for axes in drawn[0].axes:
        boxes = [Text.get_window_extent(text) for text in axes.texts]
        assert len(boxes) >= 6
        assert all(box.count_overlaps(boxes) == 1 for box in boxes)  # only itself


def test_scaling(program, in_this_process, tmp_path):
    out_file = tmp_path / "s.png"
    status, out, err = program("dev.bench.scaling", *TINY, "--steps", 1, "--out", out_file)
    assert (status, err) == (0, "")
    assert out_file.read_bytes().startswith(b"\x89PNG")
    rows = [line.split() for line in out.splitlines()[1:-1]]
    assert [row[:2] for row in rows] == [
        *(["B", value] for value in ("1", "2", "4")),
        *(["T", value] for value in ("2", "4", "8", "16", "32")),
        *(["layers", value] for value in ("1", "3", "6", "12")),
        *(["channels", value] for value in ("48", "96", "192", "384")),
    ]
    assert rows[0][2:5] == ["2.0", "4000", "3"]


def test_scaling_varies_one_quantity_at_a_time():
    base = scaling.Size(PRESETS["tiny"], 2)
    for name, panel in scaling.vary(base).items():
        for value, size in panel.items():
            numbers = vars(size.config) | {"B": size.batch_size}
            same = vars(base.config) | {"B": 2}
            field = {"T": "seq_len", "layers": "num_layers"}.get(name, name)
            assert numbers == same | {field: value}
        assert base in panel.values()


@pytest.mark.parametrize(
    ("module", "arguments", "complaint"),
    [
        ("layers", ["--pairs", "0"], "--pairs: must be a number from 1 up, not 0"),
        ("layers", ["--preset", "large"], "--preset: invalid choice: 'large'"),
        ("roofline", ["--out", "r.bmp"], "--out: must end in .png, not r.bmp"),
        ("scaling", ["--out", "docs"], "--out: must end in .png, not docs"),
        ("scaling", ["--seq-len", "-1"], "--seq-len: must be a number from 1 up, not -1"),
    ],
)
def test_a_wrong_option_is_one_sentence(program, module, arguments, complaint):
    status, _, err = program(f"dev.bench.{module}", *arguments)
    assert status == 2
    assert complaint in err.splitlines()[-1]


def test_programs_start_from_the_folder_where_one_is_called_layers():
    """Python looks there first, also in workers, which import the program again."""
    commands = (
        [BENCH / "layers.py", *TINY, "--pairs", 1, "--no-torch"],
        [BENCH / "train.py", "--help"],
    )
    running = [
        subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)
        for command in commands
    ]
    assert [process.wait() for process in running] == [0, 0]
