"""Real models, which are no part of the repository."""

from pathlib import Path

import pytest
from real_models import SMOLLM2, real_model

from dev.download_real_models import MODELS


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return real_model(SMOLLM2)


@pytest.fixture(scope="session", params=MODELS)
def model_file(request) -> Path:
    """Each of them."""
    return real_model(request.param)
