"""Moves of a schedule: the best of several, and blocks that leave work to others."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from diffrate_jax.budget import at_rest, fit_to_budget
from diffrate_jax.cost import Measure
from diffrate_jax.files import Json
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Geometry

# Standard errors by which a move must be better.
SURE = 2
# From a schedule to each held-out image's loss [n].
Loss = Callable[[Schedule], np.ndarray]


def one_fewer(schedule: Schedule, block: int, geometry: Geometry) -> Schedule | None:
    """Returns the schedule with one token fewer after a block, None if it cannot."""
    merge = list(schedule.merge)
    merge[block] -= 1
    if merge[block] <= geometry.prefix_tokens:
        return None
    new = dataclasses.replace(schedule, merge=tuple(merge)).feasible(geometry)
    return None if new.merge[block] == schedule.merge[block] else new


def best_of(
    tried: Sequence[tuple[Schedule, dict[str, Json]]], loss: Loss, now_n: np.ndarray
) -> tuple[Schedule, np.ndarray, dict[str, Json]] | None:
    """Returns the schedule of lowest loss with its losses and record.

    Args:
        tried: schedules and what to record of them.
        loss: see `refine`.
        now_n: losses that are to be beaten, by more than two standard errors.

    Returns:
        None if none of them does.
    """
    best = None
    for schedule, record in tried:
        then_n = loss(schedule)
        change = float((then_n - now_n).mean())
        error = float((then_n - now_n).std() / np.sqrt(len(now_n)))
        if change < -SURE * error and (best is None or change < best[2]["loss"]):
            best = schedule, then_n, record | {"loss": change, "standard_error": error}
    return best


def rest(
    schedule: Schedule,
    measure: Measure,
    limit: float,
    loss: Loss,
    now_n: np.ndarray,
) -> tuple[Schedule, np.ndarray, list[dict[str, Json]]]:
    """Lets blocks rest that compress, while that lowers the loss.

    What compressing took there buys tokens in all blocks. A descent does not see this:
    that a block compresses at all is a step, which has no gradient.

    Returns:
        Schedule, losses, and the moves: {"rests": block, "loss", "standard_error"}.
    """
    moves = []
    while True:
        tried = [
            (fit_to_budget(resting, measure, limit), {"rests": block})
            for block, resting in resting_blocks(schedule, measure)
        ]
        found = best_of(tried, loss, now_n)
        if found is None:
            return schedule, now_n, moves
        schedule, now_n, move = found
        moves.append(move)


def resting_blocks(
    schedule: Schedule, measure: Measure
) -> Iterator[tuple[int, Schedule]]:
    """Yields the blocks whose first token taken saves nothing, and schedules without.

    In operations every token taken saves some.
    """
    for block in np.flatnonzero(measure.geometry.compress).tolist():
        resting = at_rest(schedule, block, measure.geometry)
        if resting is None or resting == schedule:
            continue
        first = one_fewer(resting, block, measure.geometry)
        if first is not None and measure(first) >= measure(resting):
            yield block, resting
