"""Small models: each thread takes its share of the sequences through all layers, on its own.

Where the layers of a model are small, handing out each of them to all threads takes longer than it
saves. But sequences do not meet before their gradients are added. So a part of the batch goes
through the whole model on one thread, forward and backward, in its own places of the same buffer
of activations, and with gradients of its own; at the end these are added up.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from layers.tiles import num_threads, row_tiles, run_parts, run_tiles
from models.model import NO_DROPOUT, Dropout, Model

# The other threads' gradients take memory. They may take this share of what the activations do.
MOST_GRADS = 1 / 4


def forward_in_parts(forward: Callable) -> Callable:
    """A model's `forward`, which shares out a batch with targets, where that is worth it."""

    @functools.wraps(forward)
    def shared(
        model: Model,
        tokens: np.ndarray,
        targets: np.ndarray | None = None,
        *args: Any,
        drop: Dropout = NO_DROPOUT,
        **kwargs: Any,
    ) -> float | np.ndarray:
        model.parts = [] if targets is None or args or kwargs else _parts(model, tokens.shape)
        if not model.parts:
            return forward(model, tokens, targets, *args, drop=drop, **kwargs)
        B, T = model._start_forward(tokens, targets, 0, True)

        def work(part: Model) -> None:
            begin = part.first_row // T
            mine = slice(begin, begin + part.batch_size)
            own = drop._replace(row=drop.row + part.first_row)
            forward(part, tokens[mine], targets[mine], drop=own)

        run_parts(work, model.parts)
        model._remember(tokens, targets, 0, drop)
        return float(model.acts["losses"][: B * T].mean())

    return shared


def backward_in_parts(backward: Callable) -> Callable:
    """A model's `backward`, for the batch that its `forward` has shared out, or has not."""

    @functools.wraps(backward)
    def shared(model: Model, dloss: float = 1.0) -> None:
        if not model.parts:
            return backward(model, dloss)
        *_, accumulate = model._start_backward()
        while len(model.more_grads) < len(model.parts) - 1:
            model.more_grads.append(model.grads.like())
        first, *others = model.parts
        first.grads, first._accumulate = model.grads, accumulate
        for part, grads in zip(others, model.more_grads, strict=False):
            part.grads, part._accumulate = grads, False
        run_parts(lambda part: backward(part, dloss / len(model.parts)), model.parts)

        def add(tile: slice) -> None:
            for part in others:
                first.grads.flat[tile] += part.grads.flat[tile]

        run_tiles(add, row_tiles(first.grads.flat))

    return shared


def _parts(model: Model, shape: tuple[int, ...]) -> list[Model]:
    """Models of the same parameters, for an equal share of the sequences each; or none."""
    count = num_threads()
    if count == 1 or len(shape) != 2 or shape[0] % count:
        return []
    (B, T), acts = shape, model.acts
    too_much = (count - 1) * model.params.flat.size > MOST_GRADS * acts.flat.size
    # Fewer logits than rows are made one part after the other, all in the same place.
    if too_much or B > model.batch_size or B * T > len(acts["logits"]):
        return []
    if sum(part.batch_size for part in model.parts) == B and model.parts[0].rows == B // count * T:
        return model.parts  # as for the batch before
    return [_part(model, B // count, T, i) for i in range(count)]


def _part(model: Model, B: int, T: int, i: int) -> Model:
    """The model with its i-th B sequences of the activations alone."""
    part = copy.copy(model)
    part.batch_size, part.rows, part.first_row = B, B * T, i * B * T
    shapes = [
        model.config.act_shapes(end, T, recompute=model.recompute) for end in (i * B, (i + 1) * B)
    ]
    part.acts = {
        name: model.acts[name][tuple(map(_axis, begin, end))]
        for (name, begin), end in zip(shapes[0].items(), shapes[1].values(), strict=True)
    }
    part._cuts = {}
    return part


def _axis(begin: int, end: int) -> slice:
    """The sequences' places along an axis: from `begin` on if it has some, else all of it."""
    return slice(0 if begin == end else begin, end)
