#!/usr/bin/env bash
# transformers 5.24.0 (Python 3.11).
#
# Until its version 4.43 transformers called the kind of a `rope_scaling` in a config.json `type`;
# since then it is `rope_type`, and version 5, which keeps all that in `rope_parameters`, still takes
# the older name: for a Llama, {"type": "linear", "factor": 8.0} divides the frequencies by 8. For a
# Gemma 3 it is merged into a dict that has the newer name already, with "default": the older one
# stays in there without any effect, and the model turns its keys 8 times too fast. One would expect
# that both are read, as version 4 does it.
#
# Seen on 2026-11-28:
#   llama, type: linear
#   llama, rope_type: linear
#   gemma3_text, type: default
#   gemma3_text, rope_type: linear
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0
PYTHONIOENCODING=utf-8 "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
from transformers import AutoConfig


def kind_that_is_used(model, key):
    """What its rotations read: of a Gemma 3, those of the layers that see all."""
    config = AutoConfig.for_model(model, rope_scaling={key: "linear", "factor": 8.0})
    parameters = config.rope_parameters.get("full_attention", config.rope_parameters)
    print(f"{model}, {key}: {parameters['rope_type']}")
    assert parameters["factor"] == 8.0
    return parameters["rope_type"]


assert kind_that_is_used("llama", "type") == "linear"
assert kind_that_is_used("llama", "rope_type") == "linear"
assert kind_that_is_used("gemma3_text", "type") == "default", "it has changed"
assert kind_that_is_used("gemma3_text", "rope_type") == "linear"
PYTHON
