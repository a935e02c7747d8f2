"""What Hugging Face calls the numbers of rotations, their base and how they are scaled.

transformers 5 has all of them in `rope_parameters`, and goes on reading what all before it read,
`rope_theta` and `rope_scaling`; so these are what is written.

Source: transformers, modeling_rope_utils.py; models/phi3/configuration_phi3.py.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from formats.naming import Config, Number, Others, check_value, inner
from models.rotations import LISTS, NUMBERS, ORIGINAL, usual_amplitude

# What each type of scaling reads besides its name.
SCALINGS = {kind: (*LISTS.get(kind, ()), *names) for kind, names in NUMBERS.items()}


def rotations(original: int | None = None) -> Others:
    """The numbers of rotations that are the same in all layers.

    Args:
        original: the positions before the scaling, where config.json does not say them outside of
            the scaling; by default what the scaling says, or else all that there are.
    """
    return Others(partial(_read, original), _write)


def _read(original: int | None, path: Path, numbers: Mapping[str, Any], config: Config) -> Config:
    found = inner(path, numbers, "rope_scaling") or inner(path, numbers, "rope_parameters")
    numbers = {ORIGINAL: original, **numbers}
    return {
        "rope_theta": Number("rope_theta", float, 1e4).read(path, {**numbers, **found}, config),
        "rope_scaling": read_scaling(path, found, numbers, config),
    }


def _write(config: Config) -> dict[str, Any]:
    return {"rope_theta": config["rope_theta"], **write_scaling(config)}


def read_scaling(
    path: Path, found: Mapping[str, Any], numbers: Mapping[str, Any], config: Config
) -> dict[str, Any] | None:
    """A config's `rope_scaling`, of which only the type has been checked.

    Args:
        path: what error messages call the file.
        found: what Hugging Face says of the rotations.
        numbers: all of its numbers.
        config: those of ours that are known.

    Raises:
        FormatError: the scaling is of a type that is not known.
    """
    key = "rope_type" if "rope_type" in found else "type"
    rope_type = found.get(key, "default")
    rope_type = "longrope" if rope_type == "su" else rope_type  # as Phi-3 first called it
    check_value(path, key, rope_type, ["default", *SCALINGS])
    rotated = found.get("partial_rotary_factor", numbers.get("partial_rotary_factor", 1))
    check_value(path, "partial_rotary_factor", rotated, [1, None])
    if rope_type == "default":
        return None
    scaling = {name: found[name] for name in SCALINGS[rope_type] if name in found}
    if ORIGINAL in SCALINGS[rope_type]:
        outside = numbers.get(ORIGINAL) or found.get(ORIGINAL)
        original = Number(ORIGINAL, int, config["seq_len"]).read(path, {ORIGINAL: outside}, config)
        scaling[ORIGINAL] = original
    if rope_type == "longrope" and scaling.get("attention_factor") is None:
        growth = Number("factor", float, config["seq_len"] / original).read(path, found, config)
        scaling["attention_factor"] = usual_amplitude(growth, original)
    return {"rope_type": rope_type, **scaling}


def write_scaling(config: Config) -> dict[str, Any]:
    """What Hugging Face says of a config's `rope_scaling`."""
    scaling = config["rope_scaling"]
    if not scaling or scaling["rope_type"] != "longrope":
        return {"rope_scaling": scaling}
    # Just as transformers 4 wants it of Phi-3: nothing more, and the type by its first name.
    result = {name: scaling[name] for name in ("short_factor", "long_factor")}
    original, amplitude = scaling[ORIGINAL], scaling["attention_factor"]
    if amplitude != usual_amplitude(config["seq_len"] / original, original):
        result["attention_factor"] = amplitude
    return {"rope_scaling": {"type": "longrope", **result}, ORIGINAL: original}
