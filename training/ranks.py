"""The ranks of a run: processes that train one model together under MPI, or this process alone.

    mpirun -n 4 python gpt2_train.py

Every rank has the model, computes its share of every batch, and makes the same update from the
gradient of all. Since gradients lie in one flat array, bringing them together is one operation on
it: the sum over all ranks, an all-reduce.
"""

import atexit
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from errors import RunError, UserError
from layers.tiles import num_threads, slices

# How many were started, as Open MPI's mpirun says it, and that of MPICH, Intel and Microsoft.
STARTED = "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"

# Elements that are exchanged at once. Two ranks on one machine sum 124M gradients in chunks of this
# size in 0.1 s, and in a single call, whose memory leaves every cache, in 0.25 s.
CHUNK = 4 * 1024 * 1024

BEAT = 1.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without one, after which a rank is given up
PARTING = 5.0  # seconds in which an error that all ranks have reaches all of them

GO_ON = "go on from its last checkpoint with --resume"


class Ranks:
    """One process: what it would tell the others, it keeps, and what it would ask, it knows.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        on_machine: how many of them are on this machine.
    """

    rank, size, on_machine = 0, 1, 1

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *error: Any) -> None:
        """Part from the others."""

    def describe(self) -> str:
        """What a person should know of them; nothing of a process that has all cores for itself."""
        allowed, there = len(_own_cores()), os.cpu_count()
        if allowed == there:
            return ""
        return (
            f"this process may run on {allowed} of {there} cores: it was started so, by mpirun "
            "without --bind-to none, by taskset or the like"
        )

    def first(self, choose: Callable[[], Any]) -> Any:
        """What `choose` returns or raises on rank 0, the only one to call it."""
        return choose()

    def total(self, value: float) -> float:
        """The sum of a number over all ranks, the same bits on each."""
        return value

    def mean(self, value: float) -> float:
        """The mean of a number over all ranks, the same bits on each."""
        return self.total(value) / self.size

    def part(self, size: int) -> slice:
        """Of so many elements, those that are this rank's own."""
        return slices(size, self.size)[self.rank]

    def sum(self, flat: np.ndarray) -> None:
        """Replace an array by its sum over all ranks: an all-reduce."""

    def sum_parts(self, flat: np.ndarray) -> None:
        """The same for this rank's own part, the rest being spoilt: a reduce-scatter."""

    def share_parts(self, flat: np.ndarray) -> None:
        """Give the own part to all others and take theirs: an all-gather."""

    def collect(self, part: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """On rank 0, an array of `size` elements piece by piece, of which each rank has its part.

        On every other rank nothing: it has to be iterated there all the same.
        """
        yield part


class MPIRanks(Ranks):
    """All processes that MPI has started together; `with` it, only rank 0 is heard."""

    def __init__(self) -> None:
        # Open MPI would else end the others in the middle of a call when it misses one.
        os.environ.setdefault("OMPI_MCA_mpi_ft_enable", "true")
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:  # the latter when there is no MPI library
            reason = " ".join(str(error).split())
            raise UserError(
                f"this is one of several processes under MPI, but mpi4py cannot be had ({reason}); "
                'pip install -e ".[mpi]", or mpi4py for the MPI of your cluster'
            ) from None
        self._mpi, self._comm = MPI, MPI.COMM_WORLD
        self.rank, self.size = self._comm.rank, self._comm.size
        started = next((os.environ[name] for name in STARTED if name in os.environ), self.size)
        if int(started) != self.size:
            raise UserError(
                f"{started} processes were started, but mpi4py knows of {self.size}: it belongs to "
                "another MPI; install it anew for this one, or use that one's mpirun"
            )
        neighbours = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.on_machine = neighbours.size
        cores = set().union(*neighbours.allgather(_own_cores()))
        # Ranks must not fight over cores: each gets its share, unless the user has said how many.
        if not os.environ.get("OMP_NUM_THREADS"):
            threadpool_limits(max(1, len(cores) // neighbours.size), user_api="blas")
        self._signs = self._comm.Dup()
        self._names = self._comm.allgather(self._name())
        self._closing = threading.Event()
        self._watch = threading.Thread(target=self._watch_neighbour, daemon=True)

    def __enter__(self) -> "Ranks":
        if self.rank > 0:
            sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")
        if self._mpi.Query_thread() == self._mpi.THREAD_MULTIPLE:
            self._watch.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Wait for the others; an error that not all of them have ends them, too."""
        if self._all_arrive(PARTING if error else math.inf):
            self._closing.set()
            if self._watch.is_alive():
                self._watch.join()
            return
        atexit.register(self._comm.Abort, 1)  # runs after the error has been told
        dead = self._dead()
        if dead:
            living = next(rank for rank in range(self.size) if rank not in dead)
            if self.rank == living:
                sys.stderr = sys.__stderr__
            else:
                time.sleep(1)  # who ends now may be taken for one more that has died
            names = " and ".join(self._names[rank] for rank in dead)
            have = "has" if len(dead) == 1 else "have"
            raise RunError(f"{names} {have} died, so the run has ended; {GO_ON}") from error
        sys.stderr = sys.__stderr__
        print(f"{self._name()} has failed:", file=sys.stderr)
        if isinstance(error, self._mpi.Exception):
            raise RunError(f"MPI says {error}; {GO_ON}") from error

    def _all_arrive(self, seconds: float) -> bool:
        """Whether all ranks come to this point in so many seconds."""
        deadline = time.monotonic() + seconds
        try:
            everyone = self._comm.Ibarrier()
            while not everyone.Test():
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.01)
        except self._mpi.Exception:
            return False
        return True

    def _dead(self) -> list[int]:
        """The ranks that are known to have died."""
        try:
            dead = self._comm.Get_failed()
            return list(dead.Translate_ranks(None, self._comm.group))
        except (NotImplementedError, AttributeError, self._mpi.Exception):
            return []  # an MPI, or an mpi4py, that does not know

    def describe(self) -> str:
        if self.size == 1:
            return super().describe()
        return (
            f"{self.size} ranks, {self.on_machine} of them on this machine, where each may run on "
            f"{len(_own_cores())} of {os.cpu_count()} cores and uses {num_threads()} threads"
        )

    def first(self, choose: Callable[[], Any]) -> Any:
        result, error = None, None
        if self.rank == 0:
            try:
                result = choose()
            except (Exception, SystemExit) as caught:
                error = caught
        result, error = self._comm.bcast((result, error))
        if error:
            raise error
        return result

    def total(self, value: float) -> float:
        # Not `allreduce`, whose first call holds the interpreter, and so stops the watch.
        result = np.array([value], np.float64)
        self._comm.Allreduce(self._mpi.IN_PLACE, result)
        return float(result[0])

    def sum(self, flat: np.ndarray) -> None:
        for chunk in _chunks(flat):
            self._comm.Allreduce(self._mpi.IN_PLACE, chunk)

    def sum_parts(self, flat: np.ndarray) -> None:
        def reduce(owner: int, chunk: np.ndarray) -> Any:
            if owner == self.rank:
                return self._comm.Ireduce(self._mpi.IN_PLACE, chunk, root=owner)
            return self._comm.Ireduce(chunk, None, root=owner)

        self._with_every_owner(flat, reduce)

    def share_parts(self, flat: np.ndarray) -> None:
        self._with_every_owner(flat, lambda owner, chunk: self._comm.Ibcast(chunk, root=owner))

    def _with_every_owner(self, flat: np.ndarray, start: Callable[[int, np.ndarray], Any]) -> None:
        """Do something with a chunk of every rank's part at once, until all chunks are done."""
        count = -(-len(flat) // CHUNK)
        parts = [np.array_split(flat[part], count) for part in slices(len(flat), self.size)]
        for chunks in zip(*parts, strict=True):
            self._mpi.Request.Waitall([start(owner, chunk) for owner, chunk in enumerate(chunks)])

    def collect(self, part: np.ndarray, size: int) -> Iterator[np.ndarray]:
        if self.rank > 0:
            for chunk in _chunks(part):
                self._comm.Send(chunk, 0)
            return
        yield part
        buffer = np.empty(CHUNK, part.dtype)
        for owner, theirs in list(enumerate(slices(size, self.size)))[1:]:
            for start in range(theirs.start, theirs.stop, CHUNK):
                chunk = buffer[: theirs.stop - start]
                self._comm.Recv(chunk, owner)
                yield chunk

    def _watch_neighbour(self) -> None:
        """Tell the next rank every second that this one lives, and listen to the one before it.

        MPI notices that a process has died where mpirun can see it; not a machine that has lost its
        power or its network, nor a process that was stopped.
        """
        with suppress(self._mpi.Exception):  # somebody has died, as the next exchange will show
            self._exchange_signs()

    def _exchange_signs(self) -> None:
        comm, after, before = self._signs, (self.rank + 1) % self.size, (self.rank - 1) % self.size
        sent, beat, silent = self._mpi.REQUEST_NULL, bytearray(1), 0.0
        while not self._closing.wait(BEAT):
            # Not by the clock: who was stopped itself for a while has missed nothing.
            silent += BEAT
            if sent.Test():
                sent = comm.Isend(beat, after)
            while comm.Iprobe(before):
                comm.Recv(bytearray(1), before)
                silent = 0.0
            if silent > SILENCE:
                print(
                    f"error: nothing was heard of {self._names[before]} for {SILENCE:.0f} seconds, "
                    f"so the run has ended; {GO_ON}",
                    file=sys.__stderr__,
                    flush=True,
                )
                self._comm.Abort(1)

    def _name(self) -> str:
        return f"rank {self.rank} on {socket.gethostname()} (process {os.getpid()})"


def started_by_mpi() -> bool:
    """Whether this process is one of those that MPI has started together."""
    # The last is Slurm's, whose srun does not say how many it has started.
    return any(name in os.environ for name in (*STARTED, "PMIX_RANK"))


def find_ranks() -> Ranks:
    """The processes that were started together with this one; without MPI it is alone.

    Raises:
        UserError: it has been started by MPI, but mpi4py is missing.
    """
    return MPIRanks() if started_by_mpi() else Ranks()


def _chunks(flat: np.ndarray) -> list[np.ndarray]:
    return [flat[start : start + CHUNK] for start in range(0, len(flat), CHUNK)]


def _own_cores() -> set[int]:
    """The cores on which this process may run."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
