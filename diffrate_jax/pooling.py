"""Evaluations of the same comparison with several seeds, taken together."""

import statistics
from collections.abc import Sequence

import numpy as np

from diffrate_jax.results import Evaluation, Row, hits


def pooled(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Returns one evaluation for each comparison that was run more than once.

    Runs belong together where model, dataset, split, target and the names of the rows
    agree. Figures are means over the runs, and so is what each image counts for: the
    same images in several runs are no more images.
    """
    groups: dict[tuple, list[Evaluation]] = {}
    for each in evaluations:
        names = tuple(row.name for row in each.rows)
        target = each.rows[-1].target
        key = (each.model, each.dataset, each.split, target, names)
        groups.setdefault(key, []).append(each)
    return [together(group) for group in groups.values() if len(group) > 1]


def together(group: Sequence[Evaluation]) -> Evaluation:
    """Returns runs of one comparison as a single evaluation."""
    first = group[0]
    rows = zip(*(each.rows for each in group), strict=True)
    return Evaluation(
        path=f"{len(group)} runs",
        command="; ".join(each.command for each in group),
        environment=first.environment,
        model=f"{first.model}, all {len(group)} runs together",
        dataset=first.dataset,
        split=first.split,
        dense_macs=first.dense_macs,
        rows=tuple(row_together(same) for same in rows),
    )


def row_together(rows: Sequence[Row]) -> Row:
    """Returns the mean of one row over the runs, with the images of all."""
    mean = lambda field: statistics.fmean(getattr(row, field) for row in rows)  # noqa: E731
    return Row(
        name=rows[0].name,
        macs=round(mean("macs")),
        count=rows[0].count,
        correct=np.mean([hits(row.correct) for row in rows], axis=0),
        target=rows[0].target,
        **{
            field: mean(field)
            for field in ("fraction", "top1", "top5", "loss", "images_per_second")
        },
    )
