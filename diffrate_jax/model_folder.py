"""A model in a folder: `weights.safetensors`, and `model.json` that says what it is."""

import os
from pathlib import Path
from typing import Any

from etils import epath

from diffrate_jax.errors import UserError
from diffrate_jax.files import Json, digest, read_json, write_json
from diffrate_jax.models import (
    FAMILIES,
    Model,
    Params,
    architecture,
    create_model,
    family_of,
)
from diffrate_jax.sources import ABOUT, WEIGHTS
from diffrate_jax.version import __version__
from diffrate_jax.weights import load_weights, save_weights

FORMAT = "diffrate_jax.model"
VERSION = 1


def save_model(
    folder: str | os.PathLike,
    model: Model,
    params: Params,
    *,
    name: str = "vit",
    provenance: dict[str, Json] | None = None,
) -> None:
    """Writes a model into a folder; `model.json` comes last and marks it whole.

    Args:
        folder: made if need be; a model in it is replaced.
        model: architecture.
        params: its weights.
        name: of the preset it was made from.
        provenance: anything worth saving besides, such as the source.
    """
    folder = epath.Path(folder)
    (folder / ABOUT).unlink(missing_ok=True)
    save_weights(model, params, folder / WEIGHTS)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "model": name,
        "family": family_of(model),
        "fields": architecture(model),
        "weights_sha256": digest(folder / WEIGHTS),
        "diffrate_jax": __version__,
        "provenance": provenance or {},
    }
    write_json(folder / ABOUT, record)


def load(folder: str | os.PathLike) -> tuple[Model, Params]:
    """Returns the model in a folder that `convert` or `save_model` wrote, and weights.

    Raises:
        UserError: no such folder, or what is in it is not whole.
    """
    folder = Path(folder)
    record = about(folder)
    model = create_model(record["family"], **record["fields"])
    if digest(folder / WEIGHTS) != record["weights_sha256"]:
        raise UserError(
            f"{folder / WEIGHTS} is not the file that {ABOUT} beside it speaks of; "
            "convert the weights again"
        )
    return model, load_weights(model, folder)


def load_params(model: Model, source: str | os.PathLike) -> Params:
    """Returns weights for a model that is known otherwise, from any source.

    Raises:
        UserError: the source does not fit; of a model folder also where the shapes of
            weights do not show it, as with the number of heads.
    """
    if Path(source).is_dir():
        record = about(Path(source))
        own = record["fields"] | {"family": record["family"]}
        wanted = architecture(model) | {"family": family_of(model)}
        free = {"image_size", "compress"}
        for field in sorted(wanted.keys() & own.keys() - free):
            if own[field] != wanted[field]:
                raise UserError(
                    f"{source} holds a model with {field} {own[field]!r}, this one has "
                    f"{wanted[field]!r}; name the model that was converted"
                )
    return load_weights(model, source)


def about(folder: Path) -> dict[str, Any]:
    """Returns what a model folder says of itself.

    Raises:
        UserError: it is no model folder, or one of a later version.
    """
    if not (folder / ABOUT).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder} holds no model: expected {WEIGHTS} and {ABOUT} there; make them "
            "with python -m diffrate_jax.convert"
        )
    record = read_json(folder / ABOUT)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{folder / ABOUT} describes no model; convert it again")
    if record.get("version") != VERSION:
        raise UserError(
            f"{folder / ABOUT} has version {record.get('version')!r}, this program "
            f"reads version {VERSION}; convert the weights again, or update the program"
        )
    kinds = {"model": str, "family": str, "fields": dict, "weights_sha256": str}
    whole = all(isinstance(record.get(key), kind) for key, kind in kinds.items())
    if not whole or record["family"] not in FAMILIES:
        raise UserError(f"{folder / ABOUT} is damaged; convert the weights again")
    return record


def is_tuned(weights: str | os.PathLike) -> bool:
    """Returns whether `finetune` made these weights: a model folder, or its file."""
    path = Path(weights)
    folder = path.parent if path.name == WEIGHTS else path
    if not (folder / ABOUT).is_file():
        return False
    return about(folder).get("provenance", {}).get("program") == "finetune"
