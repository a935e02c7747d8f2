"""Tiles: all of them are worked on, once each, and what comes back is in their order."""

import os
import subprocess
import sys
import threading
import time

import pytest
from threadpoolctl import threadpool_info

from layers import tiles
from layers.tiles import run_tiles, shares, slices


@pytest.fixture(params=[1, 2, 5])
def threads(request, monkeypatch):
    """As if BLAS used so many threads."""
    monkeypatch.setattr(tiles, "_limit_blas", lambda: (request.param, False))
    tiles._helpers.cache_clear()
    yield request.param
    for _ in range(request.param - 1):
        tiles._helpers().put(None)
    tiles._helpers.cache_clear()


@pytest.mark.parametrize("count", [1, 2, 7, 200])
def test_results_are_in_order(threads, count):
    seen = []

    def work(item):
        seen.append(item)
        return item**2

    assert run_tiles(work, range(count)) == [item**2 for item in range(count)]
    assert sorted(seen) == list(range(count))


def test_all_threads_take_part(threads):
    """Each waits until all are there, which would take forever if one did not come."""
    meeting = threading.Barrier(threads, timeout=10)
    names = run_tiles(
        lambda _: (meeting.wait(), threading.current_thread().name)[1], range(threads)
    )
    assert len(set(names)) == threads
    assert threading.main_thread().name in names


@pytest.mark.parametrize("bad", [0, 3, 9])
def test_a_failure_is_not_lost(threads, bad):
    def work(item):
        if item == bad:
            raise ArithmeticError(f"tile {item}")

    with pytest.raises(ArithmeticError, match=f"tile {bad}"):
        run_tiles(work, range(10))
    assert run_tiles(str, range(3)) == ["0", "1", "2"]


def test_another_threads_end_is_waited_for_and_its_failure_not_lost(threads):
    meeting = threading.Barrier(threads, timeout=10)

    def work(fails):
        meeting.wait()  # so each takes one
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.05)
            if fails:
                raise ArithmeticError
        return 1

    assert run_tiles(work, threads * [False]) == threads * [1]
    if threads > 1:
        with pytest.raises(ArithmeticError):
            run_tiles(work, threads * [True])


def test_nobody_waits_for_a_thread_that_does_not_come(threads):
    """As one that another call keeps, or a busy machine."""
    busy, go_on, waited = threading.Barrier(threads, timeout=10), threading.Event(), []
    for _ in range(threads - 1):
        tiles._helpers().put(lambda: (busy.wait(), waited.append(go_on.wait(5))))
    busy.wait()
    assert run_tiles(abs, [-1, -2, -3]) == [1, 2, 3]
    assert not waited
    go_on.set()


@pytest.mark.parametrize(("length", "count"), [(1, 1), (7, 1), (7, 3), (3, 7), (100, 9)])
def test_slices_cover_everything_once(length, count):
    parts = slices(length, count)
    assert [i for part in parts for i in range(length)[part]] == list(range(length))
    sizes = [part.stop - part.start for part in parts]
    assert len(parts) == min(length, count)
    assert max(sizes) - min(sizes) <= 1


def test_blas_hands_its_threads_over():
    """In a process of its own, because it happens once."""
    code = (
        "from layers.tiles import num_threads; from threadpoolctl import threadpool_info;"
        "print(num_threads(), *(blas['num_threads'] for blas in threadpool_info()))"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    count, *blas = out.stdout.split()
    assert set(blas) <= {"1"}
    assert not blas or count == str(min(2, os.cpu_count()))


# What a program may do: its main thread sets the number of BLAS's threads, another one computes.
OWNED = """
import threading
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits
from layers import tiles

def compute():
    there = set()
    meeting = threading.Barrier(2, timeout=10)
    def work(_):
        there.add(threading.get_ident())
    for _ in range(2):
        tiles.run_products(work, range(20))
    assert there == {threading.get_ident()}
    assert tiles.shares(100, 10**9) == [slice(0, 100)]
    tiles.run_tiles(lambda _: meeting.wait(), range(2))
    computed.append(tiles.num_threads())

computed = []
threadpool_limits(2)
worker = threading.Thread(target=compute)
worker.start()
worker.join()
print(*computed, *(blas["num_threads"] for blas in threadpool_info()))
"""


def test_products_are_left_to_a_blas_that_keeps_its_threads():
    pytest.importorskip("threadpoolctl", minversion="3.8")
    layers = [b.get("threading_layer") for b in threadpool_info() if b["user_api"] == "blas"]
    if layers != ["pthreads"] or os.cpu_count() == 1:
        pytest.skip("this BLAS obeys every thread, or has one itself")
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    result = subprocess.run(
        [sys.executable, "-c", OWNED], env=environment, capture_output=True, text=True
    )
    assert result.stdout == "2 2\n", result.stderr
    assert result.stderr.count("\n") == 1
    assert "so it keeps 2; set it nowhere" in result.stderr


def test_a_product_is_shared_out_if_it_is_worth_it(threads):
    assert len(shares(100, 10**9)) == threads
    assert shares(100, 10**4) == [slice(0, 100)]
