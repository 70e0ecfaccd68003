"""The metrics of a run: one JSON object to a line, appended as the run goes."""

import json
import os
from pathlib import Path

from diffrate_jax.files import Json, write_text


class MetricsLog:
    """Appends records with a `step` to a file that survives a kill.

    Args:
        path: of the `.jsonl` file.
        step: where the run starts; later records, left by a run that was killed after
            its last checkpoint, are removed, because they will be written again.
    """

    def __init__(self, path: str | os.PathLike, step: int) -> None:
        self._path = Path(path)
        kept = [row for row in read_metrics(path) if row["step"] <= step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, record: dict[str, Json]) -> None:
        """Appends one record."""
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def read_metrics(path: str | os.PathLike) -> list[dict[str, Json]]:
    """Returns the records of a file, without a last line that a kill cut off."""
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]
