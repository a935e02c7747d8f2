"""What a learner may write in lesson 18, right and wrong."""

import numpy as np


def topological_order(node):
    order, visited, stack = [], set(), [(node, False)]
    while stack:
        current, parents_are_done = stack.pop()
        if parents_are_done:
            order.append(current)
        elif current not in visited:
            visited.add(current)
            stack.append((current, True))
            stack += [(parent, False) for parent in reversed(current.parents)]
    return order


def topological_order_first(node):
    order = [node]
    for parent in node.parents:
        order += [n for n in topological_order_first(parent) if n not in order]
    return order


def topological_order_repeated(node):
    order = []
    for parent in node.parents:
        order += topological_order_repeated(parent)
    return [*order, node]


def topological_order_anew(node):
    order = []
    for parent in node.parents:
        order.extend([] if parent in order else topological_order_anew(parent))
    return [*order, node]


def topological_order_reversed(node):
    return list(reversed(topological_order(node)))


def gradients(order):
    found = {}
    for node in reversed(order):
        dout = found.setdefault(node, 1.0)  # only the loss has none yet
        for parent, gradient in zip(node.parents, node.backward(dout), strict=True):
            found[parent] = found.get(parent, 0) + gradient
    return found


def gradients_assigned(order):
    found = {order[-1]: 1.0}
    for node in order[::-1]:
        for parent, gradient in zip(node.parents, node.backward(found[node]), strict=True):
            found[parent] = gradient
    return found


def gradients_forwards(order):
    found = {order[-1]: 1.0}
    for node in order:
        for parent, gradient in zip(node.parents, node.backward(found[node]), strict=True):
            found[parent] = found.get(parent, 0) + gradient
    return found


def unbroadcast(gradient, shape):
    while gradient.ndim > len(shape):
        gradient = gradient.sum(axis=0)
    for axis, size in enumerate(shape):
        if size == 1:
            gradient = gradient.sum(axis=axis, keepdims=True)
    return gradient


def unbroadcast_mean(gradient, shape):
    while gradient.ndim > len(shape):
        gradient = gradient.mean(axis=0)
    for axis, size in enumerate(shape):
        if size == 1:
            gradient = gradient.mean(axis=axis, keepdims=True)
    return gradient


def unbroadcast_leading(gradient, shape):
    return gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))


def matmul_backward(dout, a, b):
    da = np.einsum("...no,...io->...ni", dout, b)
    db = np.einsum("...ni,...no->...io", a, dout)
    return da, db


def matmul_backward_swapped(dout, a, b):
    da, db = matmul_backward(dout, a, b)
    return db, da


def matmul_backward_not_transposed(dout, a, b):
    return dout @ b, a @ dout


def max_backward(dout, x):
    dx = np.zeros_like(x)
    rows = np.arange(len(x))
    dx[rows, x.argmax(axis=1)] = dout[:, 0]
    return dx


def max_backward_everywhere(dout, x):
    return np.broadcast_to(dout, x.shape)


def max_backward_whole(dout, x):
    return np.where(x == x.max(), dout, 0)


def max_backward_mask(dout, x):
    return np.where(x == x.max(axis=1, keepdims=True), 1.0, 0.0)


MISTAKES = [
    (topological_order_first, "A node stands before its parents"),
    (topological_order_repeated, "Remember which ones you have visited"),
    (topological_order_anew, "in the whole graph"),
    (topological_order_reversed, "upside down"),
    (gradients_assigned, "They add"),
    (gradients_forwards, "it stopped with KeyError"),
    (unbroadcast_mean, "what they say adds up: sum"),
    (unbroadcast_leading, "has shape (2, 5), and should have (2, 1)"),
    (matmul_backward_swapped, "They are swapped"),
    (matmul_backward_not_transposed, "it stopped with ValueError"),
    (max_backward_everywhere, "Only its largest element reaches the output"),
    (max_backward_whole, "Each row has one of its own"),
    (max_backward_mask, "times dout"),
]
