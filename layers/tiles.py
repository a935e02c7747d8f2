"""Tiles: pieces of an array small enough to stay in a core's cache, shared out among threads.

A layer is a chain of array operations. Run over a whole activation, every link of the chain goes
to memory and back; run over one tile at a time, only the first reads from memory and only the last
writes to it. NumPy releases the interpreter's lock inside its loops, so tiles run on threads.
"""

import contextlib
import functools
import itertools
import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

# Elements in a tile. Measured on GELU with two threads: a quarter as many lose to the overhead of
# calls, and twice as many gain nothing.
TILE = 128 * 1024

# Multiplications in a matrix product that are worth waking another thread for.
PRODUCT = 2 * 1024 * 1024


def num_threads() -> int:
    """The number of threads: as many as NumPy's BLAS was going to use; 1 within `run_parts`.

    The environment variable OMP_NUM_THREADS sets it; by default it is every core. From the first
    call on, BLAS itself keeps to the thread that calls it: matrix products are cut into slices, as
    everything else is. Its own threads would be no faster, and they go on running for a while after
    each product, in the way of ours: attention took 1.7 times as long, small models a fifth longer.
    """
    return 1 if _thread.alone else _limit_blas()[0]


@functools.cache
def _limit_blas() -> tuple[int, bool]:
    """The threads that BLAS was going to use, and whether it goes on using them.

    So it does if another thread of this program has limited it before: since threadpoolctl 3.8,
    OpenBLAS obeys the first thread that does, as long as that one lives.
    """
    blas = ThreadpoolController().select(user_api="blas")
    count = max((library["num_threads"] for library in blas.info()), default=os.cpu_count() or 1)
    blas.limit(limits=1)
    kept = any(library["num_threads"] > 1 for library in blas.info())
    if kept:
        print(
            "matrix products are slower than they could be: another thread of this program has "
            f"set the number of BLAS's threads, so it keeps {count}; set it nowhere, or in the "
            "thread that computes",
            file=sys.stderr,
        )
    return count, kept


@functools.cache
def _helpers() -> SimpleQueue:
    """From here all threads but the one that calls take what they shall do.

    With an executor and its futures instead, each call of `run_tiles` takes 45 to 100 us more
    (measured with two threads): as long as a tile.
    """
    tasks: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()

    def serve() -> None:
        # A warning from here would say neither which layer nor which step overflowed.
        np.seterr(over="ignore", invalid="ignore")
        for task in iter(tasks.get, None):  # None ends it
            task()

    for number in range(1, num_threads()):
        threading.Thread(target=serve, name=f"tile-{number}", daemon=True).start()
    return tasks


def run_tiles(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Call `work(item)` for every item, on all threads, and return the results in order.

    Whoever sums the results in that order gets the same bits on every run with as many threads.

    Args:
        work: writes its tile of the outputs; does not call this function itself.
        items: one per tile.
    """
    if num_threads() == 1 or len(items) == 1:
        return list(map(work, items))
    results: list[Any] = [None] * len(items)
    remaining = iter(range(len(items)))
    tasks, ended = _helpers(), SimpleQueue()

    def take_turns() -> None:
        for i in remaining:  # an iterator gives each number to one thread only
            results[i] = work(items[i])

    def help_out() -> None:
        try:
            ended.put(take_turns())
        except BaseException as error:  # is raised where there is somebody to see it
            ended.put(error)

    for _ in range(num_threads() - 1):
        tasks.put(help_out)
    try:
        # The calling thread takes its turns, too: waking another one takes longest of all here.
        take_turns()
    finally:
        errors = []
        for _ in range(num_threads() - 1):
            # Nobody is waited for who has not come until now, as on a busy machine.
            with contextlib.suppress(Empty):
                tasks.get_nowait()()
            errors.append(ended.get())
    for error in filter(None, errors):
        raise error
    return results


def run_products(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """The same where `work` multiplies matrices: one after the other if BLAS keeps its threads.

    Products on several threads, each of which BLAS wants to share out again, wait for each other:
    attention took 1.2 times as long as one after the other, and 2.6 times on a busy machine.
    """
    return [work(item) for item in items] if _limit_blas()[1] else run_tiles(work, items)


def run_parts(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """The same where `work` takes long and calls layers: each call stays on its thread.

    Within, nothing is shared out further: no thread waits for another one before the end.
    """

    def alone(item: Any) -> Any:
        _thread.alone = True
        try:
            return work(item)
        finally:
            _thread.alone = False

    return run_products(alone, items)


class _Thread(threading.local):
    """What each thread has of its own."""

    block = np.empty(0, np.uint8)
    alone = False


_thread = _Thread()


def scratch(dtype: np.dtype, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """An array of each shape for the tile at hand, in memory that its thread uses again.

    The next call of the same thread overwrites what this one gives. Fresh arrays instead would be
    given back to the system and faulted in again tile after tile: it made GELU's backward pass
    three times slower.
    """
    end, starts = 0, []
    for shape in shapes:
        starts.append(end)
        end += -(-math.prod(shape) * dtype.itemsize // 64) * 64
    if _thread.block.size < end:
        _thread.block = np.empty(end, np.uint8)
    block = _thread.block
    places = zip(shapes, starts, strict=True)
    return [np.ndarray(shape, dtype, block, start) for shape, start in places]


def slices(length: int, count: int) -> list[slice]:
    """`range(length)` cut into `count` slices (fewer if there is not enough), as even as can be."""
    if count == 1:  # as for every small array: no time is to be lost
        return [slice(0, length)]
    count = min(length, count)
    edges = [length * i // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def shares(length: int, multiplications: int) -> list[slice]:
    """`range(length)` in a slice for each thread, or in one, if there is too little to multiply.

    In one, too, if BLAS keeps its threads.

    Args:
        length: of the side along which a matrix product is cut.
        multiplications: in the whole product.
    """
    several = multiplications > PRODUCT and not _limit_blas()[1]
    return slices(length, num_threads() if several else 1)


def tile_count(size: int, most: int = TILE) -> int:
    """How many tiles to make of `size` elements: each fits `most`, and every thread gets some.

    Below `TILE` elements, handing some of them to another thread takes longer than it saves.
    """
    count = -(-size // most)
    if size <= TILE:
        return count
    return -(-count // num_threads()) * num_threads()


def row_tiles(x: np.ndarray) -> list[slice]:
    """The rows of `x` (its first axis) cut into tiles."""
    return slices(len(x), tile_count(x.size))
