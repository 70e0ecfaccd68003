"""Program: writes the report of a work directory as one HTML page."""

import argparse
import sys
from collections.abc import Sequence

from diffrate_jax import cli
from diffrate_jax.reporting import write_report

EXAMPLE = """example:
  python -m diffrate_jax.report --results=runs/quickstart --out=report.html

Everything below the folder is collected: schedules, the metrics of search and
training, evaluations and benchmarks. The page needs no other file and no network.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    argv = sys.argv if argv is None else argv
    return cli.report_errors(lambda: report(parser().parse_args(argv[1:])))


def report(flags: argparse.Namespace) -> None:
    """Writes what the flags ask for."""
    write_report(flags.results, flags.out, flags.pictures, markdown=flags.markdown)
    print(f"wrote {flags.out}")


def parser() -> argparse.ArgumentParser:
    """Returns the program's flags."""
    flags = cli.Parser("report", __doc__.removeprefix("Program: "), EXAMPLE)
    add = flags.add_argument
    add("--results", metavar="DIR", required=True, help="folder that runs wrote to")
    add("--out", metavar="FILE", required=True, help="HTML file to write")
    add("--pictures", metavar="DIR", help="folder for the pictures as PNG files")
    add("--markdown", metavar="FILE", help="file for the tables as Markdown")
    return flags


if __name__ == "__main__":
    sys.exit(main())
