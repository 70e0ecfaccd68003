r"""Learns how many tokens each block of a vision transformer keeps, under a budget.

Examples:
  python -m diffrate_jax.search --config=configs/quickstart.py --workdir=runs/search \
      --config.weights=runs/quickstart/train/weights.safetensors
  python -m diffrate_jax.search --config=configs/base.py --workdir=runs/deit_small \
      --config.weights=deit_small.safetensors --config.target=60%
  … --config.targets="('60%','50%','40%')"   several budgets in one run
  … --config.start=published:2.9             from a schedule that exists
  … --config.objective=cross_entropy         with labels; by default none are used
  python -m diffrate_jax.search --config=configs/mae_huge.py --dry_run --devices=32

--config    recipe; any field of it can be set with --config.field=value
--workdir   folder for schedule.json (with several targets schedule_60%.json and so on,
            and pareto.json), comparison.json, metrics.jsonl and checkpoints; the same
            command goes on where it stopped
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
from diffrate_jax.dry_run import define_dry_run, dry_run, tell
from diffrate_jax.files import write_json
from diffrate_jax.searching import (
    COMPARISON,
    compare,
    run_search,
    schedule_file,
    warn_if_beaten,
)
from diffrate_jax.tables import (
    evaluation_table,
    search_table,
    summary,
)
from diffrate_jax.workdir import has, read


def search(
    config: ConfigDict, workdir: epath.Path, values: flags.FlagValues, command: str
) -> None:
    """Runs the search, prints what it found and how that compares."""
    if values.dry_run:
        tell(dry_run(config, values.devices or jax.device_count()), workdir, values)
        return
    schedules = run_search(config, workdir)
    if not has(workdir, COMPARISON):
        records = [compare(config, schedule, command) for schedule in schedules]
        write_json(workdir / COMPARISON, {"comparisons": records})
    records = read(workdir, COMPARISON)["comparisons"]
    for schedule, record in zip(schedules, records, strict=True):
        target = schedule.provenance["target"]
        path = workdir / schedule_file(target, alone=len(schedules) == 1)
        print(f"\n{search_table(schedule)}\n{summary(schedule)}: {path}")
        if record["rows"]:
            print(f"\n{evaluation_table(record)}")
            warn_if_beaten(record["rows"])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    argv = sys.argv if argv is None else argv
    run = partial(search, command=arguments.command("search", argv))
    return cli.run_with_config(
        run,
        about=__doc__,
        define=define_dry_run,
        argv=argv,
        needs_workdir=lambda values: not values.dry_run,
    )


if __name__ == "__main__":
    sys.exit(main())
