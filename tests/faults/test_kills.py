"""Kill a trainer whenever you like: its run goes on from its last checkpoint to the same end.

Six kills, or as many as the environment variable KILLS says, at instants that SEED decides, as
far as a race between processes can be repeated.
"""

import itertools
import os
import signal
import time
from collections import Counter

from harness import KILLS, SAVE_EVERY, STEPS, Trainer, check_same, step_saved, steps_logged
from tqdm import tqdm


def test_kills_at_random_instants(corpus, whole, tmp_path, chance):
    signals = itertools.cycle(["SIGKILL", "SIGTERM", "SIGINT"])
    seconds = {kind: time_of_a_run(tmp_path / kind, corpus, kind) for kind in whole}
    variants = itertools.cycle(itertools.product(whole, ([], ["--checkpoint-async"])))
    runs = (tmp_path / f"run-{number}" for number in itertools.count())
    kills, in_a_save, most_lost, exact = Counter(), 0, 0, 0
    begin = time.perf_counter()
    with tqdm(total=KILLS, unit="kill", disable=None) as bar:
        while exact < KILLS:
            run, (kind, background), lost = next(runs), next(variants), 0
            while step_saved(run) < STEPS:
                trainer = Trainer(run, "--data", corpus, *background, kind=kind)
                if kills.total() == KILLS:
                    assert trainer.end() == (0, "")
                    break
                name = next(signals)
                saving = kill(trainer, name, chance.uniform(0, seconds[kind]))
                if saving is None:
                    break
                # After a polite signal only what an earlier kill has lost is still to be repeated.
                most = SAVE_EVERY if name == "SIGKILL" else lost
                lost = steps_logged(run) - step_saved(run)
                assert 0 <= lost <= most, f"{name} has lost {lost} steps"
                kills[name] += 1
                in_a_save += saving
                most_lost = max(most_lost, lost)
                bar.update()
            check_same(run, whole[kind])
            exact = kills.total()
    counts = ", ".join(f"{count} {name}" for name, count in kills.items())
    print(
        f"{KILLS} kills ({counts}), {in_a_save} of them while a checkpoint was written: "
        f"{exact} exact resumes, at most {most_lost} steps lost with a checkpoint every "
        f"{SAVE_EVERY}; {time.perf_counter() - begin:.0f} s"
    )


def time_of_a_run(folder, corpus, kind):
    begin = time.perf_counter()
    assert Trainer(folder, "--data", corpus, kind=kind).end() == (0, "")
    return time.perf_counter() - begin


def kill(trainer, name, delay):
    """Send a signal after so many seconds: whether it met a save, or None if it came too late."""
    number, half_written = getattr(signal, name), trainer.folder / "checkpoint.npz.tmp"
    trainer.process.join(delay)
    saving = half_written.exists()
    if trainer.process.exitcode is None:
        os.kill(trainer.process.pid, number)
    status, err = trainer.end()
    if status == 0:
        return None
    # An interrupt that comes before the program begins is Python's own affair.
    assert status in (-number, 130) or not err or "KeyboardInterrupt" in err, err
    return saving or half_written.exists()
