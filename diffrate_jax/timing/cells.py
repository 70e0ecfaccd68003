"""A table of benchmarks, cell by cell: what is done is not done again."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from diffrate_jax.errors import UserError
from diffrate_jax.files import Json, read_json, write_json
from diffrate_jax.inference import DTYPES
from diffrate_jax.progress import say
from diffrate_jax.timing.places import record_path

# Kinds of records without a figure: too large for the device, and to be tried again.
MISFIT, FAILED = "no benchmark", "failed benchmark"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One benchmark of a table.

    Attributes:
        model: name of the preset.
        schedule: what is compared with the dense model; see `parse_compression`.
        batch_size: images to a call.
        dtype: of weights and activations.
        rounds: times that each program runs.

    Raises:
        ValueError: an unknown dtype, or a number that is not positive.
    """

    model: str
    schedule: str
    batch_size: int
    dtype: str
    rounds: int

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {DTYPES}, got {self.dtype!r}")
        for name in ("rounds", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")

    def path(self, folder: Path) -> Path:
        """Returns where its record is, or would be now."""
        return record_path(
            folder, self.model, self.dtype, self.batch_size, self.schedule
        )

    def kind_in(self, folder: Path) -> str | None:
        """Returns the kind of its record, None if there is none yet.

        Raises:
            UserError: the record is damaged.
        """
        path = self.path(folder)
        return read_json(path)["kind"] if path.exists() else None


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
    deadline: float,
) -> Iterator[dict[str, Json]]:
    """Yields the records that were still missing, each written as soon as it is there.

    The first cell is begun whatever the time, another one only if twice the longest so
    far would still end in time. What does not fit a device is recorded too, so that
    nobody tries it twice; what fails otherwise is tried again, after all others.

    Args:
        cells: of the table.
        folder: of the records.
        measure: makes the record of a cell.
        deadline: in seconds of `time.monotonic`, when no cell may be running any more.

    Raises:
        UserError: at the end, if cells failed; it names them.
    """
    longest, failed = 0.0, []
    left = left_of(cells, folder)
    for number, cell in enumerate(left):
        start = time.monotonic()
        if number and start + 2 * longest > deadline:
            say(f"{len(left) - number} cells left; the same command goes on with them")
            break
        path = cell.path(folder)
        say(f"{path.name}: {number + 1} of {len(left)} that are left")
        record = recorded(cell, measure)
        if "reason" in record:
            say(f"{path.name}: {record['reason']}")
        if record["kind"] == FAILED:
            failed.append(path.name)
        write_json(path, record)
        longest = max(longest, time.monotonic() - start)
        yield record
    if failed:
        raise UserError(
            f"{len(failed)} cells failed for the reasons above: {', '.join(failed)}; "
            "the same command tries them again"
        )


def left_of(cells: list[Cell], folder: Path) -> list[Cell]:
    """Returns the cells without a result, last of all those that failed before."""
    kinds = {cell: cell.kind_in(folder) for cell in cells}
    return [cell for kind in (None, FAILED) for cell in cells if kinds[cell] == kind]


def recorded(cell: Cell, measure: Callable[[Cell], dict[str, Json]]) -> dict[str, Json]:
    """Returns the record of a cell, or why there is none."""
    try:
        return measure(cell)
    except Exception as error:  # One bad cell is not to cost all others.
        what = str(error).strip().split("\n")[0]
        # JAX's and PyTorch's alike.
        full = "RESOURCE_EXHAUSTED" in what or "out of memory" in what.lower()
        kind = MISFIT if full and isinstance(error, RuntimeError) else FAILED
        if kind == FAILED and not isinstance(error, UserError):
            what = f"{type(error).__name__}: {what}"
        return {"kind": kind, **dataclasses.asdict(cell), "reason": what}
