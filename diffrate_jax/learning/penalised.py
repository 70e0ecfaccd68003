"""Penalised descent: the published method, AdamW on logits over all candidates."""

import jax.numpy as jnp
import numpy as np
import optax

from diffrate_jax.compress import Masked
from diffrate_jax.cost import MACS, Measure
from diffrate_jax.errors import UserError
from diffrate_jax.rates import CEILING_SLACK, Rates, candidate_counts, zero_rates
from diffrate_jax.recipe import Recipe
from diffrate_jax.rules import rule_of
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Array

# The published penalty was set for DeiT-S, whose dense cost is 4.6 GMACs.
PUBLISHED_DENSE_GMACS = 4.6
# So far above the least candidate that the ceiling still takes it for an integer.
INSIDE = CEILING_SLACK / 2


class Penalised:
    """Moves rate logits; see `descent.Method` (DiffRate, section 4.1)."""

    def __init__(self, measure: Measure, recipe: Recipe) -> None:
        if recipe.penalty_unit == "gmacs" and measure.unit != MACS:
            raise UserError(
                f"penalty_unit is 'gmacs' and the budget is in {measure.unit.symbol}; "
                "use 'relative', which fits every unit"
            )
        self._measure, self._recipe = measure, recipe
        self._optimiser = optax.inject_hyperparams(optax.adamw)(
            recipe.learning_rate, weight_decay=0.0
        )
        self._decay = optax.cosine_decay_schedule(
            recipe.learning_rate, 1, recipe.final_learning_rate / recipe.learning_rate
        )

    def start(self, schedule: Schedule | None) -> Rates:
        """Returns logits that stand for a schedule's counts; None: all alike.

        Of all distributions with the expectation wanted, the least committed one: its
        logits rise in a line with the count.
        """
        geometry, recipe = self._measure.geometry, self._recipe
        prune = rule_of(recipe.rule, geometry).prunes
        rates = zero_rates(geometry, recipe.granularity, prune=prune)
        if schedule is None:
            return rates
        running = schedule.feasible(geometry)
        candidates_R = candidate_counts(geometry.num_patches, recipe.granularity)

        def logits(kept: tuple[int, ...]) -> Array:
            wanted_L = np.array(kept) - geometry.prefix_tokens - 0.5
            return jnp.stack([tilted(candidates_R, wanted) for wanted in wanted_L])

        prune_LR = logits(running.before_merging(geometry)) if prune else None
        return rates.replace(prune=prune_LR, merge=logits(running.merge))

    def fresh(self, rates: Rates) -> optax.OptState:
        """Returns AdamW's state before the first update."""
        return self._optimiser.init(rates)

    def masked(self, rates: Rates, share: Array) -> Masked:
        """Returns the compression."""
        return Masked(rates, self._recipe.reference, self._recipe.rule)

    def penalty(self, cost: Array, budget: Array) -> Array:
        """Returns the weighted squared distance between cost and target."""
        unit = MACS.size
        if self._recipe.penalty_unit == "relative":
            unit = self._measure(None) / PUBLISHED_DENSE_GMACS
        return self._recipe.penalty * ((cost - budget) / unit) ** 2

    def update(
        self,
        rates: Rates,
        state: optax.OptState,
        gradient: Rates,
        share: Array,
        budget: Array,
    ) -> tuple[Rates, optax.OptState]:
        """Returns logits and state after a step."""
        state.hyperparams["learning_rate"] = self._decay(share)
        updates, state = self._optimiser.update(gradient, state, rates)
        return optax.apply_updates(rates, updates), state


def tilted(candidates_R: np.ndarray, wanted: float) -> Array:
    """Returns logits [R], linear in the count, whose expectation is `wanted`."""
    least, most = float(candidates_R.min()), float(candidates_R.max())
    wanted = float(np.clip(wanted, least + INSIDE, most - INSIDE))
    low, high = -50.0, 50.0
    for _ in range(80):
        middle = (low + high) / 2
        logits_R = middle * (candidates_R - candidates_R.mean())
        weight_R = np.exp(logits_R - logits_R.max())
        expected = (weight_R * candidates_R).sum() / weight_R.sum()
        low, high = (middle, high) if expected < wanted else (low, middle)
    return jnp.asarray(logits_R, jnp.float32)
