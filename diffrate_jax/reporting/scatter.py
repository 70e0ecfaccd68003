"""Methods as points: their accuracy against what they take."""

from collections.abc import Sequence

import numpy as np

from diffrate_jax.reporting.boards import Board, Method, format_macs
from diffrate_jax.reporting.charts import Axis, Chart, Look

TOP1 = "top-1 accuracy, %"
# Names fit beside so many points, so many pixels apart and away; a letter is so wide.
NAMES, GAP, INDENT, LETTER = 18, 14, 24, 6.2
# So many points need more room.
CROWD, WIDE = 24, {"width": 700, "height": 420}
Places = Sequence[tuple[Method, float]]


def scatters(
    board: Board,
    places: Places,
    looks: dict[str, Look],
    label: str,
    title: str,
    *,
    from_zero: bool = False,
) -> list[Chart]:
    """Returns a chart of all methods, beside it one of the best where that helps.

    Args:
        board: of the methods.
        places: methods, and where each is on the axis below.
        looks: by the name of the method.
        label: of the axis below.
        title: of the chart of all methods.
        from_zero: the axis below begins there, so that no difference looks greater
            than it is.
    """
    top1 = [m.mean("top1") for m, _ in places]
    good = [m.mean("top1") for m, _ in places if m.kind != "baseline"]
    good += [r.mean("top1") for m, _ in places if (r := board.rival_of(m))]
    floor = min(good) - 0.15 * (max(good) - min(good)) - 0.1
    upper = [(m, x) for m, x in places if m.mean("top1") >= floor]
    below, whole = (
        len(places) - len(upper),
        scatter(places, looks, label, title, from_zero=from_zero),
    )
    is_flat = max(top1) - min(top1) > 2.5 * (max(top1) - floor)
    if are_named(places) or len(upper) < max(6, below) or not is_flat:
        return [whole]
    part = f"its upper part ({below} points are below)"
    return [whole, scatter(upper, looks, label, part, from_zero=from_zero)]


def scatter(
    places: Places,
    looks: dict[str, Look],
    label: str,
    title: str,
    *,
    from_zero: bool = False,
) -> Chart:
    """Returns methods as points, those of a run that go together joined by a line."""
    whiskers = [(x, m.interval(), m) for m, x in places if m.kind != "baseline"]
    values = [m.mean("top1") for m, _ in places]
    values += [end for _, interval, _ in whiskers for end in interval]
    y = Axis.around(TOP1, values, pad=0.08)
    size = WIDE if len(places) > CROWD else {}
    # Zero is one of the values, so that there is room behind the last of the others.
    xs = [0.0] * from_zero + [x for _, x in places]
    below = Axis.around(label, xs, zero=from_zero)
    chart = Chart(title, below, y, **size)
    join(chart, places, looks)
    for x, interval, method in whiskers:
        chart.whisker(x, *interval, looks[method.name], method.family)
    if are_named(places):
        name_points(chart, places)
    for method, x in sorted(places, key=lambda p: looks[p[0].name].is_strong):
        tip, look = f"{described(method)}\n{label}: {x:.3g}", looks[method.name]
        chart.point(x, method.mean("top1"), look, tip, run=method.family)
    return chart


def are_named(places: Places) -> bool:
    """Returns whether names may stand beside points: few, and no name twice."""
    return len(places) <= NAMES and len({m.name for m, _ in places}) == len(places)


def join(chart: Chart, places: Places, looks: dict[str, Look]) -> None:
    """Draws lines through what one method reaches at several costs."""
    lines: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for method, x in places:
        if method.kind != "dense":
            point = method.mean("fraction"), x, method.mean("top1")
            lines.setdefault((method.name, method.family), []).append(point)
    for (name, family), points in lines.items():
        line = [point[1:] for point in sorted(points)]
        # Through times that do not rise with cost a line would only confuse.
        if line == sorted(line):
            chart.line(line, looks[name], run=family, tip=f"{name}\n{family}".strip())


def name_points(chart: Chart, places: Places) -> None:
    """Writes names beside points, where those of both sides leave each other room."""
    points = [(chart.at(x, m.mean("top1")), m) for m, x in places]
    points.sort(key=lambda each: each[0][1])
    middle = chart.width / 2 + 20
    left = [each for each in points if each[0][0] <= middle]
    right = [each for each in points if each[0][0] > middle]
    first = max((place[0] for place, _ in left), default=0) + INDENT
    last = min((place[0] for place, _ in right), default=chart.width) - INDENT
    if first + room(left) > last - room(right):
        return
    for side, column in (left, first), (right, last):
        rows = np.array([place[1] for place, _ in side])
        rows = apart(rows, GAP, chart.top + 4, chart.height - 52)
        for (place, method), row in zip(side, map(float, rows), strict=True):
            chart.stroke(place, (column, row), "line", 0.8)
            kind, step = ("halo end", -3) if side is right else ("halo", 3)
            run = f"{method.family} {method.name}"
            chart.text((column + step, row + 4), name_text(method), kind=kind, run=run)


def name_text(method: Method) -> str:
    """Returns what stands beside a point."""
    return f"{method.name} {method.mean('top1'):.2f}"


def room(side: Sequence[tuple[tuple[float, float], Method]]) -> float:
    """Returns the pixels that the longest name of a side takes."""
    return LETTER * max((len(name_text(method)) for _, method in side), default=0)


def apart(rows: np.ndarray, gap: float, first: float, last: float) -> np.ndarray:
    """Moves sorted rows, which have to fit, a gap apart and between the ends."""
    steps = gap * np.arange(rows.size)
    # Pushed down or pushed up, they are a gap apart; so they are halfway between.
    down = np.maximum.accumulate(rows - steps)
    up = np.minimum.accumulate((rows - steps)[::-1])[::-1]
    moved = (down + up) / 2 + steps
    # Bounds that are a gap apart keep what is a gap apart so.
    return np.clip(moved, first + steps, last - steps[::-1])


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
