"""Work directories: one run each, claimed by the config that started it."""

import json

from etils import epath

from diffrate_jax import parallel
from diffrate_jax.distributed import is_first
from diffrate_jax.errors import UserError
from diffrate_jax.files import Json, read_json, reason, write_json, writing

CONFIG = "config.json"
# Where and how often, not what: these may change between a run and its resumption.
FREE = {
    "checkpoint_every",
    "compilation_cache",
    "cpu_devices",
    "data_dir",
    "eval_batch_size",
    "final_evaluation",
    "latency_table",
    "log_every",
    "weights",
}


def claim(workdir: epath.Path, run: dict[str, Json], name: str = CONFIG) -> None:
    """Marks a work directory as this run's, or finds it marked so.

    Of many processes the first does it for all.

    Args:
        workdir: folder, made if need be.
        run: all that makes the run what it is.
        name: of the file that keeps it.

    Raises:
        UserError: the directory belongs to another run, naming a field that
            differs; or it cannot be written.
    """
    if not is_first():
        return
    # As it will be read back: tuples are lists there.
    record = json.loads(json.dumps(run, sort_keys=True))
    path = workdir / name
    with writing(path):  # A bucket that is not there fails here.
        is_new = not path.exists()
    if is_new:
        write_json(path, record)
        return
    known = read_json(path)
    if not isinstance(known, dict):
        raise UserError(f"{path} is damaged; give another --workdir, or remove it")
    mine, theirs = flat(record), flat(known)
    fields = (mine.keys() | theirs) - FREE
    different = sorted(f for f in fields if mine.get(f) != theirs.get(f))
    if different:
        field = different[0]
        raise UserError(
            f"{workdir} belongs to a run with {field}={theirs.get(field)!r}, this one "
            f"has {mine.get(field)!r}; give another --workdir or the same config"
        )


def make_folder(path: epath.Path) -> None:
    """Makes the folder of results before the work that they cost, on one process.

    Raises:
        UserError: it cannot be made.
    """
    if not is_first():
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write into {path}: {reason(error)}; give another folder"
        ) from error


def has(workdir: epath.Path, name: str) -> bool:
    """Returns on all processes whether the first finds a file: they have to agree."""
    return parallel.of_first_host(is_first() and (workdir / name).exists())


def read(workdir: epath.Path, name: str) -> Json:
    """Returns on all processes the JSON that the first one reads.

    Raises:
        UserError: no such file, or not JSON.
    """
    return parallel.of_first_host(read_json(workdir / name) if is_first() else None)


def flat(record: dict, prefix: str = "") -> dict[str, object]:
    """Returns nested fields under dotted names."""
    found = {}
    for name, value in record.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
