"""Program: runs a whole study, any number of searches, trainings and evaluations.

What is done is not done again: the same command goes on where it was stopped or killed.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from diffrate_jax.arguments import Parser
from diffrate_jax.errors import StoppedError, UserError
from diffrate_jax.exits import INTERRUPTED, report_errors
from diffrate_jax.files import in_bucket, read_json, write_text
from diffrate_jax.plan import MAKES, Plan, Record, Run, without_places
from diffrate_jax.progress import say

EXAMPLE = """examples:
  python -m diffrate_jax.study --plan=configs/studies/small.json --workdir=runs/small
  python -m diffrate_jax.study --plan=configs/studies/cifar10.json \\
      --workdir=runs/cifar10 --results=results/cifar10 \\
      --config.weights=vit_cifar10.safetensors --config.dataset=arrays:cifar10.npz
  … --parts=2,5   some parts, and the runs that they need
  … --list        only say what would be run

A plan is data: parts, and in each the runs of search, finetune and evaluate with their
flags; see configs/studies. Flags that begin with --config. go to every run. Each run
has a folder, WORKDIR/PART/NAME; study.json there keeps what is done and how long it
took, report.html and report.md show all of it.
"""
KEPT = ("evaluation.json", "comparison.json", "schedule*.json")


def study(flags: argparse.Namespace, own: list[str]) -> None:
    """Runs what is not done yet, then reports.

    Raises:
        UserError: a plan that is none, or a run that failed.
        StoppedError: a run was stopped, and all is saved.
    """
    folder = flags.workdir.rstrip("/")
    if not folder or in_bucket(folder):
        raise UserError(
            f"--workdir must be a folder of this machine, got {flags.workdir!r}"
        )
    plan = Plan.load(flags.plan, folder)
    runs = plan.chosen(filter(None, flags.parts.split(",")), folder)
    record = Record(Path(folder) / "study.json")
    words = {run.key: words_of(plan, run, own, folder) for run in runs}
    undone = [run.key for run in runs if not record.has(run, words[run.key])]
    outdated = plan.outdated(undone, folder)
    left = [run for run in runs if run.key in outdated]
    say(f"{len(runs)} runs, {len(runs) - len(left)} done, {span(record, left)} to go")
    if flags.list:
        for run in runs:
            state = " " if run in left else "x"
            print(f"[{state}] {run.key}: {shlex.join(words[run.key])}")
        return
    # Before anything runs, and in the parts that are not asked for too: a later study
    # must not find done what has read older files.
    record.forget(outdated)
    done = len(runs) - len(left)
    for number, run in enumerate(left, done + 1):
        rest = left[number - done - 1 :]
        say(
            f"== run {number} of {len(runs)}, {run.key} ({run.program}; "
            f"{plan.titles[run.part]}), about {span(record, rest)} left"
        )
        begun = time.monotonic()
        execute(words[run.key], run.key)
        record.add(run, words[run.key], time.monotonic() - begun)
    report = [f"--results={folder}", f"--out={folder}/report.html"]
    execute(["report", *report, f"--markdown={folder}/report.md"], "the report")
    if flags.results:
        publish(runs, folder, Path(flags.results), own)


def words_of(plan: Plan, run: Run, own: list[str], folder: str) -> list[str]:
    """Returns program and flags of a run; of equal flags the last one counts."""
    place = f"--workdir={folder}/{run.key}"
    return [run.program, place, *plan.flags, *own, *run.flags]


def span(record: Record, runs: Sequence[Run]) -> str:
    """Returns how long runs will take."""
    return str(timedelta(seconds=round(sum(map(record.seconds, runs)))))


def execute(words: list[str], name: str) -> None:
    """Runs a program to its end, in a process of its own.

    Raises:
        UserError: it failed.
        StoppedError: it was stopped, all being saved.
        KeyboardInterrupt: by Ctrl-C.
    """
    program, *rest = words
    module = [sys.executable, "-m", f"diffrate_jax.{program}"]
    with subprocess.Popen([*module, *rest]) as process:
        try:
            status = process.wait()
        finally:
            # Asked to stop, so is the program, which saves what it has.
            if process.poll() is None:
                process.terminate()
                process.wait()
    if status == StoppedError.STATUS:
        raise StoppedError
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status:
        raise UserError(
            f"{name} ended with status {status}, for the reason above: "
            f"{shlex.join(words)}; mend it (what an earlier run left in the run's "
            "folder can be removed) and run the same command to go on"
        )


def publish(runs: Sequence[Run], folder: str, out: Path, own: list[str]) -> None:
    """Copies schedules and evaluations, with no folder of this machine in them."""
    places = {f"{folder}/": f"runs/{Path(folder).name}/"}
    for flag in own:
        value = flag.partition("=")[2]
        if without_folder(value) != value:
            places[value] = without_folder(value)
    for run in runs:
        for pattern in KEPT:
            for path in filter(is_kept, (Path(folder) / run.key).glob(pattern)):
                text = without_places(path.read_text(), places)
                write_text(out / run.key / path.name, text)
    say(f"results without places: {out}")


def without_folder(value: str) -> str:
    """Returns a flag's value in which a path of this machine is only its last part.

    What others find too, such as a bucket or a name on a hub, stays as it is.

    >>> without_folder("arrays:/a/d.npz"), without_folder("hf-hub:timm/deit")
    ('arrays:d.npz', 'hf-hub:timm/deit')
    """
    kind, colon, path = value.partition(":")
    for before, place in (("", value), (kind + colon, path)):
        # Not Path.exists, which older Pythons let fail at what is too long for a name.
        is_local = os.path.isabs(place) or os.path.exists(place)
        if is_local and Path(place).name and not in_bucket(value):
            return before + Path(place).name
    return value


def is_kept(path: Path) -> bool:
    """Returns whether a file is published: of a comparison only where it comes from.

    Its rows, if it has any, are as long as an evaluation's and of training images.
    """
    if path.name != MAKES["search"]:
        return True
    return not any(row["rows"] for row in read_json(path)["comparisons"])


def parser() -> Parser:
    """Returns the program's flags."""
    flags = Parser("study", __doc__.removeprefix("Program: "), EXAMPLE)
    add = flags.add_argument
    add("--plan", metavar="FILE", required=True, help="what to run, as JSON")
    add("--workdir", metavar="DIR", required=True, help="folder of the study")
    add("--parts", metavar="NAMES", default="", help="such as 1,2,5; all by default")
    add("--results", metavar="DIR", help="folder for schedules and figures, to keep")
    add("--list", action="store_true", help="only say what would be run")
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    argv = sys.argv if argv is None else argv
    own = [word for word in argv[1:] if word.startswith("--config.")]
    rest = [word for word in argv[1:] if word not in own]
    return report_errors(lambda: study(parser().parse_args(rest), own))


if __name__ == "__main__":
    sys.exit(main())
