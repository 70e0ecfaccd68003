r"""Fine-tunes weights with a schedule in place or, with the schedule none, trains them.

Examples:
  python -m diffrate_jax.finetune --config=configs/deit_small_finetune.py \
      --workdir=runs/tuned --config.weights=weights/deit_s --schedule=published:2.9
  python -m diffrate_jax.finetune --config=configs/finetune.py:mae_large \
      --workdir=runs/tuned_l --config.weights=weights/mae_l --schedule=published:42.3
  … --config.distill=1          no labels: the dense model with these weights teaches
  … --config.layer_decay=0.75 --config.ema=0.9999
  python -m diffrate_jax.finetune --config=configs/quickstart_train.py \
      --workdir=runs/train      from nothing, as no weights are named
What it leaves is ready for the other programs:
  python -m diffrate_jax.evaluate --config=configs/deit_small.py --workdir=runs/eval \
      --config.weights=runs/tuned --schedule=runs/tuned/schedule.json
  python -m diffrate_jax.finetune --config=configs/finetune.py:mae_huge \
      --schedule=published:103.4 --dry_run --devices=32

--config    recipe; any field of it can be set with --config.field=value
--workdir   folder for weights.safetensors, model.json and schedule.json, metrics.jsonl
            and checkpoints, and with --config.final_evaluation evaluation.json; the
            same command goes on where it stopped
--schedule  none (default), published:2.9, tome:8, uniform:60% or a path; with
            @8 after it its counts are rounded to eights
--dry_run   only say what it would take: memory of a device, arithmetic, time; needs
            no weights, no data and no --workdir; into that goes dry_run.json
--devices   with --dry_run: accelerators to share a batch; by default those here
--tflops    with --dry_run: what one of them does, in 10^12 operations a second
"""

import sys
from collections.abc import Sequence
from functools import partial

import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from diffrate_jax import arguments, cli
from diffrate_jax.dry_run import define_dry_run, dry_run_training, tell
from diffrate_jax.finetuning import outcome, run_comparison, run_training
from diffrate_jax.sources import WEIGHTS
from diffrate_jax.tables import evaluation_table


def define(values: flags.FlagValues) -> None:
    """Adds this program's own flags."""
    flags.DEFINE_string("schedule", "none", "What is in place.", flag_values=values)
    define_dry_run(values)


def finetune(
    config: ConfigDict, workdir: epath.Path, values: flags.FlagValues, command: str
) -> None:
    """Trains, says where the weights are and, if that is asked for, what they reach."""
    if values.dry_run:
        devices = values.devices or jax.device_count()
        tell(dry_run_training(config, values.schedule, devices), workdir, values)
        return
    params = run_training(config, workdir, values.schedule)
    print(f"trained {config.steps} steps: {workdir / WEIGHTS}")
    if config.final_evaluation:
        record = run_comparison(config, workdir, values.schedule, params, command)
        print(f"\n{evaluation_table(record)}\n{outcome(record)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    argv = sys.argv if argv is None else argv
    run = partial(finetune, command=arguments.command("finetune", argv))
    return cli.run_with_config(
        run,
        about=__doc__,
        define=define,
        argv=argv,
        needs_workdir=lambda values: not values.dry_run,
    )


if __name__ == "__main__":
    sys.exit(main())
