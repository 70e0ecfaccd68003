"""Plans: the runs of a study, as data, in the order in which they are to be done."""

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from diffrate_jax.errors import UserError, did_you_mean
from diffrate_jax.files import Json, read_json, write_json

# What a program leaves when it is done, and about how long it takes, in seconds, until
# one has been timed.
MAKES = {
    "search": "comparison.json",
    "evaluate": "evaluation.json",
    "finetune": "weights.safetensors",
}
SECONDS = {"search": 120.0, "evaluate": 120.0, "finetune": 300.0}


@dataclasses.dataclass(frozen=True)
class Run:
    """One program of a study, with a folder of its own.

    Attributes:
        part: of the study.
        name: of the run in its part.
        program: key of `MAKES`.
        flags: of the program, after those that all runs share.
    """

    part: str
    name: str
    program: str
    flags: tuple[str, ...]

    @property
    def key(self) -> str:
        """Name in the study, and folder in its folder."""
        return f"{self.part}/{self.name}"

    @property
    def makes(self) -> str:
        """The file that is there when the run is done."""
        return MAKES[self.program]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study: its runs, in order, and the titles of its parts.

    Attributes:
        titles: of the parts, by their names.
        flags: of every run, before the user's and the run's own.
        runs: in an order in which none needs a later one.
    """

    titles: Mapping[str, str]
    flags: tuple[str, ...]
    runs: tuple[Run, ...]

    @classmethod
    def load(cls, path: str | os.PathLike, folder: str | os.PathLike) -> "Plan":
        """Reads a plan.

        Args:
            path: a JSON file such as those in configs/studies.
            folder: of the study, which takes the place of "{dir}" in flags.

        Raises:
            UserError: no such file, or not a plan.
        """
        record = read_json(path)
        try:
            titles = {part: about["title"] for part, about in record["parts"].items()}
            runs = [
                run
                for part, about in record["parts"].items()
                for row in about["runs"]
                for run in expanded(part, row, folder)
            ]
            flags = filled(record["flags"], {"dir": folder})
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is no plan of a study ({type(error).__name__}: {error}); "
                "write one as in configs/studies"
            ) from error
        plan = cls(titles, flags, tuple(runs))
        plan._check(path)
        return plan

    def _check(self, path: str | os.PathLike) -> None:
        keys = [run.key for run in self.runs]
        for number, run in enumerate(self.runs):
            # As a list, which may hold anything: a program that is none need not hash.
            if run.program not in list(MAKES):
                raise UserError(
                    f"{path}: {run.key} names the program {run.program!r}; "
                    f"{did_you_mean(str(run.program), MAKES)}"
                )
            for name in (run.part, run.name):
                if name == ".." or not name or Path(name).name != name:
                    raise UserError(
                        f"{path}: parts and runs are called as folders are, got "
                        f"{name!r} in {run.key}; give a name without slashes"
                    )
            if run.key in keys[:number]:
                raise UserError(f"{path}: two runs are called {run.key}; rename one")

    def chosen(self, parts: Iterable[str], folder: str | os.PathLike) -> list[Run]:
        """Returns the runs of some parts, and before them those that they need.

        A run needs another one if its flags name a file in that one's folder.

        Args:
            parts: names; none of them: all parts.
            folder: of the study.

        Raises:
            UserError: there is no such part.
        """
        parts = list(parts) or list(self.titles)
        for part in parts:
            if part not in self.titles:
                hint = did_you_mean(part, self.titles)
                raise UserError(f"the study has no part {part!r}; {hint}")
        wanted = {run.key for run in self.runs if run.part in parts}
        for run in reversed(self.runs):
            if run.key in wanted:
                wanted |= self._needs(run, folder)
        return [run for run in self.runs if run.key in wanted]

    def outdated(self, keys: Iterable[str], folder: str | os.PathLike) -> set[str]:
        """Returns what is to be done where some runs are: they, and all that need them.

        Args:
            keys: of the runs that are to be done.
            folder: of the study.
        """
        found = set(keys)
        for run in self.runs:
            if found & self._needs(run, folder):
                found.add(run.key)
        return found

    def _needs(self, run: Run, folder: str | os.PathLike) -> set[str]:
        earlier = itertools.takewhile(lambda other: other is not run, self.runs)
        text = "\n".join((*self.flags, *run.flags))
        return {other.key for other in earlier if f"{folder}/{other.key}/" in text}


def expanded(
    part: str, row: Mapping[str, Json], folder: str | os.PathLike
) -> Iterator[Run]:
    """Yields a run for every combination of the values that a row goes through.

    A value that is an object brings a variable for each of its keys.
    """
    each = row.get("each", {})
    for values in itertools.product(*each.values()):
        known = {"dir": folder}
        for name, value in zip(each, values, strict=True):
            known |= value if isinstance(value, dict) else {name: value}
        (name,) = filled([row["name"]], known)
        yield Run(part, name, row["program"], filled(row["flags"], known))


def filled(
    flags: Iterable[str | list[str]], known: Mapping[str, object]
) -> tuple[str, ...]:
    """Returns flags with "{name}" replaced by values.

    A list of texts is one flag: the first, and after it the others between commas.

    >>> filled(["--a={dir}/seed{seed}", ["--b=", "x", "y"]], {"dir": "d", "seed": 1})
    ('--a=d/seed1', '--b=x,y')
    """
    if isinstance(flags, str):
        raise TypeError(f"expected a list of flags, got {flags!r}")
    whole = [f if isinstance(f, str) else f[0] + ",".join(f[1:]) for f in flags]
    return tuple(flag.format_map(known) for flag in whole)


class Record:
    """What a study has done: for each run its words and its seconds, in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._runs = read_json(path) if path.exists() else {}
        whole = isinstance(self._runs, dict)
        if not whole or not all(map(is_row, self._runs.values())):
            raise UserError(f"{path} is damaged; remove it: finished runs end at once")

    def seconds(self, run: Run) -> float:
        """Returns how long a run takes, by the mean of its program so far."""
        mine = [
            row["seconds"]
            for row in self._runs.values()
            if row["program"] == run.program
        ]
        return sum(mine) / len(mine) if mine else SECONDS[run.program]

    def has(self, run: Run, words: list[str]) -> bool:
        """Returns whether a run is done.

        Raises:
            UserError: it was done with other flags.
        """
        folder = self._path.parent / run.key
        if run.key not in self._runs or not (folder / run.makes).exists():
            return False
        theirs = self._runs[run.key]["words"]
        if theirs != words:
            ours = [word for word in words if word not in theirs]
            gone = [word for word in theirs if word not in words]
            other = next(iter(ours + gone), "the order of its flags")
            raise UserError(
                f"{run.key} was done with other flags, see {other}; remove {folder} to "
                "do it again, or give another --workdir"
            )
        return True

    def add(self, run: Run, words: list[str], seconds: float) -> None:
        """Writes down that a run is done."""
        row = {"program": run.program, "words": words, "seconds": seconds}
        self._runs[run.key] = row
        write_json(self._path, self._runs)

    def forget(self, keys: Iterable[str]) -> None:
        """Writes down that runs are to be done again, where some of them are done."""
        known = self._runs.keys() & set(keys)
        for key in known:
            del self._runs[key]
        if known:
            write_json(self._path, self._runs)


def is_row(row: Json) -> bool:
    """Returns whether a value of study.json is what `Record.add` writes of a run."""
    if not isinstance(row, dict) or row.keys() < {"program", "words", "seconds"}:
        return False
    program, words, seconds = row["program"], row["words"], row["seconds"]
    listed = isinstance(words, list) and all(isinstance(word, str) for word in words)
    # No run takes thirty years, and what is no number lies in no range.
    timed = isinstance(seconds, int | float) and 0 <= seconds < 1e9
    return isinstance(program, str) and listed and timed


def without_places(text: str, places: Mapping[str, str]) -> str:
    """Returns JSON in which the folders of a machine have other names."""
    for place, name in sorted(places.items(), key=lambda row: -len(row[0])):
        written = re.escape(json.dumps(place)[1:-1])
        # A whole path: a folder "runs" is no part of "configs/runs.py".
        end = "" if place.endswith("/") else r"(?![\w./-])"
        text = re.sub(rf"(?<![\w./-]){written}{end}", lambda _, name=name: name, text)
    return text
