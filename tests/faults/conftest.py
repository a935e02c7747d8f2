"""What every fault is compared with."""

import random
import sys

import pytest

if sys.platform == "win32":  # which has neither these signals nor a way to copy a process
    collect_ignore_glob = ["test_*.py"]
else:
    pytest.register_assert_rewrite("harness", "mutants")
    from harness import SEED, Trainer


@pytest.fixture
def chance():
    """What draws instants and damages; its seed is told, so that a failure can be repeated."""
    print(f"\nSEED={SEED}")
    return random.Random(SEED)


@pytest.fixture(scope="session")
def whole(corpus, tmp_path_factory):
    """The folders of two runs that nothing has interrupted, by the kind of their model."""
    folders = {kind: tmp_path_factory.mktemp(kind) / "run" for kind in ("gpt2", "llama2")}
    for kind, folder in folders.items():
        assert Trainer(folder, "--data", corpus, kind=kind).end() == (0, "")
    return folders
