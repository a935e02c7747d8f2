"""Draw where each layer of a GPT-2 stands between memory bandwidth and matmul peak.

    python dev/bench/roofline.py --out docs/roofline.png

The roofline model (Williams, Waterman and Patterson 2009, "Roofline: an insightful visual
performance model for multicore architectures"): whoever does I operations on each byte that moves
between memory and processor cannot do more than min(peak, bandwidth I) of them in a second. The
distance to that roof is what could be won.

Moved are all inputs once and all outputs once, as if caches were perfect. What a cache still holds
from the call before need not move at all: such a point may lie above the slope.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
import itertools
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from dev.bench.layers import DIRECTIONS, Case, Times, add_options, gpt2_cases, measure, our_calls
from dev.bench.machine import Worker, memory_bandwidth, picture, use_threads
from files import save_figure
from layers.tiles import num_threads
from training.timing import matmul_peak

# Operations per byte and GFLOP/s, by layer and direction.
Points = dict[tuple[str, str], tuple[float, float]]

# Filled and hollow, so that they differ without colours, too.
MARKERS = {
    "forward": {"marker": "o", "color": "black", "linestyle": "", "markersize": 5},
    "backward": {
        "marker": "s",
        "color": "black",
        "markerfacecolor": "white",
        "linestyle": "",
        "markersize": 5,
    },
}

# Operations and numbers moved; forward, then backward; from the sizes of a layer. Every operation
# of its formula counts, a tanh or an exp as one; but not what is done once for a row, and of what
# moves not arrays with one number for a row or a column.
COUNTS: dict[str, Callable[..., tuple[tuple[int, int], tuple[int, int]]]] = {
    # Forward is a copy. Backward adds rows to a table that has to be written whole.
    "embedding": lambda N, V, C: ((0, 2 * N * C), (N * C, N * C + V * C)),
    "position": lambda B, T, C, maxT: (
        (B * T * C, 2 * B * T * C + T * C),
        (B * T * C, B * T * C + maxT * C),
    ),
    # mean 1, minus mean 1, variance 2, times rstd 1, weight 1, bias 1. Backward: norm 2, dweight 2,
    # dbias 1, dnorm 1, its two means 3, what is left 4.
    "layernorm": lambda N, C: ((7 * N * C, 2 * N * C), (13 * N * C, 3 * N * C)),
    # One product, then two, of a multiplication and an addition for each of N I O.
    "linear": lambda N, I, O, bias=True: (  # noqa: E741
        (2 * N * I * O + (bias is not None) * N * O, N * I + I * O + N * O),
        (4 * N * I * O + (bias is not None) * N * O, 2 * N * I + 2 * I * O + N * O),
    ),
    "attention": lambda B, T, H, K, D: attention_counts(B, T, H, D),
    # x^2 1, u 3, tanh 1, y 3. Backward: the same 5 up to tanh, x du/dx 3, derivative 6, dx 1.
    "gelu": lambda N, C: ((8 * N * C, 2 * N * C), (15 * N * C, 3 * N * C)),
    # Times 0 or 1, times the factor; making the mask is no operation of the formula.
    "dropout": lambda N, C, p: ((2 * N * C, 2 * N * C), (2 * N * C, 2 * N * C)),
    # Largest 1, difference 1, exp 1, sum 1. Backward: difference 1, exp 1, times dlosses 1.
    "softmax_crossentropy": lambda N, V: ((4 * N * V, N * V), (3 * N * V, 2 * N * V)),
    "classifier": lambda N, C, V, R: classifier_counts(N, C, V, R),
}


def attention_counts(B: int, T: int, H: int, D: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """For every query and each key up to its own: 2 products over D forward, 5 backward.

    And of each score: scaled, largest, difference, exp, sum. Backward: scaled, difference, exp;
    and of its derivative minus row sum, times prob, scaled.
    """
    scores = B * H * T * (T + 1) // 2
    numbers = B * T * H * D
    return ((4 * D + 5) * scores, 4 * numbers), ((10 * D + 6) * scores, 8 * numbers)


def classifier_counts(N: int, C: int, V: int, rows: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The linear layer's and softmax_crossentropy's, but of the logits only what is saved moves.

    Backward makes all logits again but those of the last part of the rows.
    """
    parts = -(-N // rows)
    again = N * (parts - 1) // parts
    numbers = N * C + V * C
    forward = 2 * N * C * V + 4 * N * V, numbers + rows * V
    return forward, ((4 * N + 2 * again) * C * V + 3 * N * V, 2 * numbers + rows * V)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--out", type=picture, default=Path("docs/roofline.png"))
    args = parser.parse_args()
    use_threads(args.threads)
    cases, machine = gpt2_cases(args), Worker("the measurement of the machine", limits_step)
    machine.step()
    times = measure(cases, {"llm.np": our_calls}, args.pairs)
    machine.step()  # again: a machine that is shared may have been busy before
    (threads, peak, bandwidth), _ = machine.finish()
    points = roofline_points(cases, times)
    print(f"{threads} threads: matmul peak {peak:.0f} GFLOP/s, bandwidth {bandwidth:.1f} GB/s")
    for label, direction in points:
        intensity, speed = points[label, direction]
        share = speed / min(peak, bandwidth * intensity)
        print(
            f"{label:<21} {direction:<9} {intensity:8.2f} FLOP/byte {speed:8.2f} GFLOP/s "
            f"{share:5.0%} of the roof"
        )
    sizes = f"{args.preset}, B={args.batch_size} T={args.seq_len}, float32, {threads} threads"
    save_figure(draw(points, peak, bandwidth, f"The layers of {sizes}"), args.out)
    print(f"wrote {args.out}")


def limits_step() -> Callable[[], tuple[int, float, float]]:
    """For a worker: threads, and the best so far of GFLOP/s in a product and GB/s of memory."""
    peaks, bandwidths = [], []

    def step() -> tuple[int, float, float]:
        peaks.append(matmul_peak())
        bandwidths.append(memory_bandwidth())
        return num_threads(), max(peaks), max(bandwidths)

    return step


def roofline_points(cases: dict[str, Case], times: Times) -> Points:
    """Operations per byte and GFLOP/s, by label and direction; none for what only copies."""
    points = {}
    for label, (name, sizes) in cases.items():
        for direction, (operations, numbers) in zip(DIRECTIONS, COUNTS[name](**sizes), strict=True):
            seconds = statistics.median(times[label, direction]["llm.np"])
            if operations:
                intensity = operations / (4 * numbers)
                points[label, direction] = intensity, operations / seconds / 1e9
    return points


def draw(points: Points, peak: float, bandwidth: float, title: str) -> Figure:
    """The roof with all points under it; and again those of products with weights: a crowd."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    figure.suptitle(title)
    whole, zoom = figure.subplots(1, 2, width_ratios=(3, 2))
    products = {
        (label, direction): point
        for (label, direction), point in points.items()
        if label.split()[0] in ("linear", "classifier")
    }

    intensities, speeds = zip(*points.values(), strict=True)
    left, right = min(intensities) / 2, 2 * max(*intensities, peak / bandwidth)
    whole.set(title="all layers", xscale="log", yscale="log", xlim=(left, right))
    whole.set_ylim(min(*speeds, bandwidth * left) / 2, 3 * max(*speeds, peak))
    intensities, speeds = zip(*products.values(), strict=True)
    zoom.set(title="linear layers and classifier, on linear scales")
    zoom.set(
        xlim=(0.5 * min(intensities), 1.2 * max(intensities)), ylim=(0, 1.15 * max(*speeds, peak))
    )
    for axes, shown in ((whole, points), (zoom, products)):
        plot(axes, shown, peak, bandwidth)
    markers = [Line2D([], [], label=each, **MARKERS[each]) for each in DIRECTIONS]
    whole.legend(handles=markers, loc="lower right")

    middle = math.sqrt(left * peak / bandwidth)
    limits = {
        f"matmul peak {peak:.0f} GFLOP/s": (peak / bandwidth, peak),
        f"memory bandwidth {bandwidth:.1f} GB/s": (middle, bandwidth * middle),
    }
    spots = {label: point for (label, _), point in reversed(points.items())}  # forward, if any
    crowd = {label: spots.pop(label) for label in dict.fromkeys(label for label, _ in products)}
    add_labels(whole, limits | spots | {"see right": next(iter(crowd.values()))})
    add_labels(zoom, crowd)
    return figure


def plot(axes: Axes, points: Points, peak: float, bandwidth: float) -> None:
    """The roof, and a layer's two points joined by a line."""
    roof = np.geomspace(*axes.get_xlim(), 150)
    axes.plot(roof, np.minimum(peak, bandwidth * roof), color="black")
    for label in dict.fromkeys(label for label, _ in points):
        both = [points[label, each] for each in DIRECTIONS if (label, each) in points]
        axes.plot(*zip(*both, strict=True), color="0.7", linewidth=0.8, zorder=1)
    for (_, direction), point in points.items():
        axes.plot(*point, **MARKERS[direction])
    axes.set_xlabel("arithmetic intensity (operations per byte moved)")
    axes.set_ylabel("GFLOP/s (a tanh or an exp is one operation)")
    axes.grid(alpha=0.2)


def add_labels(axes: Axes, spots: dict[str, tuple[float, float]]) -> None:
    """Label spots, each where the label covers no other one and nothing that is plotted."""
    figure = axes.get_figure()
    figure.draw_without_rendering()  # before this, nothing has its place
    points_per_pixel = 72 / figure.dpi

    def place(spots: np.typing.ArrayLike) -> np.ndarray:
        return axes.transData.transform(spots) * points_per_pixel

    frame = Bbox(axes.bbox.get_points() * points_per_pixel)
    lines = [place(line.get_xydata()) for line in axes.get_lines()]
    taken = [Bbox([center - 4, center + 4]) for line in lines for center in line]
    for label, spot in spots.items():
        text = axes.annotate(
            label,
            spot,
            (0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.6, "shrinkB": 3},
        )
        text.set_in_layout(False)  # else the axes would make room for it
        center, half = place(spot), np.array(text.get_window_extent().size) * points_per_pixel / 2
        for distance, angle in itertools.product(range(8, 200, 4), np.arange(0, 6.2, 0.2)):
            # Beside its spot a label has to be farther away than above, because it is wide.
            offset = (distance + half) * (math.cos(angle), math.sin(angle))
            box = Bbox([center + offset - half, center + offset + half])
            inside = frame.x0 < box.x0 and box.x1 < frame.x1 and box.y1 < frame.y1
            if inside and not box.count_overlaps(taken):
                break
        text.set_position(offset)
        taken.append(box)
