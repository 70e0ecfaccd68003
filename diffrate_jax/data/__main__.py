r"""Measures how fast training images come, without a model that waits for them.

Examples:
  python -m diffrate_jax.data --config=configs/base.py
  python -m diffrate_jax.data --config=configs/published.py --stages \
      --config.batch_size=128 --config.dataset=folder:/data/imagenet --out=input.json

--config   recipe; any field of it can be set with --config.field=value
--steps    batches timed in each turn (default 8), after seven that are not
--rounds   turns (default 5); figures are their medians
--stages   also time each stage alone, in turn with the whole: reading, decoding and
           cropping; RandAugment; making batches. "in series" is what the first two
           allow one after the other
--out      JSON file for the figures
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from diffrate_jax import arguments, cli
from diffrate_jax.data.stages import READ, Stage, in_series, rates
from diffrate_jax.environment import environment
from diffrate_jax.errors import UserError
from diffrate_jax.files import Json, write_json
from diffrate_jax.recipes import batches_of, dataset_of, model_of
from diffrate_jax.tables import aligned

WHOLE, SERIES = "whole stream", "in series"
# More than any stream keeps ready.
WARMUP = 7


def define(values: flags.FlagValues) -> None:
    """Adds this program's own flags."""
    flags.DEFINE_integer("steps", 8, "Batches of a turn.", flag_values=values)
    flags.DEFINE_integer("rounds", 5, "Turns.", flag_values=values)
    flags.DEFINE_bool(
        "stages", default=False, help="Time each stage alone.", flag_values=values
    )
    flags.DEFINE_string("out", "", "JSON file of the figures.", flag_values=values)


def measure(
    config: ConfigDict, _: Path, values: flags.FlagValues, command: str
) -> None:
    """Measures, prints a table, and writes the figures if they are asked for."""
    for name in ("steps", "rounds"):
        if values[name].value < 1:
            raise UserError(f"--{name} must be at least 1, got {values[name].value}")
    stages = stages_of(config, alone=values.stages)
    share = config.batch_size // jax.process_count()
    timed = {"images": values.steps * share, "warmup": WARMUP * share}
    found = rates(stages, **timed, rounds=values.rounds)
    record = record_of(config, found, command)
    print(table(record))
    if values.out:
        write_json(values.out, record)


def stages_of(config: ConfigDict, *, alone: bool) -> dict[str, Stage]:
    """Returns the config's training stream and, if asked for, its stages."""
    dataset = dataset_of(config, model_of(config))
    batches = batches_of(config, dataset)
    stream = {"batch_size": config.batch_size, "seed": config.seed}
    stages = dataset.stages(config.train_split, **stream) if alone else {}
    return stages | {WHOLE: lambda: (len(batch["label"]) for batch in batches(0))}


def record_of(
    config: ConfigDict, found: dict[str, list[float]], command: str
) -> dict[str, Json]:
    """Returns the figures of all rounds, their medians and what they depend on."""
    if READ in found:
        found = found | {SERIES: in_series(found)}
    rows = [
        {"name": name, "images_per_second": float(np.median(own)), "rounds": own}
        for name, own in found.items()
    ]
    record = {"kind": "input", "command": command, "environment": environment()}
    record |= {name: config[name] for name in ("dataset", "train_split", "batch_size")}
    if SERIES in found:
        # Round by round: what else the machine does falls on both.
        ratios = np.divide(found[WHOLE], found[SERIES])
        record["whole_over_series"] = float(np.median(ratios))
    return record | {"rows": rows}


def table(record: dict[str, Json]) -> str:
    """Returns the figures for the terminal."""
    rows = [["", "images/s", "lowest", "highest"]]
    for row in record["rows"]:
        own = row["rounds"]
        figures = row["images_per_second"], min(own), max(own)
        rows.append([row["name"], *(f"{figure:.0f}" for figure in figures)])
    lines = [aligned(rows)]
    if "whole_over_series" in record:
        lines.append(
            f"the whole stream comes at {record['whole_over_series']:.1%} of what "
            "reading and RandAugment allow in series"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    argv = sys.argv if argv is None else argv
    run = functools.partial(measure, command=arguments.command("data", argv))
    return cli.run_with_config(
        run, about=__doc__, define=define, argv=argv, needs_workdir=lambda _: False
    )


if __name__ == "__main__":
    sys.exit(main())
