"""An archive, and what reading it gives or says."""

import pytest
from archives import FLOATS, archive, tensor

from errors import FormatError
from formats.torch_pickle import load


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ckpt.pt"


@pytest.fixture
def run(path):
    """Loads a program."""
    return lambda program: load(archive(path, program))


@pytest.fixture
def refused(path):
    """Asserts that a program is refused with a sentence."""

    def check(program: bytes, sentence: str) -> None:
        with pytest.raises(FormatError, match=rf"ckpt\.pt cannot be read \({sentence}"):
            load(archive(path, program))

    return check


@pytest.fixture
def members():
    return {
        "data.pkl": b"\x80\x02" + tensor() + b".",
        "byteorder": b"little",
        "version": b"3\n",
        "data/0": FLOATS.tobytes(),
    }
