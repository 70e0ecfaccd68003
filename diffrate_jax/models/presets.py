"""Presets: architectures under their timm names, as data in `presets.json`."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffrate_jax.errors import UserError, did_you_mean

FILE = Path(__file__).parent / "presets.json"
# What a preset says of the images, not of the architecture.
PREPROCESSING = ("mean", "std", "crop_pct", "interpolation")


@functools.cache
def presets() -> Mapping[str, dict[str, Any]]:
    """Returns every preset by its name: fields of its model, and its preprocessing."""
    return json.loads(FILE.read_text())


def preset(name: str) -> dict[str, Any]:
    """Returns one preset; a tag such as ".augreg_in1k" tells weights apart, not models.

    Raises:
        UserError: there is none of that name.
    """
    for known in (name, name.split(".")[0]):
        if known in presets():
            return dict(presets()[known])
    hint = did_you_mean(name, ["vit", "caformer", *presets()])
    if not hint.startswith("did"):
        hint = "python -m diffrate_jax.convert --list names them all"
    raise UserError(f"unknown model {name!r}; {hint}")


def architecture_of(name: str) -> dict[str, Any]:
    """Returns the fields of a preset's model, and its family where that is no ViT."""
    fields = preset(name)
    return {key: fields[key] for key in fields if key not in PREPROCESSING}
