"""Program: writes the report of any runs as one HTML page, or as Markdown."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffrate_jax.arguments import Parser, file_name, folder_name
from diffrate_jax.errors import UserError
from diffrate_jax.exits import report_errors
from diffrate_jax.progress import say
from diffrate_jax.reporting import summary, write_report
from diffrate_jax.reporting.renewal import renew

EXAMPLES = """examples:
  python -m diffrate_jax.report --results=runs/quickstart --out=report.html
  python -m diffrate_jax.report --results=results --out=tables.md
  python -m diffrate_jax.report --results=results --out=report.html --pictures=pictures
  python -m diffrate_jax.report --renew=README.md      its tables, from today's results

Everything below the folder is collected: schedules, the metrics of search and
training, evaluations, benchmarks and latency tables. A damaged file is named and costs
nothing else. The page needs no other file and no network. A document says in comments
where a table goes and of what:
  <!-- table results/cifar10_study/1: Accuracy by target -->
  <!-- end of table -->
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    argv = sys.argv if argv is None else argv
    return report_errors(lambda: report(parser().parse_args(argv[1:])))


def report(flags: argparse.Namespace) -> None:
    """Writes what the flags ask for, and says what it found."""
    if flags.renew:
        if flags.results or flags.out:
            raise UserError(
                "expected --renew alone, found --results or --out beside it; leave "
                "them out: a document names the folders of its tables itself"
            )
        print(f"renewed {renew(flags.renew)} tables of {flags.renew}")
        return
    if not (flags.results and flags.out):
        raise UserError("expected --results and --out, or --renew; see --help")
    results = write_report(
        flags.results, flags.out, flags.pictures, markdown=flags.markdown
    )
    for problem in results.problems:
        say(f"left out: {problem}")
    size = Path(flags.out).stat().st_size
    print(f"{summary(results)}\nwrote {flags.out}, {size / 1024:,.0f} KiB")


def parser() -> argparse.ArgumentParser:
    """Returns the program's flags."""
    flags = Parser("report", __doc__.removeprefix("Program: "), EXAMPLES)
    add = flags.add_argument
    add("--results", metavar="DIR", help="folder that runs wrote to")
    add(
        "--out",
        metavar="FILE",
        type=file_name,
        help="HTML file to write, or .md for Markdown",
    )
    add(
        "--pictures",
        metavar="DIR",
        type=folder_name,
        help="folder for the charts as SVG files",
    )
    add(
        "--markdown",
        metavar="FILE",
        type=file_name,
        help="file for the tables as Markdown too",
    )
    add(
        "--renew",
        metavar="FILE",
        type=file_name,
        help="Markdown file whose marked tables are made anew; nothing else then",
    )
    return flags


if __name__ == "__main__":
    sys.exit(main())
