"""What a run says while it goes: the lines of its steps, and a bar in between."""

import sys
import threading
import time

from tqdm import tqdm


class Progress:
    """Lines on standard output, ever fewer of them, and on a terminal a bar on standard error.

    Args:
        steps: of the whole run.
        done: how many of them are done already.
        log_every: steps between the lines; None for `is_round`'s.
        visible: whether there may be a bar.
    """

    def __init__(self, steps: int, done: int, log_every: int | None, visible: bool) -> None:
        self.steps, self.step, self._log_every = steps, done, log_every
        # tqdm's own lock is for several processes, and a killed run would leave it behind.
        tqdm.set_lock(threading.RLock())
        self._bar = tqdm(
            total=steps, initial=done, unit=" steps", disable=None if visible else True, leave=False
        )
        self._done, self._begin = done, time.perf_counter()

    def at(self, step: int) -> None:
        """So many steps are done now; after a rollback fewer than before."""
        self._bar.update(step - self.step)
        self.step = step

    def is_due(self) -> bool:
        """Whether this step gets a line."""
        if self.step == self.steps:
            return True
        return self.step % self._log_every == 0 if self._log_every else is_round(self.step)

    def left(self) -> str:
        """The time that the other steps will take, validations and all, as in "01:14"."""
        seconds = (time.perf_counter() - self._begin) / max(self.step - self._done, 1)
        return tqdm.format_interval(seconds * (self.steps - self.step))

    def tell(self, *lines: str) -> None:
        """Print lines above the bar.

        Raises:
            BrokenPipeError: nobody reads them any more.
        """
        tqdm.write("\n".join(lines))
        sys.stdout.flush()

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()


def is_round(step: int) -> bool:
    """1, 2, ..., 10, 20, ..., 100, 200, ...: as many lines for every power of ten up to 100."""
    return step % min(10 ** (len(str(step)) - 1), 100) == 0
