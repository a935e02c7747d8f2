"""Tiles: all of them are worked on, once each, and what comes back is in their order."""

import threading
import time

import pytest

from layers import tiles
from layers.tiles import run_tiles, slices


@pytest.fixture(params=[1, 2, 5])
def threads(request, monkeypatch):
    """As if BLAS used so many threads."""
    monkeypatch.setattr(tiles, "num_threads", lambda: request.param)
    tiles._helpers.cache_clear()
    yield request.param
    if request.param > 1:
        tiles._helpers().shutdown()
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


@pytest.mark.parametrize(("length", "count"), [(1, 1), (7, 1), (7, 3), (3, 7), (100, 9)])
def test_slices_cover_everything_once(length, count):
    parts = slices(length, count)
    assert [i for part in parts for i in range(length)[part]] == list(range(length))
    sizes = [part.stop - part.start for part in parts]
    assert len(parts) == min(length, count)
    assert max(sizes) - min(sizes) <= 1


def test_two_callers_leave_blas_as_it_was():
    """Each keeps it to one thread for a while; the last one must not restore that."""
    before = [library["num_threads"] for library in tiles._blas().info()]
    callers = [
        threading.Thread(
            target=lambda: [run_tiles(lambda _: time.sleep(1e-4), [0, 1], True) for _ in range(50)]
        )
        for _ in range(2)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    tiles._blas.cache_clear()
    assert [library["num_threads"] for library in tiles._blas().info()] == before
