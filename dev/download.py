"""Fetch one file, whole or not at all."""

import hashlib
import urllib.request
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from errors import RunError


def download(url: str, path: Path, otherwise: str, sha256: str | None = None) -> None:
    """Fetch `url` to `path`, which is there only once the file is complete.

    Args:
        otherwise: the end of the error's sentence: what to do when it cannot be fetched.
        sha256: what the file's SHA-256 must be, if that is known.

    Raises:
        RunError: it cannot be fetched, or it is not the file that was expected.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    digest = hashlib.sha256()
    try:
        with (
            urllib.request.urlopen(url, timeout=60) as response,
            partial.open("wb") as file,
            tqdm(desc=path.name, unit="B", unit_scale=True, disable=None, leave=False) as progress,
        ):
            expected = progress.total = int(response.headers.get("Content-Length", 0))
            while block := response.read(1 << 20):
                file.write(block)
                digest.update(block)
                progress.update(len(block))
            received = file.tell()
        if received < expected:
            raise ConnectionError(f"only {received:,} of {expected:,} bytes came")
        if sha256 and digest.hexdigest() != sha256:
            raise ConnectionError(f"its SHA-256 is {digest.hexdigest()} instead of {sha256}")
        partial.replace(path)
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)  # without urllib's "<urlopen error ...>"
        raise RunError(f"cannot fetch {url} ({reason}); {otherwise}") from error
    finally:
        partial.unlink(missing_ok=True)
