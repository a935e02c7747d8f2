"""How contenders take turns: who stands still meanwhile, and what is done when others disturb."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dev.bench import machine
from dev.bench.machine import Watch, Worker, own_cpu_seconds, take_turns
from errors import RunError, UserError

ENDED = None, psutil.STATUS_ZOMBIE


def counting_step(path: Path) -> Callable[[], int]:
    """For a worker: a step that ends at once, and a thread that goes on counting into a file."""
    import threading

    file = path.open("ab", buffering=0)

    def count() -> None:
        while file.write(b"."):
            time.sleep(0.001)

    threading.Thread(target=count, daemon=True).start()
    return lambda seconds=0.0: time.sleep(seconds) or os.getpid()


def refusing_step() -> None:
    raise UserError("not like this")


def dying_step() -> Callable[[], None]:
    return lambda: os._exit(3)


def status(pid: int) -> str | None:
    try:
        return psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return None


def await_status(pid: int, *wanted: str | None) -> None:
    deadline = time.monotonic() + 5
    while status(pid) not in wanted:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_waits_stands_still(tmp_path):
    worker = Worker("a counter", counting_step, tmp_path / "count")
    for _ in range(2):
        await_status(worker._process.pid, psutil.STATUS_STOPPED)
        before = (tmp_path / "count").stat().st_size
        time.sleep(0.1)
        assert (tmp_path / "count").stat().st_size == before
        assert worker.step(0.1) >= 0.1
        assert (tmp_path / "count").stat().st_size > before
    pid, peak = worker.finish()
    assert pid == worker.result
    assert peak > 2**20
    assert status(pid) in ENDED


def test_what_a_worker_refuses_or_dies_of_is_told():
    with pytest.raises(UserError, match="not like this"):
        Worker("a refuser", refusing_step)
    worker = Worker("a mortal", dying_step)
    with pytest.raises(RunError, match="a mortal ended early"):
        worker.step()


@pytest.mark.skipif(sys.platform == "win32", reason="it knows no such signals")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_benchmark(tmp_path, ending):
    program = tmp_path / "program.py"
    program.write_text(
        "import time\n"
        "from pathlib import Path\n"
        "from dev.bench.machine import Worker\n"
        "from errors import run_program\n"
        "from tests.dev.test_bench_machine import counting_step\n"
        "def main():\n"
        f"    worker = Worker('a counter', counting_step, Path({str(tmp_path / 'count')!r}))\n"
        "    worker.step()\n"
        "    print(worker.result, flush=True)\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    run_program(main)\n",
        encoding="utf-8",
    )
    root = str(Path(__file__).parents[2])
    # In a session of its own, as behind a terminal: the system ends what is stopped and orphaned
    # there, and in a container the first process may be of this test's session.
    benchmark = subprocess.Popen(
        [sys.executable, program],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": root},
        start_new_session=True,
    )
    pid = int(benchmark.stdout.readline())
    await_status(pid, psutil.STATUS_STOPPED)  # on a busy machine that takes a moment
    benchmark.send_signal(ending)
    benchmark.wait(5)
    benchmark.stdout.close()
    await_status(pid, *ENDED)


def test_our_own_time_is_that_of_all_that_we_have_started():
    before = own_cpu_seconds()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        while (taken := psutil.Process(child.pid).cpu_times().user) < 0.1:
            pass
        assert own_cpu_seconds() - before >= taken
        child.kill()
    assert own_cpu_seconds() - before >= taken


@pytest.mark.parametrize(
    ("own", "share", "disturbed"), [(0.0, 0.5, True), (0.1, 0.0, False), (0.2, 0.0, False)]
)
def test_what_others_take_is_what_is_busy_without_our_own(monkeypatch, own, share, disturbed):
    seconds = iter((5.0, 5.0 + own))
    clock = iter((7.0, 7.1))
    monkeypatch.setattr(machine, "own_cpu_seconds", lambda: next(seconds))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(machine.psutil, "cpu_count", lambda: 2)
    monkeypatch.setattr(machine.psutil, "cpu_percent", lambda: 50.0)
    with Watch() as watch:
        pass
    assert watch.others == pytest.approx(share * 0.2)
    assert watch.disturbed == disturbed


class Disturbed:
    """Stands for `Watch`: which of the turns are disturbed is known beforehand."""

    turns: list[bool]

    def __enter__(self):
        self.disturbed = self.turns.pop(0)
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize(
    ("turns", "most", "kept", "repeated", "disturbed"),
    [
        ([False] * 4, None, [2, 4], 0, 0),
        ([False, True, False, False, False, False], None, [4, 6], 1, 0),
        ([True] * 8, None, [6, 8], 2, 2),
        ([True] * 4, 2, [2, 4], 0, 2),
    ],
)
def test_a_disturbed_round_is_repeated_as_long_as_it_may(
    monkeypatch, turns, most, kept, repeated, disturbed
):
    monkeypatch.setattr(Disturbed, "turns", list(turns), raising=False)
    monkeypatch.setattr(machine, "Watch", Disturbed)
    calls = {"a": 0, "b": 0}

    def work(name: str) -> int:
        calls[name] += 1
        return calls[name]

    rounds = take_turns({name: lambda name=name: work(name) for name in calls}, 2, most)
    assert rounds.results == {"a": kept, "b": kept}  # the second call of each turn
    assert (rounds.repeated, rounds.disturbed) == (repeated, disturbed)
    assert not Disturbed.turns
    assert f"disturbed {repeated + disturbed} rounds" in str(rounds)
