"""The report of any runs: one HTML page, its charts as SVG, tables as Markdown."""

import os
from collections.abc import Iterator
from pathlib import Path

from diffrate_jax.files import write_text
from diffrate_jax.reporting.accuracy import accuracy_sections
from diffrate_jax.reporting.boards import boards_of
from diffrate_jax.reporting.curves import curve_sections
from diffrate_jax.reporting.latencies import latency_sections
from diffrate_jax.reporting.markdown import markdown_page
from diffrate_jax.reporting.page import html_page
from diffrate_jax.reporting.picture import svg_picture
from diffrate_jax.reporting.reader import find_results
from diffrate_jax.reporting.results import Results
from diffrate_jax.reporting.sections import Figure, Section
from diffrate_jax.reporting.speed import speed_sections
from diffrate_jax.reporting.tokens import token_sections


def write_report(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    pictures: str | os.PathLike | None = None,
    *,
    markdown: str | os.PathLike | None = None,
) -> Results:
    """Writes the report of everything found in a folder, and returns what was found.

    A damaged file is named in the report and costs nothing else of it.

    Args:
        folder: where the results lie, in it or in folders below it.
        out: the HTML file; one that ends in .md gets the tables as Markdown instead.
        pictures: folder where the charts go as SVG files too.
        markdown: file where the tables go as Markdown too.

    Raises:
        UserError: nothing to report, or a place that is not writable.
    """
    results = find_results(folder)
    parts = summary(results), results.problems, list(sections(results))
    is_markdown = Path(out).suffix.lower() in (".md", ".markdown")
    write_text(out, markdown_page(*parts) if is_markdown else html_page(*parts))
    if markdown is not None:
        write_text(markdown, markdown_page(*parts))
    if pictures is not None:
        figures = [p for s in parts[-1] for p in s.parts if isinstance(p, Figure)]
        for figure in figures:
            write_text(Path(pictures) / f"{figure.name}.svg", svg_picture(figure))
    return results


def sections(results: Results) -> Iterator[Section]:
    """Yields the parts of the report that the results allow for."""
    boards = boards_of(results.evaluations)
    yield from accuracy_sections(boards, results.benchmarks)
    yield from speed_sections(results.benchmarks, results.misfits)
    yield from token_sections(results.schedules, results.origins)
    yield from curve_sections(results.searches, results.trainings, results.origins)
    yield from latency_sections(results.latencies)


def summary(results: Results) -> str:
    """Returns in a few words what was found.

    >>> summary(Results({}, {}, {}, (), (), problems=("x",), ignored=2))
    'Found damaged files: 1, other JSON files: 2'
    """
    counts = {
        "evaluations": len(results.evaluations),
        "benchmarks": len(results.benchmarks),
        "benchmarks that did not fit": len(results.misfits),
        "schedules": len(results.schedules),
        "search logs": len(results.searches),
        "training logs": len(results.trainings),
        "latency tables": len(results.latencies),
        "damaged files": len(results.problems),
        "other JSON files": results.ignored,
    }
    return "Found " + ", ".join(f"{w}: {n}" for w, n in counts.items() if n)
