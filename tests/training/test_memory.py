"""The memory map: everything is on it, to one scale, and can be read."""

import itertools

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from buffers import num_elements
from files import save_figure
from models import gpt2, llama2
from training.memory import EVERY_LAYER, ONCE, draw_memory_map, pieces, row_size

TINY, STORIES = gpt2.PRESETS["tiny"], llama2.PRESETS["stories15M"]


def buffers(config, B, T, recompute="none"):
    names = "parameters", "gradients", "Adam's m", "Adam's v"
    params, acts = config.param_shapes(), config.act_shapes(B, T, recompute=recompute)
    return dict.fromkeys(names, params) | {"activations": acts}


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """Draws a map, and gives its axes."""

    def draw(table, num_layers):
        figures = []

        def save(figure, path):
            save_figure(figure, path)
            figure.set_dpi(150)  # at which it was saved: names are measured as they are seen
            figure.draw_without_rendering()
            figures.append(figure)

        monkeypatch.setattr("training.memory.save_figure", save)
        draw_memory_map(table, tmp_path / "map.png", num_layers)
        return figures[0].axes[0]

    return draw


def bars(axes):
    """The bars, and for each row of them how far they reach."""
    found = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    rows = itertools.groupby(found, key=lambda bar: bar.get_y())
    return found, [sum(bar.get_width() for bar in row) for _, row in rows]


def test_every_element_has_its_place_on_one_scale(draw):
    table = buffers(TINY, 8, 128)
    axes = draw(table, TINY.num_layers)
    found, lengths = bars(axes)
    drawn = [num_elements(table[name]) for name in ("parameters", "activations")]
    row = row_size(drawn)
    assert lengths == [length for size in drawn for length in [row] * (size // row) + [size % row]]
    # In the picture, too, a bar is as long as it has elements.
    pixels = [bar.get_window_extent().width / bar.get_width() for bar in found]
    assert pixels == pytest.approx([axes.bbox.width / row] * len(found))


@pytest.mark.parametrize(
    ("config", "B", "T", "recompute"),
    [
        (TINY, 8, 128, "none"),
        (TINY, 1, 2, "blocks"),  # of the activations hardly a name can be read
        (gpt2.PRESETS["gpt2"], 4, 64, "norms"),
        (STORIES, 16, 256, "none"),
        (gpt2.GPT2Config(8, 20, 1, 1, 4), 1, 8, "none"),
    ],
)
def test_every_tensor_is_named_and_no_name_is_in_the_way_of_another(draw, config, B, T, recompute):
    table = buffers(config, B, T, recompute)
    axes = draw(table, config.num_layers)
    words = " ".join(text.get_text() for text in axes.texts).replace(",", "").split()
    for name in [*table["parameters"], *table["activations"]]:
        assert name in words
    boxes = [text.get_window_extent() for text in axes.texts]
    boxes.append(axes.get_legend().get_window_extent())
    assert all(box.count_overlaps(boxes) == 1 for box in boxes)  # only itself
    page = axes.figure.bbox
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 for box in boxes)
    assert all(page.y0 <= box.y0 and box.y1 <= page.y1 for box in boxes)


def test_a_name_is_within_its_tensor(draw):
    table = buffers(STORIES, 16, 256)
    axes = draw(table, STORIES.num_layers)
    found, _ = bars(axes)
    inside = {}
    for text, bar in itertools.product(axes.texts, found):
        box, room = text.get_window_extent(), bar.get_window_extent()
        if room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1:
            inside.setdefault(text.get_text().split("\n")[0], []).append(bar.get_width())
    logits = num_elements({"logits": table["activations"]["logits"]})
    assert sum(inside["logits"]) == logits
    assert sum(inside["wte"]) == 32000 * 288
    assert sum(inside["gate"]) == 6 * 4096 * 768


def test_what_repeats_is_drawn_once_and_told(draw):
    table = buffers(TINY, 8, 128)
    titles = [text.get_text() for text in draw(table, TINY.num_layers).texts]
    assert "parameters, 7.0 MiB; the same layout again for gradients, Adam's m, Adam's v" in titles
    assert "activations, 53 MiB" in titles
    assert "81 MiB in all; a full row is 8 MiB" in titles
    table["Adam's v"] = {"part": (1000,)}
    titles = [text.get_text() for text in draw(table, TINY.num_layers).texts]
    assert "parameters, 7.0 MiB; the same layout again for gradients, Adam's m" in titles
    assert "Adam's v, 0.0 MiB" in titles


def test_shades_mean_what_the_legend_says(draw):
    table = buffers(TINY, 8, 128, recompute="norms")
    axes = draw(table, TINY.num_layers)
    legend = axes.get_legend()
    shades = [to_hex(patch.get_facecolor()) for patch in legend.get_patches()]
    meanings = [text.get_text() for text in legend.get_texts()]
    assert meanings == ["a part for each layer, white lines between", "there once"]
    assert shades == [to_hex(EVERY_LAYER), to_hex(ONCE)]
    found, _ = bars(axes)
    counts = dict.fromkeys(shades, 0)
    for bar in found:
        counts[to_hex(bar.get_facecolor())] += bar.get_width()
    deeper = buffers(gpt2.GPT2Config(128, 2305, 4, 3, 192), 8, 128, recompute="norms")
    one_more = sum(num_elements(deeper[name]) for name in ("parameters", "activations"))
    per_layer = one_more - sum(num_elements(table[name]) for name in ("parameters", "activations"))
    # Of the residual stream there is one more than there are layers.
    assert counts[shades[0]] == 3 * per_layer + 1024 * 192


def test_lines_are_where_tensors_and_their_layers_begin(draw):
    shapes = {"wte": (500, 100), "qkvw": (3, 50, 100), "bias": (3,)}
    axes = draw({"parameters": shapes}, 3)
    lines = {"#000000": [], "#ffffff": []}
    row = row_size([num_elements(shapes)])
    tops = sorted({bar.get_y() for bar in axes.patches})
    for collection in axes.collections:
        (x, top), _ = collection.get_segments()[0]
        lines[to_hex(collection.get_colors()[0])].append(tops.index(top) * row + x)
    assert lines["#000000"] == [0, 50_000, 65_000]
    assert lines["#ffffff"] == [55_000, 60_000]
    assert to_hex(axes.patches[-1].get_facecolor()) == to_hex(ONCE)  # 3 numbers, and no layers


def test_rows_are_whole_powers_of_two_and_few():
    for sizes in ([1], [10**4, 10**9], [7 * 10**9] * 4, [1] * 40):
        row = row_size(sizes)
        assert row & (row - 1) == 0
        assert sum(-(-size // row) for size in sizes) <= max(12, len(sizes))
    cut = list(pieces(900, 3100, 1024))
    assert cut == [(0, 900, 124), (1, 0, 1024), (2, 0, 1024), (3, 0, 28)]
