"""What was learned compared with every other method, image by image, in plain text."""

import dataclasses
import re
import statistics
from collections.abc import Sequence

import numpy as np

from diffrate_jax.results import (
    Benchmark,
    BenchmarkRow,
    Evaluation,
    Row,
    bootstrap_difference,
    geometry_of,
    hits,
)
from diffrate_jax.schedule import Schedule

# Methods that are there to be beaten, by the names that evaluations give them.
BASELINES = re.compile(
    r"ToMe .*|\w+ constant|prune only|merge only|uniform|EViT|random( \d+)?"
    r"|published search|(tome|uniform):.*"
)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table in plain text; `strong` and `best` are numbers of rows to point out."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    strong: frozenset[int] = frozenset()
    best: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class Method:
    """One line of a comparison: a row, or all random rows of a target together."""

    name: str
    rows: tuple[Row, ...]

    @property
    def target(self) -> str | None:
        """Cost that was asked for."""
        return self.rows[0].target

    @property
    def correct(self) -> np.ndarray:
        """Share of the rows that were right, for each image."""
        return np.mean([hits(row.correct) for row in self.rows], axis=0)

    def mean(self, field: str) -> float:
        """Returns the mean of a field over the rows."""
        return statistics.fmean(getattr(row, field) for row in self.rows)

    def spread(self, field: str) -> float:
        """Returns the standard deviation of a field over the rows; 0 for one row."""
        values = [getattr(row, field) for row in self.rows]
        return statistics.stdev(values) if len(values) > 1 else 0.0


def is_baseline(name: str) -> bool:
    """Returns whether a row is there to be beaten."""
    return BASELINES.fullmatch(name) is not None


def is_learned(name: str) -> bool:
    """Returns whether a row is a schedule, of whatever name, that search found."""
    return name not in ("dense", "none") and not is_baseline(name)


def methods(evaluation: Evaluation) -> tuple[Method, ...]:
    """Returns the rows in their order, "random 1", "random 2", … of a target as one."""
    groups: dict[tuple[str, str | None, int], list[Row]] = {}
    for number, row in enumerate(evaluation.rows):
        is_random = re.fullmatch(r"random \d+", row.name)
        key = ("random", row.target, -1) if is_random else (row.name, None, number)
        groups.setdefault(key, []).append(row)
    return tuple(Method(key[0], tuple(rows)) for key, rows in groups.items())


def learned_for(method: Method, others: Sequence[Method]) -> Method | None:
    """Returns what was learned for the method's target, if that is one method only."""
    learned = [other for other in others if is_learned(other.name)]
    same = [other for other in learned if other.target == method.target]
    found = same or learned
    return found[0] if len(found) == 1 else None


def best_baselines(found: Sequence[Method]) -> frozenset[int]:
    """Returns the number of the most accurate baseline of each target."""
    best: dict[str | None, int] = {}
    for number, method in enumerate(found):
        rival = best.get(method.target)
        if is_baseline(method.name) and (
            rival is None or method.mean("top1") > found[rival].mean("top1")
        ):
            best[method.target] = number
    return frozenset(best.values())


def format_macs(macs: float) -> str:
    """Returns multiply-adds with a unit.

    >>> format_macs(4_608_000_000), format_macs(13_366_560)
    ('4.61 GMACs', '13.4 MMACs')
    """
    unit, scale = ("G", 1e9) if macs >= 1e9 else ("M", 1e6)
    return f"{macs / scale:#.3g}".rstrip(".") + f" {unit}MACs"


def format_difference(one: Method | None, other: Method) -> str:
    """Returns how many points `one` is ahead of `other`, and the 95% interval."""
    if one is None or one is other:
        return "–"
    mean, low, high = bootstrap_difference(one.correct, other.correct)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−")


