"""The picture of the losses shows what was measured, and its legend nothing else."""

import numpy as np
import pytest

from files import save_figure
from training.curves import compare_losses, draw_losses, lowest, smooth


def rows(num_steps, val_every=0, seed=0):
    """A log: losses that fall, and noise."""
    rng = np.random.default_rng(seed)
    steps = np.arange(1, num_steps + 1)
    losses = 3 + 5 * np.exp(-steps / 50) + rng.normal(0, 0.1, num_steps)
    validated = 3.5 + 5 * np.exp(-steps / 50) + (steps / 1000) ** 2
    return [
        {
            "step": int(step),
            "train_loss": float(loss),
            "val_loss": float(val_loss) if val_every and step % val_every == 0 else None,
        }
        for step, loss, val_loss in zip(steps, losses, validated, strict=True)
    ]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Calls a function that draws, and gives the figure that it has saved."""

    def draw(function, rows, *arguments):
        figures = []

        def save(figure, path):
            save_figure(figure, path)
            figures.append(figure)

        monkeypatch.setattr("training.curves.save_figure", save)
        function(rows, tmp_path / "loss.png", *arguments)
        (figure,) = figures
        return figure

    return draw


def points(figure):
    """What is plotted, by its name in the legend."""
    (legend,) = figure.legends
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    names = [text.get_text() for text in legend.get_texts()]
    return {name: list(zip(*lines[name].get_data(), strict=True)) for name in names}


def test_all_losses_and_the_best_point_are_shown(drawn):
    log = rows(700, 50)
    shown = points(drawn(draw_losses, log, "tiny on pydocs"))
    assert shown["training"] == [(row["step"], row["train_loss"]) for row in log]
    validated = [(row["step"], row["val_loss"]) for row in log if row["val_loss"]]
    assert shown["validation"] == validated
    step, loss = min(validated, key=lambda point: point[1])
    assert step not in (50, 700)
    assert shown[f"lowest validation loss: {loss:.4f} at step {step}"] == [(step, loss)]
    assert [step for step, _ in shown["training, mean of 35 steps"]] == list(range(1, 701))
    assert len(shown) == 4


@pytest.mark.parametrize(
    ("log", "names"),
    [
        (rows(1), ["training"]),
        (rows(1, 1), ["training", "validation", "lowest"]),
        (rows(3), ["training"]),
        (rows(3, 3), ["training", "validation", "lowest"]),
        (rows(60), ["training", "training, mean of 3 steps"]),
        (rows(200, 30)[60:], ["training", "training, mean of 7 steps", "validation", "lowest"]),
        (
            [{"step": 0, "train_loss": None, "val_loss": 4.0}, *rows(2)],
            ["training", "validation", "lowest"],
        ),
    ],
)
def test_the_legend_names_what_can_be_seen(drawn, log, names):
    figure = drawn(draw_losses, log, "")
    shown = points(figure)
    assert [name.split(" val")[0] for name in shown] == names
    for line in figure.axes[0].lines:
        seen = np.isfinite(line.get_ydata()).sum()
        assert seen > 1 or (seen == 1 and line.get_marker() not in ("", "None"))
    assert len(shown) == len(figure.axes[0].lines)


def test_the_legend_covers_no_curve(drawn):
    figure = drawn(draw_losses, rows(2000, 10), "")
    figure.draw_without_rendering()
    assert not figure.legends[0].get_window_extent().overlaps(figure.axes[0].bbox)


def test_what_is_no_number_is_left_out(drawn):
    log = rows(200, 20)
    log[50]["train_loss"] = log[99]["val_loss"] = float("nan")
    log[70]["train_loss"] = float("inf")
    shown = points(drawn(draw_losses, log, ""))
    assert [len(curve) for curve in shown.values()] == [198, 198, 9, 1]
    assert np.isfinite(np.concatenate(list(shown.values()))).all()


def test_a_straight_line_is_as_it_was_when_smoothed():
    line = 7 - 0.01 * np.arange(400)
    smoothed, window = smooth(line)
    assert window == 21
    np.testing.assert_allclose(smoothed, line, rtol=1e-12)


def test_smoothing_is_the_mean_around_each_step_and_leans_nowhere():
    losses = np.array([row["train_loss"] for row in rows(2000)])
    smoothed, window = smooth(losses)
    reach = window // 2
    for i in (reach, 500, 2000 - reach - 1):
        assert smoothed[i] == pytest.approx(losses[i - reach : i + reach + 1].mean(), rel=1e-12)
    assert smoothed[3] == pytest.approx(losses[:7].mean(), rel=1e-12)
    true = 3 + 5 * np.exp(-np.arange(1, 2001) / 50)
    assert smoothed[0] == losses[0]
    # The deviation of the noise is 0.1; at the end of a line through 101 of it, a fifth of that.
    assert np.abs(smoothed - true)[-reach:].max() < 0.05
    assert np.abs(smoothed - true)[1000:-reach].max() < 0.04


def test_the_lowest_loss():
    assert lowest(rows(10)) is None
    assert lowest([]) is None
    log = rows(100, 10)
    log[29]["val_loss"] = 1.5
    assert lowest(log) == (30, 1.5)


def test_several_runs_are_told_apart(drawn):
    logs = {f"run-{n}": rows(100 + n, 10, seed=n) for n in range(12)} | {"_$new$_": rows(50)}
    figure = drawn(compare_losses, logs)
    (legend,) = figure.legends
    named = [text.get_text() for text in legend.get_texts()]
    assert named[-1] == r"only training: _\$new\$_"
    for name, text in zip(logs, named[:-1], strict=False):
        step, loss = lowest(logs[name])
        assert text == f"{loss:.4f} at step {step}: {name}"
    looks = {(line.get_color(), line.get_marker()) for line in legend.get_lines()}
    assert len(looks) == len(logs)
    shown = points(figure)
    for log, curve in zip(list(logs.values())[:-1], list(shown.values())[:-1], strict=True):
        assert curve == [(row["step"], row["val_loss"]) for row in log if row["val_loss"]]
    assert len(list(shown.values())[-1]) == 50


def test_dollars_in_a_name_are_no_formula(drawn):
    figure = drawn(draw_losses, rows(3), "x^$ on $_{")
    assert figure.axes[0].get_title() == r"x^\$ on \$_{"
