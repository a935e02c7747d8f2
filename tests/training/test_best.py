"""best.npz has the parameters of the lowest validation loss, however the run came to its end."""

import numpy as np
import pytest

from formats.checkpoint import read_meta
from load import open_model
from runs import checkpoints, refused, rows, spoil
from training.run import Run

pytestmark = pytest.mark.usefixtures("quick")

STEPS = ["--steps", 60, "--val-every", 5, "--save-every", 20, "--lr", 1e-2, "--warmup", 0]


@pytest.fixture(autouse=True)
def seen(monkeypatch):
    """The parameters of every validation, by its step; after step 30 none is as good as before."""
    parameters, validate = {}, Run.validate

    def look(self, thoroughly):
        parameters[self.step] = self.model.params.flat.copy()
        return validate(self, thoroughly) + (self.step > 30)

    monkeypatch.setattr(Run, "validate", look)
    return parameters


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def lowest(folder):
    """The step of the lowest validation loss in a run's log, and that loss."""
    losses = {int(row["step"]): float(row["val_loss"]) for row in rows(folder) if row["val_loss"]}
    step = min(losses, key=losses.get)
    return step, losses[step]


def check_best(run, out):
    """The file is of the best step, to the bit, and the last line tells which that was."""
    step, loss = lowest(run)
    best = run / "best.npz"
    assert read_meta(best)["best"] == {"step": step, "val_loss": loss}
    last = out.splitlines()[-1]
    assert last.startswith(f"best validation loss {loss:.4f}, ")
    assert last.endswith(f" bits per byte, at step {step}: {best}")


def test_the_best_parameters_are_kept(program, small, run, seen):
    status, out, _ = program("gpt2_train", *small, *STEPS)
    assert status == 0
    check_best(run, out)
    step, _ = lowest(run)
    assert step <= 30
    with np.load(run / "best.npz") as archive:
        assert set(archive) == {"meta.json", "params"}
        assert np.array_equal(archive["params"], seen[step])


def test_sampling_conversion_and_fine_tuning_take_it(program, small, corpus, run, tmp_path):
    program("gpt2_train", *small, *STEPS)
    best, texts = run / "best.npz", []
    assert open_model(best).name == "run"
    program("convert", best, tmp_path / "best.gguf")
    for model in ([run, "--best"], [best], [tmp_path / "best.gguf"], [run]):
        status, text, err = program("sample", *model, "--prompt", "The", "--max-tokens", 9)
        assert status == 0, err
        texts.append(text)
    assert texts[0] == texts[1] == texts[2] != texts[3]

    arguments = ["--init-from", best, "--data", corpus, "--batch-size", 4, "--seq-len", 16]
    arguments += ["--out", tmp_path / "tuned", "--steps", 1, "--lr", 0]
    assert program("gpt2_train", *arguments)[0] == 0
    assert float(rows(tmp_path / "tuned")[0]["val_loss"]) == lowest(run)[1]


def test_it_is_no_checkpoint_to_resume_from(program, small, run):
    program("gpt2_train", *small, *STEPS)
    sentence = refused(program, "--resume", run / "best.npz", "--steps", 99)
    assert sentence.endswith("best.npz is a model and no run; fine-tune it by --init-from")
    for path in run.glob("checkpoint*.npz"):
        path.write_bytes(b"")
    assert "no whole checkpoint" in refused(program, "--resume", run, "--steps", 99)


def test_it_is_asked_for_where_there_is_none(program, small, run):
    program("gpt2_train", *small, "--steps", 1)
    for model in (run / "checkpoint.npz", run.parent):
        status, _, err = program("sample", model, "--best")
        assert status == 2
        assert f"there is no {model / 'best.npz'}" in err


@pytest.mark.parametrize("first", [10, 40])
def test_a_run_that_goes_on_knows_the_lowest_so_far(program, small, run, first):
    """Whether the lowest was before it was stopped or comes after it."""
    program("gpt2_train", *small, *STEPS, "--steps", first)
    status, out, _ = program("gpt2_train", "--resume", run, "--steps", 60)
    assert status == 0
    check_best(run, out)


@pytest.mark.parametrize("damage", [b"", None])
def test_where_it_is_lost_the_lowest_from_then_on_is_kept(program, small, run, damage):
    program("gpt2_train", *small, *STEPS, "--steps", 40)
    best = run / "best.npz"
    best.unlink() if damage is None else best.write_bytes(damage)
    status, out, _ = program("gpt2_train", "--resume", run, "--steps", 60)
    assert status == 0
    losses = {int(row["step"]): row["val_loss"] for row in rows(run)[40:] if row["val_loss"]}
    step = min(losses, key=lambda step: float(losses[step]))
    assert read_meta(best)["best"]["step"] == step
    assert f"at step {step}: {best}" in out


def validate_as(monkeypatch, losses):
    """Let the validations of these steps have these losses; the text is read as ever."""
    validate = Run.validate

    def other(self, thoroughly):
        validate(self, thoroughly)
        return losses.get(self.step, 9.0)

    monkeypatch.setattr(Run, "validate", other)


def test_a_step_that_is_lost_and_does_not_come_again_is_not_the_best(
    program, small, run, monkeypatch
):
    def power_cut(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        validate_as(patch, {5: 4.0, 10: 3.0})
        patch.setattr(Run, "speak", power_cut)
        arguments = ["--steps", 20, "--val-every", 5, "--save-every", 8, "--sample-every", 11]
        assert program("gpt2_train", *small, *arguments)[0] == 130
    assert read_meta(run / "best.npz")["best"]["step"] == 10
    assert checkpoints(run) == {"checkpoint.npz": 8}

    validate_as(monkeypatch, {10: 3.7, 15: 3.5, 20: 3.6})
    monkeypatch.setattr(Run, "speak", lambda self: "")
    status, out, _ = program("gpt2_train", "--resume", run)
    assert status == 0
    check_best(run, out)


def test_going_back_does_not_lose_the_best(program, small, run, monkeypatch):
    validate_as(monkeypatch, {5: 4.0, 10: 5.0})
    spoil(monkeypatch, [8], float("nan"))
    arguments = ["--on-spike", "rollback", "--steps", 12, "--val-every", 5, "--save-every", 20]
    status, out, _ = program("gpt2_train", *small, *arguments)
    assert status == 0
    assert "back to step 5, without the batches" in out
    check_best(run, out)


def test_one_that_cannot_be_written_ends_no_run(program, small, run):
    program("gpt2_train", *small, *STEPS, "--steps", 10)
    (run / "best.npz.tmp").mkdir()  # where it is written at first
    status, out, err = program("gpt2_train", "--resume", run, "--steps", 20)
    assert status == 0
    assert err.startswith(f"cannot write {run / 'best.npz'}: ")
    assert read_meta(run / "best.npz")["best"]["step"] == 10
    assert "best validation loss" not in out  # which would not be true


def test_bits_per_byte_of_the_best_are_told_only_of_a_text_that_was_read(program, small, tmp_path):
    """One batch, as is looked at before saving, has other bytes than the validation split."""
    program("gpt2_train", *small, "--steps", 2, "--val-every", 1, "--val-batches", 5)
    more = ["--resume", tmp_path / "run", "--steps", 3, "--val-every", 0]
    _, out, _ = program("gpt2_train", *more)
    assert out.splitlines()[-1].startswith("best validation loss")
    assert "bits per byte" not in out
