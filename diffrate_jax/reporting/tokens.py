"""Which tokens a schedule keeps: bars for a few, a map for many, and tables."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from diffrate_jax.reporting.boards import format_macs
from diffrate_jax.reporting.charts import Axis, Chart, Look, room_of, shortened
from diffrate_jax.reporting.results import Origin, geometry_of
from diffrate_jax.reporting.sections import Cell, Figure, How, Line, Section, Table
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Geometry

# As many schedules are drawn as bars too; blocks of which a map shows the counts.
FEW, LEGIBLE = 4, 26
ROW, LABEL = 20, 264
# Width of a chart of bars.
BARS = 560
# What a schedule itself says of its search.
FACTS = ("dataset", "split", "steps", "seed", "weights", "weights_sha256", "version")
FATES = (
    Look("kept", "sky", "square"),
    Look("merged away", "orange", "square"),
    Look("pruned away", "red", "square"),
)
Schedules = Mapping[str, Schedule]


def token_sections(
    schedules: Schedules, origins: Sequence[Origin]
) -> Iterator[Section]:
    """Yields a section for each kind of model that schedules are for."""
    groups: dict[tuple, dict[str, Schedule]] = {}
    for path, schedule in schedules.items():
        groups.setdefault(model_key(schedule), {})[path] = schedule
    for number, found in enumerate(groups.values(), 1):
        found = dict(sorted(found.items(), key=lambda item: -share(item[1])))
        first = next(iter(found.values()))
        geometry = geometry_of(first)
        parts: list[Figure | Table] = []
        if len(found) <= FEW:
            parts.append(bar_figure(found, geometry, number))
        if len(found) > 1:
            parts.append(map_figure(found, geometry, number))
        parts.append(table(found, geometry))
        macs = first.provenance.get("dense_macs")
        cost = f", dense {format_macs(macs)}" if share(first) else ""
        title = f"{geometry.depth} blocks of {geometry.num_tokens} tokens{cost}"
        yield Section(f"Kept tokens: {title}", parts, how_of(found, origins))


def model_key(schedule: Schedule) -> tuple:
    """Returns what schedules of one model have in common."""
    macs = schedule.provenance.get("dense_macs")
    return geometry_of(schedule).dense, macs if share(schedule) else None


def how_of(schedules: Schedules, origins: Sequence[Origin]) -> list[How]:
    """Returns where schedules come from, as their folders or they themselves say."""
    by_folder = {folder(each.path): each for each in origins}
    found: dict[str, How] = {}
    for path, schedule in schedules.items():
        origin = by_folder.get(folder(path))
        if origin is not None:
            found[origin.path] = How(origin.path, origin.command, origin.environment)
        elif facts := {
            k: v for k in FACTS if (v := schedule.provenance.get(k)) is not None
        }:
            found[path] = How(path, "", facts)
    return list(found.values())


def folder(path: str) -> str:
    """Returns the folder of a file."""
    return path.rpartition("/")[0]


def share(schedule: Schedule) -> float:
    """Returns the cost of a schedule over the dense one, 0 if it is not known."""
    about = schedule.provenance
    macs, dense = about.get("macs"), about.get("dense_macs")
    known = isinstance(macs, int | float) and isinstance(dense, int | float) and dense
    return macs / dense if known else 0.0


def about_words(schedule: Schedule) -> str:
    """Returns what was asked for and what it costs."""
    target = schedule.provenance.get("target")
    words = [f"target {target}"] if target else []
    if share(schedule):
        words.append(f"{share(schedule):.1%} of the dense cost")
    return ", ".join(words)


def block_tip(path: str, block: int, step: tuple[int, int, int]) -> str:
    """Returns what happens in a block, in a few lines."""
    coming, middle, left = step
    return (
        f"{path}, block {block}\n{left} of {coming} tokens left\n"
        f"{coming - middle} pruned away, {middle - left} merged away"
    )


def bar_figure(schedules: Schedules, geometry: Geometry, number: int) -> Figure:
    """Returns for each schedule a bar for each block: kept, merged and pruned away."""
    charts = [bar_chart(path, s, geometry) for path, s in schedules.items()]
    title = "What becomes of the tokens of each block"
    return Figure(f"kept_tokens_{number}", title, charts, fates(schedules, geometry))


def fates(schedules: Schedules, geometry: Geometry) -> tuple[Look, ...]:
    """Returns what becomes of tokens under any of the schedules, for the legend."""
    steps = [step for s in schedules.values() for step in s.steps(geometry)]
    is_merged = any(middle > left for _, middle, left in steps)
    is_pruned = any(coming > middle for coming, middle, _ in steps)
    return tuple(itertools.compress(FATES, (True, is_merged, is_pruned)))


def bar_chart(path: str, schedule: Schedule, geometry: Geometry) -> Chart:
    """Returns the bars of one schedule."""
    words = about_words(schedule)
    depth = schedule.depth
    chart = Chart(
        bar_title(path, words),
        Axis("block, the first is 0", -0.6, depth - 0.4),
        Axis("tokens", 0, 1.02 * geometry.num_tokens),
        width=BARS,
    )
    for block, step in enumerate(schedule.steps(geometry)):
        coming, middle, left = step
        column = chart.across(block - 0.43)
        wide = chart.across(block + 0.43) - column
        parts = (0, left, "sky"), (left, middle, "orange"), (middle, coming, "red")
        for low, high, colour in parts:
            if high > low:
                size = wide, chart.down(low) - chart.down(high)
                place = column, chart.down(high)
                chart.box(place, size, colour, block_tip(path, block, step), run=path)
        if depth <= LEGIBLE:
            place = column + wide / 2, chart.down(left) - 4
            chart.text(place, str(left), kind="mid halo")
    return chart


def bar_title(path: str, words: str) -> str:
    """Returns a title that fits above the bars of one schedule."""
    rest = f": {words}" if words else ""
    # Titles are bold, and of larger letters than all else.
    return shortened(path, (BARS - 8) / 1.25 - room_of(rest)) + rest


def map_figure(schedules: Schedules, geometry: Geometry, number: int) -> Figure:
    """Returns one chart with a line for each schedule and a cell for each block."""
    size = min(34, max(12, 680 // geometry.depth))
    width = LABEL + size * geometry.depth + 66
    chart = Chart("", None, None, width=width, height=48 + ROW * len(schedules))
    for block in range(geometry.depth):
        if geometry.depth <= LEGIBLE or block % 5 == 0:
            place = LABEL + size * (block + 0.5), 24.0
            chart.text(place, str(block), kind="mid dim")
    chart.text((LABEL - 6, 24), "block", kind="end dim")
    chart.text((LABEL + size * geometry.depth + 6, 24), "of dense", kind="dim")
    for row, (path, schedule) in enumerate(schedules.items()):
        map_line(chart, path, schedule, geometry, 32 + ROW * row, size)
    return Figure(
        f"kept_tokens_map_{number}",
        "Tokens left after each block",
        [chart],
        note="The stronger the colour, the more are left; the dearest come first.",
    )


def map_line(
    chart: Chart, path: str, schedule: Schedule, geometry: Geometry, top: int, size: int
) -> None:
    """Draws one schedule as a line of cells."""
    name = shortened(plain_name(path), LABEL - 10)
    chart.text((LABEL - 6, top + 14), name, kind="end", run=path)
    steps = zip(schedule.steps(geometry), geometry.dense, strict=True)
    for block, (step, dense) in enumerate(steps):
        left, corner = step[-1], (LABEL + size * block, top)
        tip, shade = block_tip(path, block, step), 0.04 + 0.92 * left / dense
        chart.box(
            corner,
            (size - 1, ROW - 1),
            "blue",
            tip,
            run=path,
            shade=shade,
            is_stop=False,
        )
        if geometry.depth <= LEGIBLE:
            kind = "mid cell light" if shade > 0.55 else "mid cell"
            place = corner[0] + size / 2, top + 14
            chart.text(place, str(left), kind=kind, run=path)
    if share(schedule):
        end = LABEL + size * geometry.depth + 6
        chart.text((end, top + 14), f"{share(schedule):.1%}", kind="dim", run=path)


def plain_name(path: str) -> str:
    """Returns a path without what every schedule file ends in."""
    return path.removesuffix(".json").removesuffix("/schedule")


def table(schedules: Schedules, geometry: Geometry) -> Table:
    """Returns the tokens left after each block, a line to a schedule."""
    header = ["schedule", "rule", "target", "of dense", "kept, mean"]
    header += [str(block) for block in range(geometry.depth)]
    lines = []
    for path, schedule in schedules.items():
        steps = schedule.steps(geometry)
        kept = [
            step[-1] / dense for step, dense in zip(steps, geometry.dense, strict=True)
        ]
        cells: list[str | Cell] = [path, schedule.rule]
        cells += [str(schedule.provenance.get("target", "–"))]
        cells += [f"{share(schedule):.1%}" if share(schedule) else "–"]
        cells += [f"{sum(kept) / len(kept):.0%}", *map(block_cell, steps)]
        lines.append(Line(cells, path))
    note = "The first block is 0; a/b: a are left after pruning, b in the end."
    return Table("Tokens left after each block", header, lines, note, is_folded=True)


def block_cell(step: tuple[int, int, int]) -> Cell:
    """Returns the tokens left after a block, and after pruning if it prunes."""
    coming, middle, left = step
    return Cell(f"{middle}/{left}" if middle < coming else str(left), left)
