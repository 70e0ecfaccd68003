"""The accuracy of every method: against cost, against measured time, and in tables."""

import statistics
from collections.abc import Iterator, Sequence

from diffrate_jax.reporting.boards import Board, Method, format_difference, format_macs
from diffrate_jax.reporting.charts import Look
from diffrate_jax.reporting.looks import looks_of
from diffrate_jax.reporting.results import Benchmark
from diffrate_jax.reporting.scatter import scatters, top1_text
from diffrate_jax.reporting.sections import (
    Cell,
    Figure,
    Headline,
    How,
    Line,
    Section,
    Table,
)
from diffrate_jax.reporting.seeds import seeds_table
from diffrate_jax.reporting.timed import Timed, timed_by_benchmark, timed_by_evaluation

# More lines than this are folded, more families than this are summed up.
LONG, MANY, CARDS = 60, 6, 4
COST, MS = "cost, % of dense", "milliseconds per image"


def accuracy_sections(
    boards: Sequence[Board], benchmarks: Sequence[Benchmark]
) -> Iterator[Section]:
    """Yields a section for each board."""
    for number, board in enumerate(boards, 1):
        looks = looks_of(method.name for method in board.methods)
        settings = list(timed_by_benchmark(board, benchmarks))
        parts = [cost_figure(board, looks, number)]
        parts += time_figures(board, settings, looks, number)
        if len(board.targets) > 1:
            parts.append(pivot(board))
        if (seeds := seeds_table(board)) is not None:
            parts.append(seeds)
        parts.append(full_table(board))
        how = [How(run.path, run.command, run.environment) for run in board.runs]
        heads = list(headlines(board, settings))
        weights = f" with weights {board.weights}" if board.weights else ""
        yield Section(
            # Ahead of the colon, as a document names its tables by what is there.
            f"Accuracy{weights}: {board.title}",
            parts,
            how,
            heads if len(heads) <= CARDS else (),
        )


def cost_figure(board: Board, looks: dict[str, Look], number: int) -> Figure:
    """Returns accuracy against cost, and its upper part where that says more."""
    places = [(m, 100 * m.mean("fraction")) for m in board.methods]
    return Figure(
        f"accuracy_against_cost_{number}",
        "Accuracy against cost",
        scatters(board, places, looks, COST, "all methods"),
        list(looks.values()),
        "Whiskers of dense and learned are 95% intervals for the number of images "
        "(Wilson); they hold for each point alone. Methods saw the same images, so "
        "differences between them are surer: see the paired intervals in the table.",
    )


def time_figures(
    board: Board, settings: Sequence[Timed], looks: dict[str, Look], number: int
) -> Iterator[Figure]:
    """Yields accuracy against time as benchmarked, and as evaluated what was not."""
    if settings:
        name, title = f"accuracy_against_time_{number}", "Accuracy against time"
        yield time_figure(board, settings, looks, name, title)
    named = {m.name for timed in settings for m in timed.ms}
    rough = timed_by_evaluation(board)
    if rough is not None and {m.name for m in board.methods} - named:
        name = f"accuracy_against_rough_time_{number}"
        title = "Accuracy against time, rough"
        yield time_figure(board, [rough], looks, name, title)


def time_figure(
    board: Board,
    settings: Sequence[Timed],
    looks: dict[str, Look],
    name: str,
    title: str,
) -> Figure:
    """Returns accuracy against the milliseconds of an image in each setting."""
    charts = [
        chart
        for timed in settings
        for chart in scatters(
            board, list(timed.ms.items()), looks, MS, timed.title, from_zero=True
        )
    ]
    shown = dict.fromkeys(m.name for timed in settings for m in timed.ms)
    note = " ".join(timed.note for timed in settings)
    return Figure(name, title, charts, [looks[name] for name in shown], note)


def pivot(board: Board) -> Table:
    """Returns accuracy by method and target, the most accurate of a target marked.

    The dense model is beside every target, others without a target are beside none.
    """
    is_summed = len(board.families) > MANY
    rows: dict[tuple[str, str], dict[str | None, list[Method]]] = {}
    for method in (m for m in board.methods if m.target or m.kind == "dense"):
        # What was learned for one rule is no mean of that for another.
        rule = method.rows[0].rule if method.kind == "learned" else None
        key = method.name, (rule or "") if is_summed else method.family
        target = None if method.kind == "dense" else method.target
        rows.setdefault(key, {}).setdefault(target, []).append(method)
    best = {
        target: max(mean_top1(by[target]) for by in rows.values() if target in by)
        for target in board.targets
    }
    lines = []
    for (name, family), by_target in rows.items():
        is_one = len({f for n, f in rows if n == name}) == 1
        label = name if is_one or not family else f"{name} · {family}"
        if None in by_target:
            by_target = dict.fromkeys(board.targets, by_target[None])
        cells = [pivot_cell(by_target.get(target)) for target in board.targets]
        kind = next(iter(by_target.values()))[0].kind
        is_best = any(
            target in by_target and mean_top1(by_target[target]) == best[target]
            for target in board.targets
        )
        mark = (
            "strong"
            if kind == "learned"
            else "best"
            if is_best and kind != "dense"
            else ""
        )
        lines.append(Line([label, *cells], "" if is_summed else family, mark))
    folds = " (mean over runs, and from lowest to highest)" if is_summed else ""
    header = [f"top-1, %, at a target of{folds}", *map(str, board.targets)]
    return Table("Accuracy by target", header, lines)


