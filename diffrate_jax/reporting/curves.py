"""How searches and trainings went: cost, loss and counts by step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from diffrate_jax.reporting.boards import format_macs
from diffrate_jax.reporting.charts import Axis, Chart, Look
from diffrate_jax.reporting.looks import plain_looks
from diffrate_jax.reporting.results import Origin, SearchStep, TrainStep
from diffrate_jax.reporting.sections import Cell, Figure, How, Line, Section, Table
from diffrate_jax.reporting.tokens import folder

# Points of a line that are drawn, runs whose counts are shown at once, runs that get a
# legend: what more there are say their names when pointed at.
POINTS, FEW, KEYS = 160, 3, 12
# Blocks from first to last; between them the colours are mixed.
FIRST, LAST = (86, 180, 233), (213, 94, 0)
Search = Sequence[SearchStep]
Value = Callable[[Any], float | None]


def curve_sections(
    searches: Mapping[str, Search],
    trainings: Mapping[str, Sequence[TrainStep]],
    origins: Sequence[Origin],
) -> Iterator[Section]:
    """Yields a section for searches and one for trainings."""
    if searches:
        runs = {run_name(path): curve for path, curve in searches.items()}
        how = [
            How(each.path, each.command, each.environment)
            for each in origins
            if folder(each.path) in map(folder, searches)
        ]
        parts: list[Figure | Table] = [search_figure(runs)]
        if counts := count_figure(runs):
            parts.append(counts)
        yield Section("Searches", [*parts, end_table(runs)], how)
    if trainings:
        runs = {run_name(path): curve for path, curve in trainings.items()}
        looks = plain_looks(runs)
        chart = curves("loss", runs, looks, lambda step: step.loss, "loss")
        figure = Figure("training_curves", "Loss by step", [chart], keys(looks))
        yield Section("Trainings", [figure])


def run_name(path: str) -> str:
    """Returns the folder of a log, which stands for the run."""
    return folder(path) or "this run"


def thinned(curve: Sequence, most: int = POINTS) -> Sequence:
    """Returns evenly chosen points of a curve, its ends among them.

    >>> thinned(range(10), 4)
    [0, 3, 6, 9]
    """
    if len(curve) <= most:
        return curve
    return [curve[i * (len(curve) - 1) // (most - 1)] for i in range(most)]


def curves(
    title: str, runs: Mapping, looks: dict[str, Look], value: Value, label: str
) -> Chart:
    """Returns one line for each run, with a point where it ends."""
    steps = [float(step.step) for curve in runs.values() for step in curve]
    values = [value(step) for curve in runs.values() for step in curve]
    # A loss that falls through decades is seen on no other axis.
    is_log = min(values) > 0 and max(values) > 30 * min(values)
    chart = Chart(
        title,
        Axis.around("step", steps, zero=True, pad=0.02),
        Axis.around(label, values, is_log=is_log),
    )
    for name, curve in runs.items():
        line = [(float(s.step), value(s)) for s in thinned(curve)]
        chart.line(line, looks[name], run=name, tip=name)
        end = curve[-1]
        tip = f"{name}\nstep {end.step}: {label} {value(end):.5g}"
        chart.point(float(end.step), value(end), looks[name], tip, run=name)
    return chart


def search_figure(runs: Mapping[str, Search]) -> Figure:
    """Returns how costs came down to their targets, and the loss meanwhile."""
    looks, charts = plain_looks(runs), []
    in_ms = {n: c for n, c in runs.items() if all(s.latency_ms for s in c)}
    in_macs = {n: c for n, c in runs.items() if n not in in_ms}
    if in_macs:
        label = "cost, MMACs"
        chart = curves("Cost", in_macs, looks, lambda s: s.macs / 1e6, label)
        targets(chart, in_macs, looks, lambda s: s.target_macs and s.target_macs / 1e6)
        charts.append(chart)
    if in_ms:
        label = "cost, ms of a batch"
        chart = curves("Cost", in_ms, looks, lambda s: s.latency_ms, label)
        targets(chart, in_ms, looks, lambda s: s.target_latency_ms)
        charts.append(chart)
    charts.append(curves("Loss", runs, looks, lambda s: s.loss, "loss"))
    note = "Broken lines: targets."
    return Figure("search_curves", "Cost and loss by step", charts, keys(looks), note)


def keys(looks: Mapping[str, Look]) -> list[Look]:
    """Returns the legend of runs, none where it would be longer than the chart."""
    return list(looks.values()) if len(looks) <= KEYS else []


def targets(
    chart: Chart, runs: Mapping[str, Search], looks: dict[str, Look], value: Value
) -> None:
    """Draws what each search was to come down to."""
    for name, curve in runs.items():
        ends = [(float(s.step), value(s)) for s in thinned(curve) if value(s)]
        if ends:
            chart.line(ends, looks[name], run=name, dash="5 4")


def count_figure(runs: Mapping[str, Search]) -> Figure | None:
    """Returns the tokens each block kept, step by step, for runs that logged them."""
    known = {n: c for n, c in runs.items() if all(s.merge for s in c)}
    if not known:
        return None
    return Figure(
        "search_counts",
        "Tokens left after each block, by step",
        [count_chart(name, curve) for name, curve in known.items()],
        note="From the first block (blue) to the last (orange); hover an end for its "
        "block.",
        is_folded=len(known) > FEW,
    )


def count_chart(name: str, curve: Search) -> Chart:
    """Returns a line for each block of one search."""
    depth = len(curve[-1].merge)
    most = max(count for step in curve for count in step.merge)
    chart = Chart(
        name,
        Axis.around("step", [float(s.step) for s in curve], zero=True, pad=0.02),
        Axis("tokens left", 0, 1.05 * most),
        width=420,
        height=260,
    )
    for block in range(depth):
        mix = zip(FIRST, LAST, strict=True)
        place = block / max(1, depth - 1)
        rgb = ",".join(f"{round(a + place * (b - a))}" for a, b in mix)
        # No colour of the style sheet: the one to take where there is none.
        look = Look(f"block {block}", f"none,rgb({rgb})")
        line = [
            (float(s.step), float(s.merge[block]))
            for s in thinned(curve, 60)
            if len(s.merge) == depth
        ]
        chart.line(line, look, run=name)
        tip = (
            f"{name}\nblock {block}: {line[-1][1]:.0f} tokens at step {line[-1][0]:.0f}"
        )
        chart.point(*line[-1], look, tip, run=name)
    return chart


def end_table(runs: Mapping[str, Search]) -> Table:
    """Returns where each search ended."""
    header = ["search", "steps", "loss at the end", "cost", "target", "over target"]
    lines = []
    for name, curve in runs.items():
        end = curve[-1]
        if end.target_latency_ms is not None:
            now, target = end.latency_ms, end.target_latency_ms
            texts = [f"{now:.4g} ms" if now else "–", f"{target:.4g} ms"]
        else:
            now, target = end.macs, end.target_macs
            texts = [format_macs(now), format_macs(target) if target else "–"]
        over = (
            Cell(f"{now / target - 1:+.1%}".replace("-", "−"), now / target)
            if now and target
            else "–"
        )
        lines.append(Line([name, str(end.step), f"{end.loss:.4g}", *texts, over], name))
    return Table("Where searches ended", header, lines)
