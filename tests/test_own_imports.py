"""Scripts in folders of their own, where there are files named as ours are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import own_imports

ROOT = Path(__file__).resolve().parents[1]
MODULES = {path.stem for path in ROOT.glob("*.py")} - {"own_imports"}
PACKAGES = {path.parent.name for path in ROOT.glob("*/__init__.py")}


@pytest.fixture
def script(tmp_path):
    """Runs lines of Python in a folder of one's own; all that they print."""

    def run(*lines):
        (tmp_path / "script.py").write_text("\n".join(lines), encoding="utf-8")
        return subprocess.run(
            [sys.executable, "script.py"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},  # which Python searches after the folder
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ).stdout

    return run


@pytest.mark.parametrize(
    "line",
    [
        "from load import open_model",
        "from models.gpt2 import GPT2, GPT2Config",
        "from sampler import generate, generate_many",
        "from adam import AdamW",
        "from dataloader import DataLoader",
        "from gradcheck import check_layer, print_table",
        "from formats.checkpoint import save_checkpoint",
        "from layers.attention import attention_forward",
    ],
)
def test_empty_files_are_in_nobodys_way(script, tmp_path, line):
    """All names that a script does not import itself are taken at once."""
    imported = line.split()[1].partition(".")[0]
    for name in MODULES - {imported}:
        (tmp_path / f"{name}.py").touch()
    for name in PACKAGES - {imported}:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    assert script(line, "print('imported')") == "imported\n"


def test_a_script_gets_its_own(script, tmp_path):
    (tmp_path / "train.py").write_text("mine = 'my own'", encoding="utf-8")
    assert script("import load, train", "print(train.mine)") == "my own\n"


def test_packages_of_an_environment_in_our_folder_are_not_ours(monkeypatch, tmp_path):
    monkeypatch.setattr(own_imports, "ROOT", tmp_path)
    assert own_imports._is_ours(tmp_path / "layers/gelu.py")
    assert not own_imports._is_ours(tmp_path / ".venv/lib/python3.13/site-packages/some/module.py")
    assert not own_imports._is_ours(tmp_path.with_name("script.py"))
