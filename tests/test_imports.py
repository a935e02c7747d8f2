"""Who imports whom: downwards only, so that each file can be read knowing only those below it."""

import ast
from collections.abc import KeysView
from pathlib import Path

from models import FAMILIES

ROOT = Path(__file__).resolve().parents[1]

# From the bottom up. What stands in one line may not import each other, but for the modules of one
# folder, and tokenizer and formats, where formats/ imports tokenizer.
LEVELS = [
    ["errors", "own_imports", "merging"],
    ["files", "buffers", "layers"],
    ["models", "adam", "vocabulary"],
    ["tokenizer", "dataloader", "muon"],
    ["formats"],
    ["load"],
    ["sampler", "gradcheck"],
    ["chat", "training"],
    ["train", "sample", "convert"],
    ["gpt2_train", "llama2_train"],
]
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}
# What a run prepares, if nobody else has: the scripts that make corpora are no part of the product.
BESIDE = {"dev"}


def whole_imports(path: Path) -> list[str]:
    """What a file imports, wherever in it; in order, those in functions last.

    What it takes from a package may be a module too.
    """
    modules = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return modules


def imports(path: Path) -> KeysView[str]:
    """The first names of that."""
    return dict.fromkeys(name.partition(".")[0] for name in whole_imports(path)).keys()


def modules() -> dict[Path, str]:
    """The product's files, each with the name that stands for it in `LEVELS`."""
    found = {path: path.stem for path in ROOT.glob("*.py")}
    for name in LEVEL:
        found |= dict.fromkeys((ROOT / name).rglob("*.py"), name)
    return found


def test_every_module_has_a_level():
    assert set(modules().values()) == LEVEL.keys()


def test_imports_run_downwards():
    ours = LEVEL.keys() | {path.name for path in ROOT.iterdir() if any(path.glob("*.py"))}
    wrong = {
        f"{path.relative_to(ROOT)} imports {other}"
        for path, name in modules().items()
        for other in imports(path) & ours - {name} - BESIDE
        if LEVEL.get(other, len(LEVELS)) >= LEVEL[name]
    }
    assert not wrong


def test_dev_is_imported_by_training_only():
    assert {name for path, name in modules().items() if imports(path) & BESIDE} == {"training"}


def test_what_a_script_may_import_looks_for_our_own_modules_first():
    """Beside the script may lie files of the same names: see own_imports.py."""
    others = {*LEVELS[0], *LEVELS[-2], *LEVELS[-1]}  # import none of ours, or are the script
    for path, name in modules().items():
        if name not in others and (path.parent == ROOT or path.name == "__init__.py"):
            ours = [name for name in imports(path) if name in LEVEL]
            assert ours[:1] == ["own_imports"], path


def test_only_models_formats_and_the_two_doors_name_a_family():
    """So a new one is a file in models/ and a line in its list."""
    known = {f"models.{kind}" for kind in FAMILIES}
    naming = {name for path, name in modules().items() if known & set(whole_imports(path))}
    assert naming <= {"models", "formats", "gpt2_train", "llama2_train"}
