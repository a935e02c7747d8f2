"""The trainer as its user meets it: it learns, it resumes to the bit, it speaks to a person."""

import csv
import functools
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import train
from dataloader import DataLoader, write_shard
from formats import llama2_c
from formats.checkpoint import read_meta, save_checkpoint
from formats.weights import Parts, Weights
from models import gpt2, llama2
from models.gpt2 import GPT2Config
from models.llama2 import Llama2Config
from training import options

ROOT = Path(__file__).resolve().parents[1]
# A model and a batch so small that a step takes milliseconds.
SMALL = ["--preset", "nano", "--batch-size", 4, "--seq-len", 16]
NANO = GPT2Config(seq_len=32, num_layers=2, num_heads=2, channels=32)
LLAMA_NANO = Llama2Config(seq_len=32, num_layers=2, num_heads=4, num_kv_heads=2, dim=32)


@pytest.fixture(autouse=True)
def nano(monkeypatch):
    monkeypatch.setitem(gpt2.PRESETS, "nano", NANO)
    monkeypatch.setitem(llama2.PRESETS, "nano", LLAMA_NANO)


@pytest.fixture
def small(corpus, tmp_path):
    """The arguments of a small run into tmp_path/run."""
    return [*SMALL, "--data", corpus, "--out", tmp_path / "run"]


