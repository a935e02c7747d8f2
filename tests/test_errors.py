"""Whatever ends a program, it is one sentence and an exit status."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from errors import RunError, UserError, run_program


def fail(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (UserError("too small; take another"), 2, "error: too small; take another\n"),
        (RunError("the disk is full"), 1, "error: the disk is full\n"),
        (RunError("a name\nof \x1b[2J a forged file"), 1, "error: a name?of ?[2J a forged file\n"),
        (PermissionError(13, "Permission denied", "a.txt"), 1, "error: cannot use a.txt: Permi"),
        (ConnectionError("no answer"), 1, "error: no answer\n"),
        (MemoryError("4 GiB"), 1, "error: out of memory: 4 GiB\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt("stopped after step 3"), 130, "stopped after step 3\n"),
    ],
)
def test_an_error_is_one_sentence_and_a_status(capsys, error, status, sentence):
    with pytest.raises(SystemExit) as ended:
        run_program(fail(error))
    out, err = capsys.readouterr()
    assert ended.value.code == status
    assert err.startswith(sentence)
    assert (out, err.count("\n")) == ("", 1)


TEXT = "naïve 漢"
PRINTS = f"""if True:
    from errors import RunError, run_program
    def main():
        print({TEXT!a})
        raise RunError({TEXT!a})
    run_program(main)
"""
# What Windows does of its own accord, and what Python can be told to do elsewhere.
LEGACY = {
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "ascii": {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
}


def start(settings, **streams):
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", PRINTS]
    return subprocess.run(command, cwd=root, env=os.environ | settings, timeout=60, **streams)


@pytest.mark.parametrize("settings", LEGACY.values(), ids=LEGACY)
def test_a_file_and_a_pipe_get_utf_8(tmp_path, settings):
    with (tmp_path / "out").open("wb") as file:
        err = start(settings, stdout=file, stderr=subprocess.PIPE).stderr
    assert (tmp_path / "out").read_text("utf-8") == f"{TEXT}\n"
    assert err.decode("utf-8").splitlines() == [f"error: {TEXT}"]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a console to write to")
@pytest.mark.parametrize(("coding", "shown"), [("cp1252", b"na\xefve ?"), ("ascii", b"na?ve ?")])
def test_a_console_shows_what_it_can(coding, shown):
    controller, console = os.openpty()
    start(LEGACY[coding], stdout=console, stderr=subprocess.DEVNULL)
    os.close(console)
    assert os.read(controller, 100) == shown + b"\r\n"
    os.close(controller)
