"""Imported before the rest of this project: from then on its files find each other first.

For `import files` Python looks in the folder of the script that runs, and only then where this
project is; an empty `files.py` beside somebody's script would be all that our modules get. So a
finder of our own is asked before: for an import in one of our files it looks in our folder. Imports
elsewhere are left to Python. What remains is that Python keeps one module of each name: a script
cannot import a `files` of its own and use ours.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent


class OwnImports:
    """A finder for `sys.meta_path`; Python Language Reference, "The import system", 5.3."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Where a module or package of ours is, if one of our files imports it; else nothing.

        Args:
            name: of the module.
            path: where its package is; None for what is in none, the only case there is here.
            target: the module that is to be loaded again.
        """
        if path is None and _is_ours(_importer()):
            found = PathFinder.find_spec(name, [str(ROOT)], target)
            if found and found.loader:  # none has a folder that is no package, such as runs/
                return found
        return None


def _importer() -> Path:
    """The file whose import made Python ask the finder."""
    frame = sys._getframe(2)
    while frame and frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return Path(frame.f_code.co_filename if frame else "")


def _is_ours(file: Path) -> bool:
    # In our folder may lie an environment, whose packages are not ours.
    return file.is_relative_to(ROOT) and "site-packages" not in file.parts


sys.meta_path.insert(0, OwnImports)
