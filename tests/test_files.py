"""A file is whole under its name, or what was there before is, whoever holds one of them."""

import subprocess
import sys
from pathlib import Path

import pytest

import files
from errors import RunError, UserError
from files import PAUSES, alone_in, replacing

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def pauses(monkeypatch):
    """How long is waited, which takes no time."""
    waited = []
    monkeypatch.setattr(files.time, "sleep", waited.append)
    return waited


@pytest.fixture
def hold(monkeypatch):
    """Let renamings of files with this name fail so many times, as those of open files on Windows.

    Before each of them one of the whole files must be under a name that is known.
    """
    replace = Path.replace

    def hold(name, times, *known):
        left = [times]

        def refuse(self, target):
            if known:
                assert {path.read_bytes() for path in known if path.exists()} & {b"old", b"new"}
            if self.name == name and left[0]:
                left[0] -= 1
                raise PermissionError(13, "Permission denied", str(self))
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", refuse)

    return hold


def write(path, data, keep_as=None):
    with replacing(path, keep_as) as file:
        file.write(data)


@pytest.mark.parametrize("held", ["file", "file.tmp"])
@pytest.mark.parametrize("times", [1, len(PAUSES)])
def test_a_file_that_is_held_for_a_moment_is_replaced_after_it(tmp_path, pauses, hold, held, times):
    path, older = tmp_path / "file", tmp_path / "older"
    write(path, b"old")
    hold(held, times, path, older)
    write(path, b"new", older)
    assert (path.read_bytes(), older.read_bytes()) == (b"new", b"old")
    assert pauses == list(PAUSES[:times])
    assert {each.name for each in tmp_path.iterdir()} == {"file", "older"}


@pytest.mark.parametrize("held", ["file", "file.tmp"])
def test_where_it_cannot_be_replaced_the_new_one_is_kept_beside_it(tmp_path, pauses, hold, held):
    path, older = tmp_path / "file", tmp_path / "older"
    write(path, b"old")
    hold(held, len(PAUSES) + 1, path, older)
    with pytest.raises(RunError, match=r"cannot write .*Permission denied.*file\.tmp$"):
        write(path, b"new", older)
    assert path.read_bytes() == b"old"
    assert not older.exists()
    assert (tmp_path / "file.tmp").read_bytes() == b"new"
    assert 5 < sum(pauses) < 10


def test_what_waiting_does_not_mend_is_told_at_once(tmp_path, pauses):
    (tmp_path / "file" / "in it").mkdir(parents=True)
    with pytest.raises(RunError, match=r"cannot write .*file: Is a directory"):
        write(tmp_path / "file", b"new")
    assert not pauses


def test_a_file_that_is_not_whole_is_gone(tmp_path):
    write(tmp_path / "file", b"old")
    with pytest.raises(KeyError), replacing(tmp_path / "file") as file:
        file.write(b"ne")
        raise KeyError
    assert (tmp_path / "file").read_bytes() == b"old"
    assert not (tmp_path / "file.tmp").exists()


STAY = """
import sys
from pathlib import Path
from files import alone_in

with alone_in(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["kill", "close"])
def test_a_folder_is_for_one_until_its_end(tmp_path, end):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", STAY, tmp_path / "new"]
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline().strip() == b"in"
        with pytest.raises(UserError, match="a run is going on in"), alone_in(tmp_path / "new"):
            pass
        process.kill() if end == "kill" else process.stdin.close()
    for _ in range(2):
        with alone_in(tmp_path / "new"):
            pass


def test_where_nothing_can_be_locked_that_is_told(tmp_path, monkeypatch, capsys):
    """As on some network file systems."""
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with alone_in(tmp_path):
        pass
    assert "cannot lock" in capsys.readouterr().err
