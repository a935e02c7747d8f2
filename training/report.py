"""What a training run tells: its log, and what to type next."""

import csv
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from errors import FormatError, RunError
from files import patiently, replacing

COLUMNS = {
    "step": int,
    "train_loss": float,
    "val_loss": float,
    "val_bits_per_byte": float,
    "grad_norm": float,
    "learning_rate": float,
    "ms": float,
    "tokens_per_second": float,
    "rollbacks": int,
}
VALIDATION = {"val_loss", "val_bits_per_byte"}  # which not every step has
Row = dict[str, float | None]  # of the log: a value for each column


class Best(NamedTuple):
    """A step, and the validation loss after it, the lowest of a run."""

    step: int
    val_loss: float


class Log:
    """log.csv: a row for each step. What is put into `rows`, `store` brings into the file.

    While the file cannot be written, such as one that is open in Excel, rows are kept for later.

    Args:
        path: the file; what a resumed run has written to it before is kept.
        steps_done: rows of later steps are dropped: those steps were lost, and come again.
        unstored: the last rows up to there, where the file lacked them when these steps were saved.

    Raises:
        FormatError: the file is damaged.
        RunError: it cannot be written.
    """

    def __init__(self, path: Path, steps_done: int, unstored: Sequence[Row] = ()) -> None:
        self.path = path
        self.rows = read_log(path) if steps_done and path.is_file() else []
        self._stored, self._size = 0, -1  # rows that the file has; bytes, unless it is to be anew
        self._trouble = ""  # why it lacks the others
        if unstored:
            self.drop_after(unstored[0]["step"] - 1)
            self.rows += unstored
        self.drop_after(steps_done)
        if len(self.rows) < steps_done:
            print(f"{path} lacks the rows of {steps_done - len(self.rows)} steps", file=sys.stderr)
        self._write_all()

    @property
    def unstored(self) -> list[Row]:
        """The rows that the file lacks."""
        return self.rows[self._stored :]

    def drop_after(self, step: int) -> None:
        """Drop the rows of the steps after this one."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        self._stored, self._size = min(self._stored, len(self.rows)), -1

    def store(self, sync: bool = False) -> None:
        """Write the rows that the file lacks, or keep them for the next time, as stderr then says.

        Args:
            sync: wait until the disk has them, and all before them.
        """
        before, self._trouble = self._trouble, ""
        try:
            self._write_new(sync)
        except OSError as error:
            self._trouble = f"cannot write {self.path}: {error.strerror}"
        except RunError as error:
            self._trouble = str(error)
        if self._trouble and not before:
            print(f"{self._trouble}; its rows are kept for later", file=sys.stderr)

    def finish(self) -> None:
        """Write the rows that were kept for later; a program that holds the file has some seconds.

        Raises:
            RunError: they still cannot be written.
        """
        if self.unstored:
            with suppress(OSError):
                patiently(lambda: self._write_new(sync=True))
        if self.unstored:
            raise RunError(
                f"{self._trouble}; the checkpoint has the rows that it lacks, and --resume with "
                "more --steps writes them"
            )

    def _write_new(self, sync: bool) -> None:
        with self.path.open("ab") as file:
            if file.tell() == self._size:
                lines = self._lines(self.unstored)
                file.write(lines)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
                self._stored, self._size = len(self.rows), self._size + len(lines)
                return
        self._write_all()

    def _write_all(self) -> None:
        """Write the file anew: rows were dropped, or somebody else has changed it."""
        text = ",".join(COLUMNS).encode() + b"\n" + self._lines(self.rows)
        with replacing(self.path) as file:
            file.write(text)
        self._stored, self._size = len(self.rows), len(text)

    def _lines(self, rows: Sequence[Row]) -> bytes:
        # repr keeps every bit, so that two runs can be compared.
        cells = (["" if row[name] is None else repr(row[name]) for name in COLUMNS] for row in rows)
        return "".join(",".join(each) + "\n" for each in cells).encode()


def read_log(path: Path) -> list[Row]:
    """The rows of a log.csv, but for a part of a row at its end.

    Raises:
        FormatError: it is damaged.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            # A full disk or a power cut leaves a part of a row; that step comes again.
            lines = csv.DictReader(line for line in file if line.endswith("\n"))
            # A log that was begun before there were bits per byte goes on with them.
            older = [name for name in COLUMNS if name != "val_bits_per_byte"]
            if lines.fieldnames not in (list(COLUMNS), older):
                raise ValueError("other columns")
            rows = [
                {name: kind(row[name]) if row.get(name) else None for name, kind in COLUMNS.items()}
                for row in lines
            ]
            if any(row[name] is None for row in rows for name in COLUMNS.keys() - VALIDATION):
                raise ValueError("a row that is not whole")
            return rows
    except (TypeError, ValueError, csv.Error) as error:
        raise FormatError(f"{path} is damaged; move it away, and resume again") from error


def command(script: str, *arguments: object) -> str:
    """What to type, here and now, to run another program of this project with this Python."""
    root = Path(__file__).resolve().parents[1]
    paths = (Path(path) for path in (sys.executable, root / script))
    here = Path.cwd()
    short = [path.relative_to(here) if path.is_relative_to(here) else path for path in paths]
    words = [str(word) for word in (*short, *arguments)]
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)
