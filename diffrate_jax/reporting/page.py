"""The report as one HTML page that needs no other file and no network."""

import re
from collections.abc import Iterator, Sequence

from diffrate_jax.pages import page_part
from diffrate_jax.reporting.charts import SHAPES, Look, esc
from diffrate_jax.reporting.sections import (
    Cell,
    Figure,
    Headline,
    How,
    Line,
    Section,
    Table,
)

TITLE = "Token compression learned by DiffRate"
NUMBER = re.compile(r"[+−]?[\d,.]+")


def html_page(
    summary: str, problems: Sequence[str], sections: Sequence[Section]
) -> str:
    """Returns the page.

    Args:
        summary: one sentence on what was found.
        problems: a sentence for each file that could not be read.
        sections: in their order.
    """
    style = "".join(page_part(name) for name in ("chart.css", "report.css"))
    body = "".join(map(_section, range(1, len(sections) + 1), sections))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{TITLE}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{TITLE}</h1>\n<p class="soft">{esc(summary)}</p>\n'
        f"{_problems(problems)}{_contents(sections)}{_TOOLS}{body}</main>\n"
        f'<div id="tip" role="status" hidden></div>\n<script>\n'
        f"{page_part('report.js')}</script>\n</body>\n</html>\n"
    )


def _problems(problems: Sequence[str]) -> str:
    if not problems:
        return ""
    items = "".join(f"<li>{esc(problem)}</li>" for problem in problems)
    return (
        f'<div class="warn"><p>Left out, because damaged: {len(problems)}</p>'
        f"<ul>{items}</ul></div>\n"
    )


def _contents(sections: Sequence[Section]) -> str:
    if len(sections) < 2:
        return ""
    items = "".join(
        f'<li><a href="#s{number}">{esc(section.title)}</a></li>\n'
        for number, section in enumerate(sections, 1)
    )
    return f'<nav aria-label="Contents"><ol>\n{items}</ol></nav>\n'


def _section(number: int, section: Section) -> str:
    heads = "".join(_headlines(*head) for head in section.headlines)
    parts = "".join(
        _figure(part) if isinstance(part, Figure) else _table(part)
        for part in section.parts
    )
    return (
        f'<section id="s{number}"><h2>{esc(section.title)}</h2>\n{heads}{parts}'
        f"{_reproduce(section.how)}</section>\n"
    )


def _headlines(title: str, figures: Sequence[Headline]) -> str:
    cards = "".join(
        f"<div><dt>{esc(f.label)}</dt><dd><b>{esc(f.value)}</b>"
        f"<span>{esc(f.meaning)}</span></dd></div>\n"
        for f in figures
    )
    return f'<p class="soft">{esc(title)}</p>\n<dl class="cards">\n{cards}</dl>\n'


def _figure(figure: Figure) -> str:
    charts = "".join(f'<div class="chart">{svg}</div>\n' for svg in drawn(figure))
    note = f"<p>{esc(figure.note)}</p>" if figure.note else ""
    body = (
        f'<figure><div class="charts">\n{charts}</div>{_keys(figure.looks)}'
        f"<figcaption>{note}</figcaption></figure>\n"
    )
    return _titled(figure.title, body, is_folded=figure.is_folded)


def drawn(figure: Figure) -> Iterator[str]:
    """Yields the charts of a figure as SVG elements."""
    for chart in figure.charts:
        yield chart.svg(f"{figure.title}: {chart.title}")


def _keys(looks: Sequence[Look]) -> str:
    keys = "".join(
        f'<button type="button" aria-pressed="true" data-key="{esc(look.name)}">'
        f'<svg width="16" height="16" viewBox="-8 -8 16 16" aria-hidden="true">'
        f'<path d="{SHAPES[look.shape]}" fill="var(--{look.colour})"/></svg>'
        f"{esc(look.name)}</button>"
        for look in looks
    )
    return f'<div class="keys">{keys}</div>' if keys else ""


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{esc(cell)}</th>' for cell in table.header)
    rows = "".join(map(_line, table.lines))
    note = f'<p class="note">{esc(table.note)}</p>' if table.note else ""
    body = (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody>\n</table></div>{note}\n"
    )
    title = table.title
    if table.is_folded:
        title += f" (lines: {len(table.lines)})"
    return _titled(title, body, is_folded=table.is_folded)


def _titled(title: str, body: str, *, is_folded: bool) -> str:
    head = f"<h3>{esc(title)}</h3>"
    if is_folded:
        return f"<details><summary>{head}</summary>\n{body}</details>\n"
    return f"{head}\n{body}"


def _line(line: Line) -> str:
    first, *rest = line.cells
    cells = f'<th scope="row">{esc(words_of(first))}</th>' + "".join(map(_cell, rest))
    mark = f' class="{line.mark}"' if line.mark else ""
    run = f"{line.run} {words_of(first)}"
    return f'<tr{mark} data-run="{esc(run)}">{cells}</tr>\n'


def _cell(cell: str | Cell) -> str:
    text = words_of(cell)
    value = ""
    if isinstance(cell, Cell) and cell.value is not None:
        value = f' data-v="{cell.value:.6g}"'
    is_words = not NUMBER.match(text) and text != "–"
    return f"<td{' class=words' if is_words else ''}{value}>{esc(text)}</td>"


def words_of(cell: str | Cell) -> str:
    """Returns what stands in a cell."""
    return cell.text if isinstance(cell, Cell) else cell


def _reproduce(how: Sequence[How]) -> str:
    if not how:
        return ""
    count = f"{len(how)} runs" if len(how) > 1 else "1 run"
    return (
        f"<details><summary>How to reproduce this: {count}</summary>\n"
        f"{''.join(_commands(how))}</details>\n"
    )


def _commands(how: Sequence[How]) -> Iterator[str]:
    """Yields commands, those in one environment together."""
    for place, runs in by_environment(how).items():
        for command, paths in runs.items():
            yield f'<p class="note">{esc(", ".join(paths))}</p>\n'
            if command:
                yield f"<pre>{esc(command)}</pre>\n"
        yield f'<p class="note">{esc(place)}</p>\n'


def by_environment(how: Sequence[How]) -> dict[str, dict[str, list[str]]]:
    """Returns for each environment, in words, its commands and the files they gave."""
    groups: dict[str, dict[str, list[str]]] = {}
    for each in how:
        place = ", ".join(f"{key}: {value}" for key, value in each.environment.items())
        groups.setdefault(place, {}).setdefault(each.command, []).append(each.path)
    return groups


_TOOLS = (
    '<div class="tools"><input id="filter" type="search" placeholder="Filter: part of '
    'a run or method" aria-label="Filter by part of a run or method">'
    '<span id="found" class="soft" aria-live="polite"></span></div>\n'
)
