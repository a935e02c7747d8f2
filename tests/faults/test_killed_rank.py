"""A rank is killed: the run ends, says which one it was, and goes on to the same end."""

import contextlib
import shutil
import time

import psutil
import pytest
from harness import KILLS, SAVE_EVERY, check_same, run_arguments, step_saved, steps_logged

STEPS = 20  # mpirun alone takes longer than a hundred


@pytest.mark.parametrize("zero", [["--zero"], []] if KILLS >= 40 else [["--zero"]])
def test_a_rank_that_is_killed(mpirun, corpus, tmp_path, chance, zero):
    def start(run):
        """A run on two ranks that has taken a step."""
        arguments = run_arguments(run, "--data", corpus, "--steps", STEPS, *zero)
        process = mpirun(2, "tests/faults/harness.py", "gpt2", *arguments)
        next((line for line in process.stdout if line.startswith("step")), None)
        return process

    def finish(run):
        """The seconds that a run then takes to its end."""
        process, begin = start(run), time.perf_counter()
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, ""), out
        return time.perf_counter() - begin

    run, kills, longest = tmp_path / "run", 0, 0.0
    seconds = finish(tmp_path / "whole")
    while kills < max(1, KILLS // 40):
        process = start(run)
        rank, victim = chance.choice(find_ranks(process))
        time.sleep(chance.uniform(0, seconds))
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
        begin = time.perf_counter()
        _, err = process.communicate(timeout=60)
        if process.returncode != 0:
            longest = max(longest, time.perf_counter() - begin)
            assert f"rank {rank} " in err, err
            assert 0 <= steps_logged(run) - step_saved(run) <= SAVE_EVERY
            kills += 1
            if step_saved(run) < STEPS:
                finish(run)
        check_same(run, tmp_path / "whole")
        shutil.rmtree(run)
    print(f"{kills} ranks killed, {zero}: the longest time to the end was {longest:.1f} s")


def find_ranks(process):
    """The number of every rank that mpirun has started, and its process."""
    children = psutil.Process(process.pid).children(recursive=True)
    numbers = [child.environ().get("OMPI_COMM_WORLD_RANK") for child in children]
    return [pair for pair in zip(numbers, children, strict=True) if pair[0]]
