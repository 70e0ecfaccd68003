"""Results read from a folder: a damaged file costs a sentence, never the rest."""

import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from diffrate_jax import latency, schedule
from diffrate_jax.errors import UserError
from diffrate_jax.latency import LatencyTable
from diffrate_jax.reporting.records import parse_json, read_record, wrong_value
from diffrate_jax.reporting.results import (
    Benchmark,
    BenchmarkRow,
    Evaluation,
    Misfit,
    Origin,
    Results,
    Row,
    SearchStep,
    TrainStep,
)
from diffrate_jax.schedule import Schedule

Sheet = TypeVar("Sheet")
Found = dict[str, dict[str, Any]]


def find_results(folder: str | Path) -> Results:
    """Reads all results in a folder and the folders below it.

    Raises:
        UserError: no such folder, or nothing in it to report.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"expected a folder of results, found no folder {folder}; give the work "
            "directory of a search, an evaluation or a benchmark"
        )
    found: Found = {kind: {} for kind in READERS}
    problems, ignored = [], 0
    for path in [*folder.rglob("*.json"), *folder.rglob("metrics.jsonl")]:
        name = path.relative_to(folder).as_posix()
        try:
            kind, result = read_file(path, name)
        except UserError as error:
            said = str(error)
            problems.append(said if name in said else f"{name}: {said}")
            continue
        if kind is None:
            ignored += 1
        else:
            found[kind][name] = result
    results = assembled(found, sorted(problems), ignored)
    if results.is_empty():
        raise UserError(nothing(folder, problems))
    return results


def assembled(found: Found, problems: list[str], ignored: int) -> Results:
    """Returns what was found, in the order of its paths."""
    found = {kind: dict(sorted(files.items())) for kind, files in found.items()}
    return Results(
        schedules=found["schedules"],
        searches=found["searches"],
        trainings=found["trainings"],
        evaluations=tuple(found["evaluations"].values()),
        benchmarks=tuple(found["benchmarks"].values()),
        misfits=tuple(found["misfits"].values()),
        latencies=found["latencies"],
        origins=tuple(found["origins"].values()),
        problems=tuple(problems),
        ignored=ignored,
    )


def nothing(folder: Path, problems: list[str]) -> str:
    """Returns the sentence for a folder without results."""
    said = f" (damaged: {problems[0]})" if problems else ""
    return (
        f"expected results in {folder}, found none{said}; first run a search, an "
        "evaluation or a benchmark with this work directory"
    )


def read_file(path: Path, name: str) -> tuple[str | None, Any]:
    """Returns the kind of a file, None for what is no result, and what it holds.

    Args:
        path: of the file.
        name: for sentences, and for what is returned.

    Raises:
        UserError: it is damaged.
    """
    if path.suffix == ".jsonl":
        return read_log(path, name)
    try:
        record = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"expected JSON in {name}, cannot read it ({error}); remove it, or write "
            "it again with the program that made it"
        ) from error
    kind = kind_of(record)
    return kind, READERS[kind](record, path, name) if kind else None


def kind_of(record: Any) -> str | None:
    """Returns what a JSON file holds; None for what is no result."""
    if not isinstance(record, dict):
        return None
    if isinstance(record.get("comparisons"), list):
        return "origins"
    formats = {schedule.FORMAT: "schedules", latency.FORMAT: "latencies"}
    kinds = {
        "evaluation": "evaluations",
        "benchmark": "benchmarks",
        "no benchmark": "misfits",
    }
    # What cannot be a name is no name that is known.
    names = [x for x in (record.get("format"), record.get("kind")) if type(x) is str]
    return next(((formats | kinds)[x] for x in names if x in formats | kinds), None)


def read_log(path: Path, name: str) -> tuple[str | None, Any]:
    """Returns the steps of a metrics log; those of a search have a target.

    Raises:
        UserError: a damaged line.
    """
    lines = read_lines(path, name)
    if not lines:
        return None, None
    # Only search has a target; anything but an object is refused when it is read.
    has_target = isinstance(lines[0], dict) and any(
        key.startswith("target_") for key in lines[0]
    )
    kind = SearchStep if has_target else TrainStep
    steps = [
        read_record(kind, line, f"{name}, line {number}", {})
        for number, line in enumerate(lines, 1)
    ]
    # A resumed run logs some steps again: its last word counts.
    last = {step.step: step for step in steps}
    curve = tuple(last[step] for step in sorted(last))
    return "searches" if has_target else "trainings", curve


def read_lines(path: Path, name: str) -> list[Any]:
    """Returns the JSON values of a file's lines, without a last one that is cut off.

    Raises:
        UserError: a line in the middle that is not JSON.
    """
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}; remove it") from error
    values = []
    for number, line in enumerate(lines, 1):
        try:
            values.append(parse_json(line))
        except ValueError as error:
            # A killed run leaves half a line, but never in the middle.
            if number < len(lines):
                raise UserError(
                    f"expected one JSON object in each line of {name}, found "
                    f"{reprlib.repr(line)} in line {number}; remove that line"
                ) from error
    return values


def with_rows(
    whole: type[Sheet], row: type[Row] | type[BenchmarkRow], record: Any, name: str
) -> Sheet:
    """Returns a record that has a list of rows.

    Raises:
        UserError: it is damaged.
    """
    rows = record.get("rows")
    if not isinstance(rows, list) or not rows:
        raise wrong_value(name, "rows", "a list with at least one row", rows)
    read = tuple(
        read_record(row, fields, f"{name}, row {number}", {})
        for number, fields in enumerate(rows, 1)
    )
    return read_record(whole, record, name, {"path": name, "rows": read})


def read_evaluation(record: Any, _: Path, name: str) -> Evaluation:
    """Returns an evaluation whose rows can be compared image by image.

    Raises:
        UserError: it is damaged.
    """
    found = with_rows(Evaluation, Row, record, name)
    count = found.rows[0].count
    for number, row in enumerate(found.rows, 1):
        if len(row.correct) != count or set(row.correct) - {"0", "1"}:
            raise wrong_value(
                f"{name}, row {number}",
                "correct",
                f"{count} digits 0 or 1, one for each image",
                row.correct,
            )
        if row.labels != found.rows[0].labels:
            raise wrong_value(
                f"{name}, row {number}", "labels", "the first row's", row.labels
            )
    return found


def read_origin(record: Any, _: Path, name: str) -> Origin:
    """Returns what a search's comparison says of the search.

    Raises:
        UserError: it is damaged.
    """
    rows = record["comparisons"]
    if not rows:
        raise wrong_value(name, "comparisons", "a list with at least one", rows)
    return read_record(Origin, rows[0], name, {"path": name})


READERS: dict[str, Callable[[Any, Path, str], Any]] = {
    "schedules": lambda record, path, name: Schedule.from_record(record, name),
    "latencies": lambda record, path, name: LatencyTable.load(path),
    "evaluations": read_evaluation,
    "benchmarks": lambda record, path, name: with_rows(
        Benchmark, BenchmarkRow, record, name
    ),
    "misfits": lambda record, path, name: read_record(
        Misfit, record, name, {"path": name}
    ),
    "origins": read_origin,
    "searches": read_log,
    "trainings": read_log,
}
