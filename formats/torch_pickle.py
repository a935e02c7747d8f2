"""Files of `torch.save`, read without PyTorch and without running anything that is in them.

Such a file is a zip archive with one folder. In it, data.pkl is a pickle, which pickle_machine.py
runs: it puts lists and dicts together, and tensors of storages. A storage is another member,
data/0, data/1, ..., which has its numbers one behind the other and nothing else; several tensors
can share one.

Not handled: files of PyTorch before 1.6, and of TorchScript.

Source: PyTorch, torch/serialization.py.
"""

import io
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from errors import FormatError, UserError
from files import member_start
from formats.pickle_machine import MAX_BYTES, run

# How a file of PyTorch 0.4 to 1.5 begins: its magic number, pickled.
BEFORE_1_6 = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
AGAIN = "load it with torch and torch.save it again"


def load(path: Path) -> Any:
    """What `torch.load(path, map_location="cpu")` gives, with arrays in the place of tensors.

    Returns:
        Lists, dicts and so on, as they were saved. An array is read-only and mapped from the file;
        those that shared a storage still do. A parameter is an array too, an OrderedDict and a
        Counter are dicts, a torch.Size is a tuple, a torch.device its name, a torch.dtype NumPy's.

    Raises:
        UserError: there is no such file.
        FormatError: it is not a file of torch.save, it is damaged, or it wants what no model's
            weights need.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    _check_beginning(path)
    try:
        members = _members(path)
        return run(path, members["data.pkl"].tobytes(), members)
    except (UserError, MemoryError):
        raise
    # On damaged bytes zipfile, pickletools and the machine raise nearly anything.
    except Exception as error:
        raise FormatError(
            f"{path} cannot be read ({str(error)[:200]}): it is damaged, or not as torch.save "
            f"writes it; get it anew, or {AGAIN}"
        ) from error


def _check_beginning(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(BEFORE_1_6) or start[257:262] == b"ustar":
        raise FormatError(f"{path} has the format of PyTorch before 1.6, not read here; {AGAIN}")
    if not start.startswith(b"PK"):
        raise FormatError(f"{path} is not a file of torch.save; if torch can load it, {AGAIN}")


def _check_names(path: Path, names: Collection[str]) -> None:
    if "constants.pkl" in names:
        raise FormatError(
            f"{path} is a TorchScript archive, a program and not only weights; load it with "
            "torch.jit.load, and torch.save its state_dict()"
        )
    if "data.pkl" not in names:
        raise FormatError(f"{path} is a zip archive without a data.pkl: not a file of torch.save")


class _Table(io.FileIO):
    """A file of which zipfile gets no longer a table of contents than an honest one is."""

    def read(self, size: int = -1) -> bytes:
        return super().read(min(size, MAX_BYTES))  # it asks for -1, the rest, near the end only


def _members(path: Path) -> dict[str, np.ndarray]:
    """The bytes of every member, mapped, by its name without the archive's folder."""
    data = np.asarray(np.memmap(path, np.uint8, "r"))
    members: dict[str, np.ndarray] = {}
    folders, end = set(), 0
    with _Table(path) as file, zipfile.ZipFile(file) as archive:
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        _check_names(path, [info.filename.partition("/")[2] for info in infos])
        for info in infos:
            shown = repr(info.filename[:80])
            folder, _, name = info.filename.partition("/")
            folders.add(folder)
            if len(folders) > 1 or {"", ".", ".."} & {folder, *name.split("/")}:
                raise ValueError(f"it has a member {shown}")
            if name in members:
                raise ValueError(f"it has two members {shown}")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise ValueError(f"its member {shown} is compressed or encrypted")
            if info.header_offset < end:
                raise ValueError(f"its member {shown} begins within another")
            start = member_start(file, info)
            end = start + info.file_size
            if end > archive.start_dir:
                raise ValueError(f"its member {shown} ends outside of the file")
            members[name] = data[start:end]
            if name == "data.pkl":
                _check_program(members[name], info.CRC)
    if "byteorder" in members and members["byteorder"][:7].tobytes() != b"little":
        raise ValueError("it is from a computer that has the bytes of a number in another order")
    return members


def _check_program(program: np.ndarray, checksum: int) -> None:
    if len(program) > MAX_BYTES:
        raise ValueError(f"its data.pkl has {len(program):,} bytes")
    # 0 is from those who asked torch not to compute it. A storage's is not compared, as nobody
    # wants to read the whole of a large file in order to open it.
    if checksum not in (0, zlib.crc32(program)):
        raise ValueError("its data.pkl has another checksum")
