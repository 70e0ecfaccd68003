"""Boards: everything that was evaluated on the same images with the same weights.

Runs whose commands agree but for the seed and the target are taken together: a method
has a mean and a spread for each target. Anything else stays apart, under its folder,
and so does each version of the code that ran one command.
"""

import dataclasses
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np

from diffrate_jax.reporting.intervals import hits, paired_difference, wilson
from diffrate_jax.reporting.methods import DENSE, TUNED, is_baseline, plain_name
from diffrate_jax.reporting.results import Evaluation, Row, without_seed

# Costs that differ by no more of one are alike, where no target says what was asked.
NEAR = 0.05


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """One line of a comparison: all seeds, or all draws, of a method for a target.

    Attributes:
        name: of the method.
        target: cost that was asked for, if any.
        family: folder of the runs it is from.
        rows: what was evaluated.
        paths: files of the rows.
        is_tuned: the weights are not the board's, but what fine-tuning made of them.
    """

    name: str
    target: str | None
    family: str
    rows: tuple[Row, ...]
    paths: tuple[str, ...]
    is_tuned: bool = False

    @cached_property
    def correct(self) -> np.ndarray:
        """Share of the rows that were right, for each image."""
        return np.mean([hits(row.correct) for row in self.rows], axis=0)

    @property
    def kind(self) -> str:
        """Whether this is "dense", "baseline" or "learned".

        A model that was tuned and not compressed is dense, whatever its row is called.
        """
        if self.name in DENSE or self.mean("fraction") == 1:
            return "dense"
        return "baseline" if is_baseline(self.name) else "learned"

    def mean(self, field: str) -> float:
        """Returns the mean of a field over the rows."""
        return statistics.fmean(getattr(row, field) for row in self.rows)

    def spread(self, field: str) -> float:
        """Returns the standard deviation of a field over the rows; 0 for one row."""
        values = [getattr(row, field) for row in self.rows]
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def interval(self) -> tuple[float, float]:
        """Returns the 95% interval of top-1, in percent, for the number of images.

        Several rows see the same images, which are no more for it.
        """
        low, high = wilson(self.mean("top1") / 100, self.rows[0].count)
        return 100 * low, 100 * high

    def goes_with(self, other: "Method") -> bool:
        """Returns whether this costs what another method was to cost.

        Where the other had no target, this is of the same runs and about as dear.
        """
        if other.target:
            return self.target == other.target
        ratio = self.mean("macs") / other.mean("macs")
        return self.family == other.family and abs(ratio - 1) <= NEAR


@dataclasses.dataclass(frozen=True, eq=False)
class Board:
    """Methods that can be compared image by image, those of a target together.

    Attributes:
        is_one_of_several: there are others whose images have the same name.
        weights: their name, where there are others of the same images.
    """

    runs: tuple[Evaluation, ...]
    methods: tuple[Method, ...]
    is_one_of_several: bool = False
    weights: str | None = None

    @property
    def title(self) -> str:
        """Model and images."""
        first = self.runs[0]
        title = f"{format_macs(first.dense_macs)}, {first.dataset} {first.split}"
        labels = (first.rows[0].labels or "unknown")[:7]
        order = f" (order of images: {labels})" if self.is_one_of_several else ""
        return f"{first.model} of {title}{order}"

    @property
    def targets(self) -> tuple[str | None, ...]:
        """What was asked for, the dearest first."""
        found = {m.target: m.mean("fraction") for m in self.methods if m.target}
        return tuple(sorted(found, key=found.__getitem__, reverse=True))

    @property
    def families(self) -> tuple[str, ...]:
        """Folders that the runs are from."""
        return tuple(sorted({method.family for method in self.methods}))

    def dense_of(self, method: Method) -> Method | None:
        """Returns the dense model that a method compressed, if it was evaluated."""
        dense = [m for m in self.methods if m.name in ("dense", "none")]
        own = [m for m in dense if m.family == method.family]
        found = own or dense
        return found[0] if len(found) == 1 else None

    def rival_of(self, method: Method) -> Method | None:
        """Returns the most accurate baseline for the target, its own family's first.

        None for what was fine-tuned, as no baseline was.
        """
        if method.is_tuned:
            return None
        rivals = [
            m for m in self.methods if m.kind == "baseline" and m.goes_with(method)
        ]
        own = [m for m in rivals if m.family == method.family]
        return max(own or rivals, key=lambda m: m.mean("top1"), default=None)


def boards_of(evaluations: Iterable[Evaluation]) -> tuple[Board, ...]:
    """Returns a board for all of the same weights and images, most images first.

    Training images come last, before them those whose order is unknown. Images under
    one name whose labels come in another order are another set.
    """
    groups: dict[tuple, list[Evaluation]] = {}
    for run in evaluations:
        first = run.rows[0]
        images = run.dataset, run.split, first.count, first.labels
        key = (run.model, run.dense_macs, *images), run.weights
        groups.setdefault(key, []).append(run)
    of_images = Counter(images for images, _ in groups)
    orders = Counter(images[:-1] for images in of_images)

    def order(key: tuple) -> tuple:
        *_, split, count, labels = key[0]
        return split.startswith("train"), not labels, -count

    boards = []
    for key in sorted(groups, key=order):
        (images, weights), runs = key, tuple(groups[key])
        name = (weights or "unknown") if of_images[images] > 1 else None
        several = orders[images[:-1]] > 1
        boards.append(Board(runs, methods_of(runs), several, name))
    return tuple(boards)


