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

from diffrate_jax.arguments import Parser
from diffrate_jax.artefact import (
    PLATFORMS,
    RUNNER,
    Delivery,
    check_place,
    save_artefact,
    schedule_record,
)
from diffrate_jax.chosen import chosen_model, read_labels, short, weights_of
from diffrate_jax.compressions import parse_compression, split_multiple
from diffrate_jax.errors import UserError
from diffrate_jax.exits import report_errors
from diffrate_jax.files import Json, digest
from diffrate_jax.inference import DTYPES
from diffrate_jax.progress import say
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


def parser() -> Parser:
    """Returns the program's flags."""
    flags = Parser("export", __doc__, EXAMPLES)
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


def provenance(flags: argparse.Namespace) -> dict[str, Json]:
    """Returns where the weights and the schedule came from, without places."""
    found = {"weights_sha256": digest(local_path(flags.weights))}
    schedule, _ = split_multiple(flags.schedule)
    if Path(schedule).is_file():
        found["schedule_sha256"] = digest(schedule)
    return found


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
    return report_errors(lambda: export(parser().parse_args(argv[1:])))


if __name__ == "__main__":
    sys.exit(main())
