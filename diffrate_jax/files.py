"""Files that appear whole or not at all."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

from diffrate_jax.errors import UserError

Json = dict | list | str | int | float | bool | None


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text atomically, see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes beside `path` and renames into place; makes the folder if need be.

    Raises:
        UserError: the place cannot be written to.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UserError(
            f"cannot write {path}: {error.strerror}; give a place that can be written"
        ) from error


def write_json(path: str | os.PathLike, record: Json) -> None:
    """Writes JSON atomically, see `write_text`."""
    write_text(path, json.dumps(record, indent=1) + "\n")


def read_json(path: str | os.PathLike) -> Json:
    """Reads JSON.

    Raises:
        UserError: no such file, or not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; give a file that exists"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}; write it again") from error


def digest(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file's content; of nothing for the empty path."""
    if not path:
        return hashlib.sha256().hexdigest()
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
