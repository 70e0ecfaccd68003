"""The panels that pictures are made of, each drawn into given axes."""

import itertools
import statistics
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from diffrate_jax.comparison import Method, is_learned, speed_range
from diffrate_jax.results import Benchmark, SearchStep, TrainStep, geometry_of
from diffrate_jax.schedule import Schedule

# Okabe and Ito's colours, which the colour-blind can tell apart.
BLACK, GREY, BLUE, SKY = "#000000", "#8A8A8A", "#0072B2", "#56B4E9"
ORANGE, RED, GREEN, PURPLE = "#E69F00", "#D55E00", "#009E73", "#CC79A7"
OTHERS = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY, BLACK)
# Colour and marker of every method, so that pictures agree with each other.
LOOKS = {
    "dense": (BLACK, "s"),
    "learned": (BLUE, "*"),
    "ToMe constant": (ORANGE, "o"),
    "ToMe decreasing": (RED, "v"),
    "prune only": (GREEN, "^"),
    "merge only": (PURPLE, "D"),
    "random": (GREY, "X"),
}
Curve = Sequence[SearchStep] | Sequence[TrainStep]


def wrapped(text: str, width: int) -> str:
    """Returns text in lines of at most `width` characters."""
    return textwrap.fill(text, width)


def draw_schedule(axes: Axes, schedule: Schedule) -> None:
    """Stacks for every block the tokens kept, merged away and pruned away."""
    geometry = geometry_of(schedule)
    coming, middle, kept = np.array(schedule.steps(geometry)).T
    blocks = np.arange(1, schedule.depth + 1)
    axes.step(
        np.arange(schedule.depth + 1) + 0.5,
        [*geometry.dense, geometry.dense[-1]],
        where="post",
        color=BLACK,
        linestyle=":",
        linewidth=1,
        label="all tokens",
    )
    axes.bar(blocks, kept, color=SKY, label="kept")
    axes.bar(
        blocks,
        middle - kept,
        bottom=kept,
        color=ORANGE,
        hatch="//",
        label="merged away",
    )
    axes.bar(
        blocks,
        coming - middle,
        bottom=middle,
        color=RED,
        hatch="..",
        label="pruned away",
    )
    axes.plot(
        blocks, kept, color=BLUE, marker="o", markersize=4, label="left after the block"
    )
    names = [f"{block}\n{count}" for block, count in zip(blocks, kept, strict=True)]
    # Three digits below every block fit up to about twenty blocks.
    axes.set_xticks(blocks, names, fontsize=9 if schedule.depth <= 20 else 6)
    axes.tick_params(axis="x", length=0)
    axes.set(
        ylabel="tokens",
        xlim=(0.4, schedule.depth + 0.6),
        ylim=(0, 1.05 * geometry.num_tokens),
    )


def draw_costs(axes: Axes, metrics: Mapping[str, Sequence[SearchStep]]) -> None:
    """Draws the cost of each search, and its target as a broken line."""
    largest = max(step.macs for curve in metrics.values() for step in curve)
    scale, unit = (1e9, "GMACs") if largest >= 1e9 else (1e6, "MMACs")
    label = "target"
    for colour, (name, curve) in zip(itertools.cycle(OTHERS), metrics.items()):
        steps = [step.step for step in curve]
        macs = [step.macs / scale for step in curve]
        target = [step.target_macs for step in curve]
        axes.plot(
            steps, macs, color=colour, label=_run_name(name), **_line_style(curve)
        )
        if None not in target:
            ends = [macs / scale for macs in target]
            axes.plot(steps, ends, "--", color=colour, linewidth=1.2, label=label)
            label = None
    axes.set_ylabel(f"cost per image, {unit}")


def draw_losses(axes: Axes, metrics: Mapping[str, Curve]) -> None:
    """Draws the loss of each run."""
    for colour, (name, curve) in zip(itertools.cycle(OTHERS), metrics.items()):
        steps, losses = zip(*((step.step, step.loss) for step in curve), strict=True)
        axes.plot(
            steps, losses, color=colour, label=_run_name(name), **_line_style(curve)
        )
    axes.set_ylabel("loss")


def _run_name(path: str) -> str:
    return path.removesuffix("/metrics.jsonl")


def _line_style(curve: Curve) -> dict[str, str | float]:
    # One point makes no line: a short run shows its points.
    return {"linewidth": 1.3, "marker": "o" if len(curve) < 20 else "", "markersize": 3}


def draw_methods(axes: Axes, found: Sequence[Method]) -> None:
    """Draws every method at its cost and accuracy, named beside it or in a legend."""
    names = sorted({m.name for m in found}, key=lambda name: -_top1(found, name))
    for name, (colour, marker) in _looks(names).items():
        points = [method for method in found if method.name == name]
        points.sort(key=lambda method: method.mean("fraction"))
        _draw_method(axes, points, colour, marker)
    axes.grid(visible=True)
    axes.margins(x=0.08, y=0.16)
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=""))
    if len(names) == len(found):
        _name_points(axes, found)
    else:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=9)


