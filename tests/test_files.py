"""Files: whole or not at all, on disks that are full, and in buckets."""

import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

import diffrate_jax as dr
from diffrate_jax.files import (
    append_text,
    digest,
    read_json,
    reason,
    write_bytes,
    write_json,
    write_text,
)
from diffrate_jax.metrics import MetricsLog, read_metrics
from diffrate_jax.workdir import claim, has, make_folder, read

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bucket(monkeypatch) -> epath.Path:
    """A bucket in memory, by the code that goes to a real one."""
    monkeypatch.setattr(epath.gpath, "_is_tf_installed", lambda: False)
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    Bucket.store.clear()
    return epath.Path("gs://bucket/run")


class Bucket(MemoryFileSystem):
    """A store in memory under the names of a bucket."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(str(path).replace("gs://", "memory://"))


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path) -> epath.Path:
    """A folder on disk, and one in a bucket."""
    if request.param == "folder":
        return epath.Path(tmp_path / "run")
    return request.getfixturevalue("bucket")


def test_files_of_a_run(place):
    write_text(place / "a/b.txt", "é\n")
    assert (place / "a/b.txt").read_text() == "é\n"
    write_json(place / "c.json", {"x": [1, 2.5]})
    write_json(place / "c.json", {"x": [1, 3.5]})
    assert read_json(place / "c.json") == {"x": [1, 3.5]}
    for line in ("1\n", "2\n"):
        append_text(place / "log", line)
    assert (place / "log").read_text() == "1\n2\n"
    assert digest(place / "log") == digest(place / "log") != digest("")
    # Nothing half-written is left behind.
    assert sorted(path.name for path in place.iterdir()) == ["a", "c.json", "log"]


def test_a_work_directory(place):
    make_folder(place)
    claim(place, {"seed": 1, "steps": (1, 2), "log_every": 1})
    claim(place, {"seed": 1, "steps": [1, 2], "log_every": 7})
    with pytest.raises(dr.UserError, match="belongs to a run with seed=1, this one"):
        claim(place, {"seed": 2, "steps": [1, 2], "log_every": 1})
    assert has(place, "config.json")
    assert not has(place, "schedule.json")
    assert read(place, "config.json")["seed"] == 1


def test_a_schedule(place):
    schedule = dr.Schedule(None, (5, 4), rule="tome")
    schedule.save(place / "s.json")
    assert dr.Schedule.load(place / "s.json") == schedule
    with pytest.raises(dr.UserError, match=r"cannot read the schedule .*none\.json"):
        dr.Schedule.load(place / "none.json")


def test_metrics_go_on_where_the_checkpoint_is(place):
    path = place / "metrics.jsonl"
    log = MetricsLog(path, 0)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": step / 2})
    append_text(path, '{"step": 4, "lo')
    MetricsLog(path, 2).write({"step": 3, "loss": 0.0})
    assert [row["loss"] for row in read_metrics(path)] == [0.5, 1.0, 0.0]


def events_of(file: Path) -> list:
    """Returns what TensorBoard's own reader finds in a file; it checks all sums."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub import errors, pywrap_tensorflow

    reader, found = pywrap_tensorflow.PyRecordReader_New(str(file)), []
    with contextlib.suppress(errors.OutOfRangeError):
        while True:
            reader.GetNext()
            found.append(Event.FromString(reader.record()))
    return found


def test_tensorboard_reads_the_same_numbers(place, tmp_path):
    MetricsLog(place / "metrics.jsonl", 0).write({"step": 1, "loss": 0.5})
    log = MetricsLog(place / "metrics.jsonl", 7)
    log.write({"step": 8, "loss": 0.25, "merge": [60, 4]})
    events = []
    for number, file in enumerate(sorted((place / "tensorboard").iterdir())):
        copy = tmp_path / f"copy{number}"
        copy.write_bytes(file.read_bytes())
        events += events_of(copy)
    starts = [e.step for e in events if e.HasField("session_log")]
    assert starts == [0, 7]
    found = {
        (event.step, value.tag): value.simple_value
        for event in events
        for value in event.summary.value
    }
    assert found == {
        (1, "loss"): 0.5, (8, "loss"): 0.25, (8, "merge/00"): 60, (8, "merge/01"): 4,
    }  # fmt: skip


def test_without_tensorboard_there_are_no_event_files(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    MetricsLog(tmp_path / "metrics.jsonl", 0).write({"step": 1, "loss": 0.5})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def fill_up(folder: str) -> None:
    """Writes where files may have no more than 100 bytes, in a process of its own."""
    write_text(f"{folder}/a.json", "{}")
    log = MetricsLog(f"{folder}/metrics.jsonl", 0)
    log.write({"step": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    said = []
    for write in (
        lambda: write_bytes(f"{folder}/a.json", bytes(200)),
        lambda: log.write({"step": 2, "long": "x" * 100}),
    ):
        try:
            write()
        except dr.UserError as error:
            said.append(str(error))
    print(json.dumps(said))


def test_a_full_disk_is_one_sentence_and_what_was_there_stays(tmp_path):
    code = "import sys, test_files; test_files.fill_up(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for sentence, name in zip(
        json.loads(done.stdout), ("a.json", "metrics.jsonl"), strict=True
    ):
        assert sentence == (
            f"cannot write {tmp_path}/{name}: {os.strerror(errno.EFBIG)}; give a place "
            "that can be written, or make room there"
        )
    assert not done.stderr
    assert read_json(tmp_path / "a.json") == {}
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]
    names = {path.name for path in tmp_path.iterdir()} - {"tensorboard"}
    assert names == {"a.json", "metrics.jsonl"}


def test_reasons_are_short():
    assert reason(OSError(errno.ENOSPC, "No space left on device")) == (
        "No space left on device"
    )
    long = "INTERNAL: Error writing: it failed [os_error_code='28']\nmore"
    assert reason(ValueError(long)) == "No space left on device"
    assert reason(ValueError("one\ntwo")) == "one"
    assert reason(KeyError()) == "KeyError"
