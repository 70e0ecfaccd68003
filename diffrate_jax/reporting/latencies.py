"""Latency tables: milliseconds of a block by its tokens, and how well they predict."""

from collections.abc import Iterator, Mapping, Sequence

from diffrate_jax.latency import LatencyTable, is_number
from diffrate_jax.reporting.charts import Axis, Chart, Look
from diffrate_jax.reporting.sections import Cell, Figure, How, Line, Section, Table

PARTS = (
    Look("attention", "blue"),
    Look("MLP", "orange", "square"),
    Look("both", "ink", "diamond", is_strong=True),
    Look("merging half of the tokens", "green", "up"),
)
Checks = Sequence[Mapping[str, float]]


def latency_sections(tables: Mapping[str, LatencyTable]) -> Iterator[Section]:
    """Yields a section for each latency table."""
    for number, (path, table) in enumerate(tables.items(), 1):
        name = table.about.get("name", "a model")
        title = f"{name}, {table.dtype}, batches of {table.batch_size}"
        figure = Figure(
            f"latency_{number}",
            "Milliseconds of a block by its tokens",
            list(charts(path, table)),
            PARTS,
            f"Besides blocks: {table.terms.fixed:.3g} ms of a batch. Attention goes by "
            "the tokens that come in, the MLP by those that are left.",
        )
        parts: list[Figure | Table] = [figure, *error_table(table)]
        yield Section(f"Latency: {title}", parts, how_of(path, table))


def how_of(path: str, table: LatencyTable) -> list[How]:
    """Returns how a table was measured, if it says so."""
    command, place = table.about.get("command"), table.about.get("environment")
    known = isinstance(command, str) and isinstance(place, dict)
    return [How(path, command, place)] if known else []


def charts(path: str, table: LatencyTable) -> Iterator[Chart]:
    """Yields the curves of each kind of block, and predicted against measured."""
    for times in table.terms.times:
        blocks = f"{times.blocks[0]}" + (
            f" to {times.blocks[-1]}" if len(times.blocks) > 1 else ""
        )
        both = [a + b for a, b in zip(times.attention, times.mlp, strict=True)]
        merging = [float(times.merging(n, n / 2)) for n in times.tokens]
        chart = Chart(
            f"block {blocks}",
            Axis.around("tokens", times.tokens, zero=True),
            Axis.around("ms", [*both, *merging], zero=True),
        )
        rows = times.attention, times.mlp, both, merging
        for look, values in zip(PARTS, rows, strict=True):
            points = list(zip(times.tokens, values, strict=True))
            chart.line(points, look, run=path)
            for tokens, ms in points:
                tip = f"{look.name}\n{tokens:.0f} tokens: {ms:.3g} ms"
                chart.point(tokens, ms, look, tip, run=path)
        yield chart
    if checks := checks_of(table):
        yield check_chart(path, checks)


def checks_of(table: LatencyTable) -> list[Mapping[str, float]]:
    """Returns what was predicted and measured of whole schedules."""
    checks = table.about.get("checks")
    return [
        check
        for check in (checks if isinstance(checks, list) else ())
        if isinstance(check, dict)
        and all(
            is_number(check.get(key)) and check[key] > 0
            for key in ("ms", "predicted_ms")
        )
    ]


def check_chart(path: str, checks: Checks) -> Chart:
    """Returns predicted against measured milliseconds of whole schedules."""
    values = [check[key] for check in checks for key in ("ms", "predicted_ms")]
    axis = Axis.around("ms", values)
    chart = Chart(
        "random whole schedules",
        Axis("measured, ms", axis.low, axis.high),
        Axis("predicted, ms", axis.low, axis.high),
    )
    ends = [(axis.low, axis.low), (axis.high, axis.high)]
    chart.line(ends, Look("as predicted", "grey"), run=path, dash="5 4")
    for number, check in enumerate(checks):
        ms, predicted = check["ms"], check["predicted_ms"]
        tip = (
            f"schedule {number}: {ms:.4g} ms measured,\n{predicted:.4g} predicted "
            f"({predicted / ms - 1:+.1%})"
        )
        chart.point(ms, predicted, Look("schedules", "purple"), tip, run=path)
    return chart


def error_table(table: LatencyTable) -> Iterator[Table]:
    """Yields how far predictions were off, if any were checked."""
    checks = checks_of(table)
    if checks:
        wrong = [abs(check["predicted_ms"] / check["ms"] - 1) for check in checks]
        mean = sum(wrong) / len(wrong)
        cells = [
            str(len(checks)),
            Cell(f"{mean:.1%}", mean),
            Cell(f"{max(wrong):.1%}", max(wrong)),
        ]
        header = ["random schedules", "mean error", "worst error"]
        yield Table("Predicted against measured", header, [Line(cells)])
