"""The trainer as its user meets it: it learns, it goes back or stops, it speaks to a person."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import train
from dataloader import DataLoader
from formats.checkpoint import read_meta
from formats.tokenizer_files import find_tokenizer, load_tokenizer
from runs import (
    ROOT,
    SMALL,
    checkpoints,
    losses,
    rows,
    spoil,
    start,
)


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


def test_only_training_drops_anything(program, corpus, tmp_path):
    """Without a learning rate the parameters stay, and with them every validation loss."""
    found = {}
    for p in 0, 0.5:
        arguments = [*SMALL, "--data", corpus, "--out", tmp_path / f"{p}", "--dropout", p]
        arguments += ["--lr", 0, "--steps", 3, "--val-every", 1]
        status, out, _ = program("gpt2_train", *arguments)
        assert status == 0
        log = rows(tmp_path / f"{p}")
        found[p] = [row["val_loss"] for row in log], [row["train_loss"] for row in log]
        found[p] += (out.split("--- a sample ---")[1].split("---")[0],)
    (validated, trained, spoken), (validated_too, trained_too, spoken_too) = found.values()
    assert (validated, spoken) == (validated_too, spoken_too)
    assert all(a != b for a, b in zip(trained, trained_too, strict=True))


def test_micro_batches_drop_what_the_whole_batch_would(program, corpus, tmp_path):
    for name, B, N in (("whole", 4, 1), ("parts", 1, 4)):
        arguments = [*SMALL, "--data", corpus, "--out", tmp_path / name, "--dropout", 0.3]
        arguments += ["--batch-size", B, "--grad-accum", N, "--steps", 5]
        assert program("gpt2_train", *arguments)[0] == 0
    whole, parts = (
        [float(row["train_loss"]) for row in rows(tmp_path / n)] for n in ("whole", "parts")
    )
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5)


def test_fine_tuning_starts_from_the_weights_of_a_run(program, small, corpus, tmp_path):
    program("gpt2_train", *small, "--steps", 40, "--warmup", 5, "--lr", 1e-2)
    before = rows(tmp_path / "run")
    arguments = ["--init-from", tmp_path / "run", "--data", corpus, "--batch-size", 2]
    arguments += ["--seq-len", 8, "--out", tmp_path / "tuned", "--steps", 2]
    assert program("gpt2_train", *arguments)[0] == 0
    first = float(rows(tmp_path / "tuned")[0]["train_loss"])
    assert first == pytest.approx(float(before[-1]["train_loss"]), abs=0.7)
    assert first < float(before[0]["train_loss"]) - 0.5


def test_fine_tuning_tells_where_it_begins(program, small, corpus, tmp_path):
    """What it does not make better, best.npz keeps."""
    program("gpt2_train", *small, "--steps", 30, "--lr", 1e-2, "--val-every", 30)
    before = rows(tmp_path / "run")[-1]["val_loss"]
    arguments = ["--init-from", tmp_path / "run", "--data", corpus]
    arguments += ["--batch-size", 4, "--seq-len", 16, "--steps", 2]
    _, out, _ = program("gpt2_train", *arguments, "--out", tmp_path / "tuned")
    assert f"before the first step  validation loss {float(before):.4f}" in out
    assert "the learning rate is 1.25e-03, a tenth" in out  # of 0.4 / 32
    _, out, _ = program("gpt2_train", *arguments, "--out", tmp_path / "worse", "--lr", 0.5)
    assert re.search(rf"best validation loss {float(before):.4f}, [\d.]+ bits.*, at step 0", out)


def test_what_happens_every_so_often_can_be_switched_off(program, small, tmp_path):
    off = ["--val-every", 0, "--sample-every", 0]
    status, out, _ = program("gpt2_train", *small, "--steps", 12, *off)
    assert status == 0
    assert "validation" not in out
    assert "sample ---" not in out
    assert out.count("step ") == 11  # all but the 11th
    assert "12 steps take 00:0" in out
    assert [row["val_loss"] for row in rows(tmp_path / "run")] == [""] * 12


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
            spoil(patch, [25], 7.5)
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


def test_bits_per_byte_are_of_the_text_that_was_validated(program, small, corpus, tmp_path):
    """Counted again here: the loss of all targets over the bytes that they decode to."""
    _, out, _ = program("gpt2_train", *small, "--steps", 1, "--val-batches", 2)
    row = rows(tmp_path / "run")[-1]
    shard = np.fromfile(corpus / "val_000000.bin", "<u2", offset=1024)
    targets = shard[1 : 2 * 4 * 16 + 1]  # two batches of four windows of 16
    tokenizer = load_tokenizer(find_tokenizer(corpus))
    text = tokenizer.decode(t for t in targets.tolist() if t not in tokenizer.special.values())
    nats = float(row["val_loss"]) * len(targets)
    expected = nats / np.log(2) / len(text.encode())
    assert float(row["val_bits_per_byte"]) == pytest.approx(expected, rel=1e-12)
    assert f"validation loss {float(row['val_loss']):.4f}, {expected:.4f} bits per byte" in out


def test_a_log_from_before_bits_per_byte_goes_on(program, small, tmp_path):
    program("gpt2_train", *small, "--steps", 2)
    log = tmp_path / "run" / "log.csv"
    lines = [line.split(",") for line in log.read_text(encoding="utf-8").splitlines()]
    place = lines[0].index("val_bits_per_byte")
    older = "".join(",".join(line[:place] + line[place + 1 :]) + "\n" for line in lines)
    log.write_text(older, encoding="utf-8")
    assert program("gpt2_train", "--resume", tmp_path / "run", "--steps", 3)[0] == 0
    assert [bool(row["val_bits_per_byte"]) for row in rows(tmp_path / "run")] == [
        False,
        False,
        True,
    ]
