"""Exports a model with a schedule in place, to run with jax alone.

What comes out is a folder: the program for any number of images, its weights, a
manifest, and run.py, which needs jax and nothing of this package. It is for delivery:
jax keeps exported programs readable for about six months.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from diffrate_jax import cli
from diffrate_jax.artefact import (
    PLATFORMS,
    RUNNER,
    Delivery,
    check_place,
    save_artefact,
    schedule_record,
)
from diffrate_jax.baselines import parse_compression
from diffrate_jax.errors import UserError, did_you_mean
from diffrate_jax.files import Json, digest, reason
from diffrate_jax.inference import DTYPES
from diffrate_jax.model_folder import about, load, load_params
from diffrate_jax.models import FAMILIES, Model, Params, create_model
from diffrate_jax.preprocess import Preprocess, of_preset, published
from diffrate_jax.progress import say
from diffrate_jax.recipes import model_of, preprocess_of
from diffrate_jax.runner import PROGRAM, WEIGHTS
from diffrate_jax.sources import local_path

EXAMPLES = """examples:
  python -m diffrate_jax.export --weights=weights/deit_s --schedule=published:2.9 \\
      --out=deit_s.jaxexport
  python -m diffrate_jax.export --model=deit_small_patch16_224 \\
      --weights=deit_small.safetensors --schedule=tome:8 --dtype=bfloat16 \\
      --labels=imagenet_classes.txt --platforms=cuda --out=deit_s_tome.jaxexport
  python -m diffrate_jax.export --recipe=configs/quickstart.py \\
      --weights=runs/quickstart/train/weights.safetensors \\
      --schedule=runs/quickstart/schedule.json --out=digits.jaxexport
and then, where there is only jax:
  python deit_s.jaxexport/run.py photo.jpg
"""


def parser() -> cli.Parser:
    """Returns the program's flags."""
    flags = cli.Parser("export", __doc__, EXAMPLES)
    flags.add_argument("--weights", help="folder of convert; or a file of any source")
    flags.add_argument("--model", help="preset name, where --weights does not say")
    flags.add_argument("--recipe", help="config file whose model is taken instead")
    flags.add_argument(
        "--schedule",
        help="none, published:2.9, tome:8, uniform:60%% or path; with @8 after it "
        "its counts are rounded to eights",
    )
    flags.add_argument("--out", help="folder to write")
    flags.add_argument(
        "--overwrite", action="store_true", help="replace an export that is in --out"
    )
    flags.add_argument(
        "--dtype", default="float32", help=f"{' or '.join(DTYPES)}, default float32"
    )
    flags.add_argument(
        "--platforms",
        default=",".join(PLATFORMS),
        help=f"separated by commas, default {','.join(PLATFORMS)}",
    )
    flags.add_argument(
        "--preprocess",
        help="published or timm; by default the recipe's, or else the preset's own "
        "(timm)",
    )
    flags.add_argument("--labels", help="text file of class names, one to a line")
    return flags


def export(flags: argparse.Namespace) -> None:
    """Reads the model, writes the folder, and says what was done."""
    for flag in ("weights", "schedule", "out"):
        if not getattr(flags, flag):
            raise UserError(f"--{flag} is needed; see --help for examples")
    began = time.perf_counter()
    check_place(flags.out, replace=flags.overwrite)
    model, name, preprocess = chosen_model(flags)
    delivery = Delivery(
        model,
        name,
        parse_compression(flags.schedule, model, name),
        short(flags.schedule),
        preprocess,
        dtype=flags.dtype,
        platforms=tuple(dict.fromkeys(flags.platforms.split(","))),
        labels=read_labels(flags.labels) if flags.labels else (),
    )
    params = weights_of(flags, model)
    say(f"tracing for {', '.join(delivery.platforms)}; {preprocess}")
    sizes = save_artefact(flags.out, delivery, params, provenance=provenance(flags))
    print(report(flags.out, delivery, sizes, time.perf_counter() - began))


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
        config = cli.load_recipe(Path(flags.recipe))
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


def provenance(flags: argparse.Namespace) -> dict[str, Json]:
    """Returns where the weights and the schedule came from, without places."""
    found = {"weights_sha256": digest(local_path(flags.weights))}
    if Path(flags.schedule).is_file():
        found["schedule_sha256"] = digest(flags.schedule)
    return found


def short(schedule: str) -> str:
    """Returns a schedule's name: of a path only the last part, whoever's it is."""
    return Path(schedule).name if Path(schedule).is_file() else schedule


def report(out: str, delivery: Delivery, sizes: dict[str, int], seconds: float) -> str:
    """Returns what was written, as two lines."""
    cost = schedule_record(delivery)
    return (
        f"{out}: {sum(sizes.values()) / 1e6:.4g} MB (weights "
        f"{sizes[WEIGHTS] / 1e6:.4g}, program {sizes[PROGRAM] / 1e6:.4g}), "
        f"{cost['macs'] / 1e9:.4g} of {cost['dense_macs'] / 1e9:.4g} GMACs, "
        f"{seconds:.1f} s\ntry: python {Path(out) / RUNNER} --help"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    argv = sys.argv if argv is None else argv
    return cli.report_errors(lambda: export(parser().parse_args(argv[1:])))


if __name__ == "__main__":
    sys.exit(main())
