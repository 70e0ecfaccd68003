"""What a report is made of: sections of figures and tables, and how they came to be."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from diffrate_jax.reporting.charts import Chart, Look


@dataclasses.dataclass(frozen=True)
class Cell:
    """Text of a table, and the number that it is sorted by."""

    text: str
    value: float | None = None


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a table; `run` is what a reader may filter by, `mark` how it looks."""

    cells: Sequence[str | Cell]
    run: str = ""
    mark: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table in plain text; its lines may be marked "strong" or "best"."""

    title: str
    header: Sequence[str]
    lines: Sequence[Line]
    note: str = ""
    is_folded: bool = False


@dataclasses.dataclass(frozen=True)
class How:
    """How a figure came to be: its command, if it is known, and what it ran with."""

    path: str
    command: str
    environment: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Figure:
    """Charts that share a legend.

    Attributes:
        name: of the file it may be written to.
        title: what is seen.
        charts: side by side where there is room.
        looks: for the legend.
        note: what a reader has to know.
        is_folded: whether the page shows it only when asked to.
    """

    name: str
    title: str
    charts: Sequence[Chart]
    looks: Sequence[Look] = ()
    note: str = ""
    is_folded: bool = False


@dataclasses.dataclass(frozen=True)
class Headline:
    """One headline figure: what it is, its value, and what that means."""

    label: str
    value: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report."""

    title: str
    parts: Sequence[Figure | Table] = ()
    how: Sequence[How] = ()
    headlines: Sequence[tuple[str, Sequence[Headline]]] = ()
