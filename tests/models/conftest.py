"""Every test that asks for a model gets one of each kind."""

import pytest
from tiny import CONFIGS, lively_model


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture
def model(config):
    return lively_model(config)
