"""What runs leave in a work directory, read back and checked."""

import contextlib
import dataclasses
import json
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from diffrate_jax.errors import UserError
from diffrate_jax.models import create_model
from diffrate_jax.records import (
    Positive,
    PositiveFloat,
    read_record,
    wrong_value,
)
from diffrate_jax.schedule import FORMAT, Schedule
from diffrate_jax.shapes import Geometry

Step = TypeVar("Step")
Sheet = TypeVar("Sheet")


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to run a model, and how well it did; `correct` is 0 or 1 per image."""

    name: str
    macs: Positive
    fraction: float
    count: Positive
    top1: float
    top5: float
    loss: float
    images_per_second: float
    correct: str
    target: str | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Accuracy of several rows on the same images."""

    path: str
    command: str
    environment: dict[str, Any]
    model: str
    dataset: str
    split: str
    dense_macs: Positive
    rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True)
class BenchmarkRow:
    """Speed of one row; efficiency is speed-up times the fraction of dense MACs."""

    name: str
    macs: Positive
    images_per_second: PositiveFloat
    seconds: tuple[PositiveFloat, ...]
    compile_seconds: float
    speedup: PositiveFloat
    efficiency: PositiveFloat


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Speed of several rows on one device."""

    path: str
    command: str
    environment: dict[str, Any]
    model: str
    batch_size: Positive
    dtype: str
    rows: tuple[BenchmarkRow, ...]


@dataclasses.dataclass(frozen=True)
class SearchStep:
    """What search logged at one step; a target in milliseconds is none in MACs."""

    step: int
    loss: float
    objective: float
    macs: float
    target_macs: float | None = None


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """What training logged at one step."""

    step: int
    loss: float


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything found in a work directory, by path relative to it, in path order."""

    schedules: Mapping[str, Schedule]
    searches: Mapping[str, tuple[SearchStep, ...]]
    trainings: Mapping[str, tuple[TrainStep, ...]]
    evaluations: tuple[Evaluation, ...]
    benchmarks: tuple[Benchmark, ...]


def find_results(folder: str | Path) -> Results:
    """Reads all results in a folder and the folders below it.

    Raises:
        UserError: no such folder, nothing in it to report, or a damaged file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"expected a folder of results, found no folder {folder}; give the work "
            "directory of a search, an evaluation or a benchmark"
        )
    records = dict(_records(folder))
    logs = dict(_logs(folder))
    results = Results(
        schedules={
            path: Schedule.load(folder / path)
            for path, record in records.items()
            if record.get("format") == FORMAT
        },
        searches=_curves(logs, SearchStep, search=True),
        trainings=_curves(logs, TrainStep, search=False),
        evaluations=_of_kind(records, Evaluation, Row),
        benchmarks=_of_kind(records, Benchmark, BenchmarkRow),
    )
    for evaluation in results.evaluations:
        _check_images(evaluation)
    if not any(getattr(results, f.name) for f in dataclasses.fields(results)):
        raise UserError(
            f"expected results in {folder}, found none; first run a search, an "
            "evaluation or a benchmark with this work directory"
        )
    return results


def bootstrap_difference(
    correct_a: str | np.ndarray,
    correct_b: str | np.ndarray,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Returns accuracy a − b in percentage points, and its 95% bootstrap interval.

    The images are drawn again with replacement, the same for a and b. Only how often
    each difference occurs matters, so one multinomial draw stands for all images.

    Args:
        correct_a: 0 or 1 for each image, as text, or the mean over several runs.
        correct_b: the same of the same images in the same order.

    >>> bootstrap_difference("1101", "1101")
    (0.0, 0.0, 0.0)
    """
    a, b = hits(correct_a), hits(correct_b)
    if a.shape != b.shape or not a.size:
        raise UserError(
            f"a paired comparison needs the same images twice, got {a.size} and "
            f"{b.size}; evaluate both on the same split"
        )
    values, first, counts = np.unique(
        (a - b).round(9), return_index=True, return_counts=True
    )
    # In order of first sight, so that exchanging a and b only changes the signs.
    order = np.argsort(first)
    values, shares = values[order], counts[order] / a.size
    draws = np.random.default_rng(seed).multinomial(a.size, shares, size=samples)
    low, high = np.percentile(draws @ values / a.size, [2.5, 97.5])
    # Adding zero turns -0.0 into 0.0.
    mean, low, high = (100 * x + 0.0 for x in (shares @ values, low, high))
    return float(mean), float(low), float(high)


