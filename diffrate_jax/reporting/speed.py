"""The speed of every program: bars, efficiency by batch size, and tables."""

from collections.abc import Iterator, Sequence

import numpy as np

from diffrate_jax.reporting.boards import format_macs
from diffrate_jax.reporting.charts import Axis, Chart, Look, shortened
from diffrate_jax.reporting.looks import looks_of
from diffrate_jax.reporting.methods import is_learned
from diffrate_jax.reporting.results import Benchmark, BenchmarkRow, Misfit
from diffrate_jax.reporting.sections import Cell, Figure, How, Line, Section, Table

# Pixels: of a bar, and beside all bars for the names and for what was gained.
BAR, NAMES, GAINS = 30, 200, 120
# Bars of more benchmarks than this are folded: curves and tables say the same.
MANY = 8


def speed_sections(
    benchmarks: Sequence[Benchmark], misfits: Sequence[Misfit]
) -> Iterator[Section]:
    """Yields a section for each model, type and device."""
    groups: dict[tuple[str, str, str], list[Benchmark]] = {}
    for each in benchmarks:
        groups.setdefault((each.model, each.dtype, device_of(each)), []).append(each)
    for number, ((model, dtype, device), found) in enumerate(groups.items(), 1):
        found.sort(key=lambda each: each.batch_size)
        looks = looks_of(row.name for each in found for row in each.rows)
        parts: list[Figure | Table] = []
        if len({each.batch_size for each in found}) > 1:
            parts.append(by_batch(found, looks, number))
        parts += [bars(found, looks, number), table(found)]
        how = [How(each.path, each.command, each.environment) for each in found]
        yield Section(f"Speed: {model}, {dtype}, {device}", parts, how)
    if misfits:
        yield Section("Benchmarks that did not fit", [misfit_table(misfits)])


def device_of(benchmark: Benchmark) -> str:
    """Returns what a benchmark ran on."""
    return str(benchmark.environment.get("device", "an unknown device"))


def by_batch(found: Sequence[Benchmark], looks: dict[str, Look], number: int) -> Figure:
    """Returns images per second and efficiency against the batch size."""
    charts = [
        curves(found, looks, "images_per_second", "images per second", is_log=True),
        curves(found, looks, "efficiency", "efficiency"),
    ]
    return Figure(
        f"speed_by_batch_{number}",
        "Speed by batch size",
        charts,
        list(looks.values()),
        "Efficiency: speed-up over the fastest dense program of the run, divided by "
        "how many times fewer multiply-adds there are. 1: every saved one saves its "
        "time.",
    )


def curves(
    found: Sequence[Benchmark],
    looks: dict[str, Look],
    field: str,
    label: str,
    *,
    is_log: bool = False,
) -> Chart:
    """Returns a field of every row against the batch size."""
    values = [getattr(row, field) for each in found for row in each.rows]
    sizes = [each.batch_size for each in found]
    chart = Chart(
        label,
        Axis.around("images in a batch", sizes, is_log=True),
        Axis.around(label, values, is_log=is_log, zero=not is_log),
    )
    for name, look in looks.items():
        points = [
            (each, row) for each in found for row in each.rows if row.name == name
        ]
        line = [(float(e.batch_size), getattr(row, field)) for e, row in points]
        chart.line(line, look, run=name)
        for (each, row), place in zip(points, line, strict=True):
            chart.point(*place, look, row_tip(each, row), run=each.path)
    return chart


def bars(found: Sequence[Benchmark], looks: dict[str, Look], number: int) -> Figure:
    """Returns a bar for every row, and a mark where its cost promises it to end."""
    return Figure(
        f"speed_{number}",
        "Images per second",
        [bar_chart(each, looks) for each in found],
        note="Line in a bar: from the 10th to the 90th percentile of the runs. Red "
        "mark: where the bar would end if speed rose as multiply-adds fall.",
        is_folded=len(found) > MANY,
    )