def rows(folder):
    with (folder / "log.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def losses(folder):
    """What two runs must share to the bit."""
    same = ("step", "train_loss", "val_loss", "grad_norm", "learning_rate")
    return [[row[name] for name in same] for row in rows(folder)]


@pytest.mark.parametrize("trainer", ["gpt2_train", "llama2_train"])
def test_it_learns_and_leaves_what_it_promises(program, small, corpus, tmp_path, trainer):
    arguments = ["--batch-size", 16, "--seq-len", 32, "--warmup", 5, "--lr", 1e-2]
    arguments += ["--steps", 150, "--val-every", 50]
    status, out, err = program(trainer, *small, *arguments)
    assert (status, err) == (0, "")
    log = rows(tmp_path / "run")
    assert [int(row["step"]) for row in log] == list(range(1, 151))
    assert float(log[0]["train_loss"]) == pytest.approx(np.log(357), abs=0.2)
    # Better than whoever knows how frequent each token is, and nothing else.
    tokens = np.fromfile(corpus / "train_000000.bin", "<u2", offset=1024)
    frequencies = np.bincount(tokens)[np.unique(tokens)] / tokens.size
    unigram_loss = -np.sum(frequencies * np.log(frequencies))
    validated = {int(row["step"]): float(row["val_loss"]) for row in log if row["val_loss"]}
    assert list(validated) == [50, 100, 150]
    assert validated[150] < validated[50]
    assert validated[150] < unigram_loss - 0.15
    assert max(float(row["learning_rate"]) for row in log) == 1e-2
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    for word in (
        "memory:",
        "loss",
        "norm",
        "lr",
        "ms",
        "tokens/s",
        "GFLOP/s",
        "% of peak",
        "sample",
    ):
        assert word in out
    status, out, err = program("sample", tmp_path / "run", "--prompt", "The", "--max-tokens", 20)
    assert status == 0
    assert out.startswith("The")


def test_the_same_seed_gives_the_same_bits_and_another_does_not(program, corpus, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        arguments = [*SMALL, "--data", corpus, "--out", tmp_path / name, "--seed", seed]
        assert program("gpt2_train", *arguments, "--steps", 4)[0] == 0
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")


def start(*arguments, trainer="gpt2_train.py"):
    """The trainer in a process of its own; on one thread, which a busy machine slows down least."""
    return subprocess.Popen(
        [sys.executable, trainer, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def send_at_step(process, step, number):
    """Send the signal in the middle of a step after `step`, and wait for the end."""
    for line in process.stdout:
        if line.startswith(f"step {step:>4}/"):
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


STOPPED = ["--batch-size", 4, "--seq-len", 16, "--grad-accum", 2, "--steps", 40]
STOPPED += ["--val-every", 7, "--sample-every", 40, "--save-every", 8]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals to send")
@pytest.mark.parametrize(
    ("trainer", "name"), [("gpt2_train.py", "SIGINT"), ("llama2_train.py", "SIGTERM")]
)
def test_a_run_that_was_stopped_resumes_to_the_bit(corpus, tmp_path, trainer, name):
    """Through epochs, accumulated batches and validations; its samples are the same too."""
    start_it = functools.partial(start, trainer=trainer)
    settings = ["--data", corpus, *STOPPED]
    run = tmp_path / "run"
    status, err = send_at_step(start_it(*settings, "--out", run), 19, getattr(signal, name))
    done = read_meta(run / "checkpoint.npz")["step"]
    assert status == 130
    assert f"step {done}, which is saved" in err
    assert f"train.py {trainer.removesuffix('_train.py')} --resume {run}" in err
    assert 19 <= done < 40

    resumed, err = start_it("--resume", run).communicate(timeout=60)
    assert err == ""
    whole, _ = start_it(*settings, "--out", tmp_path / "whole").communicate(timeout=60)
    assert losses(run) == losses(tmp_path / "whole")
    assert [int(row["step"]) for row in rows(run)] == list(range(1, 41))
    assert resumed.split("--- a sample ---")[1].split("---")[0] in whole


def test_more_steps_can_be_added(program, small, tmp_path):
    program("gpt2_train", *small, "--steps", 3)
    assert program("gpt2_train", "--resume", tmp_path / "run", "--steps", 5)[0] == 0
    assert [int(row["step"]) for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_fine_tuning_starts_from_the_weights_of_a_run(program, small, corpus, tmp_path):
    program("gpt2_train", *small, "--steps", 40, "--warmup", 5, "--lr", 1e-2)
    before = rows(tmp_path / "run")
    arguments = ["--init-from", tmp_path / "run", "--data", corpus, "--batch-size", 2]
    arguments += ["--seq-len", 8, "--out", tmp_path / "tuned", "--steps", 2]
    assert program("gpt2_train", *arguments)[0] == 0
    first = float(rows(tmp_path / "tuned")[0]["train_loss"])
    assert first == pytest.approx(float(before[-1]["train_loss"]), abs=0.7)
    assert first < float(before[0]["train_loss"]) - 0.5


def test_fine_tuning_a_real_model(program, starter, tmp_path):
    """stories260K on Shakespeare: the loss falls, and half-way it can be stopped and resumed."""
    text = (starter / "tinyshakespeare.txt").read_text(encoding="utf-8")[:60_000]
    (tmp_path / "shakespeare.txt").write_text(text, encoding="utf-8")
    arguments = ["--tokenizer", starter / "tok512.bin", "--out", tmp_path / "corpus"]
    status, out, _ = program("dev.data.textfile", tmp_path / "shakespeare.txt", *arguments)
    assert status == 0
    assert "vocabulary of 512" in out

    arguments = ["--init-from", starter / "stories260K.bin", "--data", tmp_path / "corpus"]
    arguments += ["--batch-size", 4, "--seq-len", 64, "--steps", 200, "--lr", 1e-3]
    arguments += ["--prompt", "First Citizen:", "--sample-every", 200, "--save-every", 70]
    arguments += ["--val-every", 20, "--val-batches", 5]
    assert program("llama2_train", *arguments, "--out", tmp_path / "whole")[0] == 0
    validated = [float(row["val_loss"]) for row in rows(tmp_path / "whole") if row["val_loss"]]
    first = float(rows(tmp_path / "whole")[0]["train_loss"])
    assert first < np.log(512)  # it is no stranger to English
    assert validated[-1] < validated[0] < first
    assert validated[-1] < first - 0.5

    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    (tmp_path / "run" / "checkpoint.npz").unlink()
    older = tmp_path / "run" / "checkpoint-00000140.npz"
    assert program("llama2_train", "--resume", older)[0] == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert program("sample", tmp_path / "run", "--prompt", "First", "--max-tokens", 9)[0] == 0
    status, _, err = program("llama2_train", "--resume", starter / "stories260K.bin")
    assert status == 2
    assert "--init-from" in err


def test_the_other_models_trainer_is_named(program, small, tmp_path):
    program("gpt2_train", *small, "--steps", 1)
    status, _, err = program("llama2_train", "--resume", tmp_path / "run")
    assert status == 2
    assert "holds a GPT-2; use python train.py gpt2" in err


def test_a_model_whose_vocabulary_is_not_known(program, corpus, tmp_path):
    """A llama2.c file says how many tokens it has, and not which."""
    config = Llama2Config(dim=32, num_layers=1, num_heads=2, vocab_size=99, seq_len=16)
    path = tmp_path / "model.bin"
    tensors = {name: Parts.of(name, tensor) for name, tensor in llama2.Llama2(config).params}
    llama2_c.write(path, Weights("", "llama2", vars(config), tensors))
    status, _, err = program("llama2_train", "--init-from", path, "--data", corpus)
    assert status == 2
    assert "vocabulary of 357 tokens" in err
    assert "one of 99" in err


def test_without_names_the_newest_corpus_and_a_free_folder_are_taken(
    program, corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(options, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("new", "old")):
        shutil.copytree(corpus, tmp_path / "data" / name)
        tokenizer = tmp_path / "data" / name / "tokenizer.tiktoken"
        os.utime(tokenizer, (10**9 - age, 10**9 - age))
    for _ in range(2):
        status, out, _ = program("gpt2_train", *SMALL, "--steps", 1)
        assert status == 0
        assert str(tmp_path / "data" / "new") in out
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"nano", "nano-2"}


def test_without_a_corpus_the_default_one_is_made(program, tmp_path, monkeypatch):
    monkeypatch.setattr(options, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert program("gpt2_train", *SMALL, "--steps", 1)[0] == 0
    assert (tmp_path / "data" / "pydocs" / "train_000000.bin").is_file()


def test_the_memory_map_needs_no_memory(program, small, tmp_path):
    picture = tmp_path / "map.png"
    arguments = ["--batch-size", 50_000_000, "--memory-map", picture]
    assert program("gpt2_train", *small, *arguments)[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("trainer", ["gpt2_train", "llama2_train"])
def test_a_profile_stops_before_anything_is_written(program, small, tmp_path, trainer):
    status, out, err = program(trainer, *small, "--profile")
    assert (status, err) == (0, "")
    for word in ("attention ", "linear ", "AdamW ", "everything else", "matrix products are"):
        assert word in out
    assert not (tmp_path / "run").exists()


def test_what_is_made_again_changes_no_loss(program, small, tmp_path):
    told = {}
    for recompute in ("none", "norms", "blocks"):
        out = tmp_path / recompute
        arguments = [*small[:-1], out, "--steps", 3, "--recompute", recompute, "--batch-size", 32]
        status, printed, _ = program("gpt2_train", *arguments)
        assert status == 0
        told[recompute] = float(re.search(r"activations ([\d.]+) MiB", printed)[1])
        assert losses(out) == losses(tmp_path / "none")
    assert told["none"] > told["norms"] > told["blocks"]


def test_the_memory_is_told_exactly(program, small, tmp_path):
    status, out, _ = program("gpt2_train", *small, "--steps", 1)
    assert status == 0
    meta = read_meta(tmp_path / "run" / "checkpoint.npz")
    model = gpt2.GPT2(GPT2Config(**meta["config"]), 4, 16)
    total = 4 * model.params.flat.nbytes + model.acts.flat.nbytes
    assert f"memory: {total / 2**20:,.1f} MiB" in out


def test_an_earlier_copy_of_the_checkpoint_can_be_resumed(program, small, tmp_path):
    run = tmp_path / "run"
    program("gpt2_train", *small, "--steps", 6, "--save-every", 1, "--lr", 1e-2, "--warmup", 0)
    whole = losses(run)
    again = tmp_path / "again"
    arguments = [*small[:-1], again, "--steps", 6, "--save-every", 2, "--keep", 1]
    program("gpt2_train", *arguments, "--lr", 1e-2, "--warmup", 0)
    assert checkpoints(again) == {"checkpoint.npz": 6, "checkpoint-00000004.npz": 4}
    earlier = again / "checkpoint-00000004.npz"
    status, *_ = program("gpt2_train", "--resume", earlier, "--save-every", 1, "--keep", 2)
    assert status == 0
    assert losses(again) == whole
    # The steps after the earlier checkpoint are those of the new run only.
    assert checkpoints(again) == {f"checkpoint-{n:08}.npz": n for n in (4, 5)} | {
        "checkpoint.npz": 6
    }


def checkpoints(folder):
    """The step of every checkpoint in a run's folder."""
    return {path.name: read_meta(path)["step"] for path in folder.glob("*.npz")}


def test_a_checkpoint_written_in_the_background_is_the_same(program, small, tmp_path, monkeypatch):
    """Slowly, so that only whoever waits before the next update leaves it as it was."""

    def save_slowly(path, meta, arrays, keep_as):
        before = [array.copy() for array in arrays.values()]
        time.sleep(0.1)
        assert all(map(np.array_equal, before, arrays.values()))
        saved_in.append(threading.current_thread())
        save_checkpoint(path, meta, arrays, keep_as)

    saved_in = []
    arguments = ["--steps", 6, "--save-every", 2]
    program("gpt2_train", *small, *arguments)
    monkeypatch.setattr("training.run.save_checkpoint", save_slowly)
    out = tmp_path / "async"
    status, _, err = program("gpt2_train", *small[:-1], out, *arguments, "--checkpoint-async")
    assert (status, err) == (0, "")
    assert len(saved_in) == 3
    assert threading.main_thread() not in saved_in
    assert losses(out) == losses(tmp_path / "run")
    assert checkpoints(out) == {"checkpoint.npz": 6, "checkpoint-00000004.npz": 4}
    with (
        np.load(out / "checkpoint.npz") as one,
        np.load(tmp_path / "run" / "checkpoint.npz") as two,
    ):
        assert all(np.array_equal(one[name], two[name]) for name in ("params", "m", "v"))


# --- what goes wrong while running: exit status 1, and nothing is lost ---


def spoil(monkeypatch, steps, loss):
    """Let the training loss of the passes with these numbers be another."""
    forward, passes = gpt2.GPT2.forward, itertools.count(1)

    def spoilt(self, tokens, targets=None, **options):
        result = forward(self, tokens, targets, **options)
        return loss if targets is not None and next(passes) in steps else result

    monkeypatch.setattr(gpt2.GPT2, "forward", spoilt)


ROLLBACK = ["--on-spike", "rollback", "--steps", 9, "--save-every", 20, "--val-every", 20]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_batch_is_left_out(program, small, tmp_path, monkeypatch, bad):
    spoil(monkeypatch, [4], bad)
    status, out, _ = program("gpt2_train", *small, *ROLLBACK)
    assert status == 0
    assert f"step 4: the loss is {bad}; back to step 0, without the batches since then" in out
    log = rows(tmp_path / "run")
    assert [int(row["step"]) for row in log] == list(range(1, 10))
    assert [int(row["rollbacks"]) for row in log] == [1] * 9
    meta = read_meta(tmp_path / "run" / "checkpoint.npz")
    assert meta["rollbacks"] == 1
    assert meta["loader"]["read"] == 4 * (9 + 4)

    # The weights are those of a run that has never seen the first four batches.
    monkeypatch.setattr(DataLoader, "reset", lambda self: skip(self, 4 * 4))
    program("gpt2_train", *small[:-1], tmp_path / "clean", "--steps", 9, "--val-every", 20)
    assert [row[:2] for row in losses(tmp_path / "clean")] == [
        row[:2] for row in losses(tmp_path / "run")
    ]


def skip(loader, windows):
    loader.restore({"epoch": 0, "read": windows, "windows": loader.num_windows})


def test_what_goes_wrong_again_and_again_ends_the_run(program, small, tmp_path, monkeypatch):
    spoil(monkeypatch, range(8, 99), float("nan"))
    status, out, err = program("gpt2_train", *small, *ROLLBACK[:-4], "--save-every", 5)
    assert status == 1
    assert out.count("back to step 5") == 3
    assert "the loss is nan, so training has stopped" in err
    assert f"{tmp_path / 'run'} has step 5" in err


def test_a_run_goes_back_to_what_it_has_gone_on_from(program, small, tmp_path, monkeypatch):
    """Not to a newer checkpoint, which is broken; nor is that one kept in place of a whole one."""
    run = tmp_path / "run"
    program("gpt2_train", *small, "--steps", 6, "--save-every", 2)
    path = run / "checkpoint.npz"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    spoil(monkeypatch, [2], float("nan"))
    arguments = ["--on-spike", "rollback", "--steps", 8, "--save-every", 8, "--val-every", 20]
    status, out, err = program("gpt2_train", "--resume", run, *arguments)
    assert status == 0, err
    assert "step 6: the loss is nan; back to step 4" in out
    assert checkpoints(run) == {"checkpoint.npz": 8, "checkpoint-00000004.npz": 4}


def test_a_jump_of_the_loss(program, small, tmp_path, monkeypatch):
    arguments = ["--steps", 30, "--save-every", 10, "--val-every", 99]
    for what, status in (("ignore", 0), ("stop", 1), ("rollback", 0)):
        with monkeypatch.context() as patch:
            spoil(patch, [27], 7.5)  # two passes were to see whether a checkpoint works
            out = tmp_path / what
            got, printed, err = program(
                "gpt2_train", *small[:-1], out, *arguments, "--on-spike", what
            )
        assert got == status, what
        if what == "stop":
            assert "step 25: the loss has jumped to 7.5000 from a mean of" in err
        if what == "rollback":
            assert "step 25: the loss has jumped" in printed
            assert "back to step 20" in printed
            assert len(rows(out)) == 30


def test_what_a_jump_is():
    calm = [4.0, 4.1] * 10
    assert not train.is_spike(4.5, calm)
    assert train.is_spike(4.6, calm)
    assert not train.is_spike(4.6, [3.0, 5.0] * 10)  # where losses differ much, 4.6 is usual
    assert not train.is_spike(99.0, calm[:-1])  # too few to know
    assert not train.is_spike(1.0, calm)


def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(program, small, tmp_path):
    """Good steps, then one with a learning rate that ruins the weights."""
    run = tmp_path / "run"
    program("gpt2_train", *small, "--steps", 3)
    ruin = ["--steps", 9, "--lr", 1e30, "--warmup", 0, "--clip", 0, "--save-every", 1]
    status, _, err = program("gpt2_train", "--resume", run, *ruin)
    assert status == 1
    assert err.startswith("error: step 4: ")
    assert err.count("\n") == 1
    assert f"{run} has step 3" in err
    assert read_meta(run / "checkpoint.npz")["step"] == 3
    assert program("gpt2_train", "--resume", run, "--steps", 5)[0] == 0
    assert [int(row["step"]) for row in rows(run)] == [1, 2, 3, 4, 5]
    assert float(rows(run)[-1]["train_loss"]) < 7


def test_a_run_that_fails_before_anything_is_saved_says_so(program, small):
    status, _, err = program("gpt2_train", *small, "--lr", 1e30, "--clip", 0)
    assert status == 1
    assert "nothing is saved yet" in err


def test_a_reader_that_goes_away_loses_nothing(corpus, tmp_path):
    arguments = ["--data", corpus, "--batch-size", 4, "--seq-len", 16, "--steps", 200]
    process = start(*arguments, "--out", tmp_path / "run")
    for line in process.stdout:
        if line.startswith("step    3/"):
            break
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 130
    done = read_meta(tmp_path / "run" / "checkpoint.npz")["step"]
    assert done >= 3
    assert err.startswith(f"stopped after step {done}, which is saved; go on with: ")
    assert err.count("\n") == 1


LIMIT_FILES = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
runpy.run_path("gpt2_train.py", run_name="__main__")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files by rlimit")
def test_a_disk_that_is_full_while_saving(program, small, corpus, tmp_path):
    program("gpt2_train", *small, "--steps", 3)
    before = (tmp_path / "run" / "checkpoint.npz").read_bytes()
    limited = [sys.executable, "-c", LIMIT_FILES, str(len(before) // 2)]
    arguments = ["--resume", str(tmp_path / "run"), "--steps", "5"]
    result = subprocess.run(
        [*limited, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "cannot write" in result.stderr
    assert "checkpoint.npz" in result.stderr
    assert (tmp_path / "run" / "checkpoint.npz").read_bytes() == before
    assert not list((tmp_path / "run").glob("*.tmp"))


# --- a user's mistakes: exit status 2 and one sentence, before anything is written ---


def refused(program, *arguments):
    """The sentence with which the trainer refuses."""
    status, _, err = program("gpt2_train", *arguments)
    assert status == 2
    assert "Traceback" not in err
    return err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "gpt5"], ["gpt5", "gpt2-medium"]),
        (["--seq-len", 33], ["33", "1 to 32"]),
        (["--data", "nowhere"], ["nowhere", "dev/data"]),
        (["--init-from", "nowhere"], ["nowhere"]),
        (["--resume", "nowhere"], ["nowhere"]),
        (["--batch-size", 0], ["--batch-size", "0"]),
        (["--steps", -1], ["--steps", "-1"]),
        (["--lr", "nan"], ["--lr", "nan"]),
        (["--lr", "fast"], ["--lr", "fast"]),
        (["--beta1", 1], ["--beta1", "below 1"]),
        (["--beta2", 1.5], ["--beta2", "1.5"]),
        (["--min-lr", 1, "--lr", 0.1], ["--min-lr", "above --lr"]),
        (["--prompt", "much too long for sixteen tokens, " * 5], ["--prompt", "16"]),
        (["--memory-map", "map.xyz"], ["map.xyz", "png"]),
        (["--batch-size", 5000], ["batch", "lower"]),  # the corpus is too small
        (["--batch-size", 50_000_000], ["memory", "lower --batch-size"]),
    ],
)
def test_arguments_that_cannot_be(program, small, tmp_path, arguments, words):
    sentence = refused(program, *small, *arguments)
    assert all(word in sentence for word in words), sentence
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten(program, small, tmp_path):
    program("gpt2_train", *small, "--steps", 1)
    before = (tmp_path / "run" / "checkpoint.npz").read_bytes()
    assert "--resume" in refused(program, *small, "--steps", 1)
    assert (tmp_path / "run" / "checkpoint.npz").read_bytes() == before
    assert "--steps" in refused(program, "--resume", tmp_path / "run")  # it is finished
    assert "--preset" in refused(program, "--resume", tmp_path / "run", "--preset", "tiny")


def damage_header(position, value):
    def damage(path):
        header = np.fromfile(path, "<i4", 256)
        tokens = path.read_bytes()[1024:]
        header[position] = value
        path.write_bytes(header.tobytes() + tokens)

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), ["prepare"]),
        (lambda path: path.write_bytes(b"GIF89a" * 300), ["another format"]),
        (lambda path: path.write_bytes(b"short"), ["5 bytes"]),
        (damage_header(1, 9), ["version 9"]),
        (damage_header(2, 7), ["promises 7 tokens"]),
        (lambda path: write_shard(path, []), ["no tokens"]),
        (lambda path: write_shard(path, [1] * 20), ["20 tokens"]),
        (lambda path: write_shard(path, [999] * 500), ["token 999", "vocabulary of 357"]),
    ],
)
def test_token_files_that_are_not_right(program, corpus, tmp_path, damage, words):
    shutil.copytree(corpus, tmp_path / "bad")
    path = tmp_path / "bad" / "train_000000.bin"
    damage(path)
    arguments = [*SMALL, "--data", tmp_path / "bad", "--out", tmp_path / "run"]
    sentence = refused(program, *arguments)
    assert all(word in sentence for word in ["train_", *words]), sentence
    assert not (tmp_path / "run" / "checkpoint.npz").exists()


def test_another_vocabulary_than_the_checkpoints(program, small, corpus, tmp_path):
    program("gpt2_train", *small, "--steps", 1)
    shutil.copytree(corpus, tmp_path / "other")
    tokenizer = tmp_path / "other" / "tokenizer.tiktoken"
    lines = tokenizer.read_text(encoding="utf-8").splitlines(keepends=True)
    tokenizer.write_text("".join(lines[:-1]), encoding="utf-8")
    for option in ("--init-from", "--resume"):
        sentence = refused(
            program, option, tmp_path / "run", "--data", tmp_path / "other", "--steps", 2
        )
        assert "another vocabulary" in sentence


def test_the_model_comes_from_one_place(program, small, tmp_path):
    program("gpt2_train", *small, "--steps", 1)
    run = tmp_path / "run"
    assert "leave out --preset" in refused(program, "--init-from", run, "--preset", "nano")
    assert "leave out --preset" in refused(program, "--resume", run, "--preset", "nano")
    assert "leave out" in refused(program, "--resume", run, "--out", tmp_path)


def test_a_run_that_was_stopped_before_its_first_checkpoint_can_be_begun_anew(program, small):
    run = small[-1]
    program("gpt2_train", *small, "--steps", 1)
    (run / "checkpoint.npz").unlink()
    assert f"no checkpoint yet; begin that run anew with --out {run}" in refused(
        program, "--resume", run
    )
    status, _, err = program("gpt2_train", *small, "--steps", 1)
    assert (status, err) == (0, "")


def test_a_damaged_log_is_named(program, small, tmp_path):
    program("gpt2_train", *small, "--steps", 1)
    log = tmp_path / "run" / "log.csv"
    whole = log.read_bytes()
    for damage in (b"\0\0\0\n", b"2,x,,,,,,\n", b",1,,,,,,\n", b"2,4.5\n"):
        log.write_bytes(whole + damage)
        sentence = refused(program, "--resume", tmp_path / "run", "--steps", 2)
        assert "log.csv is damaged" in sentence
    log.write_bytes(bytes(50))
    assert "log.csv is damaged" in refused(program, "--resume", tmp_path / "run", "--steps", 2)
    log.unlink()
    status, _, err = program("gpt2_train", "--resume", tmp_path / "run", "--steps", 2)
    assert (status, err) == (0, f"{log} lacks the rows of 1 steps\n")


def test_data_that_has_changed_is_noticed(program, small, corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "data")
    arguments = [*SMALL, "--data", tmp_path / "data", "--out", tmp_path / "run"]
    program("gpt2_train", *arguments, "--steps", 1)
    write_shard(tmp_path / "data" / "train_000000.bin", np.arange(2000) % 300)
    sentence = refused(program, "--resume", tmp_path / "run", "--steps", 2)
    assert "resume with the data" in sentence


def test_out_that_is_a_file(program, small, tmp_path):
    (tmp_path / "run").write_text("", encoding="utf-8")
    assert "is a file" in refused(program, *small)


def test_a_damaged_checkpoint_is_passed_over(program, small, tmp_path):
    run = tmp_path / "run"
    program("gpt2_train", *small, "--steps", 6, "--save-every", 2)
    whole = losses(run)
    path = run / "checkpoint.npz"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    status, out, err = program("gpt2_train", "--resume", run)
    assert status == 0
    assert f"passed over: {path} is damaged" in err
    assert "step    5/6" in out
    assert "step    4/6" not in out
    assert losses(run) == whole
    path.write_bytes(path.read_bytes()[:-100])
    (run / "checkpoint-00000004.npz").write_bytes(b"")
    assert "no whole checkpoint" in refused(program, "--resume", run, "--steps", 9)
    assert "checkpoint.npz is damaged" in refused(program, "--resume", path, "--steps", 9)


def test_without_its_newest_checkpoint_a_run_is_still_one(program, small, tmp_path):
    """As when the power fails between two renamings."""
    program("gpt2_train", *small, "--steps", 2, "--save-every", 1)
    (tmp_path / "run" / "checkpoint.npz").unlink()
    assert "holds a run already" in refused(program, *small)
    assert program("sample", tmp_path / "run", "--max-tokens", 3)[0] == 0
    assert program("gpt2_train", "--resume", tmp_path / "run", "--steps", 3)[0] == 0


def test_help_is_a_page_for_a_person(program):
    status, out, _ = program("gpt2_train", "--help")
    assert status == 0
    for group in ("the model", "the data", "the optimiser", "the run"):
        assert f"{group}:" in out
    for action in options.make_parser("gpt2")._actions:
        assert action.help, action.dest
