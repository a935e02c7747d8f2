import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from dev.data.textfile import main as prepare_textfile
from dev.download_starter_pack import FILES, STARTER
from errors import run_program

ROOT = Path(__file__).resolve().parents[1]
# For ranks: one thread, as two cores have several of them to run; and what Open MPI asks for.
RANKS = os.environ | {
    "OMP_NUM_THREADS": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PYTHONPATH": str(ROOT),
}

# On a busy machine a first example may take long; that is no failure.
settings.register_profile("llm.np", deadline=None)
settings.load_profile("llm.np")


@pytest.fixture(scope="session")
def starter() -> Path:
    """The folder of real files, which are not part of the repository."""
    if not all((STARTER / name).is_file() for name in FILES):
        pytest.skip("needs real files: python dev/download_starter_pack.py")
    return STARTER


@pytest.fixture
def program(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs a program in this process: (exit status, what it printed, what it complained about)."""

    def run(module: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"{module}.py", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            run_program(importlib.import_module(module).main)
        return exit_.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A small corpus of real English, as dev/data/textfile.py makes it."""
    from dev.data.pydocs import documents

    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text("\n".join(documents()[:4]), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        arguments = [str(folder / "text.txt"), "--tokenizer", "bpe:100", "--out", str(folder)]
        patch.setattr(sys, "argv", ["textfile.py", *arguments])
        prepare_textfile()
    return folder


@pytest.fixture
def mpirun():
    """Start a program on so many ranks, like subprocess.Popen; text comes through pipes."""
    pytest.importorskip("mpi4py")
    program = shutil.which("mpirun", path=str(Path(sys.executable).parent)) or shutil.which(
        "mpirun"
    )
    if not program:
        pytest.skip("there is no mpirun")

    def start(num_ranks, *arguments, options=()):
        return subprocess.Popen(
            [program, *options, "-n", str(num_ranks), sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=RANKS,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    return start
