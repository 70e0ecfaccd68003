"""Times a model with a schedule against the dense one, alternately in one run."""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path

from diffrate_jax import arguments
from diffrate_jax.compressions import Cases, parse_compression
from diffrate_jax.errors import UserError
from diffrate_jax.exits import report_errors
from diffrate_jax.files import Json, write_json
from diffrate_jax.inference import DTYPES
from diffrate_jax.model_folder import load_params
from diffrate_jax.models import Model, create_model, init_weights
from diffrate_jax.rules import rule_of
from diffrate_jax.tables import benchmark_table, latency_table
from diffrate_jax.timing import peers
from diffrate_jax.timing.cells import Cell, read_cells, run_cells
from diffrate_jax.timing.places import record_path
from diffrate_jax.timing.probes import How, measure_latency
from diffrate_jax.timing.speed import Speed, run_benchmark
from diffrate_jax.workdir import make_folder

EXAMPLES = """examples:
  python -m diffrate_jax.benchmark --model=deit_small_patch16_224 \\
      --schedule=published:2.9 --against=tome:8 --batch=1,16
  python -m diffrate_jax.benchmark --model=deit_base_patch16_224 \\
      --schedule=published:11.5 --dtype=bfloat16 --batch=256 --peers=timm,timm_compiled
  python -m diffrate_jax.benchmark --recipe=configs/quickstart.py \\
      --weights=runs/quickstart/train/weights.safetensors \\
      --schedule=runs/quickstart/schedule.json
  python -m diffrate_jax.benchmark --model=deit_small_patch16_224 --batch=64 \\
      --latency_table=tables/deit_small.json
  python -m diffrate_jax.benchmark --cells=configs/benchmarks/gpu.json \\
      --peers=timm,timm_compiled --minutes=9 --out=results/gpu

efficiency is speed-up over the fastest dense model of the run, a peer's too, divided
by the ratio of operations: 1 where speed follows the operation count.
"""
DEFAULTS = {"batch": "16", "dtype": "float32", "rounds": 20}
# What a table of cells decides.
IN_CELLS = ("model", "recipe", "weights", "schedule", *DEFAULTS, "latency_table")


def parser() -> arguments.Parser:
    """Returns the program's flags."""
    flags = arguments.Parser("benchmark", __doc__, EXAMPLES)
    add = flags.add_argument
    add("--model", help="preset name")
    add("--recipe", help="config file whose model is taken instead")
    add("--weights", help="file or folder; random by default")
    add(
        "--schedule",
        default="",
        help="published:2.9, tome:8, uniform:60%% or path; with @8 after it its "
        "counts are rounded to eights",
    )
    add("--against", default="", help="more schedules, separated by commas")
    add("--batch", help="batch sizes (default 16)")
    add("--dtype", help="float32 (default) or bfloat16")
    add(
        "--attention", default="auto", help="plain, xla or cudnn (default: the fastest)"
    )
    add(
        "--peers",
        default="",
        help="dense models of others: timm, timm_compiled, where PyTorch is installed",
    )
    add("--rounds", type=int, help="timed runs of each (default 20)")
    add("--cells", help="table of benchmarks to run instead, a JSON file")
    add(
        "--minutes",
        type=float,
        default=inf,
        help="with --cells: after which none may be running",
    )
    add(
        "--out",
        type=arguments.folder_name,
        help="folder for JSON files, one a batch size",
    )
    add_latency_flags(flags)
    return flags


def add_latency_flags(flags: arguments.Parser) -> None:
    """Adds what latency tables take besides."""
    add = flags.add_argument
    add(
        "--latency_table",
        type=arguments.file_name,
        help="instead: measure a block's milliseconds by its tokens into this file, "
        "for searches under budgets such as 6.5ms",
    )
    add("--rule", default="redundancy", help="with --latency_table: of the search")
    add(
        "--checks",
        type=int,
        default=4,
        help="with --latency_table: random schedules to predict and time (default 4)",
    )


def benchmark(flags: argparse.Namespace, command: str) -> None:
    """Times every batch size, or every cell of a table, and prints a table for each.

    Raises:
        UserError: what cannot be timed, or failed.
    """
    # Now, as importing PyTorch takes its time too.
    deadline = time.monotonic() + 60 * flags.minutes
    peers.prepare(peers_of(flags))
    if flags.out:
        make_folder(Path(flags.out))
    if flags.cells:
        records = cells_of(flags, command, deadline)
    else:
        records = sizes_of(flags, command)
    for record in records:
        show(record)


