"""Every lesson runs from its top to its bottom, whoever has done which exercise."""

import importlib
import inspect
import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "lessons").glob("*.ipynb"))
DEFINITION = re.compile(r"^def (\w+)\(", re.MULTILINE)
# What a learner's cell looks like that has nothing in it yet.
UNDONE = re.compile(r"^ +raise NotImplementedError$", re.MULTILINE)


def code_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path):
    for cell in code_cells(path):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_learner_who_has_done_nothing_sees_everything(path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    kernel = {"env": os.environ | {"PYTHONPATH": str(ROOT)}}
    client = nbclient.NotebookClient(
        notebook, timeout=180, resources={"metadata": {"path": str(ROOT / "lessons")}}
    )
    client.execute(**kernel)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert not [out for out in outputs if out.get("name") == "stderr"]
    said = "".join(out.text for out in outputs if out.get("name") == "stdout")
    assert said.count("not done yet") == sum(
        bool(UNDONE.search(source(cell))) for cell in code_cells(path)
    )
    assert any("image/png" in out.get("data", {}) for out in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_learner_who_has_done_everything_is_told_so(path, monkeypatch, capsys, tmp_path):
    """In this process, each undone cell in the form of the solution; and no real model."""
    matplotlib = pytest.importorskip("matplotlib")
    pytest.importorskip("nbclient")  # like the test above, not part of the short tests
    matplotlib.use("agg")
    monkeypatch.chdir(ROOT / "lessons")
    monkeypatch.setenv("LLMNP_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(str(ROOT / "lessons"))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    solutions = importlib.import_module(f"solutions_{path.stem[:2]}")
    namespace, done = {"__name__": "__main__"}, 0
    for cell in code_cells(path):
        text = source(cell)
        if UNDONE.search(text):
            done += 1
            for name in DEFINITION.findall(text):
                text = inspect.getsource(getattr(solutions, name))
                exec(compile(text, f"<solution of {name}>", "exec"), namespace)
        else:
            exec(compile(text, f"<{path.stem}>", "exec"), namespace)
    matplotlib.pyplot.close("all")
    assert done >= 3
    assert capsys.readouterr().out.count("right!") == done
