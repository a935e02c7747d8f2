#!/usr/bin/env bash
# transformers 5.24.0 (Python 3.11; without PyTorch).
#
# Qwen2's and Qwen3's config.json has, beside sliding_window, max_window_layers. By its name, and as
# transformers itself described it for a long time, it is how many layers, from the bottom up, have
# the window. It is how many have none: the first max_window_layers see everything, and those above
# them the window. So 0 gives every layer a window, and as many as there are layers gives it to none,
# though use_sliding_window is true.
#
# Seen on 2026-11-28, of four layers, for qwen2 and qwen3 alike:
#   max_window_layers 0: sliding sliding sliding sliding
#   max_window_layers 1: full sliding sliding sliding
#   max_window_layers 4: full full full full
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
from transformers import Qwen2Config, Qwen3Config

seen = {}
for make in (Qwen2Config, Qwen3Config):
    for count in (0, 1, 4):
        config = make(
            num_hidden_layers=4, use_sliding_window=True, sliding_window=8, max_window_layers=count
        )
        kinds = [kind.removesuffix("_attention") for kind in config.layer_types]
        print(f"{config.model_type} max_window_layers {count}: {' '.join(kinds)}")
        seen[config.model_type, count] = kinds
for kind in ("qwen2", "qwen3"):
    for count in (0, 1, 4):
        expected = count * ["full"] + (4 - count) * ["sliding"]
        assert seen[kind, count] == expected, "the behaviour has changed"
PYTHON
