"""The exercises of lesson 18: a tape engine."""

from collections.abc import Callable

import numpy as np

from exercises import Exercise, Grader

rng = np.random.default_rng(18)


class Node:
    """One value of a graph; two with the same name are equal, so that copies can be compared.

    Args:
        name: how it is printed.
        parents: what it was made from.
        backward: from the derivative of the loss by this node, that by each parent.
    """

    def __init__(
        self,
        name: str,
        parents: tuple["Node", ...] = (),
        backward: Callable[[float], tuple[float, ...]] = lambda dout: (),
    ) -> None:
        self.name, self.parents, self.backward = name, parents, backward

    def __repr__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


def add(name: str, a: Node, b: Node) -> Node:
    return Node(name, (a, b), lambda dout: (dout, dout))


def multiply(name: str, a: Node, b: Node, a_data: float, b_data: float) -> Node:
    return Node(name, (a, b), lambda dout: (dout * b_data, dout * a_data))


def diamond() -> Node:
    """loss = c (c + a) with c = a b, at a = 2 and b = 3."""
    a, b = Node("a"), Node("b")
    c = multiply("c", a, b, 2.0, 3.0)
    d = add("d", c, a)
    return multiply("loss", d, c, 8.0, 6.0)


def square() -> Node:
    """loss = y y + x with y = x + x, at x = 3: one parent twice."""
    x = Node("x")
    y = add("y", x, x)
    z = multiply("z", y, y, 6.0, 6.0)
    return add("loss", z, x)


def parallel() -> Node:
    """loss = y z with y = x + w and z = x + w, at x = 3 and w = 4: two ways to the same leaves."""
    x, w = Node("x"), Node("w")
    y = add("y", x, w)
    z = add("z", x, w)
    return multiply("loss", y, z, 7.0, 7.0)


# --- the order


def topological_order(node: Node) -> list[Node]:
    order: list[Node] = []
    visited: set[Node] = set()

    def visit(node: Node) -> None:
        if node not in visited:
            visited.add(node)
            for parent in node.parents:
                visit(parent)
            order.append(node)

    visit(node)
    return order


def order_node_first(node: Node) -> list[Node]:
    order: list[Node] = []

    def visit(node: Node) -> None:
        if node not in order:
            order.append(node)
            for parent in node.parents:
                visit(parent)

    visit(node)
    return order


def order_repeated(node: Node) -> list[Node]:
    return [n for parent in node.parents for n in order_repeated(parent)] + [node]


def order_remembered_locally(node: Node) -> list[Node]:
    order: list[Node] = []
    for parent in node.parents:
        if parent not in order:
            order += order_remembered_locally(parent)
    return [*order, node]


# --- the walk


def gradients(order: list[Node]) -> dict[Node, float]:
    found = {order[-1]: 1.0}
    for node in reversed(order):
        for parent, gradient in zip(node.parents, node.backward(found[node]), strict=True):
            found[parent] = found[parent] + gradient if parent in found else gradient
    return found


def gradients_assigned(order: list[Node]) -> dict[Node, float]:
    found = {order[-1]: 1.0}
    for node in reversed(order):
        found.update(zip(node.parents, node.backward(found[node]), strict=True))
    return found


# --- operations


def unbroadcast(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))
    ones = tuple(i for i, size in enumerate(shape) if size == 1 and gradient.shape[i] > 1)
    return gradient.sum(axis=ones, keepdims=True)


def unbroadcast_mean(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return unbroadcast(gradient, shape) * np.prod(shape) / gradient.size


def unbroadcast_first(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    while gradient.ndim > len(shape):
        gradient = gradient[0]
    return gradient[tuple(slice(size) for size in shape)]


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a @ b


def matmul_backward(
    dout: np.ndarray, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return dout @ b.swapaxes(-1, -2), a.swapaxes(-1, -2) @ dout


def row_max(x: np.ndarray) -> np.ndarray:
    return x.max(axis=-1, keepdims=True)


def max_backward(dout: np.ndarray, x: np.ndarray) -> np.ndarray:
    return dout * (x == x.max(axis=-1, keepdims=True))


def matmul_cases(*sizes: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    """The last three numbers are rows, inner size and columns; what is before them, the batch."""
    return [
        {
            "dout": rng.standard_normal((*batch, N, M)),
            "a": rng.standard_normal((*batch, N, I)),
            "b": rng.standard_normal((*batch, I, M)),
        }
        for *batch, N, I, M in sizes  # noqa: E741
    ]


SHAPES = [
    ((4, 3), (3,)),
    ((2, 4, 3), (4, 3)),
    ((2, 5), (2, 1)),
    ((2, 4, 3), (4, 1)),
    ((3, 2), (1, 2)),
    ((3, 4), ()),
    ((2, 3), (2, 3)),
]

grade = Grader(
    Exercise(
        topological_order,
        [{"node": diamond()}, {"node": square()}, {"node": parallel()}],
        ["order"],
        mistakes={
            "A node stands before its parents in your list. Append it after all of them have been "
            "visited.": order_node_first,
            "A node that is used twice comes twice. Remember which ones you have visited.": (
                order_repeated
            ),
            "A node that two others were made from comes twice. Remember which ones you have "
            "visited in the whole graph, and not for each node anew.": order_remembered_locally,
            "Your list is upside down: parents come first, the loss last.": (
                lambda node: topological_order(node)[::-1]
            ),
        },
    ),
    Exercise(
        gradients,
        [{"order": topological_order(node)} for node in (diamond(), square(), parallel())],
        ["gradients"],
        mistakes={
            "A value that is used twice gets two gradients, and the later one has replaced the "
            "earlier. They add.": gradients_assigned,
        },
    ),
    Exercise(
        unbroadcast,
        [{"gradient": rng.standard_normal(large), "shape": small} for large, small in SHAPES],
        ["gradient"],
        mistakes={
            "You took the mean over the copies. Each copy reached the loss by itself, so what they "
            "say adds up: sum.": unbroadcast_mean,
            "You took the gradient of one of the copies. All of them reached the loss: sum.": (
                unbroadcast_first
            ),
        },
    ),
    Exercise(
        matmul_backward,
        matmul_cases((4, 3, 5), (2, 3, 4, 2)),
        ["da", "db"],
        matmul,
        mistakes={
            "They are swapped: da comes first, then db.": (
                lambda dout, a, b: matmul_backward(dout, a, b)[::-1]
            ),
            "Both are transposed: da has the shape of a, and db that of b.": (
                lambda dout, a, b: tuple(y.swapaxes(-1, -2) for y in matmul_backward(dout, a, b))
            ),
        },
    ),
    Exercise(
        max_backward,
        [
            {"dout": rng.standard_normal((N, 1)), "x": rng.standard_normal((N, C))}
            for N, C in ((4, 5), (3, 7))
        ],
        ["dx"],
        row_max,
        mistakes={
            "All of a row got the gradient. Only its largest element reaches the output; all "
            "others can move a little, and nothing changes.": (
                lambda dout, x: dout * np.ones_like(x)
            ),
            "You shared the gradient out over the row. Its largest element gets all of it.": (
                lambda dout, x: dout * np.ones_like(x) / x.shape[1]
            ),
            "You took the largest element of the whole array. Each row has one of its own.": (
                lambda dout, x: dout * (x == x.max())
            ),
            "That says where the largest elements are, and not how much the loss minds: times "
            "dout.": lambda dout, x: (x == x.max(axis=-1, keepdims=True)).astype(float),
        },
    ),
)
