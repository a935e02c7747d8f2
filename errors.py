"""Mistakes that a person can mend, and how every program here reports them.

A library function raises `UserError` (for files, `FormatError`) with one sentence: what is wrong,
where, and what to do. A program ends through `run_program`, which prints that sentence and nothing
else.
"""

import argparse
import importlib
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

# What asks a program to end: Ctrl-C, `kill`, a terminal that is closed. The last is what mpirun
# passes on, and Slurm can send before the time is up. Windows has the first two.
STOPS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
]


class UserError(ValueError):
    """Something the user asked for cannot be done; the message says what to do. Exit status 2."""


class FormatError(UserError):
    """A file is not what it should be; the message names the file and what is wrong with it."""


class RunError(RuntimeError):
    """Something failed while running, through nobody's mistake in the request. Exit status 1."""


class DivergedError(RunError):
    """The numbers of a training run have become infinite, or have jumped."""


def run_file(file: str) -> NoReturn:
    """Import the program in a file of this project, call its `main`, and end the process.

    A program begins with this: importing NumPy and the like takes a second, in which Ctrl-C ends
    the program as quietly as later.

    Raises:
        SystemExit: always.
    """
    on_stop(_leave)
    names = Path(file).resolve().relative_to(Path(__file__).resolve().parent).with_suffix("").parts
    run_program(importlib.import_module(".".join(names)).main)


def _leave(number: int, frame: Any) -> NoReturn:
    # Not by an exception, which an import may swallow; and nothing is there yet to be put away.
    os.write(2, b"interrupted\n")
    os._exit(130)


def on_stop(handle: Callable[[int, Any], Any]) -> None:
    """Let a function answer all that asks this program to end, except what it is to ignore."""
    for number in STOPS:
        # As nohup has told it; a shell has it ignore Ctrl-C in the background, but not `kill -INT`.
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)


def run_program(main: Callable[[], None]) -> NoReturn:
    """Call `main` and end the process.

    Status 0 when all went well, 2 for a user's mistake, 1 for a failure, 130 for Ctrl-C and all
    else that asks the program to end.

    Raises:
        SystemExit: always.
    """
    on_stop(signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        # A console that cannot show a character shows "?" instead of ending the program. A file or
        # a pipe holds UTF-8 everywhere; on Windows it would have the console's characters only.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
    try:
        main()
        sys.exit(0)
    except UserError as error:
        status, sentence = 2, str(error)
    except BrokenPipeError:
        print_to_nowhere()
        sys.exit(1)
    except OSError as error:
        named = f"cannot use {error.filename}: {error.strerror}"
        status, sentence = 1, named if error.filename else str(error)
    except RunError as error:
        status, sentence = 1, str(error)
    except MemoryError as error:
        status, sentence = 1, f"out of memory: {error}"
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        sys.exit(130)
    print(f"error: {printable(sentence)}", file=sys.stderr)
    sys.exit(status)


def printable(text: str) -> str:
    """A line for the terminal: a name out of a forged file must not move the cursor, or fill it."""
    return "".join(c if c.isprintable() else "?" for c in text[:2000])


def print_to_nowhere() -> None:
    """After a BrokenPipeError: whoever read our output, such as `head`, has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def at_least(least: int | float, below: float = math.inf) -> Callable[[str], int | float]:
    """For argparse: a number of the type of `least`, from there up, and below `below`."""

    def number(text: str) -> int | float:
        value = type(least)(text)
        if not least <= value < below:
            limits = f"from {least} up" if below == math.inf else f"from {least} to below {below:g}"
            raise argparse.ArgumentTypeError(f"must be a number {limits}, not {text}")
        return value

    return number
