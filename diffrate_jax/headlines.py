"""The few numbers that a reader of a report wants first."""

import dataclasses
from collections.abc import Iterator, Sequence

from diffrate_jax.comparison import (
    Method,
    best_baselines,
    format_difference,
    format_macs,
    is_learned,
    learned_for,
    methods,
)
from diffrate_jax.results import Benchmark, Evaluation, Results


@dataclasses.dataclass(frozen=True)
class Headline:
    """One headline figure: what it is, its value, and what that means."""

    label: str
    value: str
    meaning: str


def headlines(results: Results) -> Iterator[tuple[str, tuple[Headline, ...]]]:
    """Yields a title and the headline figures of each evaluation, target by target.

    Of several schedules for one target the first speaks: the others are beside it in
    the tables.
    """
    for evaluation in results.evaluations:
        found = methods(evaluation)
        dense = next((m for m in found if m.name == "dense"), None)
        first = {m.target: m for m in reversed(found) if is_learned(m.name)}
        for learned in reversed(first.values()):
            title = f"{evaluation.model}, {evaluation.dataset} {evaluation.split}"
            target = f", target {learned.target}" if learned.target else ""
            yield (
                title + target,
                (
                    _accuracy(learned, dense),
                    _lead(learned, found),
                    _cost(learned, evaluation),
                    *_speed(learned, evaluation, results.benchmarks),
                ),
            )


def _accuracy(learned: Method, dense: Method | None) -> Headline:
    top1 = f"{learned.mean('top1'):.2f}%"
    if dense is None:
        return Headline("Accuracy", top1, "top-1, learned")
    return Headline(
        "Accuracy",
        f"{dense.mean('top1'):.2f} → {top1}",
        f"top-1, dense → learned: {format_difference(learned, dense)} points",
    )


def _lead(learned: Method, found: Sequence[Method]) -> Headline:
    rivals = [
        found[n]
        for n in best_baselines(found)
        if learned_for(found[n], found) is learned
    ]
    if not rivals:
        return Headline("Lead over baselines", "–", "no baseline was evaluated")
    rival = max(rivals, key=lambda method: method.mean("top1"))
    value, _, interval = format_difference(learned, rival).partition(" ")
    return Headline(
        "Lead over baselines",
        f"{value} points",
        f"over the best, {rival.name}; 95% interval {interval}",
    )


def _cost(learned: Method, evaluation: Evaluation) -> Headline:
    return Headline(
        "Cost",
        f"{learned.mean('fraction'):.1%}",
        f"of dense: {format_macs(learned.mean('macs'))} of "
        f"{format_macs(evaluation.dense_macs)} per image",
    )


def _speed(
    learned: Method, evaluation: Evaluation, benchmarks: Sequence[Benchmark]
) -> tuple[Headline, ...]:
    for benchmark in benchmarks:
        for row in benchmark.rows:
            # Accuracy and speed belong together only if they are of the same schedule.
            same = benchmark.model == evaluation.model and is_learned(row.name)
            if same and row.macs == learned.rows[0].macs:
                return (
                    Headline(
                        "Speed",
                        f"{row.speedup:.2f}×",
                        f"{row.images_per_second:,.0f} images/s "
                        f"({benchmark.dtype}, batches of {benchmark.batch_size})",
                    ),
                    Headline(
                        "Efficiency",
                        f"{row.efficiency:.2f}",
                        "speed-up over what the saved multiply-adds promise",
                    ),
                )
    return (Headline("Speed", "–", "no benchmark of this schedule was run"),)
