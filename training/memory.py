"""The memory of a training run: told before anything is allocated, and drawn."""

import textwrap
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from buffers import Shapes, check_available, extents, megabytes, num_elements
from files import save_figure

# Of the picture, in inches: its width, the height of a row, of the bars in it, and of a line of
# text. Of the two greys, any printer keeps one from the other.
WIDTH, ROW, BAR, LINE = 11, 0.42, 0.37, 0.18
EVERY_LAYER, ONCE = "0.72", "0.9"
MOST_ROWS = 12
NARROWEST = 1 / 250  # of a row, that a layer's part has to be to be drawn as one


def check_memory(
    buffers: Mapping[str, Shapes], advice: str, itemsize: int = 4, processes: int = 1
) -> None:
    """Print the memory that buffers of these shapes need; refuse it where the machine has less.

    Args:
        buffers: the table of shapes of each.
        advice: what to lower.
        itemsize: bytes per element.
        processes: how many on this machine need as much.

    Raises:
        UserError: less is available.
    """
    sizes = {name: itemsize * num_elements(shapes) for name, shapes in buffers.items()}
    listed = ", ".join(f"{name} {megabytes(size)}" for name, size in sizes.items())
    each = " for each rank" if processes > 1 else ""
    print(f"memory: {megabytes(sum(sizes.values()))}{each} ({listed})", flush=True)
    check_available(processes * sum(sizes.values()), "for this run", advice)


def draw_memory_map(
    buffers: Mapping[str, Shapes], path: Path, num_layers: int, itemsize: int = 4
) -> None:
    """Draw flat buffers to one scale, as text is set: a row goes on where the one above it ends.

    Buffers of one layout are drawn once.

    Args:
        buffers: the table of shapes of each.
        path: the picture; its suffix says in which format.
        num_layers: of the model. A tensor whose first of several dimensions is that, or one more
            for what is between layers, is drawn as having a part for each.
        itemsize: bytes per element.
    """
    from matplotlib.figure import Figure  # it takes long, and only pictures need it
    from matplotlib.patches import Patch

    layouts: dict[tuple, list[str]] = {}
    for name, shapes in buffers.items():
        layouts.setdefault(tuple(shapes.items()), []).append(name)
    total = itemsize * sum(map(num_elements, buffers.values()))
    row = row_size([num_elements(dict(layout)) for layout in layouts])

    # Axes count elements from left to right, and inches from top to bottom.
    figure = Figure(figsize=(WIDTH, 1))
    axes = figure.add_axes((0.07, 0, 0.925, 1), xlim=(0, row), ylim=(1, 0))
    axes.axis("off")
    y = LINE
    axes.text(
        0,
        0.75 * y,
        f"{megabytes(total)} in all; a full row is {binary(itemsize * row)}",
        va="center",
    )
    for layout, names in layouts.items():
        shapes = dict(layout)
        size = num_elements(shapes)
        again = f"; the same layout again for {', '.join(names[1:])}" if names[1:] else ""
        y += 2 * LINE
        axes.text(0, y, f"{names[0]}, {megabytes(itemsize * size)}{again}", va="center")
        y += LINE
        unnamed = draw_tensors(axes, y, shapes, num_layers)
        for start in range(0, size, row):
            offset = {"ha": "right", "va": "center", "fontsize": 8}
            axes.text(-0.005 * row, y + BAR / 2, binary(itemsize * start), **offset)
            y += ROW
        listed = f"too narrow for a name: {', '.join(unnamed)}" if unnamed else ""
        for line in textwrap.wrap(listed, 150):
            axes.text(0, y + LINE / 2, line, va="center", fontsize=8)
            y += LINE
    y += LINE / 2
    axes.set_ylim(y, 0)
    figure.set_size_inches(WIDTH, y)
    meanings = {EVERY_LAYER: "a part for each layer, white lines between", ONCE: "there once"}
    patches = [Patch(color=color, label=meaning) for color, meaning in meanings.items()]
    axes.legend(handles=patches, loc="upper right", ncols=2, frameon=False, borderaxespad=0.2)
    save_figure(figure, path)


def draw_tensors(axes: Any, top: float, shapes: Shapes, num_layers: int) -> list[str]:
    """Draw the tensors of a buffer in rows from `top` down.

    Returns:
        The names of those in which there was no room for it.
    """
    row = int(axes.get_xlim()[1])
    unnamed = []
    for name, (start, stop) in extents(shapes).items():
        shape = shapes[name]
        layered = len(shape) > 1 and shape[0] in (num_layers, num_layers + 1)
        style = {"height": BAR, "align": "edge", "color": EVERY_LAYER if layered else ONCE}
        named = [
            put_name(axes.barh(top + number * ROW, width, left=left, **style)[0], name, shape)
            for number, left, width in pieces(start, stop, row)
        ]
        if not any(named):
            unnamed.append(name)
        part = (stop - start) // shape[0]
        parts_are_seen = layered and part >= NARROWEST * row
        for border in range(start, stop, part if parts_are_seen else stop - start):
            number, left = divmod(border, row)
            y, color = top + number * ROW, "black" if border == start else "white"
            axes.vlines(left, y, y + BAR, color=color, linewidth=0.5)
    return unnamed


def put_name(bar: Any, name: str, shape: tuple[int, ...]) -> bool:
    """Write a tensor's name into a bar, with its shape where it fits; False if neither does."""
    room = bar.get_window_extent()
    style = {"ha": "center", "va": "center", "fontsize": 8}
    style["bbox"] = {"color": bar.get_facecolor(), "pad": 0.5, "linewidth": 0}  # over white lines
    for words, angle in ((f"{name}\n{shape}", 0), (name, 0), (name, 90)):
        text = bar.axes.text(*bar.get_center(), words, rotation=angle, **style)
        box = text.get_window_extent()
        if box.width + 2 <= room.width and box.height <= room.height:
            return True
        text.remove()
    return False


def row_size(sizes: Collection[int]) -> int:
    """How many elements a row has, a power of two, so that buffers of these sizes need few."""
    row = 1024
    while sum(-(-size // row) for size in sizes) > max(MOST_ROWS, len(sizes)):
        row *= 2
    return row


def pieces(start: int, stop: int, row: int) -> Iterator[tuple[int, int, int]]:
    """Cut what reaches from `start` to `stop` at the ends of rows: the row, place in it, width."""
    while start < stop:
        number, left = divmod(start, row)
        width = min(stop - start, row - left)
        yield number, left, width
        start += width


def binary(size: int) -> str:
    """Bytes in whole MiB, or else in KiB."""
    return f"{size >> 10:,} KiB" if size % 2**20 else f"{size >> 20:,} MiB"
