"""The loss as a parabola in each block's count, and the step to its lowest point.

A descent's gradient through masks says what the first token in line would change if
its removal were small, and it is not: measured with the CIFAR-10 ViT, what a token is
worth differed from that by a factor of up to three, the same way in every seed. Here a
few tokens are really given and taken, block by block, and held-out images tell.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from diffrate_jax.budget import one_more
from diffrate_jax.cost import Measure
from diffrate_jax.files import Json
from diffrate_jax.learning.moves import Loss, one_fewer
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Geometry

# Shares of a model's patches: tokens given and taken to measure, and most in a step.
PROBE, TRUST = 1 / 32, 1 / 10
# No block is probed with more than this share of its tokens.
PROBE_OF_BLOCK = 1 / 4
# Curvatures are small differences of noisy losses: each is drawn to the blocks' mean,
# and none is taken for less than a part of it.
POOLED, LEAST = 0.5, 0.3


@dataclasses.dataclass(frozen=True)
class Side:
    """What a block's tokens change, given (tokens > 0) or taken (tokens < 0).

    Attributes:
        tokens: how many; 0: none can be.
        loss: change of the mean loss.
        cost: change of the cost.
    """

    tokens: int
    loss: float
    cost: float

    def per_token(self) -> float | None:
        """Returns the change of the loss for each token, None if there is none."""
        return self.loss / abs(self.tokens) if self.tokens else None


@dataclasses.dataclass(frozen=True)
class Parabola:
    """The loss by the count of one block, from measurements on both sides.

    Attributes:
        block: its number.
        more: with tokens given.
        fewer: with tokens taken.
    """

    block: int
    more: Side
    fewer: Side

    @property
    def slope(self) -> float:
        """Change of the loss per token."""
        return (self.more.loss - self.fewer.loss) / self._span()

    @property
    def price(self) -> float:
        """Change of the cost per token."""
        return (self.more.cost - self.fewer.cost) / self._span()

    @property
    def curvature(self) -> float | None:
        """Change of the slope per token; None where only one side was measured."""
        if not (self.more.tokens and self.fewer.tokens):
            return None
        return 2 * (self.more.per_token() + self.fewer.per_token()) / self._span()

    def _span(self) -> int:
        return max(self.more.tokens - self.fewer.tokens, 1)

    def record(self) -> dict[str, Json]:
        """Returns what is recorded: the loss of a token more and of one fewer."""
        sides = {"more": self.more.per_token(), "fewer": self.fewer.per_token()}
        return {"block": self.block} | sides


def parabolas_of(
    schedule: Schedule, measure: Measure, loss: Loss, now_n: np.ndarray
) -> list[Parabola]:
    """Returns the parabolas of all blocks that may compress.

    Args:
        schedule: where they are measured.
        measure: what schedules cost.
        loss: of a schedule, for each held-out image.
        now_n: losses of the schedule.
    """
    geometry, now = measure.geometry, measure(schedule)

    def side(block: int, sign: int) -> Side:
        tokens = sign * probed(schedule.merge[block], geometry)
        there, moved = shifted(schedule, block, tokens, geometry)
        if not moved:
            return Side(0, 0.0, 0.0)
        return Side(moved, float((loss(there) - now_n).mean()), measure(there) - now)

    blocks = np.flatnonzero(geometry.compress).tolist()
    return [Parabola(block, side(block, 1), side(block, -1)) for block in blocks]


def probed(kept: int, geometry: Geometry) -> int:
    """Returns how many tokens are given to a block that keeps so many, or taken."""
    most = round(PROBE * geometry.num_patches)
    return max(1, min(most, int(PROBE_OF_BLOCK * kept)))


def shifted(
    schedule: Schedule, block: int, tokens: int, geometry: Geometry
) -> tuple[Schedule, int]:
    """Returns a schedule with more or fewer tokens after a block, as far as it can.

    Args:
        schedule: to begin with.
        block: whose count is changed.
        tokens: to give, or if negative to take.
        geometry: of the model.

    Returns:
        Schedule, and the tokens given or taken.
    """
    change = one_more if tokens > 0 else one_fewer
    for done in range(abs(tokens)):
        new = change(schedule, block, geometry)
        if new is None:
            return schedule, int(np.sign(tokens)) * done
        schedule = new
    return schedule, tokens


class Valley:
    """The sum of the parabolas under a budget: where it is lowest, nearby.

    Blocks exchange tokens until a token is worth as much as it costs in all of them,
    or until a block has given or taken as many as the measurement is trusted for.

    Args:
        schedule: where they were measured.
        parabolas: of the blocks that may compress; at least one.
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
        self._slope_M = np.array([p.slope for p in parabolas])
        price_M = np.array([p.price for p in parabolas])
        # By a latency table tokens may seem to be free.
        self._price_M = np.maximum(price_M, 1e-3 * np.abs(price_M).max())
        trust = max(1, round(TRUST * measure.geometry.num_patches))
        self._most_M = trust * np.array([p.more.tokens > 0 for p in parabolas])
        self._least_M = -trust * np.array([p.fewer.tokens < 0 for p in parabolas])
        steep = np.abs(self._slope_M).max() / trust
        self._curvature_M = pooled([p.curvature for p in parabolas], steep)

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
        schedule = self._moved(np.rint(tokens_M).astype(int).tolist())
        while schedule is not None and self._measure(schedule) > self._limit:
            schedule = self._shorter(schedule)
        if schedule is None:
            return self._schedule
        while (longer := self._longer(schedule)) is not None:
            schedule = longer
        return schedule

    def _moved(self, tokens: list[int]) -> Schedule:
        """Returns the schedule that is given those tokens, whatever it costs."""
        pairs = list(zip(self._blocks, tokens, strict=True))
        # Later blocks can keep more only after earlier ones do, and the reverse.
        more = [pair for pair in pairs if pair[1] > 0]
        fewer = [pair for pair in reversed(pairs) if pair[1] < 0]
        schedule = self._schedule
        for block, number in (*more, *fewer):
            schedule, _ = shifted(schedule, block, number, self._measure.geometry)
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
        moved_L = np.subtract(schedule.merge, self._schedule.merge)
        return self._slope_M + self._curvature_M * (moved_L[self._blocks] + ahead)


def pooled(curvatures: Sequence[float | None], steep: float) -> np.ndarray:
    """Returns curvatures to go by, all positive; `steep` where none was found."""
    known = [curvature for curvature in curvatures if curvature is not None]
    mean = np.mean(known) if known else 0.0
    if mean <= 0:
        mean = max(steep, np.finfo(float).tiny)
    filled_M = np.array([mean if c is None else c for c in curvatures])
    return np.maximum(POOLED * mean + (1 - POOLED) * filled_M, LEAST * mean)
