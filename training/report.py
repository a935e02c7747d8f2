"""What a training run tells: its memory, its speed, its log and its pictures."""

import csv
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from buffers import Shapes, check_available, extents, megabytes, num_elements
from errors import FormatError, RunError
from files import replacing, save_figure
from layers.tiles import run_tiles, shares

COLUMNS = {
    "step": int,
    "train_loss": float,
    "val_loss": float,
    "grad_norm": float,
    "learning_rate": float,
    "ms": float,
    "tokens_per_second": float,
    "rollbacks": int,
}


class Log:
    """log.csv: a row for each step, in the file as soon as it is known.

    Args:
        path: the file; what a resumed run has written to it before is kept.
        steps_done: rows of later steps are dropped: those steps were lost, and come again.
    """

    def __init__(self, path: Path, steps_done: int) -> None:
        self.path = path
        self.rows = self._read() if steps_done and path.is_file() else []
        self.drop_after(steps_done)
        if len(self.rows) < steps_done:
            print(f"{path} lacks the rows of {steps_done - len(self.rows)} steps", file=sys.stderr)

    def drop_after(self, step: int) -> None:
        """Drop the rows of the steps after this one."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        with replacing(self.path) as file:
            file.write(",".join(COLUMNS).encode() + b"\n")
            for row in self.rows:
                file.write(self._line(row).encode())

    def _read(self) -> list[dict[str, float | None]]:
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                # A full disk or a power cut leaves a part of a row; that step comes again.
                lines = csv.DictReader(line for line in file if line.endswith("\n"))
                if lines.fieldnames != list(COLUMNS):
                    raise ValueError("other columns")
                rows = [
                    {name: kind(row[name]) if row[name] else None for name, kind in COLUMNS.items()}
                    for row in lines
                ]
                if any(row[name] is None for row in rows for name in COLUMNS if name != "val_loss"):
                    raise ValueError("a row that is not whole")
                return rows
        except (TypeError, ValueError, csv.Error) as error:
            raise FormatError(f"{self.path} is damaged; move it away, and resume again") from error

    def write(self, *values: float | None, sync: bool) -> None:
        """Add the row of a step, its values in the order of `COLUMNS`.

        Args:
            sync: wait until the disk has it, and all before it.

        Raises:
            RunError: the file cannot be written.
        """
        self.rows.append(dict(zip(COLUMNS, values, strict=True)))
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(self._line(self.rows[-1]))
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}") from error

    def _line(self, row: Mapping[str, float | None]) -> str:
        # repr keeps every bit, so that two runs can be compared.
        cells = ("" if row[name] is None else repr(row[name]) for name in COLUMNS)
        return ",".join(cells) + "\n"

    def draw(self, path: Path, title: str) -> None:
        """Draw the losses against the step."""
        from matplotlib.figure import Figure  # it takes long, and only pictures need it

        figure = Figure(figsize=(7.5, 4.5), layout="constrained")
        axes = figure.subplots()
        steps = [row["step"] for row in self.rows]
        axes.plot(steps, [row["train_loss"] for row in self.rows], color="0.7", label="train")
        validated = [row for row in self.rows if row["val_loss"] is not None]
        axes.plot(
            [row["step"] for row in validated],
            [row["val_loss"] for row in validated],
            "o-",
            color="black",
            markersize=4,
            label="validation",
        )
        axes.set_xlabel("step")
        axes.set_ylabel("loss (nats per token)")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend()
        save_figure(figure, path)


def matmul_peak(size: int = 1536, repeats: int = 6) -> float:
    """The fastest that this machine multiplies float32 matrices, in GFLOP/s; takes a moment."""
    a, b, out = np.ones((3, size, size), np.float32)
    parts = shares(size, size**3)
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run_tiles(lambda rows: np.matmul(a[rows], b, out=out[rows]), parts)
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds) / 1e9


def check_memory(
    buffers: Mapping[str, Shapes], advice: str, itemsize: int = 4, processes: int = 1
) -> None:
    """Print the memory that buffers of these shapes need; refuse it where the machine has less.

    Args:
        buffers: the table of shapes of each.
        advice: what to lower.
        itemsize: bytes per element.
        processes: how many on this machine need as much.

    Raises:
        UserError: less is available.
    """
    sizes = {name: itemsize * num_elements(shapes) for name, shapes in buffers.items()}
    listed = ", ".join(f"{name} {megabytes(size)}" for name, size in sizes.items())
    each = " for each rank" if processes > 1 else ""
    print(f"memory: {megabytes(sum(sizes.values()))}{each} ({listed})", flush=True)
    check_available(processes * sum(sizes.values()), "for this run", advice)


def draw_memory_map(buffers: Mapping[str, Shapes], path: Path, itemsize: int = 4) -> None:
    """Draw flat buffers to scale: a bar for each, in which every tensor has its place.

    Args:
        buffers: the table of shapes of each.
        path: the picture; its suffix says in which format.
        itemsize: bytes per element.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 1.5 * len(buffers)), layout="constrained")
    every_axes = figure.subplots(len(buffers), squeeze=False)[:, 0]
    for axes, (label, shapes) in zip(every_axes, buffers.items(), strict=True):
        total = num_elements(shapes) * itemsize / 2**20
        for i, (name, (start, stop)) in enumerate(extents(shapes).items()):
            left, width = start * itemsize / 2**20, (stop - start) * itemsize / 2**20
            # Neighbours differ in brightness, for a picture printed in grey.
            axes.barh(0, width, left=left, color=("0.85", "0.65")[i % 2], edgecolor="white")
            if width > 0.012 * total:
                upright = width > 0.009 * len(name) * total
                axes.text(
                    left + width / 2,
                    0,
                    name,
                    ha="center",
                    va="center",
                    fontsize=8,
                    rotation=0 if upright else 90,
                )
        axes.set_title(f"{label}, {megabytes(total * 2**20)}", loc="left", fontsize=9)
        axes.set_yticks([])
        axes.set_xlim(0, total)
    every_axes[-1].set_xlabel("offset in the flat buffer (MiB)")
    save_figure(figure, path)


def command(script: str, *arguments: object) -> str:
    """What to type, here and now, to run another program of this project with this Python."""
    root = Path(__file__).resolve().parents[1]
    paths = (Path(path) for path in (sys.executable, root / script))
    here = Path.cwd()
    short = [path.relative_to(here) if path.is_relative_to(here) else path for path in paths]
    words = [str(word) for word in (*short, *arguments)]
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)
