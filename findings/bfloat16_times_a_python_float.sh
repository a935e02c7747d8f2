#!/usr/bin/env bash
# ml_dtypes 0.6.0 with NumPy 2.4.6 (Python 3.11).
#
# Since NumPy 2 a Python number has no type of its own in an operation: float16 times 2.0 is float16.
# For a bfloat16 array of ml_dtypes that goes for a whole number only. Times 2 it stays bfloat16; times
# 2.0 it becomes float32, which takes twice the memory, and ends up in whatever is written from it.
# np.result_type, which one would ask beforehand, says float64, which is what no operation gives.
# Scaling in place, or by np.asarray(2.0, x.dtype), keeps the type.
#
# Seen on 2026-11-28:
#   float16   times 2: float16   times 2.0: float16  result_type with 2.0: float16
#   bfloat16  times 2: bfloat16  times 2.0: float32  result_type with 2.0: float64
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ml_dtypes==0.6.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import ml_dtypes
import numpy as np

seen = []
for dtype in (np.float16, ml_dtypes.bfloat16):
    x = np.ones(3, dtype)
    seen.append([str(t) for t in (x.dtype, (x * 2).dtype, (x * 2.0).dtype, np.result_type(x, 2.0))])
    print("{:9} times 2: {:9} times 2.0: {:8} result_type with 2.0: {}".format(*seen[-1]))
    assert (x * np.asarray(2.0, dtype)).dtype == dtype
assert seen == [
    ["float16", "float16", "float16", "float16"],
    ["bfloat16", "bfloat16", "float32", "float64"],
], "the behaviour has changed"
PYTHON