def hits(correct: str | np.ndarray) -> np.ndarray:
    """Returns the text of an evaluation row as one number for each image."""
    if isinstance(correct, str):
        return (np.frombuffer(correct.encode(), np.uint8) == ord("1")).astype(float)
    return np.asarray(correct, float)


def geometry_of(schedule: Schedule) -> Geometry:
    """Returns the token counts of the model that a schedule is for.

    The model says it, where the schedule was saved with one. Otherwise the first count
    does: published searches leave the first block alone (DiffRate, section 4.1).
    """
    fields = schedule.provenance.get("model")
    if isinstance(fields, dict):
        family = "caformer" if "depths" in fields else "vit"
        with contextlib.suppress(UserError):
            geometry = create_model(family, **fields).geometry
            if geometry.depth == schedule.depth:
                return geometry
    first = (schedule.prune or schedule.merge)[0]
    return Geometry(first, 0, (True,) * schedule.depth)


def _records(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(folder.rglob("*.json")):
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"expected JSON in {path}, cannot read it ({error}); remove it, or "
                "write it again with the program that made it"
            ) from error
        if isinstance(record, dict):
            yield path.relative_to(folder).as_posix(), record


def _logs(folder: Path) -> Iterator[tuple[str, list[Any]]]:
    for path in sorted(folder.rglob("metrics.jsonl")):
        name = path.relative_to(folder).as_posix()
        lines = path.read_text(errors="replace").splitlines()
        steps = []
        for number, line in enumerate(lines, 1):
            try:
                steps.append(json.loads(line))
            except ValueError as error:
                # A killed run leaves half a line, but never in the middle.
                if number < len(lines):
                    raise UserError(
                        f"expected one JSON object in each line of {name}, found "
                        f"{reprlib.repr(line)} in line {number}; remove that line"
                    ) from error
        if steps:
            yield name, steps


def _curves(
    logs: Mapping[str, list[Any]], kind: type[Step], *, search: bool
) -> dict[str, tuple[Step, ...]]:
    curves = {}
    for path, lines in logs.items():
        # Only search has a target; anything but an object is refused when it is read.
        has_target = isinstance(lines[0], dict) and any(
            name.startswith("target_") for name in lines[0]
        )
        if has_target == search:
            read = [
                read_record(kind, line, f"{path}, line {number}", {})
                for number, line in enumerate(lines, 1)
            ]
            # A resumed run logs some steps again: its last word counts.
            last = {step.step: step for step in read}
            curves[path] = tuple(last[step] for step in sorted(last))
    return curves


def _of_kind(
    records: Mapping[str, dict[str, Any]],
    whole: type[Sheet],
    row: type[Row] | type[BenchmarkRow],
) -> tuple[Sheet, ...]:
    """Reads the records of one kind; their kind is the name of the class."""
    found = []
    for path, record in records.items():
        if record.get("kind") == whole.__name__.lower():
            rows = record.get("rows")
            if not isinstance(rows, list) or not rows:
                raise wrong_value(path, "rows", "a list with at least one row", rows)
            read = tuple(
                read_record(row, fields, f"{path}, row {number}", {})
                for number, fields in enumerate(rows, 1)
            )
            found.append(read_record(whole, record, path, {"path": path, "rows": read}))
    return tuple(found)


def _check_images(evaluation: Evaluation) -> None:
    """Refuses rows that cannot be compared image by image."""
    count = evaluation.rows[0].count
    for number, row in enumerate(evaluation.rows, 1):
        if len(row.correct) != count or set(row.correct) - {"0", "1"}:
            raise wrong_value(
                f"{evaluation.path}, row {number}",
                "correct",
                f"{count} digits 0 or 1, one for each image",
                row.correct,
            )
