"""SmolLM2 learns Shakespeare, is killed and goes on, and speaks in the formats of others.

Of the fifty steps that a person would give it there are six here, of some seconds each.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from real_models import greedy

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from formats.checkpoint import read_meta  # noqa: E402
from load import open_model  # noqa: E402
from sampler import generate  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ["--batch-size", 2, "--seq-len", 128, "--steps", 6, "--lr", 1e-4, "--warmup", 0]
SETTINGS += ["--log-every", 1, "--val-every", 6, "--val-batches", 6, "--sample-every", 0]
SETTINGS += ["--save-every", 3, "--keep", 0]
PROMPT = "First Citizen:\nBefore we proceed"


def start(*arguments):
    """A program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


def finish(process):
    """What it prints, if all goes well."""
    out, _ = process.communicate()
    assert process.returncode == 0, out
    return out


def rows(run):
    with (run / "log.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def training(smollm2, starter, tmp_path_factory):
    """The settings of a run, but for its folder, and a folder for runs."""
    folder = tmp_path_factory.mktemp("runs")
    text, corpus = starter / "tinyshakespeare.txt", folder / "corpus"
    finish(start("dev/data/textfile.py", text, "--tokenizer", smollm2, "--out", corpus))
    yield ["train.py", "llama3", "--init-from", smollm2, "--data", corpus, *SETTINGS], folder
    shutil.rmtree(folder)  # gigabytes


@pytest.fixture(scope="module")
def run(training):
    """The folder of a run that nothing disturbs, in which it has learned."""
    arguments, folder = training
    out = finish(start(*arguments, "--out", folder / "whole"))
    before, after = map(float, re.findall(r"  validation loss ([\d.]+),", out))
    assert after < before - 0.1
    return folder / "whole"


def test_a_killed_run_goes_on_to_the_bit(training, run):
    arguments, folder = training
    killed = start(*arguments, "--out", folder / "killed")
    for line in killed.stdout:
        if line.startswith("step    5/"):
            break
    killed.kill()
    killed.communicate()
    assert read_meta(folder / "killed" / "checkpoint.npz")["step"] == 3
    finish(start("train.py", "llama3", "--resume", folder / "killed"))
    same = ("step", "train_loss", "val_loss", "grad_norm", "learning_rate")
    assert [[row[key] for key in same] for row in rows(folder / "killed")] == [
        [row[key] for key in same] for row in rows(run)
    ]
    whole, resumed = (open_model(each).weights.tensors for each in (run, folder / "killed"))
    for name, parts in whole.items():
        for part, other in zip(parts, resumed[name], strict=True):
            np.testing.assert_array_equal(part, other)


@pytest.mark.parametrize("name", ["speaker", "speaker.gguf"])
def test_it_speaks_in_other_formats(run, tmp_path, name):
    """There it says what it says here, and has the template of the model that it was."""
    place = {"pretrained_model_name_or_path": tmp_path / name}
    if name.endswith(".gguf"):
        pytest.importorskip("accelerate")  # with which transformers reads these files
        place = {"pretrained_model_name_or_path": tmp_path, "gguf_file": name}
    finish(start("convert.py", run, tmp_path / name))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
    source = open_model(run)
    assert tokenizer.chat_template == source.chat_template != ""
    tokens = source.tokenizer.encode_prompt(PROMPT)
    assert tokens == tokenizer(PROMPT)["input_ids"]
    said = "".join(generate(source.load(seq_len=64), source.tokenizer, PROMPT, 20, temperature=0))
    assert PROMPT + said == tokenizer.decode(tokens + greedy(theirs, tokens, 20))
