"""How long the devices have nothing to do because the next batch is not there yet."""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

# Share of the time, and seconds over which it is judged.
WORTH_A_WARNING, SPAN = 0.1, 10.0


class InputWait:
    """Draws batches from a stream, and knows for how long the devices waited for them.

    JAX returns before the devices are done. Another thread waits for them, because the
    program is busy with the next batch meanwhile. Time before the first step is not
    counted: then a stream has to get going.
    """

    def __init__(self) -> None:
        self._watcher = ThreadPoolExecutor(1)
        self._done: Future[float] | None = None
        self._waited, self._since = 0.0, time.perf_counter()
        self._judged = self._since, 0.0
        self._warned = False

    def close(self) -> None:
        """Ends the other thread."""
        self._watcher.shutdown(wait=False)

    def draw(self, stream: Iterator[Any]) -> Any:
        """Returns the next batch; ends as the stream does."""
        began = time.perf_counter()
        batch = next(stream)
        if self._done is not None and self._done.done():
            idle = time.perf_counter() - max(began, self._done.result())
            self._waited += max(idle, 0.0)
        return batch

    def working(self, values: Any) -> None:
        """Takes note that the devices are at work until these values are there."""

        def end() -> float:
            jax.block_until_ready(values)
            return time.perf_counter()

        self._done = self._watcher.submit(end)

    def share(self) -> float:
        """Returns the share of the time since the last call; warns once if it is large.

        The warning is of the process whose devices wait, be it the first or not.
        """
        now, waited = time.perf_counter(), self._waited
        found = waited / max(now - self._since, 1e-9)
        self._since, self._waited = now, 0.0
        start, before = self._judged
        self._judged = start, before + waited
        if now - start >= SPAN:
            self._judge(now - start, before + waited)
            self._judged = now, 0.0
        return found

    def _judge(self, seconds: float, waited: float) -> None:
        if self._warned or waited <= WORTH_A_WARNING * seconds:
            return
        self._warned = True
        where = f" of process {jax.process_index()}" if jax.process_count() > 1 else ""
        print(
            f"warning: the devices{where} waited {waited:.1f} of the last "
            f"{seconds:.0f} seconds for input ({waited / seconds:.0%}); give it more "
            "CPU cores or a faster disk, or store smaller images",
            file=sys.stderr,
        )
