"""Whatever ends a program, it is one sentence and an exit status."""

import os
import shutil
import signal
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


ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = [
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.py"), *ROOT.glob("dev/**/*.py"))
    if "run_file(" in path.read_text(encoding="utf-8") and path.stem != "errors"
]


def interrupt(number, after, *command):
    """Send a signal to a program that has imported so many modules: how it ends, and its words."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *command],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    with process:
        names = (line.rpartition("|")[2].strip() for line in process.stderr)
        assert "errors" in names  # the first of ours, and all before it are Python's own affair
        for _ in zip(range(after), names, strict=False):
            pass
        process.send_signal(number)
        said = [line for line in process.stderr if not line.startswith("import time:")]
    return process.returncode, "".join(said)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals to send")
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_is_quiet_when_interrupted_while_it_imports(program):
    assert interrupt(signal.SIGINT, 10, program) == (130, "interrupted\n")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals to send")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("after", [1, 50, 150, 300])
def test_whenever_it_is_interrupted(after, name):
    got = interrupt(getattr(signal, name), after, "gpt2_train.py", "--help")
    assert got == (130, "interrupted\n")


@pytest.mark.skipif(
    not shutil.which("nohup") or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN,
    reason="needs nohup, and not to run under it",
)
def test_what_a_program_is_told_to_ignore_it_ignores():
    program = "import os, signal, errors; errors.run_program(lambda: os.kill(os.getpid(), 1))"
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 130
    assert subprocess.run(["nohup", *command], cwd=ROOT, capture_output=True).returncode == 0
