"""Where the records of benchmarks go, so that none takes another's place."""

import re
from pathlib import Path

from diffrate_jax.files import read_json


def record_path(
    folder: Path, model: str, dtype: str, batch_size: int, schedule: str
) -> Path:
    """Returns the file of a benchmark's record.

    Its name has the schedule only where another one of the same model, type and batch
    came first.
    """
    path = folder / f"{model}_{dtype}_b{batch_size}.json"
    if not path.exists() or schedule_in(path) == schedule:
        return path
    told = re.sub(r"[^\w.%@-]+", "_", schedule)
    return path.with_name(f"{path.stem}_{told}.json")


def schedule_in(path: Path) -> str | None:
    """Returns the schedule that a record is of, None if it does not say.

    Raises:
        UserError: it is not JSON.
    """
    match read_json(path):
        case {"schedule": str(schedule)} | {"rows": [_, {"name": str(schedule)}, *_]}:
            return schedule
    return None
