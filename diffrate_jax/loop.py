"""The loop that search and training share: steps, metrics, checkpoints, resuming."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
import numpy as np
from etils import epath

from diffrate_jax import parallel
from diffrate_jax.checkpoint import Checkpoints
from diffrate_jax.distributed import stop_signal
from diffrate_jax.errors import StoppedError, UserError
from diffrate_jax.files import Json
from diffrate_jax.input_wait import InputWait
from diffrate_jax.metrics import MetricsLog
from diffrate_jax.progress import track

State = Any
Values = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Loop:
    """How to run steps.

    Attributes:
        what: name shown by the progress bar.
        steps: number of steps of the whole run.
        workdir: for checkpoints and metrics; None keeps everything in memory.
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of metrics.
        describe: returns what the progress bar shows of a step's values.
    """

    what: str
    steps: int
    workdir: epath.Path | None = None
    checkpoint_every: int = 100
    log_every: int = 10
    describe: Callable[[Values], str] = lambda values: f"loss {values['loss']:.3f}"

    def __post_init__(self) -> None:
        if min(self.checkpoint_every, self.log_every) < 1:
            raise UserError(
                "checkpoint_every and log_every must be at least 1 step, got "
                f"{self.checkpoint_every} and {self.log_every}"
            )

    def run(
        self,
        step: Callable[..., tuple[State, Values]],
        state: State,
        constants: Any,
        batches: Callable[[int], Iterator[dict[str, np.ndarray]]],
    ) -> State:
        """Runs all steps that are left and returns the last state as host arrays.

        Args:
            step: plain function of (state, constants, batch); reduces its own values.
            state: to start from, if there is no checkpoint.
            constants: whole on every device, unchanged.
            batches: returns this host's batches from a given step onward.

        Raises:
            UserError: a loss that is not finite, batches that run out, or a work
                directory that cannot be written to.
            StoppedError: SIGTERM asked for it; the state is saved.
        """
        if self.workdir is None:
            return self._run(step, state, constants, batches, None)
        with Checkpoints(self.workdir / "checkpoints") as checkpoints:
            return self._run(step, state, constants, batches, checkpoints)

    def _run(
        self,
        step: Callable[..., tuple[State, Values]],
        state: State,
        constants: Any,
        batches: Callable[[int], Iterator[dict[str, np.ndarray]]],
        checkpoints: Checkpoints | None,
    ) -> State:
        start = 0
        if checkpoints is not None:
            start, state = checkpoints.restore(state)
        if start >= self.steps:
            return jax.device_get(state)
        state, constants = parallel.replicate(state), parallel.replicate(constants)
        step = parallel.pmap_step(step)
        # With nowhere to save, SIGTERM is nothing to wait with.
        alone = contextlib.nullcontext(lambda: False)
        stops = alone if checkpoints is None else stop_signal()
        with Reporter(self, start) as report, stops as asked:
            return self._steps(
                step, state, constants, batches(start), checkpoints, report, asked
            )

    def _steps(
        self,
        step: Callable[..., tuple[State, Values]],
        state: State,
        constants: Any,
        stream: Iterator[dict[str, np.ndarray]],
        checkpoints: Checkpoints | None,
        report: "Reporter",
        asked: Callable[[], bool],
    ) -> State:
        values = None
        for index in range(report.start, self.steps):
            batch = self._next(stream, index, report.input)
            new_state, new_values = step(state, constants, parallel.shard(batch))
            report.input.working(new_values)
            # Only now does the host wait for the step before: the devices have work.
            report.finished(index, values, len(batch["image"]))
            state, values = new_state, new_values
            done, stop = index + 1, asked()
            if checkpoints is not None and (stop or self._saves(done)):
                # In this order: a kill in between loses neither line nor state.
                report.finished(done, values, len(batch["image"]))
                values = None
                checkpoints.save(done, finite(jax.device_get(state), done))
            if stop:
                raise StoppedError
        report.finished(self.steps, values, len(batch["image"]))
        return jax.device_get(state)

    def _saves(self, done: int) -> bool:
        return done % self.checkpoint_every == 0 or done == self.steps

    def _next(
        self, stream: Iterator[dict[str, np.ndarray]], index: int, wait: InputWait
    ) -> dict[str, np.ndarray]:
        try:
            return wait.draw(stream)
        except StopIteration as error:
            raise UserError(
                f"the batches ended after {index} of {self.steps} steps; give an "
                "iterator that goes on, or fewer steps"
            ) from error


class Reporter:
    """Writes metrics and moves the progress bar, one step behind the devices."""

    def __init__(self, loop: Loop, start: int) -> None:
        self._loop, self._log, self.start = loop, None, start
        if loop.workdir is not None:
            self._log = MetricsLog(loop.workdir / "metrics.jsonl", start)
        self._bar, self.input = track(loop.steps, loop.what, start=start), InputWait()
        self._last = (time.perf_counter(), start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self.input.close()

    def finished(self, done: int, values: Values | None, batch_size: int) -> None:
        """Takes the values of step number `done`, counted from 1; None: no step yet."""
        if values is None:
            return
        values = jax.device_get(values)
        check_finite(values, done)
        self._bar.update()
        if done % self._loop.log_every and done != self._loop.steps:
            return
        now, (then, before) = time.perf_counter(), self._last
        self._last = (now, done)
        wait = self.input.share()
        rate = batch_size * jax.process_count() * (done - before) / (now - then)
        self._bar.set_postfix_str(
            f"{rate:.0f} images/s, {self._loop.describe(values)}", refresh=False
        )
        if self._log is not None:
            times = {"images_per_second": round(rate, 1), "input_wait": round(wait, 3)}
            record = {"step": done, **values, **times}
            self._log.write({name: plain(value) for name, value in record.items()})


def check_finite(values: Values, done: int) -> None:
    """Stops at a loss that is not finite.

    Raises:
        UserError: naming the step.
    """
    if not math.isfinite(values["loss"]):
        raise UserError(
            f"the loss of step {done} is not finite; the last checkpoint is kept: "
            "lower the learning rate or check weights and data, then run again"
        )


def finite(state: State, done: int) -> State:
    """Returns the state if it is worth keeping.

    Raises:
        UserError: naming the step after which it holds values that are not finite.
    """
    floats = [x for x in jax.tree.leaves(state) if np.issubdtype(x.dtype, np.floating)]
    if not all(np.isfinite(x).all() for x in floats):
        raise UserError(
            f"the state after step {done} is not finite; the last checkpoint is kept: "
            "lower the learning rate or check weights and data, then run again"
        )
    return state


def plain(value: Any) -> Json:
    """Returns a value as JSON knows it; counts become integers."""
    value = np.asarray(value)
    if value.ndim:
        return np.rint(value).astype(int).tolist()
    return value.item()