def _top1(found: Sequence[Method], name: str) -> float:
    return statistics.fmean(m.mean("top1") for m in found if m.name == name)


def _looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Returns colour and marker of each method; the unknown ones get what is free."""
    new = [name for name in names if name not in LOOKS]
    new.sort(key=lambda name: not is_learned(name))
    others = {
        name: (colour, "*" if is_learned(name) else "P")
        for name, colour in zip(new, itertools.cycle(OTHERS))
    }
    return {name: LOOKS.get(name) or others[name] for name in names}


def _draw_method(axes: Axes, points: list[Method], colour: str, marker: str) -> None:
    stands_out = is_learned(points[0].name)
    layer = 4 if stands_out else 3
    costs = [method.mean("fraction") for method in points]
    top1 = [method.mean("top1") for method in points]
    spread = [method.spread("top1") for method in points]
    axes.plot(
        costs,
        top1,
        color=colour,
        marker=marker,
        markersize=15 if stands_out else 8,
        markeredgecolor="white",
        linewidth=2.4 if stands_out else 1.2,
        zorder=layer,
        label=wrapped(points[0].name, 22),
    )
    if any(spread):
        axes.errorbar(costs, top1, spread, fmt="none", ecolor=colour, capsize=3)


def _name_points(axes: Axes, found: Sequence[Method]) -> None:
    """Writes name and accuracy of every point into the empty middle of the panel."""
    axes.autoscale_view()  # otherwise the transform is of axes without data
    to_axes = axes.transData + axes.transAxes.inverted()
    places = {m: to_axes.transform((m.mean("fraction"), m.mean("top1"))) for m in found}
    for on_right in (False, True):
        side = [m for m in found if (places[m][0] > 0.5) == on_right]
        side.sort(key=lambda method: places[method][1])
        across = [places[method][0] for method in side]
        column = min(across, default=1) if on_right else max(across, default=0)
        column += -0.06 if on_right else 0.06
        heights = _apart(np.array([places[method][1] for method in side]), gap=0.075)
        for method, height in zip(side, heights, strict=True):
            _name_point(axes, method, (column, height), on_right=on_right)


def _name_point(
    axes: Axes, method: Method, place: tuple[float, float], *, on_right: bool
) -> None:
    spread = f" ± {method.spread('top1'):.2f}" if len(method.rows) > 1 else ""
    axes.annotate(
        f"{wrapped(method.name, 30)}  {method.mean('top1'):.2f}{spread}",
        xy=(method.mean("fraction"), method.mean("top1")),
        xytext=place,
        textcoords="axes fraction",
        ha="right" if on_right else "left",
        va="center",
        fontsize=9,
        fontweight="bold" if is_learned(method.name) else "normal",
        arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.7},
    )


def _apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """Moves sorted heights between 0 and 1 until they are a gap apart."""
    if not heights.size:
        return heights
    steps = gap * np.arange(heights.size)
    # Pushed up or pushed down, they are a gap apart; so they are halfway between.
    up = np.maximum.accumulate(heights - steps)
    down = np.minimum.accumulate((heights - steps)[::-1])[::-1]
    moved = (up + down) / 2 + steps
    return moved - max(0.0, moved[-1] - 0.97) + max(0.0, 0.03 - moved[0])


def draw_speeds(axes: Axes, benchmark: Benchmark) -> None:
    """Draws a bar for every row, and a mark where its cost promises it to end."""
    rows = benchmark.rows
    for place, row in enumerate(rows):
        name = "learned" if is_learned(row.name) else row.name
        colour, _ = LOOKS.get(name, (GREY, ""))
        axes.barh(place, row.images_per_second, color=colour, height=0.6, alpha=0.75)
        axes.plot(speed_range(row), [place, place], color=BLACK, linewidth=1.6)
    promised = [row.images_per_second / row.efficiency for row in rows]
    label = "promised: as many times faster as there are fewer multiply-adds"
    marker = {"linestyle": "", "marker": "|", "markersize": 14, "markeredgewidth": 2}
    axes.plot(promised, range(len(rows)), color=RED, label=label, **marker)
    axes.set_yticks(range(len(rows)), [wrapped(row.name, 22) for row in rows])
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.invert_yaxis()
    for place, row in enumerate(rows):
        axes.text(
            1.02,
            place,
            f"{row.images_per_second:,.0f} images/s\n"
            f"{row.speedup:.2f}×, efficiency {row.efficiency:.2f}",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8.5,
        )
