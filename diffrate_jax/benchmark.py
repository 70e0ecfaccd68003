"""Times a model with a schedule against the dense one, alternately in one run."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffrate_jax import cli
from diffrate_jax.baselines import parse_compression
from diffrate_jax.errors import UserError
from diffrate_jax.files import write_json
from diffrate_jax.model_folder import load_params
from diffrate_jax.models import Model, create_model, init_weights
from diffrate_jax.probes import How, measure_latency
from diffrate_jax.recipes import DTYPES, model_of
from diffrate_jax.rules import rule_of
from diffrate_jax.runs import Speed, run_benchmark
from diffrate_jax.tables import benchmark_table, latency_table
from diffrate_jax.workdir import make_folder

EXAMPLES = """examples:
  python -m diffrate_jax.benchmark --model=deit_small_patch16_224 \\
      --schedule=published:2.9 --against=tome:8 --batch=1,16
  python -m diffrate_jax.benchmark --recipe=configs/quickstart.py \\
      --weights=runs/quickstart/train/weights.safetensors \\
      --schedule=runs/quickstart/schedule.json
  python -m diffrate_jax.benchmark --model=deit_small_patch16_224 --batch=64 \\
      --latency_table=tables/deit_small.json
"""


def parser() -> cli.Parser:
    """Returns the program's flags."""
    flags = cli.Parser("benchmark", __doc__, EXAMPLES)
    flags.add_argument("--model", help="preset name")
    flags.add_argument("--recipe", help="config file whose model is taken instead")
    flags.add_argument("--weights", help="file or folder; random by default")
    flags.add_argument(
        "--schedule", default="", help="published:2.9, tome:8, uniform:60%% or path"
    )
    flags.add_argument(
        "--against", default="", help="more schedules, separated by commas"
    )
    flags.add_argument("--batch", default="16", help="batch sizes (default 16)")
    flags.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    flags.add_argument("--rounds", type=int, default=20, help="timed runs of each")
    flags.add_argument(
        "--latency_table",
        help="instead: measure a block's milliseconds by its tokens into this file, "
        "for searches under budgets such as 6.5ms",
    )
    flags.add_argument(
        "--rule", default="redundancy", help="with --latency_table: of the search"
    )
    flags.add_argument(
        "--checks",
        type=int,
        default=4,
        help="with --latency_table: random schedules to predict and time (default 4)",
    )
    flags.add_argument("--out", help="folder for one JSON file per batch size")
    return flags


def benchmark(flags: argparse.Namespace, command: str) -> None:
    """Times every batch size and prints a table for each."""
    if not flags.schedule:
        raise UserError("give --schedule=SCHEDULE to time, or --latency_table=FILE")
    sizes = batch_sizes(flags.batch)
    if flags.out:
        make_folder(Path(flags.out))
    model, name = chosen_model(flags)
    others = [text for text in flags.against.split(",") if text and text != "dense"]
    cases = {"dense": None} | {
        text: parse_compression(text, model, name) for text in [flags.schedule, *others]
    }
    params = load_params(model, flags.weights) if flags.weights else init_weights(model)
    for batch_size in sizes:
        speed = Speed(batch_size, flags.dtype, flags.rounds)
        record = run_benchmark(model, name, params, cases, speed, command)
        print(f"batch {batch_size}, {flags.dtype}\n{benchmark_table(record)}")
        if flags.out:
            file = f"{name}_{flags.dtype}_b{batch_size}.json"
            write_json(Path(flags.out) / file, record)


def write_latency(flags: argparse.Namespace, command: str) -> None:
    """Measures a latency table, prints it and writes it.

    Raises:
        UserError: flags that make no table.
    """
    sizes = batch_sizes(flags.batch)
    if flags.schedule or flags.against or len(sizes) > 1 or flags.checks < 0:
        raise UserError(
            "a latency table is of one batch size, and takes no --schedule or "
            f"--against; give --batch=64 or the like, got --batch={flags.batch}, "
            f"--schedule={flags.schedule!r}, --checks={flags.checks}"
        )
    if flags.dtype not in DTYPES:
        raise UserError(f"--dtype must be one of {DTYPES}, got {flags.dtype!r}")
    rule_of(flags.rule)
    path = Path(flags.latency_table)
    make_folder(path.parent)
    how = How(flags.rule, sizes[0], flags.dtype, flags.rounds, flags.checks)
    table = measure_latency(*chosen_model(flags), how, command)
    table.save(path)
    print(f"{latency_table(table)}\n{path}")


def chosen_model(flags: argparse.Namespace) -> tuple[Model, str]:
    """Returns the model that is timed, and its name.

    Raises:
        UserError: none or two are named, or a model that does not exist.
    """
    if bool(flags.model) == bool(flags.recipe):
        raise UserError("give either --model=NAME or --recipe=FILE")
    if flags.model:
        return create_model(flags.model), flags.model
    config = cli.load_recipe(Path(flags.recipe))
    return model_of(config), config.model


def batch_sizes(text: str) -> list[int]:
    """Returns the batch sizes of a list such as "1,8,64".

    Raises:
        UserError: anything but positive integers.
    """
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"--batch takes sizes such as 1,8,64, got {text!r}")
    return [int(part) for part in parts]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    argv = sys.argv if argv is None else argv
    command = cli.command("benchmark", argv)

    def run() -> None:
        flags = parser().parse_args(argv[1:])
        if flags.rounds < 1:
            raise UserError(f"--rounds must be at least 1, got {flags.rounds}")
        (write_latency if flags.latency_table else benchmark)(flags, command)

    return cli.report_errors(run)


if __name__ == "__main__":
    sys.exit(main())
