"""The runs that there are: a table of them, and their losses in one picture.

    python train.py --list                          those in runs/, the last one at the end
    python train.py --list runs/a runs/b --plot losses.png

A run may be going on meanwhile. Of its checkpoint only the description is read, not the numbers.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from buffers import num_elements
from errors import FormatError, UserError, printable
from formats.checkpoint import list_checkpoints, read_meta
from models import FAMILIES
from training.curves import compare_losses, lowest
from training.options import channels
from training.report import Row, command, read_log

HEADINGS = ("last written", "model", "size", "corpus", "steps", "best loss", "step", "run")
NUMBERS = ("size", "steps", "best loss", "step")
WIDEST = 21  # letters in a column, but in the last


def main() -> None:
    """List the runs that the command line names.

    Raises:
        UserError: there are none, or none has a loss to plot.
    """
    args = make_parser().parse_intermixed_args()
    folders = dict.fromkeys(folder for path in args.runs for folder in find_runs(path))
    table, logs = [HEADINGS], {}
    for folder in sorted(folders, key=last_written):
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(last_written(folder)))
        try:
            log = folder / "log.csv"
            rows = logs[str(folder)] = read_log(log) if log.is_file() else []
            table.append((written, *describe(folder, rows)))
        except (UserError, OSError) as error:
            table.append((written, str(error)))
    print_table(table)
    if args.plot:
        logs = {name: rows for name, rows in logs.items() if rows}
        if not logs:
            raise UserError("none of these runs has a loss yet: there is nothing to plot")
        compare_losses(logs, args.plot)
        print(f"wrote {args.plot}")


def find_runs(path: Path) -> list[Path]:
    """The folder of a run, or those of the runs in a folder.

    Raises:
        UserError: there is none.
    """
    found = [folder for folder in (path, *path.glob("*")) if is_run(folder)]
    if not found:
        example = command("train.py", next(iter(FAMILIES)))
        raise UserError(f"there is no run in {path}; {example} begins one")
    return found


def is_run(folder: Path) -> bool:
    return (folder / "log.csv").is_file() or bool(list_checkpoints(folder))


def last_written(folder: Path) -> float:
    """When the run last went on, in seconds since 1970."""
    log = folder / "log.csv"
    return (log if log.is_file() else folder).stat().st_mtime


def describe(folder: Path, rows: Sequence[Row]) -> list[str]:
    """What the table says of a run: all from "model" on.

    Raises:
        FormatError: its newest checkpoint is damaged.
    """
    checkpoints, best = list_checkpoints(folder), lowest(rows)
    saved = _describe_checkpoint(checkpoints[0]) if checkpoints else ("not saved yet", *"????")
    model, size, corpus, done, steps = saved
    return [
        model,
        size,
        corpus,
        f"{rows[-1]['step'] if rows else done}/{steps}",
        f"{best.val_loss:.4f}" if best else "-",
        f"{best.step}" if best else "-",
        str(folder),
    ]


def _describe_checkpoint(path: Path) -> tuple[str, ...]:
    """The model and its size, the corpus, the steps that were done, and those there are to be."""
    meta = read_meta(path)
    try:
        family = FAMILIES[meta["model"]]
        config = family.config(**meta["config"])
        settings = meta.get("settings") or {"data": "?", "steps": "?"}  # of a model that is no run
        return (
            f"{family.title} {config.num_layers}x{channels(config)}",
            tqdm.format_sizeof(num_elements(config.param_shapes())),
            Path(settings["data"]).name,
            f"{meta.get('step', '?')}",
            f"{settings['steps']}",
        )
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise FormatError(
            f"{path} describes no model that is known here ({error!r}); go back to a copy"
        ) from None


def print_table(table: Sequence[Sequence[str]]) -> None:
    """Print rows in columns; a row that is shorter than the headings has a sentence at its end."""
    table = [
        [printable(cell)[:WIDEST] for cell in cells[:-1]] + [printable(cells[-1])]
        for cells in table
    ]
    whole = [cells for cells in table if len(cells) == len(HEADINGS)]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    for cells in table:
        padded = [
            cell.rjust(width) if heading in NUMBERS else cell.ljust(width)
            for heading, cell, width in zip(HEADINGS, cells[:-1], widths, strict=False)
        ]
        print(*padded, cells[-1], sep="  ")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="List runs, those that were written to last at the end: how far they are, and "
        "their lowest validation loss."
    )
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        default=[Path("runs")],
        metavar="RUN",
        help="a run's folder, or a folder of runs (default: runs)",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw their validation losses into this picture"
    )
    return parser