def evaluation_table(evaluation: Evaluation) -> Table:
    """Returns all methods, and how far what was learned is ahead of each."""
    found = methods(evaluation)
    best = best_baselines(found)
    has_targets = any(method.target for method in found)
    ahead = "learned − this, points [95% interval]"
    header = ("cost", "of dense", "top-1, %", "top-5, %", "loss", "images/s", ahead)
    return Table(
        f"{evaluation.model}, {evaluation.dataset} {evaluation.split}",
        ("method", *(("target",) if has_targets else ()), *header),
        [
            (
                _method_name(method, is_best=number in best),
                *((method.target or "–",) if has_targets else ()),
                *_method_figures(method),
                format_difference(learned_for(method, found), method),
            )
            for number, method in enumerate(found)
        ],
        f"{evaluation.rows[0].count:,} images. Differences are paired: both methods "
        "see the same images; the interval is a bootstrap over them (2,000 draws). "
        "Cost is per image; one multiply-add counts once, which the papers call one "
        "FLOP. Images/s here includes reading the images and is no benchmark.",
        frozenset(n for n, method in enumerate(found) if is_learned(method.name)),
        best,
    )


def _method_name(method: Method, *, is_best: bool) -> str:
    name = method.name
    if len(method.rows) > 1:
        name += f" (mean ± sd of {len(method.rows)})"
    return f"{name} – best baseline" if is_best else name


def _method_figures(method: Method) -> tuple[str, ...]:
    spread = f" ± {method.spread('top1'):.2f}" if len(method.rows) > 1 else ""
    return (
        format_macs(method.mean("macs")),
        f"{method.mean('fraction'):.1%}",
        f"{method.mean('top1'):.2f}{spread}",
        f"{method.mean('top5'):.2f}",
        f"{method.mean('loss'):.3f}",
        f"{method.mean('images_per_second'):,.0f}",
    )


def benchmark_title(benchmark: Benchmark) -> str:
    """Returns what ran, and in what batches."""
    batches = f"batches of {benchmark.batch_size}"
    return f"{benchmark.model}, {benchmark.dtype}, {batches}"


def device_of(benchmark: Benchmark) -> str:
    """Returns what a benchmark ran on."""
    return str(benchmark.environment.get("device", "an unknown device"))


def benchmark_table(benchmark: Benchmark) -> Table:
    """Returns the speed of every row."""
    strong = (n for n, row in enumerate(benchmark.rows) if is_learned(row.name))
    rate = ("images/s", "slowest to fastest", "speed-up", "efficiency", "compile, s")
    return Table(
        benchmark_title(benchmark),
        ("method", "cost", *rate),
        [_benchmark_row(row) for row in benchmark.rows],
        f"On {device_of(benchmark)}. Images/s is the median of "
        f"{len(benchmark.rows[0].seconds)} runs. Efficiency is the speed-up over "
        "dense, divided by how many times fewer multiply-adds there are: 1.00 means "
        "that every saved one saves its time.",
        frozenset(strong),
    )


def speed_range(row: BenchmarkRow) -> tuple[float, float]:
    """Returns images per second of the slowest and of the fastest run."""
    work = row.images_per_second * statistics.median(row.seconds)
    return work / max(row.seconds), work / min(row.seconds)


def _benchmark_row(row: BenchmarkRow) -> tuple[str, ...]:
    slowest, fastest = speed_range(row)
    return (
        row.name,
        format_macs(row.macs),
        f"{row.images_per_second:,.0f}",
        f"{slowest:,.0f} – {fastest:,.0f}",
        f"{row.speedup:.2f}×",
        f"{row.efficiency:.2f}",
        f"{row.compile_seconds:.1f}",
    )


def schedule_title(path: str, schedule: Schedule) -> str:
    """Returns where a schedule is from, what was asked for, and what it costs."""
    about = schedule.provenance
    macs, dense = about.get("macs"), about.get("dense_macs")
    words = [path]
    if about.get("target"):
        words.append(f"target {about['target']}")
    if isinstance(macs, int | float) and isinstance(dense, int | float) and dense:
        words.append(f"{macs / dense:.1%} of the dense cost")
    return ", ".join(words)


def schedule_table(path: str, schedule: Schedule) -> Table:
    """Returns the tokens of every block."""
    geometry = geometry_of(schedule)
    steps = zip(schedule.steps(geometry), geometry.dense, strict=True)
    rows = [
        (str(block), *map(str, step), f"{step[-1] / dense:.0%}")
        for block, (step, dense) in enumerate(steps, 1)
    ]
    header = ("block", "tokens in", "after pruning", "after merging", "of all")
    return Table(schedule_title(path, schedule), header, rows)