def mean_top1(methods: Sequence[Method]) -> float:
    """Returns the mean accuracy over some methods."""
    return statistics.fmean(method.mean("top1") for method in methods)


def pivot_cell(methods: Sequence[Method] | None) -> str | Cell:
    """Returns one accuracy, or what several runs make of it."""
    if not methods:
        return "–"
    if len(methods) == 1:
        return Cell(top1_text(methods[0]), mean_top1(methods))
    values = [method.mean("top1") for method in methods]
    mean, low, high = (
        f"{value:.2f}" for value in (mean_top1(methods), min(values), max(values))
    )
    text = mean if low == high else f"{mean} ({low} to {high})"
    return Cell(text, mean_top1(methods))


def full_table(board: Board) -> Table:
    """Returns everything about every method, and how far it is ahead of others."""
    has_targets, has_runs = bool(board.targets), len(board.families) > 1
    header = ["method", *["run"] * has_runs, *["target"] * has_targets]
    header += ["cost", "of dense", "top-1, %", "95% interval", "top-5, %", "loss"]
    header += ["− dense, points [95%]", "− best baseline, points [95%]"]
    rivals = {method: board.rival_of(method) for method in board.methods}
    best = {rival for method, rival in rivals.items() if rival is not method}
    lines = []
    for method in board.methods:
        is_best = method in best
        cells: list[str | Cell] = [
            method.name + (" (best baseline)" if is_best else "")
        ]
        cells += [method.family or "–"] * has_runs
        cells += [method.target or "–"] * has_targets
        dense = board.dense_of(method)
        cells += figures(method)
        cells += [difference(method, dense), difference(method, rivals[method])]
        mark = "strong" if method.kind == "learned" else "best" if is_best else ""
        lines.append(Line(cells, f"{method.family} {method.name}", mark))
    return Table("All figures", header, lines, note_of(board), len(lines) > LONG)


def figures(method: Method) -> list[str | Cell]:
    """Returns cost, accuracy and loss of a method as cells."""
    low, high = method.interval()
    return [
        Cell(format_macs(method.mean("macs")), method.mean("macs")),
        f"{method.mean('fraction'):.1%}",
        Cell(top1_text(method), method.mean("top1")),
        Cell(f"{low:.2f} to {high:.2f}", low),
        f"{method.mean('top5'):.2f}",
        f"{method.mean('loss'):.3f}",
    ]


def difference(method: Method, other: Method | None) -> str | Cell:
    """Returns how far a method is ahead of another, with its interval."""
    text = format_difference(method, other)
    if other is None or other is method:
        return text
    return Cell(text, method.mean("top1") - other.mean("top1"))


def note_of(board: Board) -> str:
    """Returns what a reader of a board's table has to know."""
    pooled = any(len(method.rows) > 1 for method in board.methods)
    return (
        f"{board.runs[0].rows[0].count:,} images. "
        + (
            "a ± b (n): mean and standard deviation over n seeds or draws, in runs "
            "whose commands agree but for seed and target; of a command that was run "
            "by several versions of the code, each version is a run of its own. "
            if pooled
            else ""
        )
        + "The 95% interval of top-1 is Wilson's for that many images. Differences are "
        "paired, image by image; their intervals are Wald's as Bonett and Price adjust "
        "it for pairs, for the choice of images alone. Cost is per image; one "
        "multiply-add counts once, which the papers call one FLOP."
    )


def headlines(
    board: Board, settings: Sequence[Timed]
) -> Iterator[tuple[str, list[Headline]]]:
    """Yields a title and the figures that matter of everything learned."""
    for method in board.methods:
        if method.kind == "learned":
            where = [method.family] * (len(board.families) > 1)
            target = [f"target {method.target}"] if method.target else []
            title = ", ".join([method.name, *where, *target])
            yield title, [*claims(board, method), *speeds(method, settings)]


def claims(board: Board, method: Method) -> Iterator[Headline]:
    """Yields accuracy, lead over baselines and cost of a learned schedule."""
    dense, rival = board.dense_of(method), board.rival_of(method)
    top1 = f"{method.mean('top1'):.2f} %"
    if dense is None:
        yield Headline("Accuracy", top1, "top-1; the dense model was not evaluated")
    else:
        change = format_difference(method, dense)
        before = f"{dense.mean('top1'):.2f} → {top1}"
        yield Headline("Accuracy", before, f"top-1, dense → learned: {change} points")
    if rival is None:
        about = "no baseline of this cost was evaluated with these weights"
        yield Headline("Lead over baselines", "–", about)
    else:
        value, _, interval = format_difference(method, rival).partition(" ")
        about = f"over the best, {rival.name}; 95% interval {interval}"
        yield Headline("Lead over baselines", f"{value} points", about)
    costs = format_macs(method.mean("macs")), format_macs(board.runs[0].dense_macs)
    share = f"{method.mean('fraction'):.1%}"
    yield Headline("Cost", share, f"of dense: {costs[0]} of {costs[1]} per image")


def speeds(method: Method, settings: Sequence[Timed]) -> Iterator[Headline]:
    """Yields speed-up and efficiency as benchmarked."""
    for timed in settings:
        if method in timed.rows:
            row = timed.rows[method]
            rate = f"{row.images_per_second:,.0f} images/s, {timed.title}"
            yield Headline("Speed", f"{row.speedup:.2f}×", rate)
            about = "speed-up over what the saved multiply-adds promise"
            yield Headline("Efficiency", f"{row.efficiency:.2f}", about)
            return
    yield Headline("Speed", "–", "no benchmark of this schedule was run")
