r"""Converts weights from timm and other releases into a folder of our own."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from diffrate_jax import arguments
from diffrate_jax.cost import cost_macs
from diffrate_jax.errors import UserError
from diffrate_jax.exits import report_errors
from diffrate_jax.files import digest
from diffrate_jax.model_folder import save_model
from diffrate_jax.models import Model, architecture, create_model, family_of
from diffrate_jax.models.presets import presets
from diffrate_jax.sources import ABOUT, local_path
from diffrate_jax.tables import aligned
from diffrate_jax.weights import read_weights

EXAMPLES = """examples:
  python -m diffrate_jax.convert --model=deit_small_patch16_224 \\
      --source=hf-hub:timm/deit_small_patch16_224.fb_in1k --out=weights/deit_s
  python -m diffrate_jax.convert --model=vit_large_patch16_224.mae_finetuned \\
      --source=mae_finetuned_vit_large.pth --out=weights/mae_l
  python -m diffrate_jax.convert --recipe=configs/cifar10.py \\
      --source=vit_cifar10.safetensors --out=weights/cifar10
  python -m diffrate_jax.convert --list
"""


def parser() -> arguments.Parser:
    """Returns the program's flags."""
    flags = arguments.Parser("convert", __doc__, EXAMPLES)
    flags.add_argument("--list", action="store_true", help="list the presets and leave")
    flags.add_argument("--model", help="preset name; see --list")
    flags.add_argument("--recipe", help="config file whose model is taken instead")
    flags.add_argument(
        "--source",
        help=".safetensors, .pth, .npz, a folder of this program, or hf-hub:OWNER/NAME",
    )
    flags.add_argument("--out", help="folder to write")
    flags.add_argument("--image_size", type=int, help="other than the preset's, pixels")
    flags.add_argument(
        "--num_classes", type=int, help="start a new, random head for so many classes"
    )
    flags.add_argument(
        "--overwrite", action="store_true", help="replace a model that is in --out"
    )
    return flags


def convert(flags: argparse.Namespace, command: str) -> None:
    """Reads the source, writes the folder, and says what was done."""
    if flags.list:
        print(preset_table())
        return
    for flag in ("source", "out"):
        if not getattr(flags, flag):
            raise UserError(f"--{flag} is needed; see --help for examples")
    if (Path(flags.out) / ABOUT).exists() and not flags.overwrite:
        raise UserError(f"{flags.out} holds a model; give --overwrite or another --out")
    model, name = chosen_model(flags)
    loaded = read_weights(model, flags.source, new_head=flags.num_classes is not None)
    provenance = {
        "source": flags.source,
        "source_sha256": digest(local_path(flags.source)),
        "notes": list(loaded.notes),
        "command": command,
    }
    save_model(flags.out, model, loaded.params, name=name, provenance=provenance)
    for note in loaded.notes:
        print(note)
    print(f"{flags.out}: {name}, {described(model, loaded.params)}")


def chosen_model(flags: argparse.Namespace) -> tuple[Model, str]:
    """Returns the model that the flags ask for, and its preset's name.

    Raises:
        UserError: neither or both of --model and --recipe, or no such model.
    """
    if bool(flags.model) == bool(flags.recipe):
        raise UserError("give either --model=NAME or --recipe=FILE; see --list")
    changes = {
        key: getattr(flags, key)
        for key in ("image_size", "num_classes")
        if getattr(flags, key) is not None
    }
    if flags.recipe:
        # Only here: without a recipe ml_collections need not be installed.
        from diffrate_jax.cli import load_recipe
        from diffrate_jax.recipes import model_of

        config = load_recipe(Path(flags.recipe))
        model = model_of(config)
        fields = architecture(model) | changes
        return create_model(family_of(model), **fields), config.model
    return create_model(flags.model, **changes), flags.model


def described(model: Model, params: dict) -> str:
    """Returns size and cost of a model as a phrase."""
    count = sum(weight.size for weight in jax.tree.leaves(params))
    gmacs = cost_macs(model, None) / 1e9
    return (
        f"{count / 1e6:.4g} million weights, {gmacs:.4g} GMACs at "
        f"{model.image_size} x {model.image_size} pixels"
    )


def preset_table() -> str:
    """Returns all presets with size, tokens and cost."""
    rows = [["preset", "pixels", "tokens", "GMACs", "classes"]]
    for name in presets():
        model = create_model(name)
        rows.append(
            [
                name,
                str(model.image_size),
                str(model.geometry.num_tokens),
                f"{cost_macs(model, None) / 1e9:.4g}",
                str(model.num_classes),
            ]
        )
    return aligned(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    argv = sys.argv if argv is None else argv
    command = arguments.command("convert", argv)
    return report_errors(lambda: convert(parser().parse_args(argv[1:]), command))


if __name__ == "__main__":
    sys.exit(main())
