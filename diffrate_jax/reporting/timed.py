"""Which methods of a board were timed, where, and what they took."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from diffrate_jax.reporting.boards import Board, Method
from diffrate_jax.reporting.methods import is_learned
from diffrate_jax.reporting.results import Benchmark, BenchmarkRow, Row


@dataclasses.dataclass(frozen=True)
class Timed:
    """Milliseconds of an image by method, all measured in one setting.

    Attributes:
        title: of the setting.
        ms: milliseconds of an image.
        rows: of the benchmark that they are from, if they are.
        note: how far to trust them.
    """

    title: str
    ms: Mapping[Method, float]
    rows: Mapping[Method, BenchmarkRow]
    note: str


def timed_by_benchmark(
    board: Board, benchmarks: Sequence[Benchmark]
) -> Iterator[Timed]:
    """Yields each setting that timed at least two methods of a board."""
    for benchmark in benchmarks:
        if not same_model(board, benchmark):
            continue
        rows = {
            method: row
            for method in board.methods
            for row in benchmark.rows
            if all(same_schedule(row, each) for each in method.rows)
        }
        if len(rows) > 1:
            ms = {m: 1000 / row.images_per_second for m, row in rows.items()}
            yield Timed(setting(benchmark), ms, rows, f"Timed in {benchmark.path}.")


def timed_by_evaluation(board: Board) -> Timed | None:
    """Returns what evaluating took, None if fewer than two methods say so."""
    ms = {
        method: 1000 / rate
        for method in board.methods
        if (rate := method.mean("images_per_second")) > 0
    }
    if len(ms) < 2:
        return None
    note = (
        "Rough: these times are the evaluation's own, with the reading of images in "
        "them and other work beside them. For times to rely on, run benchmark with "
        "the same schedules."
    )
    return Timed("as evaluated", ms, {}, note)


def same_model(board: Board, benchmark: Benchmark) -> bool:
    """Returns whether a benchmark is of a board's model."""
    dense = [row.macs for row in benchmark.rows if row.name == "dense"]
    first = board.runs[0]
    return benchmark.model == first.model and first.dense_macs in dense


def same_schedule(timed: BenchmarkRow, row: Row) -> bool:
    """Returns whether a benchmark's row and an evaluation's ran the same schedule.

    Records of before schedules stood in benchmarks are matched by cost and name.
    """
    if timed.macs != row.macs:
        return False
    if timed.merge is not None and row.merge is not None:
        both = (timed.rule, timed.prune, timed.merge), (row.rule, row.prune, row.merge)
        return both[0] == both[1]
    return timed.name == row.name or (is_learned(timed.name) and is_learned(row.name))


def setting(benchmark: Benchmark) -> str:
    """Returns device, type and batch size of a benchmark in words."""
    device = benchmark.environment.get("device", "an unknown device")
    return f"{device}, {benchmark.dtype}, batches of {benchmark.batch_size}"
