"""Tables of reports within a document that somebody wrote, made anew from results.

A table stands between two comments, which a reader of the page does not see. The first
names a folder of results, as seen from the document, and the title of a table in their
report, after the kind of its section where there are several of that title; then, where
not all of its columns are wanted, those that are:

    <!-- table results/cifar10_study/1: Accuracy by target -->
    <!-- table results/quickstart: Speed / All figures | method | images/s -->
    …
    <!-- end of table -->
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from diffrate_jax.errors import UserError, did_you_mean
from diffrate_jax.files import reason, write_text
from diffrate_jax.reporting import sections
from diffrate_jax.reporting.markdown import table_lines
from diffrate_jax.reporting.reader import find_results
from diffrate_jax.reporting.sections import Table

COLUMN = " | "
END = "<!-- end of table -->"
BEGIN = re.compile(r"<!-- table (?P<folder>[^:\n]+): (?P<title>[^\n]+?) -->")
WHOLE = re.compile(rf"{BEGIN.pattern}\n(?:(?!<!-- table ).)*?{END}", re.S)


def renew(document: str | os.PathLike) -> int:
    """Makes the tables of a Markdown file anew; returns how many there are.

    Raises:
        UserError: the file cannot be read or written, a mark has no end, or names a
            folder, a table or a column that does not exist.
    """
    path = Path(document)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {path}: {reason(error)}; give a Markdown file"
        ) from error
    write_text(path, renewed(text, path))
    return len(BEGIN.findall(text))


def renewed(text: str, path: Path) -> str:
    """Returns the text of a document with its tables made anew.

    Args:
        text: as it is.
        path: of the document, from which folders are named.

    Raises:
        UserError: as in `renew`.
    """
    begun, whole = BEGIN.findall(text), WHOLE.findall(text)
    if not begun:
        raise UserError(
            f"expected tables to renew in {path}, found none; put "
            f"'<!-- table FOLDER: TITLE -->' and '{END}' where one belongs"
        )
    if begun != whole:
        folder, title = next(b for b in begun if begun.count(b) > whole.count(b))
        raise UserError(
            f"{path}: the table {folder}: {title} does not end; put '{END}' below it"
        )

    @cache
    def tables(folder: str) -> list[tuple[str, Table]]:
        return list(named_tables(path.parent / folder))

    return WHOLE.sub(lambda match: block(match, path, tables), text)


def named_tables(folder: Path) -> Iterator[tuple[str, Table]]:
    """Yields the tables of a folder's report, and their full names: kind / title."""
    for section in sections(find_results(folder)):
        kind = section.title.partition(":")[0]
        for part in section.parts:
            if isinstance(part, Table):
                yield f"{kind} / {part.title}", part


def block(
    match: re.Match[str],
    path: Path,
    tables: Callable[[str], list[tuple[str, Table]]],
) -> str:
    """Returns one table between its comments."""
    title, *columns = match["title"].split(COLUMN)
    where = f"{path}: {match['folder']}"
    every = tables(match["folder"])
    found = [table for name, table in every if title in (name, table.title)]
    if len(found) != 1:
        names = dict.fromkeys(name for name, _ in every)
        known = [*names, *dict.fromkeys(table.title for _, table in every)]
        hint = did_you_mean(title, known) if not found else f"known: {', '.join(names)}"
        raise UserError(
            f"{where} has {len(found)} tables called {title!r} where one was expected; "
            f"{hint}"
        )
    table = only(found[0], columns, where) if columns else found[0]
    (begin,) = match[0].splitlines()[:1]
    return "\n".join([begin, "", *table_lines(table), "", END])


def only(table: Table, columns: Sequence[str], where: str) -> Table:
    """Returns a table with some of its columns, in the order in which they are named.

    Raises:
        UserError: there is no such column.
    """
    for column in columns:
        if column not in table.header:
            raise UserError(
                f"{where}: the table {table.title!r} has no column {column!r}; "
                + did_you_mean(column, table.header)
            )
    places = [list(table.header).index(column) for column in columns]
    lines = [
        dataclasses.replace(line, cells=[line.cells[place] for place in places])
        for line in table.lines
    ]
    return dataclasses.replace(table, header=list(columns), lines=lines)
