"""Write a file so that it is whole under its name or not there at all; read one as text."""

import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from errors import RunError, UserError


@contextmanager
def replacing(path: Path, keep_as: Path | None = None) -> Iterator[IO[bytes]]:
    """A binary file that takes the name `path` when it is complete and on the disk.

        with replacing(path) as file:
            file.write(...)

    Until then, what was there before stays; after an error or an interruption it stays for good.

    Args:
        path: the file.
        keep_as: a name for what was there before; by default it goes.

    Raises:
        RunError: it cannot be written; the sentence names the file and the system's reason.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep_as:
            path.replace(keep_as)
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(
            f"cannot write {path}: {reason}; what was there before is unharmed"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


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
