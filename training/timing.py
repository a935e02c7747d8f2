"""Where the time of a training step goes: layer by layer, and into matrix products.

And how fast those could be: the peak of this machine.
"""

import functools
import itertools
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np

from adam import AdamW
from buffers import extents
from layers.tiles import num_threads, run_products, shares
from models.model import Model


def matmul_peak(size: int = 1536, repeats: int = 6) -> float:
    """The fastest that this machine multiplies float32 matrices, in GFLOP/s; takes a moment."""
    a, b, out = np.ones((3, size, size), np.float32)
    parts = shares(size, size**3)
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run_products(lambda rows: np.matmul(a[rows], b, out=out[rows]), parts)
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds) / 1e9


class Peak:
    """The fastest that this machine multiplies matrices, as far as that was seen.

    Args:
        total: the sum of a number over all ranks, for the peak of their machines together.

    Attributes:
        speed: in GFLOP/s.
    """

    def __init__(self, total: Callable[[float], float] = float) -> None:
        self._total = total
        self.speed = total(matmul_peak())

    def share(self, speed: float) -> str:
        """How much of the peak a speed is, for a person; all ranks ask for it together.

        What is faster than the peak shows that something else was busy when that was measured. So
        it is measured again, and if that still does, the speed is the best that is known of it.
        """
        again = ""
        if self._total(speed > self.speed):
            self.speed = max(self._total(matmul_peak()), self.speed, speed)
            again = ", measured again"
        return f"{speed / self.speed:.0%} of peak{again}"


class Profile:
    """Times every layer's calls, the optimiser and every matrix product of some training steps.

    For that, the functions that a model calls are replaced for the time of the steps by ones that
    look at the clock before and after: without a profile nothing is slower.

    Args:
        model: of any family.
        optimizer: its AdamW or Muon.
        take_step: one step of training.
        count: how many. One more, before them, pays for memory.

    Attributes:
        figures: {(layer, what): median over the steps}, in seconds. What a layer has is "forward",
            "backward" (the optimiser: "update"), "all" and "products", the part of it that
            multiplies matrices; "step" is all layers, and also has "operations".
    """

    def __init__(
        self, model: Model, optimizer: AdamW, take_step: Callable[[], Any], count: int = 5
    ) -> None:
        self._model = model
        self._calls: list[tuple[str, str, float]] = []  # layer, direction, seconds
        self._products: list[tuple[str, float, int]] = []  # layer, seconds of a thread, operations
        self._threads = num_threads()
        # What each thread is at. Only one of several models that share a batch has it to itself.
        self._layers: dict[int | None, str] = {}
        # The layers are what the model's module has imported.
        module = sys.modules[type(model).__module__]
        layers = {
            name: self._timed(function, *name.rsplit("_", 1))
            for name, function in vars(module).items()
            if name.endswith(("_forward", "_backward"))
        }
        step = self._timed(optimizer.step, type(optimizer).__name__, "update")
        take_step()
        steps = []
        with ExitStack() as replaced:
            replaced.enter_context(mock.patch.multiple(module, **layers))
            replaced.enter_context(mock.patch.object(optimizer, "step", step))
            replaced.enter_context(mock.patch.object(np, "matmul", self._timed_matmul()))
            for _ in range(count):
                begin = time.perf_counter()
                take_step()
                steps.append(self._summary(time.perf_counter() - begin))
        self.figures = {key: statistics.median(s[key] for s in steps) for key in steps[0]}

    def table(self, peak: Peak) -> str:
        """What was found, for a person to read."""
        total = self.figures["step", "all"]
        names = dict.fromkeys(name for name, _ in self.figures)  # in the order of the first pass
        lines = [
            f"{'':<22}{'forward':>10}{'backward':>10}{'in all':>12}"
            f"{'of the step':>13}{'in products':>13}"
        ]
        for name in names:
            forward, backward, every, products = (
                self.figures.get((name, kind), 0.0)
                for kind in ("forward", "backward", "all", "products")
            )
            lines.append(
                f"{name:<22}{_milliseconds(forward)}{_milliseconds(backward)}"
                f"  {_milliseconds(every)}{every / total:>13.1%}{products / every:>13.0%}"
            )
        products, operations = (self.figures["step", kind] for kind in ("products", "operations"))
        speed = operations / products / 1e9
        lines.append(
            f"matrix products are {products / total:.0%} of the step, at {speed:.0f} GFLOP/s "
            f"({peak.share(speed)}: {peak.speed:.0f})"
        )
        return "\n".join(lines)

    def _timed(self, function: Callable, layer: str, direction: str) -> Callable:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            name = self._layers[self._thread()] = f"{layer} {self._parameter(args)}".rstrip()
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                # What has only one of the threads takes so little of the machine's time.
                spent = (time.perf_counter() - begin) * num_threads() / self._threads
                self._calls.append((name, direction, spent))

        return timed

    def _thread(self) -> int | None:
        """The thread that has a layer to itself; None where all share one."""
        return threading.get_ident() if num_threads() < self._threads else None

    def _timed_matmul(self) -> Callable:
        matmul = np.matmul

        def timed(a: np.ndarray, b: np.ndarray, **kwargs: Any) -> np.ndarray:
            begin = time.perf_counter()
            out = matmul(a, b, **kwargs)
            seconds = time.perf_counter() - begin
            layer = self._layers[self._thread()]
            self._products.append((layer, seconds, 2 * out.size * a.shape[-1]))
            return out

        return timed

    def _parameter(self, args: tuple) -> str:
        """The name of the first of a layer's parameters; "" if it has none."""
        model = self._model
        buffers = model.params, model.grads, *model.more_grads
        for array, buffer in itertools.product(args, buffers):
            if np.may_share_memory(array, buffer.flat):
                offset = (array.ctypes.data - buffer.flat.ctypes.data) // buffer.flat.itemsize
                where = extents(buffer.shapes).items()
                return next(name for name, (start, stop) in where if start <= offset < stop)
        return ""

    def _summary(self, seconds: float) -> Counter:
        """The figures of the step just taken, in seconds: {(layer, what): figure}."""
        figures: Counter = Counter()
        for layer, direction, spent in self._calls:
            figures[layer, direction] += spent
            figures[layer, "all"] += spent
        listed = sum(spent for _, _, spent in self._calls)
        figures["everything else", "all"] = seconds - listed
        figures["step", "all"] = seconds
        for layer, spent, operations in self._products:
            # Every thread has a core: what is spent by one of two is half of the machine's time.
            figures[layer, "products"] += spent / self._threads
            figures["step", "products"] += spent / self._threads
            figures["step", "operations"] += operations
        self._calls.clear()
        self._products.clear()
        return figures


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:>7.1f} ms" if seconds else " " * 10
