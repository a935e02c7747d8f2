#!/usr/bin/env bash
# safetensors 0.8.0 with NumPy 2.4.6 (Python 3.11).
#
# safetensors.numpy.save_file of an array that is not contiguous, such as a transposed weight, keeps
# its shape but writes its numbers in the order in which they lie in memory, without an error or a
# warning: what is loaded again has the same shape and other numbers in nearly every place. One would
# expect a copy or an exception, and the same library's torch side does raise one (not shown here).
# Whoever transposes Conv1D weights of GPT-2 on the way needs np.ascontiguousarray first.
#
# Seen on 2026-11-28:
#   given  [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
#   loaded [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder/weight.safetensors" <<'PYTHON'
import sys

import numpy as np
from safetensors.numpy import load_file, save_file

given = np.arange(6, dtype=np.float32).reshape(2, 3).T
save_file({"weight": given}, sys.argv[1])
loaded = load_file(sys.argv[1])["weight"]
print("given ", given.tolist())
print("loaded", loaded.tolist())
assert loaded.shape == given.shape
assert loaded.tolist() == np.arange(6).reshape(3, 2).tolist(), "the behaviour has changed"
PYTHON