def methods_of(runs: Sequence[Evaluation]) -> tuple[Method, ...]:
    """Returns the methods of a board: dense first, then by target, best first."""
    families = families_of(runs)
    found = [
        method
        for name, family in zip(family_names(families), families, strict=True)
        for method in pooled(name, distinct(family))
    ]
    found = list({once_key(method): method for method in reversed(found)}.values())
    kinds = ("dense", "learned", "baseline")
    share = {m.target: m.mean("fraction") for m in reversed(found)}
    order = lambda m: (  # noqa: E731
        m.kind != "dense",
        -share[m.target] if m.target else 0,
        kinds.index(m.kind),
        -m.mean("top1"),
    )
    return tuple(sorted(found, key=order))


def families_of(runs: Sequence[Evaluation]) -> list[list[Evaluation]]:
    """Returns runs that differ in seed and target only, a list for each such kind.

    Where one command, seed and target among it, gave several outcomes, they are no
    seeds but what versions of the code make of it: each version is a family then.
    """
    families: dict[tuple[str, ...], list[Evaluation]] = {}
    for run in runs:
        families.setdefault((run.dtype, without_seed(run)), []).append(run)
    found: dict[tuple[str, ...], list[Evaluation]] = {}
    for key, family in families.items():
        commands = [run.command for run in distinct(family)]
        is_again = len(set(commands)) < len(commands)
        for run in family:
            found.setdefault((*key, run.commit if is_again else ""), []).append(run)
    return list(found.values())


def once_key(method: Method) -> tuple:
    """Returns what tells methods apart: a dense model of one folder counts once."""
    if method.kind == "dense":
        return method.name, method.family, *(row.correct for row in method.rows)
    return (id(method),)


def distinct(runs: Iterable[Evaluation]) -> list[Evaluation]:
    """Returns the runs without copies of one that comes before."""
    found: dict[tuple, Evaluation] = {}
    for run in runs:
        found.setdefault(tuple(map(what_ran, run.rows)), run)
    return list(found.values())


def what_ran(row: Row) -> tuple:
    """Returns what a row and its copy have in common: schedule and outcome."""
    schedule = row.macs, row.rule, row.prune, row.merge
    return row.name, row.target, row.correct, *schedule


def pooled(family: str, runs: Sequence[Evaluation]) -> list[Method]:
    """Returns the methods of runs that differ in seed and target only."""
    groups: dict[tuple[str, str | None], list[tuple[Row, str]]] = {}
    for run in runs:
        names = {row.name for row in run.rows}
        for row in run.rows:
            name = plain_name(row.name, names, row.target)
            # The same weights do alike, whatever target stands beside them.
            target = None if name in DENSE else row.target
            rows = groups.setdefault((name, target), [])
            if name not in DENSE or row.correct not in [r.correct for r, _ in rows]:
                rows.append((row, run.path))
    tuned = TUNED if runs[0].is_of_tuning else ()
    return [
        Method(
            name, target, family, *map(tuple, zip(*rows, strict=True)), name in tuned
        )
        for (name, target), rows in groups.items()
    ]


def family_names(families: Sequence[Sequence[Evaluation]]) -> list[str]:
    """Returns for each family the folder that holds all its runs.

    Where that would give two families one name and they hold the same method for the
    same target, a number tells them apart.
    """
    folders = [
        os.path.commonpath([str(PurePosixPath(run.path).parent) for run in family])
        for family in families
    ]
    seen: dict[tuple[str, str, str | None], int] = {}
    names = []
    for folder, family in zip(folders, families, strict=True):
        keys = {(folder, row.name, row.target) for run in family for row in run.rows}
        clash = max(
            (seen.get(key, 0) for key in keys if key[1] not in DENSE), default=0
        )
        seen |= dict.fromkeys(keys, clash + 1)
        folder = "" if folder == "." else folder
        names.append(f"{folder or 'run'} ({clash + 1})" if clash else folder)
    return names


def format_macs(macs: float) -> str:
    """Returns multiply-adds with a unit.

    >>> format_macs(4_608_000_000), format_macs(13_366_560)
    ('4.61 GMACs', '13.4 MMACs')
    """
    unit, scale = ("G", 1e9) if macs >= 1e9 else ("M", 1e6)
    return f"{macs / scale:#.3g}".rstrip(".") + f" {unit}MACs"


def format_difference(one: Method, other: Method | None) -> str:
    """Returns how many points `one` is ahead of `other`, and the 95% interval."""
    if other is None or one is other:
        return "–"
    mean, low, high = paired_difference(one.correct, other.correct)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−")
