"""The loss as a parabola in the count of each block, by what was really measured.

A descent's gradient through masks says what the first token in line would change if
its removal were small, and it is not: measured with the CIFAR-10 ViT, what a token is
worth differed from that by a factor of up to three, the same way in every seed. Here a
few tokens are really given and taken, block by block, and held-out images tell.
"""

import dataclasses
import itertools

import numpy as np

from diffrate_jax.budget import one_more
from diffrate_jax.cost import Measure
from diffrate_jax.files import Json
from diffrate_jax.learning.moves import Loss, one_fewer
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Geometry

# Tokens given and taken to measure: a share of a model's patches, but no more than a
# share of those that the block keeps.
PROBE, PROBE_OF_BLOCK = 1 / 32, 1 / 4


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
    def moves(self) -> bool:
        """Whether tokens can be given or taken at all."""
        return self.more.tokens != self.fewer.tokens

    @property
    def is_flat(self) -> bool:
        """Whether tokens can be taken and the loss stays the same to the last bit."""
        return self.fewer.tokens < 0 and self.more.loss == self.fewer.loss == 0

    @property
    def slope(self) -> float:
        """Change of the loss per token, in the middle of what was measured."""
        return (self.more.loss - self.fewer.loss) / self._span()

    @property
    def middle(self) -> float:
        """Tokens from the schedule to the middle of what was measured."""
        return (self.more.tokens + self.fewer.tokens) / 2

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
        return self.more.tokens - self.fewer.tokens

    def record(self) -> dict[str, Json]:
        """Returns what is recorded: the loss for each token more and each fewer."""
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

    Blocks that follow and take none away go on to take none.

    Args:
        schedule: to begin with.
        block: whose count is changed.
        tokens: to give, or if negative to take.
        geometry: of the model.

    Returns:
        Schedule, and the tokens given or taken.
    """
    idle = idle_after(schedule, block, geometry)
    for done in range(abs(tokens)):
        new = (one_more if tokens > 0 else one_fewer)(schedule, block, geometry)
        if new is None:
            return schedule, int(np.sign(tokens)) * done
        for later in idle if tokens > 0 else ():
            new = one_more(new, later, geometry) or new
        schedule = new
    return schedule, tokens


def idle_after(schedule: Schedule, block: int, geometry: Geometry) -> list[int]:
    """Returns the blocks right after one that could take tokens away and take none."""
    steps = schedule.steps(geometry)
    following = range(block + 1, schedule.depth)
    idle = itertools.takewhile(lambda b: steps[b][2] == steps[b][0], following)
    return [later for later in idle if geometry.compress[later]]
