"""The report of a work directory: one HTML page, pictures inside, and Markdown."""

import base64
import dataclasses
import html
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from diffrate_jax.comparison import (
    Table,
    benchmark_table,
    evaluation_table,
    schedule_table,
)
from diffrate_jax.files import write_text
from diffrate_jax.headlines import Headline, headlines
from diffrate_jax.pictures import (
    accuracy_against_cost,
    kept_tokens,
    save_png,
    search_curves,
    speed,
    to_png,
    training_curves,
)
from diffrate_jax.pooling import pooled
from diffrate_jax.results import Benchmark, Evaluation, Results, find_results

TITLE = "Token compression learned by DiffRate"


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report; `picture` names the file, `alt` says what is seen."""

    title: str
    picture: str
    figure: Figure
    alt: str
    tables: Sequence[Table] = ()


def write_report(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    pictures: str | os.PathLike | None = None,
    *,
    markdown: str | os.PathLike | None = None,
) -> None:
    """Writes the report of everything found in a work directory.

    Args:
        folder: where the results lie, in it or in folders below it.
        out: the HTML file.
        pictures: folder where the pictures go as PNG files too.
        markdown: file where the tables go as Markdown too.

    Raises:
        UserError: nothing to report, a damaged file, or a place that is not writable.
    """
    results = find_results(Path(folder))
    parts = list(sections(results))
    write_text(out, html_page(results, parts))
    if pictures is not None:
        for part in parts:
            save_png(part.figure, Path(pictures) / part.picture)
    if markdown is not None:
        write_text(markdown, markdown_page(results, parts))


def sections(results: Results) -> Iterator[Section]:
    """Yields the parts of the report that the results allow for."""
    together = pooled(results.evaluations)
    if results.evaluations:
        yield Section(
            "Accuracy",
            "accuracy_against_cost.png",
            accuracy_against_cost(results.evaluations),
            "Top-1 accuracy of every method against its cost; numbers in the table",
            [evaluation_table(each) for each in (*together, *results.evaluations)],
        )
    if results.benchmarks:
        yield Section(
            "Speed",
            "speed.png",
            speed(results.benchmarks),
            "Images per second of every method; numbers in the table",
            [benchmark_table(each) for each in results.benchmarks],
        )
    if results.schedules:
        yield Section(
            "Kept tokens",
            "kept_tokens.png",
            kept_tokens(results.schedules),
            "Tokens kept, merged and pruned in every block; numbers in the table",
            [schedule_table(*named) for named in results.schedules.items()],
        )
    if results.searches:
        yield Section(
            "Search",
            "search_curves.png",
            search_curves(results.searches),
            "Cost coming down to its target and loss, by search step",
        )
    if results.trainings:
        yield Section(
            "Training",
            "training_curves.png",
            training_curves(results.trainings),
            "Training loss by step",
        )


def html_page(results: Results, parts: Sequence[Section]) -> str:
    """Returns the report as one HTML file that needs nothing else."""
    heads = "".join(_html_headline(*head) for head in headlines(results))
    body = "".join(map(_html_section, parts))
    runs = [*results.evaluations, *results.benchmarks]
    reproduce = "".join(map(_html_run, runs))
    if reproduce:
        reproduce = f"<section><h2>How to reproduce</h2>{reproduce}</section>\n"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{TITLE}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{TITLE}</h1>\n{heads}{body}{reproduce}</main>\n</body>\n</html>\n"
    )


def markdown_page(results: Results, parts: Sequence[Section]) -> str:
    """Returns headline figures, tables and commands as Markdown."""
    lines = [f"# {TITLE}", ""]
    for title, figures in headlines(results):
        lines += [f"**{_md(title)}**", ""]
        lines += [
            f"- {f.label}: **{_md(f.value)}** ({_md(f.meaning)})" for f in figures
        ]
        lines.append("")
    for part in parts:
        if part.tables:
            lines += [f"## {part.title}", ""]
        for table in part.tables:
            lines += _markdown_table(table)
    runs = [*results.evaluations, *results.benchmarks]
    if runs:
        lines += ["## How to reproduce", ""]
    for run in runs:
        lines += [f"{_md(run.path)}: {_md(_environment(run))}", ""]
        # Indented code needs no fence that the command itself could close.
        lines += [*(f"    {line}" for line in run.command.splitlines()), ""]
    return "\n".join(lines)


def _html_headline(title: str, figures: Sequence[Headline]) -> str:
    cards = "".join(
        f"<div><dt>{_esc(f.label)}</dt><dd><b>{_esc(f.value)}</b>"
        f"<span>{_esc(f.meaning)}</span></dd></div>\n"
        for f in figures
    )
    return f'<p class="what">{_esc(title)}</p>\n<dl class="cards">\n{cards}</dl>\n'


def _html_section(part: Section) -> str:
    data = base64.b64encode(to_png(part.figure)).decode()
    tables = "".join(map(_html_table, part.tables))
    return (
        f"<section><h2>{_esc(part.title)}</h2>\n<figure>"
        f'<img alt="{_esc(part.alt)}" src="data:image/png;base64,{data}">'
        f'</figure>\n<div class="tables">{tables}</div></section>\n'
    )


def _html_table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_esc(cell)}</th>' for cell in table.header)
    rows = []
    for number, (name, *cells) in enumerate(table.rows):
        kind = "strong" if number in table.strong else ""
        kind = "best" if number in table.best else kind
        rest = "".join(f"<td>{_esc(cell)}</td>" for cell in cells)
        rows.append(
            f'<tr class="{kind}"><th scope="row">{_esc(name)}</th>{rest}</tr>\n'
        )
    note = f'<p class="note">{_esc(table.note)}</p>' if table.note else ""
    return (
        f'<div class="table"><h3>{_esc(table.title)}</h3><div class="scroll"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n"
        f"</table></div>{note}</div>\n"
    )


def _html_run(run: Evaluation | Benchmark) -> str:
    return (
        f"<h3>{_esc(run.path)}</h3>\n<pre>{_esc(run.command)}</pre>\n"
        f'<p class="note">{_esc(_environment(run))}</p>\n'
    )


def _environment(run: Evaluation | Benchmark) -> str:
    return ", ".join(f"{key}: {value}" for key, value in run.environment.items())


def _markdown_table(table: Table) -> list[str]:
    rows = []
    for number, row in enumerate(table.rows):
        mark = "**" if number in table.strong else ""
        rows.append(" | ".join(f"{mark}{_md(cell)}{mark}" for cell in row))
    header = " | ".join(map(_md, table.header))
    rule = " | ".join([":--"] + ["--:"] * (len(table.header) - 1))
    lines = [f"| {line} |" for line in (header, rule, *rows)]
    return [
        f"### {_md(table.title)}",
        "",
        *lines,
        "",
        *([table.note, ""] if table.note else []),
    ]


def _esc(text: str) -> str:
    return html.escape(text)


def _md(text: str) -> str:
    """Escapes what Markdown would read as markup; names of files keep their dots."""
    for mark in "\\`*_|[]":
        text = text.replace(mark, "\\" + mark)
    return html.escape(" ".join(text.split()), quote=False)


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de;
  --page: #ffffff; --card: #f3f6f9; --learned: #e3f0fa; --best: #fdf3dc; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9aa7b4; --line: #39424c; --page: #11161c;
    --card: #1b222a; --learned: #17334a; --best: #3d3115; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere; }
.what { margin: 1rem 0 .5rem; color: var(--soft); }
.cards { display: grid; gap: .75rem; margin: 0;
  grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); }
.cards div { background: var(--card); border-radius: .5rem; padding: .75rem .8rem; }
.cards dt { font-size: .85rem; color: var(--soft); }
.cards dd { margin: 0; }
.cards b { display: block; font-size: 1.15rem; line-height: 1.5; }
.cards span, .note { font-size: .85rem; color: var(--soft); }
figure { margin: 0; overflow-x: auto; background: #ffffff; border-radius: .5rem; }
img { display: block; width: 100%; min-width: 28rem; max-width: 52rem; margin: 0 auto; }
.tables { display: flex; flex-wrap: wrap; gap: 0 2rem; }
.table { max-width: 100%; flex: 0 1 auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8125rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .45rem; text-align: right; font-weight: normal;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { color: var(--soft); vertical-align: bottom; white-space: normal; }
th:first-child { text-align: left; }
.strong th, .strong td { background: var(--learned); font-weight: 600; }
.best th, .best td { background: var(--best); }
pre { background: var(--card); border-radius: .5rem; padding: .75rem 1rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
@media print {
  body { font-size: 11px; } main { max-width: none; padding: 0; }
  .cards div, figure, .table, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .scroll, figure { overflow: visible; }
  th, td { padding: .2rem .35rem; }
  img { min-width: 0; max-height: 24cm; object-fit: contain; }
}
"""
