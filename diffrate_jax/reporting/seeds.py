"""How far runs that differ in their seed alone agree: in accuracy and in counts."""

import itertools
import statistics
from collections.abc import Sequence

import numpy as np

from diffrate_jax.reporting.boards import Board, Method
from diffrate_jax.reporting.results import Row
from diffrate_jax.reporting.sections import Cell, Line, Table

NOTE = (
    "Range is from the lowest run to the highest. Counts apart: by how many tokens the "
    "kept counts of two runs differ, mean over blocks and over pairs of runs; 0 means "
    "that all runs found one schedule."
)


def seeds_table(board: Board) -> Table | None:
    """Returns a line for each method learned more than once; None if there is none."""
    methods = [m for m in board.methods if m.kind == "learned" and len(m.rows) > 1]
    if not methods:
        return None
    has_runs = len({method.family for method in methods}) > 1
    header = ["method", *["run"] * has_runs, "target", "top-1 of each, %", "mean"]
    header += ["standard deviation", "range", "counts apart"]
    lines = [
        Line(
            [method.name, *[method.family or "–"] * has_runs, *spread_cells(method)],
            f"{method.family} {method.name}",
        )
        for method in methods
    ]
    return Table("Agreement of seeds", header, lines, NOTE)


def spread_cells(method: Method) -> list[str | Cell]:
    """Returns target, accuracies and what they and the counts differ by, as cells."""
    top1 = [row.top1 for row in method.rows]
    reach = max(top1) - min(top1)
    apart = counts_apart(method.rows)
    return [
        method.target or "–",
        " ".join(f"{value:.2f}" for value in top1),
        Cell(f"{statistics.fmean(top1):.2f}", statistics.fmean(top1)),
        Cell(f"{method.spread('top1'):.2f}", method.spread("top1")),
        Cell(f"{reach:.2f}", reach),
        "–" if apart is None else Cell(f"{apart:.1f}", apart),
    ]


def counts_apart(rows: Sequence[Row]) -> float | None:
    """Returns the tokens by which schedules differ, mean over blocks and pairs.

    A block that prunes and merges counts with both. None where a row has no counts, or
    another depth.
    """
    counts = [(*(row.prune or ()), *(row.merge or ())) for row in rows]
    if not counts[0] or len(set(map(len, counts))) > 1:
        return None
    pairs = itertools.combinations(np.array(counts), 2)
    return float(np.mean([np.abs(a - b).mean() for a, b in pairs]))
