"""What dev/bench/layers.py times as PyTorch's layers is what ours compute."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dev.bench.layers import our_calls, torch_calls  # noqa: E402
from layers.cases import find_layers  # noqa: E402


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name, layer in find_layers().items() for kind in layer.cases],
)
def test_both_compute_the_same(name, kind):
    sizes = find_layers()[name].cases[kind][-1]
    ours, theirs = our_calls(name, sizes), torch_calls(name, sizes)
    ours["forward"]()
    out = ours["forward"].args[0]
    expected = theirs["forward"]().detach().numpy()
    # A loss is PyTorch's mean of ours.
    np.testing.assert_allclose(out if expected.ndim else out.mean(), expected, atol=1e-5)

    expected = theirs["backward"]()
    ours["backward"]()
    gradients = [argument for argument in ours["backward"].args if argument is not None]
    for gradient, reference in zip(gradients, expected, strict=False):
        np.testing.assert_allclose(gradient, reference, atol=1e-5)
