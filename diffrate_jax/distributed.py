"""Many processes as one run: how they find each other, stop together, and leave.

The launchers set up what `joined` reads. A process on its own sets nothing, and never
looks for others.
"""

import contextlib
import itertools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TextIO

import jax
from jax.experimental import multihost_utils

from diffrate_jax.errors import StoppedError, UserError

# HOST:PORT of process 0; or "auto", where JAX itself knows: TPU pods and Slurm.
COORDINATOR = "DIFFRATE_COORDINATOR"
PROCESSES, PROCESS = "DIFFRATE_PROCESSES", "DIFFRATE_PROCESS"
# Seconds of silence after which a process counts as lost and ends the others.
HEARTBEAT = 60
# How errors begin whose cause is that another process has gone.
GONE = re.compile("ABORTED|CANCELLED|DEADLINE_EXCEEDED|UNAVAILABLE|.*Gloo")
# Points at which a run may stop, numbered for all parts of a program together: what
# decides on the common one knows only the highest number that a process has reached.
POINTS = itertools.count(1)


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the processes of the run if a launcher set it up, and ends with them.

    After any error but a stop the process is still joined: see `leave`.

    Raises:
        UserError: what the launcher set is incomplete, or the others are not there.
    """
    place = coordinator()
    if place is None:
        yield
        return
    with own_output() as nothing:
        connect(place)
        said = contextlib.redirect_stdout(sys.stdout if is_first() else nothing)
        try:
            with said:
                yield
        except StoppedError:
            jax.distributed.shutdown()
            raise
        jax.distributed.shutdown()


@contextlib.contextmanager
def own_output() -> Iterator[TextIO]:
    """Keeps what libraries print off standard output, which is for what we print.

    The one that connects processes of CPUs writes there from several threads, lines in
    pieces, past Python: so its descriptor leads nowhere meanwhile. Yields that nowhere.
    """
    sys.stdout.flush()
    with open(os.devnull, "w") as nothing, open(os.dup(1), "w", buffering=1) as own:
        os.dup2(nothing.fileno(), 1)
        try:
            with contextlib.redirect_stdout(own):
                yield nothing
        finally:
            os.dup2(own.fileno(), 1)


def connect(place: dict[str, str | int]) -> None:
    """Waits until all processes of the run, and their devices, know each other.

    Raises:
        UserError: they do not.
    """
    try:
        jax.distributed.initialize(**place, heartbeat_timeout_seconds=HEARTBEAT)
        # All at once: the processes wait two minutes for each other's devices.
        jax.devices()
    except (RuntimeError, ValueError) as error:
        what = str(error).split("\n")[0]
        raise UserError(
            f"the processes of this run did not find each other: {what}; start all of "
            f"them with one of launch/, or unset {COORDINATOR}"
        ) from error


def coordinator() -> dict[str, str | int] | None:
    """Returns what the launcher says of the processes; None: there is one.

    Raises:
        UserError: only a part is set, or it is no number.
    """
    names = (COORDINATOR, PROCESSES, PROCESS)
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if not given:
        return None
    if given == {COORDINATOR: "auto"}:
        return {}
    numbers = (given.get(PROCESSES, ""), given.get(PROCESS, ""))
    if COORDINATOR not in given or not all(n.isdecimal() for n in numbers):
        raise UserError(
            f"expected {COORDINATOR}=HOST:PORT, {PROCESSES} and {PROCESS} as whole "
            f"numbers, or {COORDINATOR}=auto alone, got {given}; use one of launch/"
        )
    count, number = map(int, numbers)
    return {
        "coordinator_address": given[COORDINATOR],
        "num_processes": count,
        "process_id": number,
    }


def is_first() -> bool:
    """Returns whether this process writes files and talks: the first, or the only."""
    # A process on its own may have no use for a device: it is not made to open one.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


@contextlib.contextmanager
def first_process_first(what: str) -> Iterator[None]:
    """Lets the first process through a block before the others, as to make a file.

    Args:
        what: this is, the same on all processes.
    """
    together = jax.distributed.is_initialized()
    if together and not is_first():
        multihost_utils.sync_global_devices(what)
    yield
    if together and is_first():
        multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGTERM asked the run to stop.

    It says yes at the same call on all processes, whichever of them was asked, so that
    they may save and leave together; all have to call it equally often. Until then
    SIGTERM ends nothing. Outside of the main thread it always says no.
    """
    if jax.distributed.is_initialized():
        # From here on JAX listens for the signal, on every process.
        yield lambda: multihost_utils.reached_preemption_sync_point(next(POINTS))
        return
    with hears_sigterm() as heard:
        yield lambda: bool(heard)


@contextlib.contextmanager
def hears_sigterm() -> Iterator[list[int]]:
    """Yields a list that is empty until SIGTERM comes."""
    heard: list[int] = []
    with on_sigterm(lambda number, _: heard.append(number)):
        yield heard
    if heard:
        # It came too late for whoever looked at the list: as if it came now.
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def on_sigterm(handler: Callable) -> Iterator[None]:
    """Lets a handler take SIGTERM for a while, where that is possible."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def stop_if_asked() -> None:
    """Leaves with the other processes if SIGTERM asked one of them to.

    Alone there is nothing to agree on: SIGTERM itself ends the program.

    Raises:
        StoppedError: it did.
    """
    if jax.distributed.is_initialized():
        with stop_signal() as asked:
            if asked():
                raise StoppedError


def is_loss_of_another(error: Exception) -> bool:
    """Returns whether an error of JAX says that another process has gone."""
    return jax.distributed.is_initialized() and bool(GONE.match(str(error)))


def leave(status: int) -> int:
    """Returns the exit status, or exits at once if other processes still run.

    They wait for this one in some reduction, and an orderly exit waits for them.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
