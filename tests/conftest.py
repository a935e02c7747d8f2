from pathlib import Path

import pytest
from hypothesis import settings

from dev.download_starter_pack import FILES, STARTER

# On a busy machine a first example may take long; that is no failure.
settings.register_profile("llm.np", deadline=None)
settings.load_profile("llm.np")


@pytest.fixture(scope="session")
def starter() -> Path:
    """The folder of real files, which are not part of the repository."""
    if not all((STARTER / name).is_file() for name in FILES):
        pytest.skip("needs real files: python dev/download_starter_pack.py")
    return STARTER
