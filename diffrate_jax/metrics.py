"""The metrics of a run: one JSON object to a line, appended as the run goes.

The same numbers go into a TensorBoard event file where TensorBoard is installed.
"""

import importlib.util
import io
import json
import os
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from diffrate_jax.distributed import is_first
from diffrate_jax.files import Json, append_bytes, append_text, write_text, writing


class MetricsLog:
    """Appends records with a `step` to a file that survives a kill.

    Of many processes the first does.

    Args:
        path: of the `.jsonl` file.
        step: where the run starts; later records, left by a run that was killed after
            its last checkpoint, are removed, because they will be written again.
    """

    def __init__(self, path: str | os.PathLike, step: int) -> None:
        self._path, self._events = epath.Path(path), None
        if not is_first():
            return
        kept = [row for row in read_metrics(path) if row["step"] <= step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        if importlib.util.find_spec("tensorboard") is not None:
            self._events = Events(self._path.parent / "tensorboard", step)

    def write(self, record: dict[str, Json]) -> None:
        """Appends one record.

        Raises:
            UserError: the disk is full, or cannot be written to any more.
        """
        append_text(self._path, json.dumps(record) + "\n")
        if self._events is not None:
            self._events.write(record)


def read_metrics(path: str | os.PathLike) -> list[dict[str, Json]]:
    """Returns the records of a file, without a last line that a kill cut off."""
    path = epath.Path(path)
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


class Events:
    """A TensorBoard event file, one to each start of a run.

    TensorBoard's own writer would load TensorFlow, and write from another thread.

    Args:
        folder: of the event files.
        step: where the run starts; TensorBoard forgets what earlier files say of later
            steps.
    """

    def __init__(self, folder: epath.Path, step: int) -> None:
        # Loaded here: nobody else has to wait for it.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._path = folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        with writing(self._path):
            folder.mkdir(parents=True, exist_ok=True)
        start = SessionLog(status=SessionLog.START)
        now = time.time()
        self._append(Event(wall_time=now, file_version="brain.Event:2"))
        self._append(Event(wall_time=now, step=step, session_log=start))

    def write(self, record: dict[str, Json]) -> None:
        """Appends the numbers of one record; of a list each by its place."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=t, simple_value=x) for t, x in numbers(record)]
        summary = Summary(value=values)
        self._append(Event(wall_time=time.time(), step=record["step"], summary=summary))

    def _append(self, event: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        framed = io.BytesIO()
        RecordWriter(framed).write(event.SerializeToString())
        append_bytes(self._path, framed.getvalue())


def numbers(record: dict[str, Json]) -> Iterator[tuple[str, float]]:
    """Yields the numbers of a record under names for a curve each."""
    for name, value in record.items():
        if isinstance(value, list):
            yield from ((f"{name}/{place:02}", x) for place, x in enumerate(value))
        elif name != "step":
            yield name, value
