"""Several processes agree, share, and tell one story when something goes wrong."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mpi4py")

ROOT = Path(__file__).resolve().parents[2]

# What each rank does; `case` is replaced.
PROGRAM = """
import os, signal, subprocess, sys, time
del os.environ["OMP_NUM_THREADS"]
import numpy as np
from training import ranks
from layers.tiles import num_threads
from errors import UserError, run_program
ranks.CHUNK, ranks.SILENCE, ranks.PARTING = 1000, 3.0, 1.0

def main():
    with ranks.find_ranks() as r:
        {case}
        print("the end", r.rank, r.size)

run_program(main)
"""

EVERYTHING = """
        for size in (7, 1000, 2999, 6001):
            mine = np.arange(size, dtype=np.float32) + r.rank
            total = sum(np.arange(size, dtype=np.float32) + rank for rank in range(r.size))
            x = mine.copy()
            r.sum(x)
            assert np.array_equal(x, total)
            x, part = mine.copy(), r.part(size)
            r.sum_parts(x)
            assert np.array_equal(x[part], total[part])
            r.share_parts(x)
            assert np.array_equal(x, total)
            pieces = [piece.copy() for piece in r.collect(total[part], size)]
            assert np.array_equal(np.concatenate(pieces), total) if r.rank == 0 else not pieces
        assert r.total(0.5 + r.rank) == sum(0.5 + rank for rank in range(r.size))
        assert r.mean(r.rank) == (r.size - 1) / 2
        assert r.first(lambda: f"rank {r.rank}") == "rank 0"
        assert num_threads() == max(1, os.cpu_count() // r.size)
        assert r.on_machine == r.size
"""


def run(mpirun, num_ranks, case, *options):
    process = mpirun(num_ranks, "-c", PROGRAM.replace("{case}", case), options=options)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_who_is_alone_does_not_load_mpi():
    code = "import sys, train; print(train.find_ranks().size, 'mpi4py' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout == "1 False\n", out.stderr


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "error: 2 processes were started, but mpi4py knows of 1"),
        ({"MPI4PY_LIBMPI": "/no/libmpi.so"}, "error: this is one of several .*cannot load MPI"),
    ],
)
def test_the_wrong_mpi_is_a_mistake_of_one_sentence(settings, sentence):
    code = (
        "from errors import run_program; from training.ranks import find_ranks; "
        "run_program(find_ranks)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"OMPI_COMM_WORLD_SIZE": "2"} | settings,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert re.search(sentence, result.stderr.splitlines()[-1])


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_every_operation_is_what_it_says(mpirun, num_ranks):
    status, out, err = run(mpirun, num_ranks, EVERYTHING, "--bind-to", "none")
    assert (status, out, err) == (0, f"the end 0 {num_ranks}\n", "")


def test_a_rank_says_that_mpirun_has_bound_it(mpirun):
    if os.cpu_count() == 1:
        pytest.skip("needs more than one core")
    status, out, _ = run(mpirun, 1, "print(r.describe())", "--bind-to", "core")
    assert status == 0
    assert out.startswith(f"this process may run on 1 of {os.cpu_count()} cores: it was started so")


MISTAKE = """
        def refuse():
            raise UserError('too small; take another')
"""


@pytest.mark.parametrize("how", ["refuse()", "r.first(refuse)"])
def test_a_mistake_that_all_ranks_see_is_told_once(mpirun, how):
    status, out, err = run(mpirun, 3, f"{MISTAKE}        {how}")
    assert (status, out) == (2, "")
    assert err.count("error: too small; take another") == 1
    assert "has failed" not in err
    assert "Traceback" not in err


def test_a_rank_that_fails_alone_is_named_and_ends_the_others(mpirun):
    case = "if r.rank == 1: raise UserError('no such file; make it')\n        r.total(1)"
    status, out, err = run(mpirun, 3, case)
    assert status == 1
    assert "the end" not in out
    assert "rank 1 on" in err
    assert "has failed:\nerror: no such file; make it" in err
    assert "Traceback" not in err


def test_a_rank_that_has_gone_silent_is_named(mpirun):
    # mpirun wakes what it is about to kill, and that must not go on.
    stop = "os.kill(os.getpid(), signal.SIGSTOP), time.sleep(60)"
    status, out, err = run(mpirun, 3, f"if r.rank == 1: {stop}\n        r.total(1)")
    assert status != 0
    assert "the end" not in out
    assert "error: nothing was heard of rank 1 on" in err
    assert err.count("nothing was heard") == 1


STOP_ALL_FOR_A_WHILE = """
        ids = [str(number) for number in r._comm.allgather(os.getpid())]
        if r.rank == 0:
            nap = "kill -STOP $@; sleep 5; kill -CONT $@"
            subprocess.Popen(["sh", "-c", nap, "sh", *ids])
        time.sleep(8)
        r.total(1)
"""


def test_ranks_that_were_all_stopped_for_a_while_go_on(mpirun):
    assert run(mpirun, 3, STOP_ALL_FOR_A_WHILE) == (0, "the end 0 3\n", "")


def test_a_rank_that_was_killed_ends_the_run(mpirun):
    case = "if r.rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n        r.total(1)"
    status, out, err = run(mpirun, 3, case)
    assert status == 128 + signal.SIGKILL
    assert "the end" not in out
    assert "rank 1" in err
