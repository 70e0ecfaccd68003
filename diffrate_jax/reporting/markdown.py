"""The tables of a report as Markdown, for a README."""

import html
from collections.abc import Iterator, Sequence

from diffrate_jax.reporting.page import TITLE, by_environment, words_of
from diffrate_jax.reporting.sections import Headline, How, Section, Table


def markdown_page(
    summary: str, problems: Sequence[str], sections: Sequence[Section]
) -> str:
    """Returns headline figures, tables and commands as Markdown.

    Args:
        summary: one sentence on what was found.
        problems: a sentence for each file that could not be read.
        sections: in their order.
    """
    lines = [f"# {TITLE}", "", _plain(summary), ""]
    lines += [f"- left out, because damaged: {_plain(each)}" for each in problems]
    for section in sections:
        tables = [part for part in section.parts if isinstance(part, Table)]
        if tables:
            lines += [f"## {_plain(section.title)}", ""]
            for head in section.headlines:
                lines += _headlines(*head)
            for table in tables:
                lines += _table(table)
            lines += _reproduce(section.how)
    return "\n".join(lines)


def _headlines(title: str, figures: Sequence[Headline]) -> list[str]:
    items = [
        f"- {f.label}: **{_plain(f.value)}** ({_plain(f.meaning)})" for f in figures
    ]
    return [f"**{_plain(title)}**", "", *items, ""]


def _table(table: Table) -> Iterator[str]:
    yield from (f"### {_plain(table.title)}", "", *table_lines(table), "")
    if table.note:
        yield from (_plain(table.note), "")


def table_lines(table: Table) -> Iterator[str]:
    """Yields a table line by line, without its title and its note."""
    rule = [":--"] + ["--:"] * (len(table.header) - 1)
    rows = [[*map(_plain, table.header)], rule]
    for line in table.lines:
        first, *rest = map(words_of, line.cells)
        bold = "**" if line.mark == "strong" else ""
        rows.append([f"{bold}{_plain(first)}{bold}", *map(_plain, rest)])
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _reproduce(how: Sequence[How]) -> Iterator[str]:
    if how:
        yield from ("### How to reproduce this", "")
    for place, runs in by_environment(how).items():
        for command, paths in runs.items():
            yield from (_plain(", ".join(paths)), "")
            # Indented code needs no fence that the command itself could close.
            yield from (f"    {line}" for line in command.splitlines())
            if command:
                yield ""
        yield from (_plain(place), "")


def _plain(text: str) -> str:
    """Escapes what Markdown would read as markup; names of files keep their dots."""
    for mark in "\\`*_|[]":
        text = text.replace(mark, "\\" + mark)
    return html.escape(" ".join(text.split()), quote=False)
