r"""Trains weights, with a schedule in place or, with the schedule none, plainly.

Examples:
  python -m diffrate_jax.finetune --config=configs/quickstart_train.py \
      --workdir=runs/train
  python -m diffrate_jax.finetune --config=configs/quickstart_train.py \
      --workdir=runs/tuned --schedule=runs/quickstart/schedule.json \
      --config.weights=runs/quickstart/train/weights.safetensors --config.steps=300

--config    recipe; any field of it can be set with --config.field=value
--workdir   folder for weights.safetensors, metrics.jsonl and checkpoints; the same
            command goes on where it stopped
--schedule  none (default), published:2.9, tome:8, uniform:60% or a path; with
            @8 after it its counts are rounded to eights
"""

import sys
from collections.abc import Sequence

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from diffrate_jax import cli
from diffrate_jax.runs import WEIGHTS, run_training


def define(values: flags.FlagValues) -> None:
    """Adds this program's own flags."""
    flags.DEFINE_string("schedule", "none", "What is in place.", flag_values=values)


def finetune(config: ConfigDict, workdir: epath.Path, values: flags.FlagValues) -> None:
    """Trains and says where the weights are."""
    run_training(config, workdir, values.schedule)
    print(f"trained {config.steps} steps: {workdir / WEIGHTS}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    return cli.run_with_config(finetune, about=__doc__, define=define, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
