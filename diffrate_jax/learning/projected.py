"""Projected descent: one expected count per block, moved along the budget.

The marginal value of a token is the gradient of the objective by a block's expected
count, taken over the few tokens next in line (`rates.Located`). At the best schedule
all blocks earn the same for what they cost. So the gradient loses its component
along that of the cost, and what rounding leaves over is taken back by shifting counts
by their prices: the budget holds at every step and no penalty has to be weighed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from diffrate_jax.compress import Masked, feasible
from diffrate_jax.cost import Measure
from diffrate_jax.learning.constraint import on_budget
from diffrate_jax.rates import Kept, Located
from diffrate_jax.recipe import Recipe
from diffrate_jax.rules import rule_of
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Array

MOMENTUM, SCALE_DECAY = 0.9, 0.98
# An expectation in the middle of the ceiling's interval: counts that do not flicker.
HALF = 0.5


@struct.dataclass
class Motion:
    """Moving averages of the gradient [M] and of its squared component, and a count."""

    gradient: Array
    square: Array
    count: Array


class Projected:
    """Moves expected counts; see `descent.Method`.

    The M expected counts stand in the order of execution: for each block that may
    compress that after pruning, if the rule prunes, and that after merging.
    """

    def __init__(self, measure: Measure, recipe: Recipe) -> None:
        self._measure, self._recipe = measure, recipe
        self._geometry = measure.geometry
        self._free = np.flatnonzero(self._geometry.compress)
        self._per_block = 1 + rule_of(recipe.rule, measure.geometry).prunes

    def start(self, schedule: Schedule) -> Array:
        """Returns expected counts [M] that stand for exactly a schedule's counts."""
        running = schedule.feasible(self._geometry)
        merge = np.array(running.merge, np.float32)[self._free]
        prune = np.array(running.before_merging(self._geometry), np.float32)[self._free]
        rows = (prune, merge) if self._per_block == 2 else (merge,)
        kept_M = np.stack(rows, axis=1).reshape(-1)
        return jnp.asarray(kept_M - self._geometry.prefix_tokens - HALF)

    def fresh(self, expected_M: Array) -> Motion:
        """Returns the state before the first update."""
        zero = jnp.zeros((), jnp.float32)
        return Motion(jnp.zeros_like(expected_M), zero, zero)

    def masked(self, expected_M: Array, share: Array) -> Masked:
        """Returns the compression after a share of the steps."""
        ends = jnp.log(jnp.array([self._recipe.spread, self._recipe.final_spread]))
        spread = jnp.exp(ends[0] + (ends[1] - ends[0]) * share)
        rows_PL = self._by_block(expected_M)
        prune_L = rows_PL[0] if self._per_block == 2 else None
        return Masked(Located(prune_L, rows_PL[-1], spread), rule=self._recipe.rule)

    def penalty(self, cost: Array, budget: Array) -> Array:
        """Returns 0: the budget always holds."""
        return jnp.zeros(())

    def update(
        self,
        expected_M: Array,
        motion: Motion,
        gradient_M: Array,
        share: Array,
        budget: Array,
    ) -> tuple[Array, Motion]:
        """Returns expected counts and state after a step."""
        price_M = jax.grad(self._cost)(expected_M)
        count = motion.count + 1
        average_M = MOMENTUM * motion.gradient + (1 - MOMENTUM) * gradient_M
        now = jnp.mean(jnp.square(without(price_M, gradient_M)))
        square = SCALE_DECAY * motion.square + (1 - SCALE_DECAY) * now
        scale = jnp.sqrt(square / (1 - SCALE_DECAY**count))
        direction_M = without(price_M, average_M) / jnp.maximum(
            scale, jnp.finfo(jnp.float32).tiny
        )
        moved_M = expected_M - self._tokens_per_step(share) * direction_M
        bounds = (HALF, self._geometry.num_patches - HALF)
        moved_M = on_budget(moved_M, self._cost, budget, bounds, self._lift)
        return moved_M, Motion(average_M, square, count)

    def _tokens_per_step(self, share: Array) -> Array:
        recipe = self._recipe
        decay = optax.cosine_decay_schedule(
            recipe.learning_rate, 1, recipe.final_learning_rate / recipe.learning_rate
        )
        return decay(share) * self._geometry.num_patches

    def _cost(self, expected_M: Array) -> Array:
        """Returns what counts in the middle of their intervals cost.

        Only what is left after merging costs anything, so a count after pruning has no
        price: tokens are dropped where that is better than folding them.
        """
        merge_L = self._by_block(expected_M)[-1] + HALF + self._geometry.prefix_tokens
        return self._measure(Kept(None, merge_L))

    def _lift(self, expected_M: Array) -> Array:
        """Raises counts to the fewest that the rule can leave."""
        rule = rule_of(self._recipe.rule, self._geometry)
        if rule.prunes:
            return expected_M
        offset = HALF + self._geometry.prefix_tokens
        merge_L = self._by_block(expected_M)[-1] + offset
        lifted = feasible(Kept(None, merge_L), rule, self._geometry)
        return lifted.merge[self._free] - offset

    def _by_block(self, expected_M: Array) -> Array:
        """Returns expected counts [operations, L]; blocks that do nothing: all."""
        rows_PF = expected_M.reshape(-1, self._per_block).T
        every = self._geometry.num_patches - HALF
        columns = [jnp.full(self._per_block, every, jnp.float32)] * self._geometry.depth
        # Slices and a stack: writing by index would be a scatter, slow on a TPU.
        for place, block in enumerate(self._free):
            columns[block] = rows_PF[:, place]
        return jnp.stack(columns, axis=1)


def without(price_M: Array, gradient_M: Array) -> Array:
    """Returns a gradient without its component along the prices."""
    share = jnp.vdot(gradient_M, price_M) / jnp.vdot(price_M, price_M)
    return gradient_M - price_M * share
