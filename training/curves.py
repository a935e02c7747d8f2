"""Losses against the step: of one run, or of several in one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from files import save_figure
from training.report import Best, Row

MOST_MARKERS = 40  # on one curve
MARKERS = "os^vD*PX"  # which tell curves apart where there are no colours
RING = {"marker": "o", "fillstyle": "none", "markersize": 10}


def curve(rows: Sequence[Row], column: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps for which a column has a number, and those numbers."""
    found = [(row["step"], row[column]) for row in rows if row[column] is not None]
    steps, numbers = np.array(found, np.float64).reshape(-1, 2).T
    finite = np.isfinite(numbers)
    return steps[finite], numbers[finite]


def lowest(rows: Sequence[Row]) -> Best | None:
    """The lowest validation loss, and its step; None without any."""
    steps, losses = curve(rows, "val_loss")
    return Best(int(steps[losses.argmin()]), float(losses.min())) if losses.size else None


def smooth(losses: np.ndarray) -> tuple[np.ndarray, int]:
    """The mean of a window around each loss, and how many losses that window has: a twentieth.

    At the beginning, where losses fall steeply, the window reaches no farther to the right than it
    can to the left. At the end, where they are flat but for noise, the straight line through the
    last window takes its place. So neither end is drawn towards the middle.
    """
    reach = losses.size // 40
    window = 2 * reach + 1
    if not reach:
        return losses, window
    i = np.arange(losses.size - reach)
    left = np.minimum(i, reach)
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    means = (sums[i + left + 1] - sums[i - left]) / (2 * left + 1)
    line = np.polynomial.Polynomial.fit(np.arange(window), losses[-window:], 1)
    return np.concatenate([means, line(np.arange(reach + 1, window))]), window


def draw_losses(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw what a run has logged: every loss, the training loss smoothed, and the best point."""
    axes = _new_axes(7.5, 5)
    steps, losses = curve(rows, "train_loss")
    alone = "." if losses.size == 1 else ""  # a line takes two
    axes.plot(steps, losses, color="0.75", linewidth=0.8, marker=alone, label="training")
    smoothed, window = smooth(losses)
    if window > 1:
        axes.plot(steps, smoothed, color="0.4", label=f"training, mean of {window} steps")
    if best := lowest(rows):
        _plot(axes, *curve(rows, "val_loss"), color="black", marker="o", label="validation")
        label = f"lowest validation loss: {best.val_loss:.4f} at step {best.step}"
        axes.plot(*best, **RING, color="black", linestyle="", label=label)
    axes.set(ylabel="loss (nats per token)", title=_plain(title))
    axes.figure.legend(loc="outside lower center", ncols=2)
    save_figure(axes.figure, path)


def compare_losses(runs: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Draw the validation losses of several runs; the training loss, smoothed, of one without."""
    axes = _new_axes(9, max(4.5, 0.25 * len(runs)))
    for number, (name, rows) in enumerate(runs.items()):
        style = {"color": f"C{number}", "marker": MARKERS[number % len(MARKERS)]}
        if best := lowest(rows):
            label = f"{best.val_loss:.4f} at step {best.step}: {_plain(name)}"
            _plot(axes, *curve(rows, "val_loss"), **style, label=label)
            axes.plot(*best, **RING, color=style["color"])
        else:
            steps, losses = curve(rows, "train_loss")
            label = f"only training: {_plain(name)}"
            _plot(axes, steps, smooth(losses)[0], **style, linestyle=":", label=label)
    axes.set_ylabel("loss (nats per token)")
    axes.figure.legend(loc="outside right upper", title="lowest validation loss")
    save_figure(axes.figure, path)


def _new_axes(width: float, height: float) -> Any:
    """Axes over steps, in a figure of so many inches."""
    from matplotlib.figure import Figure  # it takes long, and only pictures need it

    axes = Figure(figsize=(width, height), layout="constrained").subplots()
    axes.set_xlabel("step")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    return axes


def _plot(axes: Any, steps: np.ndarray, losses: np.ndarray, **style: str) -> None:
    """Plot a curve with a marker here and there."""
    axes.plot(steps, losses, markersize=4, markevery=losses.size // MOST_MARKERS + 1, **style)


def _plain(text: str) -> str:
    """For matplotlib, to which what stands between dollars is a formula."""
    return text.replace("$", r"\$")
