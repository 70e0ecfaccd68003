"""Writes tests/golden/timm_shapes.json: the parameters of every preset in timm.

Blocks have the same parameters: they are written once, as `blocks.*`, with their count.
"""

import json
import re
from pathlib import Path

import timm
import torch

from diffrate_jax.models.presets import presets

FILE = Path(__file__).parent.parent / "golden" / "timm_shapes.json"
FINETUNED = ".mae_finetuned"


def timm_model(name: str, **fields: object) -> torch.nn.Module:
    """Returns timm's model of a preset; it has MAE's only as a ViT that averages."""
    if name.endswith(FINETUNED):
        name = name.removesuffix(FINETUNED)
        fields = {"global_pool": "avg", "num_classes": 1000} | fields
    return timm.create_model(name, **fields)


def shapes_of(name: str) -> dict[str, object]:
    """Returns the number of blocks, stage by stage, and the shape of each parameter."""
    with torch.device("meta"):
        state = timm_model(name).state_dict()
    shapes, blocks = {}, {}
    for key, tensor in state.items():
        found = re.match(r"((?:stages\.\d\.)?blocks\.)(\d+)\.", key)
        if found:
            start = f"{found[1]}*"
            blocks[start] = max(blocks.get(start, 0), int(found[2]) + 1)
            key = start + key[found.end() - 1 :]
        shape = list(tensor.shape)
        if shapes.setdefault(key, shape) != shape:
            raise ValueError(f"{name}: blocks differ in {key}")
    return {"blocks": blocks, "shapes": shapes}


def main() -> None:
    """Writes the file."""
    found = {name: shapes_of(name) for name in presets()}
    lines = [f" {json.dumps(name)}: {json.dumps(found[name])}" for name in found]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
