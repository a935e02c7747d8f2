"""Save and resume a run: a few flat arrays and what is needed to go on, in one file.

The file is a NumPy archive (`numpy.load` opens it): `meta.json` and one .npy member for each array.
Every member carries a checksum. What is in them is the caller's affair; a training run keeps the
parameters, Adam's moments m and v, and the state of everything else that moves.
"""

import json
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from errors import FormatError, UserError
from files import member_start, replacing

FORMAT = "llm.np checkpoint"
VERSION = 1
LARGEST_META = 1 << 25  # bytes; a vocabulary of 100,000 tokens may have half of it
CHECKPOINT = "checkpoint.npz"  # its name in a run's folder
OLDER = "checkpoint-{:08}.npz"  # those before it, by their step
BEST = "best.npz"  # the parameters, and nothing else, of the lowest validation loss


class Pieces(NamedTuple):
    """A flat float32 array of `size` elements that comes piece by piece."""

    size: int
    pieces: Iterable[np.ndarray]


def save_checkpoint(
    path: Path,
    meta: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray | Pieces],
    keep_as: Path | None = None,
) -> None:
    """Write a checkpoint; whatever happens on the way, the previous one or this one is whole.

    Args:
        path: the file, which is replaced in one instant when the new one is on the disk.
        meta: anything JSON can hold.
        arrays: flat arrays by name.
        keep_as: a name for the previous one; by default it goes.

    Raises:
        RunError: it cannot be written; the previous one is unharmed.
    """
    header = {"format": FORMAT, "version": VERSION, "arrays": list(arrays), **meta}
    with replacing(path, keep_as) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("meta.json", json.dumps(header))
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write_array(member, array)


def _write_array(member: IO[bytes], array: np.ndarray | Pieces) -> None:
    if isinstance(array, np.ndarray):
        np.lib.format.write_array(member, array, allow_pickle=False)
        return
    header = {"descr": "<f4", "fortran_order": False, "shape": (array.size,)}
    np.lib.format.write_array_header_1_0(member, header)
    for piece in array.pieces:
        member.write(piece)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, the newest first."""
    newest = [folder / CHECKPOINT] if (folder / CHECKPOINT).is_file() else []
    pattern = OLDER.replace("{:08}", "[0-9]" * 8)
    return newest + sorted(folder.glob(pattern), reverse=True)


def drop_older(folder: Path, step: int, keep: int) -> None:
    """Delete the older checkpoints in a run's folder but for the last `keep` up to a step.

    Those of later steps were left by a run that has gone another way since.
    """
    older = [path for path in list_checkpoints(folder) if path.name != CHECKPOINT]
    kept = [path for path in older if path.name <= OLDER.format(step)][:keep]
    for path in set(older) - set(kept):
        with suppress(OSError):  # what is left over does no harm
            path.unlink()


def find_whole(folder: Path) -> Path:
    """The newest checkpoint in a run's folder that is whole, to the last bit.

    Says on stderr which newer ones are not.

    Raises:
        UserError: there is none.
    """
    for path in list_checkpoints(folder):
        try:
            names = read_meta(path).get("arrays", ())
            with _opened(path) as archive:
                for name in names:
                    with archive.open(f"{name}.npy") as member:
                        _skip(member)
            return path
        except FormatError as error:
            print(f"passed over: {error}", file=sys.stderr)
    raise UserError(f"there is no whole checkpoint in {folder}")


def read_meta(path: Path) -> dict[str, Any]:
    """What was saved beside the arrays.

    Raises:
        UserError: there is no such file.
        FormatError: it is not a whole checkpoint.
    """
    with _opened(path) as archive:
        size = archive.getinfo("meta.json").file_size
        if size > LARGEST_META:
            raise FormatError(f"{path} has a meta.json of {size} bytes; go back to a copy")
        meta = json.loads(archive.read("meta.json"))
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise FormatError(f"{path} is an archive, but not a checkpoint of this project")
    if meta.get("version") != VERSION:
        raise FormatError(
            f"{path} is a checkpoint of version {meta.get('version')}; this program reads {VERSION}"
        )
    return meta


@contextmanager
def described(path: Path) -> Iterator[dict[str, Any]]:
    """What was saved beside the arrays, for a block of statements that believes it.

    Raises:
        UserError: there is no such file, or the block raises it.
        FormatError: it is not a whole checkpoint, or the block does not find in it what it needs.
    """
    meta = read_meta(path)
    try:
        yield meta
    except UserError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            f"{path} does not tell what a run needs ({error!r}); go back to an earlier copy"
        ) from error


def load_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], start: int = 0, size: int | None = None
) -> None:
    """Fill flat arrays with what was saved under their names, without a second copy in memory.

    Args:
        path: the file.
        arrays: what to fill.
        start: the first element to read.
        size: how many elements were saved; by default as many as the arrays have.

    Raises:
        UserError: there is no such file.
        FormatError: it is damaged, or its arrays have another size or type.
    """
    with _opened(path) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy") as member:
                _check_array(path, name, member, size or array.size, array.dtype)
                _skip(member, start * array.itemsize)
                view = memoryview(array).cast("B")
                while view:
                    count = member.readinto(view[: 1 << 24])
                    if not count:
                        raise FormatError(f"{path}: {name} ends too early; go back to a copy")
                    view = view[count:]
                _skip(member)  # to its end, where the checksum is compared


def find_array(path: Path, name: str, size: int, dtype: np.typing.DTypeLike) -> int:
    """The byte of the file at which the numbers of a saved array begin.

    All of it is read once, so that its checksum is compared.

    Raises:
        FormatError: it is damaged, or of another size or type.
    """
    with _opened(path) as archive:
        info = archive.getinfo(f"{name}.npy")
        with archive.open(info) as member:
            _check_array(path, name, member, size, dtype)
            header_size = member.tell()
            if info.file_size < header_size + size * np.dtype(dtype).itemsize:
                raise FormatError(f"{path}: {name} ends too early; go back to a copy")
            _skip(member)
        if info.compress_type != zipfile.ZIP_STORED:
            raise FormatError(f"{path} was compressed by somebody; go back to a copy")
        return member_start(archive.fp, info) + header_size


def _skip(member: IO[bytes], count: int = sys.maxsize) -> None:
    """Read past so many bytes, or to the end; a seek would not look at the checksum."""
    while count and (read := len(member.read(min(count, 1 << 24)))):
        count -= read


def _check_array(
    path: Path, name: str, member: IO[bytes], size: int, dtype: np.typing.DTypeLike
) -> None:
    """Read the header of a member, and refuse another array than is needed."""
    np.lib.format.read_magic(member)
    shape, _, found = np.lib.format.read_array_header_1_0(member)
    if (shape, found) != ((size,), dtype):
        raise FormatError(
            f"{path}: {name} has {shape} elements of {found}, "
            f"where {size} of {np.dtype(dtype)} are needed"
        )


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """A checkpoint's archive; whatever is wrong with the file leaves as one kind of error."""
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except (UserError, MemoryError):
            raise
        # On damaged bytes zipfile, json and NumPy's parser of headers raise nearly anything.
        except Exception as error:
            raise FormatError(
                f"{path} is damaged or not a checkpoint ({error}); go back to an earlier copy"
            ) from error
