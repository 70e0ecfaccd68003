"""Methods as points: their accuracy against what they take."""

from collections.abc import Sequence

import numpy as np

from diffrate_jax.boards import Board, Method, format_macs
from diffrate_jax.reporting.charts import Axis, Chart, Look

TOP1 = "top-1 accuracy, %"
# Names fit beside so many points, so many pixels apart.
NAMES, GAP = 18, 14
Places = Sequence[tuple[Method, float]]


def scatters(
    board: Board, places: Places, looks: dict[str, Look], label: str
) -> list[Chart]:
    """Returns a chart of all methods, before it one of the best where that helps.

    Args:
        board: of the methods.
        places: methods, and where each is on the axis below.
        looks: by the name of the method.
        label: of the axis below.
    """
    top1 = [m.mean("top1") for m, _ in places]
    good = [m.mean("top1") for m, _ in places if m.kind != "baseline"]
    good += [r.mean("top1") for m, _ in places if (r := board.rival_of(m))]
    floor = min(good) - 0.15 * (max(good) - min(good)) - 0.1
    upper = [(m, x) for m, x in places if m.mean("top1") >= floor]
    below, whole = (
        len(places) - len(upper),
        scatter(places, looks, label, "all methods"),
    )
    is_flat = max(top1) - min(top1) > 2.5 * (max(top1) - floor)
    if len(upper) < max(6, below) or not is_flat:
        return [whole]
    title = f"the upper part ({below} points are below)"
    return [scatter(upper, looks, label, title), whole]


def scatter(places: Places, looks: dict[str, Look], label: str, title: str) -> Chart:
    """Returns methods as points, those of a run that go together joined by a line."""
    values = [m.mean("top1") for m, _ in places]
    y = Axis.around(TOP1, values, pad=0.08)
    chart = Chart(title, Axis.around(label, [x for _, x in places]), y)
    join(chart, places, looks)
    for method, x in places:
        ends = np.clip(method.interval(), y.low, y.high)
        if method.kind != "baseline":
            look = looks[method.name]
            chart.whisker(x, *map(float, ends), look, method.family)
    if len(places) <= NAMES and len({m.name for m, _ in places}) == len(places):
        name_points(chart, places)
    for method, x in sorted(places, key=lambda p: looks[p[0].name].is_strong):
        tip, look = f"{described(method)}\n{label}: {x:.3g}", looks[method.name]
        chart.point(x, method.mean("top1"), look, tip, run=method.family)
    return chart


def join(chart: Chart, places: Places, looks: dict[str, Look]) -> None:
    """Draws lines through what one method reaches at several costs."""
    lines: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for method, x in places:
        if method.kind != "dense":
            point = method.mean("fraction"), x, method.mean("top1")
            lines.setdefault((method.name, method.family), []).append(point)
    for (name, family), points in lines.items():
        line = [point[1:] for point in sorted(points)]
        chart.line(line, looks[name], run=family, tip=f"{name}\n{family}".strip())


def name_points(chart: Chart, places: Places) -> None:
    """Writes the names into the empty middle, as near to their points as they fit."""
    points = [(chart.at(x, m.mean("top1")), m) for m, x in places]
    middle = chart.width / 2 + 20
    for is_right in (False, True):
        side = [each for each in points if (each[0][0] > middle) == is_right]
        side.sort(key=lambda each: each[0][1])
        column = extreme([place[0] for place, _ in side], is_right=is_right)
        rows = apart(np.array([place[1] for place, _ in side]), GAP, chart.height - 52)
        for (place, method), row in zip(side, rows, strict=True):
            step = -9 if is_right else 9
            chart.stroke((place[0], place[1]), (column, row), "line", 0.8)
            words = f"{method.name} {method.mean('top1'):.2f}"
            kind = "halo end" if is_right else "halo"
            place = (column + step / 3, float(row) + 4)
            chart.text(place, words, kind=kind, run=f"{method.family} {method.name}")


def extreme(columns: Sequence[float], *, is_right: bool) -> float:
    """Returns the column that names of one side begin or end at."""
    return min(columns, default=0) - 24 if is_right else max(columns, default=0) + 24


def apart(rows: np.ndarray, gap: float, last: float) -> np.ndarray:
    """Moves sorted rows until they are a gap apart, and none is below the last."""
    steps = gap * np.arange(rows.size)
    # Pushed down or pushed up, they are a gap apart; so they are halfway between.
    down = np.maximum.accumulate(rows - steps)
    up = np.minimum.accumulate((rows - steps)[::-1])[::-1]
    moved = (down + up) / 2 + steps
    return moved - max(0.0, float(np.max(moved, initial=0)) - last)


def described(method: Method) -> str:
    """Returns what a point is, in a few lines."""
    low, high = method.interval()
    target = f", target {method.target}" if method.target else ""
    return (
        f"{method.name}{target}\n{top1_text(method)} % top-1, 95% {low:.2f} to "
        f"{high:.2f}\n{format_macs(method.mean('macs'))}, "
        f"{method.mean('fraction'):.1%} of dense"
        + (f"\n{method.family}" if method.family else "")
    )


def top1_text(method: Method) -> str:
    """Returns top-1 in percent, and its spread over rows."""
    count = len(method.rows)
    spread = f" ± {method.spread('top1'):.2f} ({count})" if count > 1 else ""
    return f"{method.mean('top1'):.2f}{spread}"
