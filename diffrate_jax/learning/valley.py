"""The step to where parabolas of all blocks, under a budget, are lowest together."""

from collections.abc import Callable, Sequence

import numpy as np

from diffrate_jax.budget import one_more
from diffrate_jax.cost import Measure
from diffrate_jax.learning.moves import one_fewer
from diffrate_jax.learning.parabolas import Parabola, idle_after
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Geometry

# The most tokens that a step gives or takes, as a share of a model's patches.
TRUST = 1 / 10
# Curvatures are small differences of noisy losses: each is drawn to their median, which
# blocks of few tokens do not move, and none is taken for less than a part of it.
POOLED, LEAST = 0.5, 0.3
# What is left of that where nothing reads a block's tokens: all of them can go at once.
FLAT = 1e-6
Change = Callable[[Schedule, int, Geometry], Schedule | None]


class Valley:
    """The sum of the parabolas where all of a budget is spent: its lowest point nearby.

    Blocks exchange tokens until a token is worth as much as it costs in all of them,
    or until a block has given or taken as many as the measurement is trusted for. All
    may be given of tokens that nothing reads, as after the last block of a model with a
    class token. What an idle block gives is counted from the block before it.

    Args:
        schedule: where they were measured.
        parabolas: of the blocks that can move; at least one.
        measure: what schedules cost.
        limit: cost not to be exceeded.
    """

    def __init__(
        self,
        schedule: Schedule,
        parabolas: Sequence[Parabola],
        measure: Measure,
        limit: float,
    ) -> None:
        self._schedule, self._measure, self._limit = schedule, measure, limit
        self._blocks = [parabola.block for parabola in parabolas]
        geometry = measure.geometry
        idle = {b for a in self._blocks for b in idle_after(schedule, a, geometry)}
        self._idle = [block in idle for block in self._blocks]
        slope_M = np.array([p.slope for p in parabolas])
        price_M = np.array([p.price for p in parabolas])
        # By a latency table tokens may seem to be free.
        self._price_M = np.maximum(price_M, 1e-3 * np.abs(price_M).max())
        trust = max(1, round(TRUST * geometry.num_patches))
        self._most_M = trust * np.array([p.more.tokens > 0 for p in parabolas])
        spare_M = np.array(schedule.merge)[self._blocks] - geometry.prefix_tokens - 1
        can_M = np.array([p.fewer.tokens < 0 for p in parabolas])
        flat_M = np.array([p.is_flat for p in parabolas])
        self._least_M = -np.where(flat_M, spare_M, np.minimum(trust, spare_M)) * can_M
        steep = np.abs(slope_M).max() / trust
        self._curvature_M = pooled([p.curvature for p in parabolas], steep)
        self._curvature_M[flat_M] *= FLAT
        middle_M = np.array(
            [p.middle if p.curvature is not None else 0 for p in parabolas]
        )
        self._slope_M = slope_M - self._curvature_M * middle_M

    def bottom(self) -> np.ndarray:
        """Returns the tokens to give each block [M], negative to take, not rounded."""
        spare = self._limit - self._measure(self._schedule)
        edges = [
            (self._slope_M + self._curvature_M * end_M) / self._price_M
            for end_M in (self._least_M, self._most_M)
        ]
        low, high = edges[0].min(), edges[1].max()
        for _ in range(60):
            worth = (low + high) / 2
            dear = self._price_M @ self._at(worth) > spare
            low, high = (low, worth) if dear else (worth, high)
        return self._at(low)

    def _at(self, worth: float) -> np.ndarray:
        """Returns the tokens [M] if cost can be traded for loss at this rate."""
        free_M = (worth * self._price_M - self._slope_M) / self._curvature_M
        return np.clip(free_M, self._least_M, self._most_M)

    def toward(self, tokens_M: np.ndarray) -> Schedule:
        """Returns the schedule that is given those tokens, rounded, and fits.

        What rounding leaves of the budget, or lacks, is settled by single tokens, where
        the parabolas say that it is best.
        """
        schedule = self._moved(tokens_M)
        while schedule is not None and self._measure(schedule) > self._limit:
            schedule = self._shorter(schedule)
        if schedule is None:
            return self._schedule
        while (longer := self._longer(schedule)) is not None:
            schedule = longer
        return schedule

    def _moved(self, tokens_M: np.ndarray) -> Schedule:
        """Returns the schedule that is given those tokens, whatever it costs."""
        wanted, before = {}, 0
        rows = zip(self._blocks, self._idle, np.rint(tokens_M), strict=True)
        for block, idle, tokens in rows:
            before = wanted[block] = int(tokens) + (
                before if idle else self._schedule.merge[block]
            )
        schedule, geometry = self._schedule, self._measure.geometry
        # Later blocks can keep more only after earlier ones do, and the reverse.
        for block, count in wanted.items():
            more = max(0, count - schedule.merge[block])
            schedule = repeated(one_more, more, schedule, block, geometry)
        for block, count in reversed(wanted.items()):
            fewer = max(0, schedule.merge[block] - count)
            schedule = repeated(one_fewer, fewer, schedule, block, geometry)
        return schedule

    def _shorter(self, schedule: Schedule) -> Schedule | None:
        """Returns it less the token worth least for its cost, None if none can go."""
        change_M = -self._change(schedule, -0.5) / self._price_M
        found = [
            (change, block, shorter)
            for change, block in zip(change_M, self._blocks, strict=True)
            if (shorter := one_fewer(schedule, block, self._measure.geometry))
        ]
        return min(found, key=lambda row: row[:2])[2] if found else None

    def _longer(self, schedule: Schedule) -> Schedule | None:
        """Returns it with the token worth most for its cost, None if none fits."""
        change_M = self._change(schedule, 0.5) / self._price_M
        found = [
            (change, block, longer)
            for change, block in zip(change_M, self._blocks, strict=True)
            if (longer := one_more(schedule, block, self._measure.geometry))
            and self._measure(longer) <= self._limit
        ]
        return min(found, key=lambda row: row[:2])[2] if found else None

    def _change(self, schedule: Schedule, ahead: float) -> np.ndarray:
        """Returns the slopes [M] at a schedule, or so many tokens further."""
        moved_M = np.subtract(schedule.merge, self._schedule.merge)[self._blocks]
        before_M = np.concatenate([[0], moved_M[:-1]])
        moved_M = moved_M - np.where(self._idle, before_M, 0)
        return self._slope_M + self._curvature_M * (moved_M + ahead)


def repeated(
    change: Change, times: int, schedule: Schedule, block: int, geometry: Geometry
) -> Schedule:
    """Returns the schedule changed so many times, or as often as it can be."""
    for _ in range(times):
        schedule = change(schedule, block, geometry) or schedule
    return schedule


def pooled(curvatures: Sequence[float | None], steep: float) -> np.ndarray:
    """Returns curvatures to go by, all positive; `steep` where none was found."""
    known = [curvature for curvature in curvatures if curvature is not None]
    middle = np.median(known) if known else 0.0
    if middle <= 0:
        middle = steep or 1.0
    filled_M = np.array([middle if c is None else c for c in curvatures])
    return np.maximum(POOLED * middle + (1 - POOLED) * filled_M, LEAST * middle)
