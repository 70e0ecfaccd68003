"""A table of benchmarks, cell by cell: what is done is not done again."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from diffrate_jax.errors import UserError
from diffrate_jax.files import Json, read_json, write_json
from diffrate_jax.progress import say


@dataclasses.dataclass(frozen=True)
class Cell:
    """One benchmark of a table.

    Attributes:
        model: name of the preset.
        schedule: what is compared with the dense model; see `parse_compression`.
        batch_size: images to a call.
        dtype: of weights and activations.
        rounds: times that each program runs.
    """

    model: str
    schedule: str
    batch_size: int
    dtype: str
    rounds: int

    @property
    def file(self) -> str:
        """Name of its record."""
        return f"{self.model}_{self.dtype}_b{self.batch_size}.json"


def read_cells(path: Path) -> list[Cell]:
    """Returns the cells of a table, the most important first.

    The file has `dtype`, `rounds`, `batch_sizes` and `models`, a list of objects with
    `model` and `schedule`; see configs/benchmarks/gpu.json.

    Raises:
        UserError: it cannot be read, or lacks one of these.
    """
    table = read_json(path)
    try:
        return [
            Cell(
                str(row["model"]),
                str(row["schedule"]),
                int(batch_size),
                str(table["dtype"]),
                int(table["rounds"]),
            )
            for batch_size in table["batch_sizes"]
            for row in table["models"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no table of benchmarks ({type(error).__name__}: {error}); "
            "write it like configs/benchmarks/gpu.json"
        ) from error


def run_cells(
    cells: list[Cell],
    folder: Path,
    measure: Callable[[Cell], dict[str, Json]],
    minutes: float,
) -> Iterator[dict[str, Json]]:
    """Yields the records that were still missing, each written as soon as it is there.

    A cell is begun only if the longest one so far would still end in time. What does
    not fit a device is recorded too, so that nobody tries it twice.

    Args:
        cells: of the table.
        folder: of the records.
        measure: makes the record of a cell.
        minutes: after which no cell may be running.
    """
    began, longest = time.monotonic(), 0.0
    missing = [cell for cell in cells if not (folder / cell.file).exists()]
    for number, cell in enumerate(missing):
        start = time.monotonic()
        if start - began + longest > 60 * minutes:
            left = len(missing) - number
            say(f"{left} cells left; the same command goes on with them")
            return
        say(f"{cell.file}: {number + 1} of {len(missing)} that are left")
        record = recorded(cell, measure)
        write_json(folder / cell.file, record)
        longest = max(longest, time.monotonic() - start)
        yield record


def recorded(cell: Cell, measure: Callable[[Cell], dict[str, Json]]) -> dict[str, Json]:
    """Returns the record of a cell, or why there is none."""
    try:
        return measure(cell)
    except RuntimeError as error:  # JAX's and PyTorch's alike.
        what = str(error).strip().split("\n")[0]
        if "RESOURCE_EXHAUSTED" not in what and "out of memory" not in what.lower():
            raise
        say(f"{cell.file}: {what}")
        return {"kind": "no benchmark", **dataclasses.asdict(cell), "reason": what}
