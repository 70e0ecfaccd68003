"""The loop: what SIGTERM does to it, and what it says of waiting for input."""

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from diffrate_jax import input_wait
from diffrate_jax.distributed import on_sigterm, stop_signal
from diffrate_jax.errors import StoppedError
from diffrate_jax.exits import report_errors
from diffrate_jax.input_wait import InputWait
from diffrate_jax.loop import Loop
from diffrate_jax.metrics import read_metrics

ROOT = Path(__file__).parent.parent
STEPS, BATCH = 12, 4


def step(state, constants, batch):
    """Adds up what it sees."""
    total = state + constants * batch["image"].astype(jnp.float32).mean()
    return total, {"loss": total}


def batch_of(number: int) -> dict[str, np.ndarray]:
    return {"image": np.full((BATCH, 2), number, np.uint8), "label": np.zeros(BATCH)}


def run(workdir: Path | None, pause=lambda number: None) -> float:
    def stream(start: int) -> Iterator[dict[str, np.ndarray]]:
        for number in itertools.count(start):
            pause(number)
            yield batch_of(number)

    loop = Loop("sum", STEPS, workdir, checkpoint_every=5, log_every=1)
    # Only with host 0's devices in step can the mean be taken before reducing.
    return float(loop.run(step, np.zeros((), np.float32), np.float32(1.5), stream))


WANTED = 1.5 * sum(range(STEPS))


def ask(number: int) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_and_leaves(tmp_path):
    """At step 7, which is not one to be saved otherwise."""
    with pytest.raises(StoppedError) as stopped:
        run(tmp_path, lambda number: ask(number) if number == 7 else None)
    assert stopped.value.code == 75
    saved = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert saved == [5, 8]
    seen = []
    assert run(tmp_path, seen.append) == WANTED
    assert seen[0] == 8
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))


def test_a_run_in_memory_leaves_sigterm_alone():
    """There is nothing to save: whoever calls it may do what he likes."""
    heard = []
    with on_sigterm(lambda *_: heard.append(1)):
        assert run(None, lambda number: ask(number) if number == 7 else None) == WANTED
    assert heard == [1]


def test_sigterm_after_the_last_look_is_passed_on():
    heard = []
    with on_sigterm(lambda *_: heard.append(1)), stop_signal() as asked:
        assert not asked()
        ask(0)
        assert asked()
        assert not heard
    # The run went on to its end all the same: now it is for the next to hear.
    assert heard == [1]


def test_sigterm_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_signal():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_threads_cannot_hear_signals():
    answers = []

    def look() -> None:
        with stop_signal() as asked:
            answers.append(asked())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert answers == [False]


def test_a_program_between_loops_ends_at_once(capsys):
    def main() -> None:
        ask(0)
        time.sleep(60)

    assert report_errors(main) == 75
    assert capsys.readouterr().err == "stopped; run the same command to go on\n"


def test_sigterm_while_garbage_is_collected(capsys):
    """jax is called back then, and Python drops what is raised."""

    def asked(phase: str, _: dict) -> None:
        gc.callbacks.remove(asked)
        ask(0)

    def main() -> None:
        gc.callbacks.append(asked)
        gc.collect()
        passed.append(True)
        time.sleep(60)

    passed, before = [], sys.unraisablehook
    assert report_errors(main) == 75
    assert passed == [True]  # It was dropped indeed.
    assert capsys.readouterr().err == "stopped; run the same command to go on\n"
    assert sys.unraisablehook is before


def child(workdir: str) -> None:
    """Runs slowly, in a process of its own, by a library's user."""
    print("ready", flush=True)
    run(Path(workdir), lambda number: time.sleep(0.2))


def test_a_user_s_own_script_leaves_with_the_status(tmp_path):
    code = "import sys, test_loop; test_loop.child(sys.argv[1])"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while len(read_metrics(tmp_path / "metrics.jsonl")) < 2:
            time.sleep(0.02)
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "Traceback" not in err
    assert run(tmp_path) == WANTED


class Slow:
    """Values that are there after some seconds."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    def block_until_ready(self) -> "Slow":
        time.sleep(max(0.0, self._end - time.perf_counter()))
        return self


@pytest.mark.parametrize(
    ("step_seconds", "input_seconds", "wanted"),
    [(0.3, 0.0, 0.0), (0.3, 0.2, 0.0), (0.1, 0.4, 0.75), (0.0, 0.3, 1.0)],
)
def test_waiting_is_what_the_devices_do(step_seconds, input_seconds, wanted):
    """Only from the end of the step before to the arrival of the batch."""

    def stream() -> Iterator[int]:
        for number in itertools.count():
            time.sleep(input_seconds)
            yield number

    source, wait = stream(), InputWait()
    wait.draw(source)
    wait.share()
    for _ in range(3):
        values = Slow(step_seconds)
        wait.working(values)
        wait.draw(source)
        values.block_until_ready()
    assert wait.share() == pytest.approx(wanted, abs=0.15)
    wait.close()


def test_the_first_batch_is_not_waited_for():
    wait = InputWait()
    wait.draw(iter([time.sleep(0.2)]))
    assert wait.share() == 0
    wait.close()


@pytest.mark.parametrize(("pause", "warns"), [(0.1, True), (0.0, False)])
def test_a_warning_once_when_the_devices_wait(
    tmp_path, monkeypatch, capsys, pause, warns
):
    monkeypatch.setattr(input_wait, "SPAN", 0.3)
    assert run(tmp_path, lambda number: time.sleep(pause)) == WANTED
    said = capsys.readouterr().err
    assert said.count("warning: the devices waited ") == warns
    assert ("more CPU cores" in said) == warns
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert all(0 <= row["input_wait"] <= 1 for row in rows)
    if warns:
        assert np.mean([row["input_wait"] for row in rows[1:]]) > 0.5
