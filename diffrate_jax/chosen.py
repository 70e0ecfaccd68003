"""What flags name: a model with its weights and preprocessing, labels, a schedule.

For programs without a config, whose flags are `--weights`, and `--model` or `--recipe`
where the weights do not say what they belong to.
"""

import argparse
from pathlib import Path

from diffrate_jax.compressions import split_multiple
from diffrate_jax.errors import UserError, did_you_mean
from diffrate_jax.files import reason
from diffrate_jax.model_folder import about, load, load_params
from diffrate_jax.models import FAMILIES, Model, Params, create_model
from diffrate_jax.preprocess import Preprocess, of_preset, published


def chosen_model(flags: argparse.Namespace) -> tuple[Model, str, Preprocess]:
    """Returns the model that the flags ask for, its name, and its preprocessing.

    Raises:
        UserError: both of --model and --recipe, or neither and nothing else that says
            what the weights belong to; or no such model or preprocessing.
    """
    if flags.model and flags.recipe:
        raise UserError("give either --model=NAME or --recipe=FILE")
    own = None
    if flags.recipe:
        # Only here: without a recipe ml_collections need not be installed.
        from diffrate_jax.cli import load_recipe
        from diffrate_jax.recipes import model_of, preprocess_of

        config = load_recipe(Path(flags.recipe))
        model, name = model_of(config), config.model
        own = preprocess_of(config, model)
    elif flags.model:
        model, name = create_model(flags.model), flags.model
    elif Path(flags.weights).is_dir():
        record = about(Path(flags.weights))
        name = record["model"]
        model = create_model(record["family"], **record["fields"])
    else:
        raise UserError(
            f"{flags.weights} does not say what model it belongs to; give "
            "--model=NAME or --recipe=FILE, or a folder that convert wrote"
        )
    return model, name, chosen_preprocess(flags.preprocess, model, name, own)


def chosen_preprocess(
    text: str | None, model: Model, name: str, own: Preprocess | None
) -> Preprocess:
    """Returns what images go through.

    Args:
        text: "published", "timm", or None for the recipe's own, or else "timm".
        model: that images are for.
        name: of its preset.
        own: of the recipe; None where there is none.

    Raises:
        UserError: neither of these, or nothing is known of this model.
    """
    if text == "published":
        return published(model.image_size)
    if text is None and own:
        return own
    if text not in (None, "timm"):
        hint = did_you_mean(text, ["published", "timm"])
        raise UserError(f"unknown --preprocess={text}; {hint}")
    if name in FAMILIES:
        raise UserError(
            f"the model is no preset but {name!r}, so nothing says how its images are "
            "prepared; give --recipe=FILE with resize, mean and std, or "
            "--preprocess=published"
        )
    return of_preset(name, model.image_size)


def weights_of(flags: argparse.Namespace, model: Model) -> Params:
    """Returns the weights, checked against the model where both were named."""
    if flags.model or flags.recipe:
        return load_params(model, flags.weights)
    return load(flags.weights)[1]


def read_labels(path: str) -> list[str]:
    """Returns the lines of a text file.

    Raises:
        UserError: it cannot be read, or is no UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the labels {path}: {reason(error)}; give a UTF-8 text file "
            "with one class name to a line"
        ) from error


def short(schedule: str) -> str:
    """Returns a schedule's name: of a path only the last part, whoever's it is."""
    is_path = Path(split_multiple(schedule)[0]).is_file()
    return Path(schedule).name if is_path else schedule
