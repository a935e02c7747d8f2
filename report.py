"""What a training run tells: its memory, its speed, its log and its pictures."""

import csv
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import psutil
from matplotlib.figure import Figure

from buffers import Buffer
from errors import RunError, UserError
from files import replacing, save_figure

COLUMNS = {
    "step": int,
    "train_loss": float,
    "val_loss": float,
    "grad_norm": float,
    "learning_rate": float,
    "ms": float,
    "tokens_per_second": float,
}


class Log:
    """log.csv: a row for each step, on the disk as soon as it is known.

    Args:
        path: the file. On resuming, rows from `first_step` on belong to steps that were lost, and
            are dropped.
        first_step: the step that comes next.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        self.rows: list[dict[str, float | None]] = []
        if first_step and path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                self.rows = [
                    {name: kind(row[name]) if row[name] else None for name, kind in COLUMNS.items()}
                    for row in csv.DictReader(file)
                    if int(row["step"]) < first_step
                ]
        with replacing(path) as file:
            file.write(",".join(COLUMNS).encode() + b"\n")
            for row in self.rows:
                file.write(self._line(row).encode())

    def write(self, row: dict[str, float | None]) -> None:
        """Add the row of a step.

        Raises:
            RunError: the file cannot be written.
        """
        self.rows.append(row)
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(self._line(row))
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}") from error

    def _line(self, row: Mapping[str, float | None]) -> str:
        # repr keeps every bit, so that two runs can be compared.
        cells = ("" if row[name] is None else repr(row[name]) for name in COLUMNS)
        return ",".join(cells) + "\n"

    def draw(self, path: Path, title: str) -> None:
        """Draw the losses against the step."""
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
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        np.matmul(a, b, out=out)
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds) / 1e9


def check_memory(parts: Mapping[str, int], advice: str) -> None:
    """Print the memory that a run needs, and refuse it where the machine has less.

    Args:
        parts: bytes by what they are for.
        advice: what to lower.

    Raises:
        UserError: less is available.
    """
    total, available = sum(parts.values()), psutil.virtual_memory().available
    listed = ", ".join(f"{name} {megabytes(size)}" for name, size in parts.items())
    print(f"memory: {megabytes(total)} ({listed})")
    if total > available:
        raise UserError(
            f"this run needs {megabytes(total)} of memory, and {megabytes(available)} are "
            f"available here; {advice}"
        )


def megabytes(size: int) -> str:
    """1234567890 -> "1,177 MiB"."""
    return f"{size / 2**20:,.1f} MiB" if size < 10 * 2**20 else f"{size / 2**20:,.0f} MiB"


def draw_memory_map(buffers: Mapping[str, Buffer], path: Path) -> None:
    """Draw flat buffers to scale, each a bar in which every tensor has its place and its colour."""
    figure = Figure(figsize=(14, 1.1 + 1.1 * len(buffers)), layout="constrained")
    axes = figure.subplots()
    longest = max(buffer.flat.nbytes for buffer in buffers.values())
    for row, buffer in enumerate(buffers.values()):
        itemsize = buffer.flat.itemsize
        for i, (name, (start, stop)) in enumerate(buffer.extents().items()):
            left, width = start * itemsize / 2**20, (stop - start) * itemsize / 2**20
            axes.barh(row, width, left=left, height=0.7, color=f"C{i % 10}", edgecolor="white")
            if width > 0.012 * len(name) * longest / 2**20:
                axes.text(left + width / 2, row, name, ha="center", va="center", fontsize=8)
    axes.set_yticks(
        range(len(buffers)),
        [f"{label}\n{megabytes(buffer.flat.nbytes)}" for label, buffer in buffers.items()],
    )
    axes.invert_yaxis()
    axes.set_xlabel("offset in the flat buffer (MiB)")
    axes.set_xlim(0, longest / 2**20)
    save_figure(figure, path)