def bar_chart(benchmark: Benchmark, looks: dict[str, Look]) -> Chart:
    """Returns the bars of one benchmark."""
    rows = benchmark.rows
    promised = [row.images_per_second / row.efficiency for row in rows]
    most = max(*promised, *(rates(row)[1] for row in rows))
    chart = Chart(
        f"batches of {benchmark.batch_size}",
        Axis("images per second", 0, most * 1.02),
        None,
        width=NAMES + 300 + GAINS,
        height=90 + BAR * len(rows),
        left=NAMES,
        right=GAINS,
    )
    for place, row in enumerate(rows):
        top = 40 + BAR * place
        wide = chart.across(row.images_per_second) - chart.across(0)
        corner, size = (chart.across(0), top), (wide, BAR - 10)
        tip, run = row_tip(benchmark, row), f"{benchmark.path} {row.name}"
        chart.box(corner, size, looks[row.name].colour, tip, run=run, shade=0.6)
        middle = top + (BAR - 10) / 2
        low, high = map(chart.across, rates(row))
        chart.stroke((low, middle), (high, middle), "ink")
        end = chart.across(promised[place])
        chart.stroke((end, top - 3), (end, top + BAR - 7), "red", 2.5)
        name = shortened(row.name, NAMES - 10)
        chart.text((NAMES - 6, middle + 4), name, kind="end")
        words = f"{row.speedup:.2f}×, eff. {row.efficiency:.2f}"
        chart.text((chart.width - GAINS + 6, middle + 4), words)
    return chart


def number(value: float) -> str:
    """Returns a number to three figures, large ones whole.

    >>> number(1234.5), number(5.678)
    ('1,234', '5.68')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rates(row: BenchmarkRow) -> tuple[float, float]:
    """Returns images per second of the 10th and the 90th percentile of the runs."""
    work = row.images_per_second * float(np.median(row.seconds))
    slow, fast = np.percentile(row.seconds, [90, 10])
    return work / float(slow), work / float(fast)


def row_tip(benchmark: Benchmark, row: BenchmarkRow) -> str:
    """Returns what a bar or point is, in a few lines."""
    low, high = rates(row)
    ms = 1000 * benchmark.batch_size / row.images_per_second
    return (
        f"{row.name}, batches of {benchmark.batch_size}\n"
        f"{number(row.images_per_second)} images/s ({number(low)} to {number(high)})\n"
        f"{number(ms)} ms a batch\n{row.speedup:.2f}× as fast, efficiency "
        f"{row.efficiency:.2f}"
    )


def table(found: Sequence[Benchmark]) -> Table:
    """Returns all figures of all batch sizes."""
    header = ["method", "batch", "cost", "images/s", "10th to 90th percentile"]
    header += ["ms a batch", "speed-up", "efficiency", "of peak", "memory, MiB"]
    header += ["attention", "compile, s"]
    lines = [
        Line(
            row_cells(each, row),
            f"{each.path} {row.name}",
            "strong" if is_learned(row.name) else "",
        )
        for each in found
        for row in each.rows
    ]
    peaks = {f"{each.peak_flops / 1e12:.3g}" for each in found if each.peak_flops}
    peak = f" Peak: {', '.join(sorted(peaks))} TFLOP/s, measured." if peaks else ""
    return Table(
        "All figures",
        header,
        lines,
        f"Medians of {len(found[0].rows[0].seconds)} runs, the programs in turn. "
        "Speed-up is the median of as many ratios, the first program's time over the "
        "program's own, each pair from one turn; the ratio of the medians may differ. "
        "Efficiency is the speed-up over the fastest dense program of the run, divided "
        "by how many times fewer multiply-adds there are. Of peak: multiply-adds, "
        f"twice each, over what the device does in a large product of matrices.{peak}",
    )


def row_cells(benchmark: Benchmark, row: BenchmarkRow) -> list[str | Cell]:
    """Returns one line of the table."""
    low, high = rates(row)
    ms = 1000 * benchmark.batch_size / row.images_per_second
    memory = row.memory_bytes
    return [
        row.name,
        str(benchmark.batch_size),
        Cell(format_macs(row.macs), row.macs),
        number(row.images_per_second),
        Cell(f"{number(low)} to {number(high)}", low),
        number(ms),
        f"{row.speedup:.2f}×",
        f"{row.efficiency:.2f}",
        "–" if row.of_peak is None else f"{row.of_peak:.0%}",
        f"{memory / 2**20:,.0f}" if memory else "–",
        row.attention or "–",
        f"{row.compile_seconds:.1f}",
    ]


def misfit_table(misfits: Sequence[Misfit]) -> Table:
    """Returns what could not be timed, and why."""
    header = ["model", "schedule", "type", "batch", "why"]
    lines = [
        Line([m.model, m.schedule, m.dtype, str(m.batch_size), m.reason], m.path)
        for m in misfits
    ]
    return Table("Did not fit the device", header, lines)
