"""Write a file so that it is whole under its name or not there at all; read one as text.

And have a folder for oneself, or not at all.
"""

import os
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import own_imports
from errors import RunError, UserError

# Seconds between attempts. On Windows nobody can replace a file that a scanner or a reader has
# open, which most have for a moment only.
PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


def patiently(act: Callable[[], object]) -> None:
    """Do something with a file, after some seconds if another program holds it until then.

    Raises:
        OSError: it cannot be done; if that is for lack of permission, it was tried often.
    """
    for pause in PAUSES:
        with suppress(PermissionError):
            act()
            return
        time.sleep(pause)
    act()


@contextmanager
def replacing(path: Path, keep_as: Path | None = None) -> Iterator[IO[bytes]]:
    """A binary file that takes the name `path` when it is complete and on the disk.

        with replacing(path) as file:
            file.write(...)

    Until then, what was there before stays; after an error or an interruption it stays for good. A
    file that is whole, and only cannot have its name, is left as `path` with ".tmp" behind it.

    Args:
        path: the file.
        keep_as: a name for what was there before; by default it goes.

    Raises:
        RunError: it cannot be written; the sentence names the file and the system's reason.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    unharmed = "what was there before is unharmed"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        raise RunError(f"cannot write {path}: {error.strerror or error}; {unharmed}") from error
    try:
        _rename(temporary, path, keep_as)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror}; {unharmed}, and the new one is {temporary}"
        ) from error


def _rename(new: Path, path: Path, keep_as: Path | None) -> None:
    """Give a file the name `path`, and the one that has it the name `keep_as`, or do neither."""
    if keep_as:
        patiently(lambda: path.replace(keep_as))
    try:
        patiently(lambda: new.replace(path))
    except BaseException:
        if keep_as:
            patiently(lambda: keep_as.replace(path))
        raise


@contextmanager
def making(folder: Path) -> Iterator[None]:
    """Make a folder if need be; if what follows fails, it is gone again, and those made for it."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # somebody else has put something there
            for path in new:
                path.rmdir()
        raise


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep the folder of a run, which is made if need be, from other runs until the end.

    The system holds the lock and lets it go when the process ends, however it does.

    Raises:
        UserError: another run has it.
    """
    from filelock import FileLock, Timeout  # which takes a moment, and only a run needs it

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"a run is going on in {folder}; wait for its end, or stop it first"
        ) from None
    except OSError as error:  # some network file systems have no locks
        print(f"cannot lock {folder} ({error.strerror}): start no other run in it", file=sys.stderr)
    try:
        yield
    finally:
        lock.release()


def member_start(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """The byte of an archive's file at which the content of a member begins.

    Its local header is 30 bytes, the last four of which are the lengths of the two fields that
    follow: its name, and extras. Source: PKWARE, ".ZIP File Format Specification", 4.3.7.

    Raises:
        ValueError: there is no such header.
    """
    file.seek(member.header_offset)
    signature, name, extras = struct.unpack("<4s22xHH", file.read(30).ljust(30))
    if signature != b"PK\3\4":
        raise ValueError(f"its member {member.filename[:80]!r} is not where it should be")
    return member.header_offset + 30 + name + extras


def decode_text(data: bytes, source: str | Path, offset: int = 0) -> str:
    """`data`, the bytes of `source` from `offset` on, as text with plain line ends and no BOM.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source} is not UTF-8: byte {data[error.start]:#04x} at offset "
            f"{offset + error.start} is wrong; save it as UTF-8"
        ) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def without_surrogates(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate, a half of a character that no UTF-8 can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def save_figure(figure, path: Path) -> None:
    """Write a matplotlib figure; the suffix of `path` says in which format.

    Raises:
        UserError: matplotlib does not know the suffix.
        RunError: the file cannot be written.
    """
    kind = path.suffix.removeprefix(".").lower()
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise UserError(f"cannot draw to {path}: the name must end in one of {', '.join(known)}")
    with replacing(path) as file:
        figure.savefig(file, format=kind, dpi=150)