def sizes_of(flags: argparse.Namespace, command: str) -> Iterator[dict[str, Json]]:
    """Yields a record for each batch size of one model."""
    if not flags.schedule:
        raise UserError(
            "give --schedule=SCHEDULE to time, or --latency_table=FILE, or --cells"
        )
    sizes = batch_sizes(flags.batch)
    model, name = chosen_model(flags)
    if peers_of(flags):
        peers.check_model(name, model)
    cases = cases_of(flags, flags.schedule, model, name)
    params = load_params(model, flags.weights) if flags.weights else init_weights(model)
    for batch_size in sizes:
        what = name, flags.dtype, batch_size, flags.schedule
        path = record_path(Path(flags.out), *what) if flags.out else None
        speed = speed_of(flags, batch_size, flags.dtype, flags.rounds)
        record = run_benchmark(model, name, params, cases, speed, command)
        if path:
            write_json(path, record)
        yield record


def cells_of(
    flags: argparse.Namespace, command: str, deadline: float
) -> Iterator[dict[str, Json]]:
    """Yields the records of a table's cells that are not there yet.

    Raises:
        UserError: no folder for them, no such table, or at the end cells that failed.
    """
    if not flags.out:
        raise UserError("--cells needs a folder for its records: give --out=DIR")

    def measure(cell: Cell) -> dict[str, Json]:
        model = create_model(cell.model)
        cases = cases_of(flags, cell.schedule, model, cell.model)
        speed = speed_of(flags, cell.batch_size, cell.dtype, cell.rounds)
        params = init_weights(model)
        return run_benchmark(model, cell.model, params, cases, speed, command)

    cells = read_cells(Path(flags.cells))
    yield from run_cells(cells, Path(flags.out), measure, deadline)


def cases_of(
    flags: argparse.Namespace, schedule: str, model: Model, name: str
) -> Cases:
    """Returns the dense model, the schedule, and those it is to be compared with."""
    others = [text for text in flags.against.split(",") if text and text != "dense"]
    return {"dense": None} | {
        text: parse_compression(text, model, name) for text in [schedule, *others]
    }


def speed_of(
    flags: argparse.Namespace, batch_size: int, dtype: str, rounds: int
) -> Speed:
    """Returns how to time programs, and beside whose."""
    return Speed(batch_size, dtype, rounds, flags.attention, peers_of(flags))


def peers_of(flags: argparse.Namespace) -> tuple[str, ...]:
    """Returns the names of the peers."""
    return tuple(filter(None, flags.peers.split(",")))


def show(record: dict[str, Json]) -> None:
    """Prints a record's table; nothing for what did not fit."""
    if record["kind"] == "benchmark":
        head = f"{record['model']}, batch {record['batch_size']}, {record['dtype']}"
        failed = record["failed_peers"].values()
        print("\n".join([head, benchmark_table(record), *failed]), flush=True)


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
    # Only here: without a recipe ml_collections need not be installed.
    from diffrate_jax.cli import load_recipe
    from diffrate_jax.recipes import model_of

    config = load_recipe(Path(flags.recipe))
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


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the flags, and of a table of cells no flag that it decides itself.

    Raises:
        UserError: flags that do not go together, or a number out of range.
    """
    flags = parser().parse_args(argv[1:])
    given = [f"--{name}" for name in IN_CELLS if getattr(flags, name) not in (None, "")]
    if flags.cells and given:
        raise UserError(
            "--cells brings models and schedules, batch sizes, dtype and rounds, with "
            f"random weights; leave {' and '.join(given)} out"
        )
    for name, default in DEFAULTS.items():
        if getattr(flags, name) is None:
            setattr(flags, name, default)
    if flags.rounds < 1:
        raise UserError(f"--rounds must be at least 1, got {flags.rounds}")
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    argv = sys.argv if argv is None else argv
    command = arguments.command("benchmark", argv)

    def run() -> None:
        flags = parsed(argv)
        (write_latency if flags.latency_table else benchmark)(flags, command)

    return report_errors(run)


if __name__ == "__main__":
    sys.exit(main())
