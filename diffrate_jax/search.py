r"""Learns how many tokens each block of a vision transformer keeps, under a budget.

Examples:
  python -m diffrate_jax.search --config=configs/quickstart.py --workdir=runs/search \
      --config.weights=runs/quickstart/train/weights.safetensors
  python -m diffrate_jax.search --config=configs/base.py --workdir=runs/deit_small \
      --config.weights=deit_small.safetensors --config.target=60%

--config    recipe; any field of it can be set with --config.field=value
--workdir   folder for schedule.json, metrics.jsonl and checkpoints; the same command
            goes on where it stopped
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from diffrate_jax import cli
from diffrate_jax.runs import SCHEDULE, run_search


def search(config: ConfigDict, workdir: Path, _: flags.FlagValues) -> None:
    """Runs the search and prints what it found."""
    schedule = run_search(config, workdir)
    found = schedule.provenance
    print(f"prune  {schedule.prune}\nmerge  {schedule.merge}")
    print(
        f"{found['macs'] / 1e9:.4g} GMACs, {found['macs'] / found['dense_macs']:.1%} "
        f"of dense, target {found['target']}: {workdir / SCHEDULE}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    return cli.run_with_config(search, about=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
