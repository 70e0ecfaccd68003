"""Pictures of results, each a function from results to a matplotlib figure."""

import io
import os
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from diffrate_jax.comparison import (
    Method,
    benchmark_title,
    device_of,
    methods,
    schedule_title,
)
from diffrate_jax.files import write_bytes
from diffrate_jax.panels import (
    draw_costs,
    draw_losses,
    draw_methods,
    draw_schedule,
    draw_speeds,
    wrapped,
)
from diffrate_jax.results import Benchmark, Evaluation, SearchStep, TrainStep
from diffrate_jax.schedule import Schedule

WIDTH = 7.2  # inches: the width of a printed page between its margins
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
    "figure.dpi": 160,
    "hatch.color": "white",
    "hatch.linewidth": 1.2,
}


@matplotlib.rc_context(STYLE)
def kept_tokens(schedules: Mapping[str, Schedule]) -> Figure:
    """Draws for every block which tokens stay, are merged away and are pruned away.

    Args:
        schedules: by the name that stands above their panel.
    """
    figure, panels = _panels(len(schedules), height=2.5)
    for axes, (name, schedule) in zip(panels, schedules.items(), strict=True):
        draw_schedule(axes, schedule)
        axes.set_title(wrapped(schedule_title(name, schedule), 80))
    panels[-1].set_xlabel("block, and below it how many tokens it keeps")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=5, fontsize=9)
    return figure


@matplotlib.rc_context(STYLE)
def search_curves(metrics: Mapping[str, Sequence[SearchStep]]) -> Figure:
    """Draws how the cost came down to its target, and the loss meanwhile.

    Args:
        metrics: what each search logged, by its name.
    """
    figure, (cost, loss) = _panels(2, height=2.6)
    draw_costs(cost, metrics)
    cost.set_title("Cost of the model during search")
    draw_losses(loss, metrics)
    loss.set_title("Loss during search: objective, plus any price of the cost")
    _finish_curves(figure, cost, loss)
    return figure


@matplotlib.rc_context(STYLE)
def training_curves(metrics: Mapping[str, Sequence[TrainStep]]) -> Figure:
    """Draws the loss while the weights were trained.

    Args:
        metrics: what each training logged, by its name.
    """
    figure, (loss,) = _panels(1, height=2.6)
    draw_losses(loss, metrics)
    loss.set_title("Loss during training")
    _finish_curves(figure, loss)
    return figure


@matplotlib.rc_context(STYLE)
def accuracy_against_cost(evaluations: Sequence[Evaluation]) -> Figure:
    """Draws what accuracy every method reaches at what cost.

    Evaluations of one model on the same images share a panel.
    """
    groups: dict[str, list[Method]] = {}
    for each in evaluations:
        title = f"{each.model} on {each.dataset} {each.split}"
        groups.setdefault(title, []).extend(methods(each))
    figure, panels = _panels(len(groups), height=3.4)
    for axes, (title, found) in zip(panels, groups.items(), strict=True):
        draw_methods(axes, found)
        axes.set_title(wrapped(f"Accuracy against cost: {title}", 80))
        axes.set_ylabel("top-1 accuracy, %")
    panels[-1].set_xlabel("multiply-adds per image, % of the dense model's")
    return figure


@matplotlib.rc_context(STYLE)
def speed(benchmarks: Sequence[Benchmark]) -> Figure:
    """Draws the speed of every row beside the speed that its cost promises."""
    most = max(len(benchmark.rows) for benchmark in benchmarks)
    figure, panels = _panels(len(benchmarks), height=1.0 + 0.5 * most)
    for axes, benchmark in zip(panels, benchmarks, strict=True):
        draw_speeds(axes, benchmark)
        title = f"Speed: {benchmark_title(benchmark)}, on {device_of(benchmark)}"
        axes.set_title(wrapped(title, 68))
    panels[-1].set_xlabel("images per second (line: slowest to fastest run)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", fontsize=9)
    return figure


def to_png(figure: Figure) -> bytes:
    """Returns the figure as PNG; the same figure always gives the same bytes."""
    buffer = io.BytesIO()
    # Without the name and version of the library, which would change the bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def save_png(figure: Figure, path: str | os.PathLike) -> None:
    """Writes the figure as PNG; the file appears whole or not at all.

    Raises:
        UserError: the place cannot be written to.
    """
    write_bytes(path, to_png(figure))


def _panels(count: int, *, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, 0.5 + height * count), layout="constrained")
    axes = figure.subplots(count, squeeze=False)[:, 0]
    return figure, list(axes)


def _finish_curves(figure: Figure, *panels: Axes) -> None:
    for axes in panels:
        axes.grid(visible=True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    panels[-1].set_xlabel("step")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=2, fontsize=9)
