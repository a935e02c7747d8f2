"""Whoever may not run on all cores is told: otherwise the machine only seems slow."""

import os

import pytest


@pytest.fixture(params=[True, False], ids=["one core", "all cores"])
def bound(request):
    """Whether this thread may run on a single core, as `taskset` and `mpirun -n 1` have it."""
    if not hasattr(os, "sched_setaffinity") or os.cpu_count() == 1:
        pytest.skip("needs Linux and more than one core")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(cores)] if request.param else range(os.cpu_count()))
    yield request.param
    os.sched_setaffinity(0, cores)


def test_a_run_says_that_it_may_not_use_all_cores(program, small, bound):
    status, out, _ = program("gpt2_train", *small, "--steps", 1)
    assert status == 0
    assert (f"this process may run on 1 of {os.cpu_count()} cores" in out) == bound
