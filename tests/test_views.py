"""Another shape for the same memory, or an error."""

import numpy as np
import pytest

from layers.views import reshape_view


def test_what_is_written_to_a_view_arrives():
    x = np.zeros((4, 6))
    reshape_view(x[:, 3:], 2, 2, -1)[1, 0, 2] = 7  # strided, and cut without moving anything
    assert x[2, 5] == 7


def test_what_would_be_a_copy_is_refused():
    with pytest.raises(ValueError, match=r"shape \(6, 4\) has no view of shape \(24,\)"):
        reshape_view(np.zeros((4, 6)).T, 24)
