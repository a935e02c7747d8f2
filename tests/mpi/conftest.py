"""How tests start several ranks of a program."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# One thread, as two cores have more ranks than one to run; and what Open MPI wants to be told.
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PYTHONPATH": str(ROOT),
}


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
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    return start
