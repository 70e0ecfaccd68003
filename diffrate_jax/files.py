"""Files that appear whole or not at all, in folders or in buckets (gs://)."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator

from etils import epath

from diffrate_jax.distributed import is_first
from diffrate_jax.errors import UserError

# How TensorStore, which writes checkpoints, tells what the system said.
OS_ERROR = re.compile(r"os_error_code='(\d+)'")
Json = dict | list | str | int | float | bool | None


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text atomically, see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes beside `path` and renames into place; makes the folder if need be.

    In a bucket an object appears whole anyway. Of many processes the first writes.

    Raises:
        UserError: the place cannot be written to.
    """
    if not is_first():
        return
    path = epath.Path(path)
    part = path
    if not in_bucket(path):
        part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content)
            if part != path:
                part.replace(path)
    except UserError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def append_text(path: str | os.PathLike, text: str) -> None:
    """Appends UTF-8 text, see `append_bytes`."""
    append_bytes(path, text.encode())


def append_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Appends to a file, from the first process alone.

    Raises:
        UserError: the place cannot be written to.
    """
    if not is_first():
        return
    path = epath.Path(path)
    if in_bucket(path):
        # Objects do not grow: they are written anew.
        write_bytes(path, (path.read_bytes() if path.exists() else b"") + content)
        return
    with writing(path), path.open("ab") as file:
        file.write(content)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turns what goes wrong while a file is written into one sentence.

    Raises:
        UserError: the disk is full, or the place cannot be written to.
    """
    try:
        yield
    except Exception as error:  # Buckets raise errors of their library's own.
        if not isinstance(error, OSError) and not in_bucket(path):
            raise
        raise UserError(
            f"cannot write {path}: {reason(error)}; give a place that can be written, "
            "or make room there"
        ) from error


def in_bucket(path: str | os.PathLike) -> bool:
    """Returns whether a path names an object of a store, such as gs://bucket/name."""
    return "://" in os.fspath(path)


def reason(error: Exception) -> str:
    """Returns in few words why something could not be read or written."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = OS_ERROR.search(str(error))
    if code:
        return os.strerror(int(code[1]))
    return str(error).strip().split("\n")[0][:300] or type(error).__name__


def write_json(path: str | os.PathLike, record: Json) -> None:
    """Writes JSON atomically, see `write_text`."""
    write_text(path, json.dumps(record, indent=1) + "\n")


def read_json(path: str | os.PathLike) -> Json:
    """Reads JSON.

    Raises:
        UserError: no such file, or not JSON.
    """
    try:
        return json.loads(epath.Path(path).read_text())
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {reason(error)}; give a file that exists"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}; write it again") from error


def digest(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file's content; of nothing for the empty path."""
    if not path:
        return hashlib.sha256().hexdigest()
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
