"""One step of a search, and all that changes in it: any method, several targets."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from diffrate_jax import parallel
from diffrate_jax.batches import prepare
from diffrate_jax.budget import Budget, fit_to_budget, uniform
from diffrate_jax.compress import Masked
from diffrate_jax.cost import Measure, cost_macs
from diffrate_jax.learning.objective import distance, wanted_outputs
from diffrate_jax.learning.penalised import Penalised
from diffrate_jax.learning.projected import Projected
from diffrate_jax.loop import Values
from diffrate_jax.models import Model, Params, forward
from diffrate_jax.recipe import Recipe
from diffrate_jax.rules import rule_of
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Array

Learned = Any
# What a search has learned this late is kept, to see whether it still moves.
LATE = 0.9


class Method(Protocol):
    """A way of learning rates; `share` is the share of the steps that are done."""

    def start(self, schedule: Schedule | None) -> Learned:
        """Returns rates that stand for a schedule; None: for no one in particular."""

    def fresh(self, learned: Learned) -> Any:
        """Returns the optimiser's state before the first update."""

    def masked(self, learned: Learned, share: Array) -> Masked:
        """Returns the compression that the rates stand for."""

    def penalty(self, cost: Array, budget: Array) -> Array:
        """Returns what the loss adds for the cost."""

    def update(
        self, learned: Learned, state: Any, gradient: Any, share: Array, budget: Array
    ) -> tuple[Learned, Any]:
        """Returns rates and optimiser's state after a step."""


@struct.dataclass
class SearchState:
    """Everything that changes during a search: kilobytes.

    Attributes:
        learned: rates being learned.
        optimiser: state of their optimiser.
        found: rates at the end of each target's steps, or as far as they are [T, …].
        late: rates shortly before the end of each target's steps [T, …].
        step: steps done, of all targets together.
    """

    learned: Learned
    optimiser: Any
    found: Learned
    late: Learned
    step: Array

    def after(self, learned: Learned, optimiser: Any, now: "Moment") -> "SearchState":
        """Returns the state after a step of the target that `now` tells."""
        put = lambda rows: jax.tree.map(  # noqa: E731
            lambda row, new: row.at[now.index].set(new), rows, learned
        )
        late = choose(now.share < LATE, put(self.late), self.late)
        return SearchState(learned, optimiser, put(self.found), late, self.step + 1)


@struct.dataclass
class Moment:
    """Where in a run a step is.

    Attributes:
        index: number of the target.
        share: share of its steps that are done.
        is_first: whether this is its first step.
        target: its cost.
        budget: what may be spent now, on the way from the last target to this one.
    """

    index: Array
    share: Array
    is_first: Array
    target: Array
    budget: Array


def moment(step: Array, recipe: Recipe, cost_T: np.ndarray) -> Moment:
    """Returns where a step is; `cost_T` holds the start's cost and the targets'."""
    index, local = step // recipe.steps, step % recipe.steps
    share = local / recipe.steps
    before, target = jnp.asarray(cost_T)[index], jnp.asarray(cost_T)[index + 1]
    done = (local + 1) / max(recipe.tighten * recipe.steps, 1.0)
    budget = before + (target - before) * jnp.minimum(done, 1.0)
    return Moment(index, share, local == 0, target, budget)


def method_of(measure: Measure, recipe: Recipe) -> Method:
    """Returns the recipe's way of learning rates under budgets of a measure.

    Raises:
        UserError: a penalty in another unit than the measure's.
    """
    methods = {"projected": Projected, "penalised": Penalised}
    return methods[recipe.method](measure, recipe)


def start_of(
    model: Model, recipe: Recipe, budgets: Sequence[Budget]
) -> Schedule | None:
    """Returns the schedule that the search starts from.

    Raises:
        UserError: a schedule that does not fit the model.
    """
    if isinstance(recipe.start, Schedule):
        recipe.start.check(model.geometry)
        prunes = rule_of(recipe.rule, model.geometry).prunes
        prune = recipe.start.prune if prunes else None
        # Without pruning, what is left after a block is what merging has to leave.
        left = recipe.start.canonical(model.geometry).merge
        return Schedule(prune, left, rule=recipe.rule).feasible(model.geometry)
    if recipe.start == "dense":
        return Schedule.dense(model.geometry)
    if recipe.method == "penalised":
        return None
    dearest = budgets[0]
    return fit_to_budget(uniform(model, recipe.rule), dearest.measure, dearest.limit)


def initial_state(
    model: Model, recipe: Recipe, budgets: Sequence[Budget]
) -> SearchState:
    """Returns the state before the first step."""
    method = method_of(budgets[0].measure, recipe)
    learned = method.start(start_of(model, recipe, budgets))
    every = jax.tree.map(lambda x: jnp.stack([x] * len(budgets)), learned)
    step = jnp.zeros((), jnp.int32)
    return SearchState(learned, method.fresh(learned), every, every, step)


def search_step(
    model: Model, recipe: Recipe, budgets: Sequence[Budget]
) -> Callable[[SearchState, Params, dict[str, Array]], tuple[SearchState, Values]]:
    """Returns the plain function of one step; run it under `parallel.pmap_step`."""
    measure = budgets[0].measure
    method = method_of(measure, recipe)
    start = start_of(model, recipe, budgets)
    first = budgets[0].limit if start is None else measure(start)
    cost_T = np.array([first, *(budget.limit for budget in budgets)], np.float32)

    def loss(learned: Learned, params: Params, batch: dict, key: Array, now: Moment):
        images, labels_BV, keys_B = prepare(
            batch, key, recipe.augment, model.num_classes
        )
        wanted_BV = wanted_outputs(recipe.objective, model, params, images, labels_BV)
        run = method.masked(learned, now.share)
        how = {"drop_path": recipe.drop_path, "rng": keys_B, "remat": recipe.remat}
        out = forward(model, params, images, run, **how)
        value = distance(recipe.objective, out.logits, wanted_BV).mean()
        cost = measure(out.kept)
        penalty = method.penalty(cost, now.target)
        return value + penalty, (value, cost, out.kept)

    def step(
        state: SearchState, params: Params, batch: dict[str, Array]
    ) -> tuple[SearchState, Values]:
        now = moment(state.step, recipe, cost_T)
        key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
        gradient, (value, cost, kept) = jax.grad(loss, has_aux=True)(
            state.learned, params, batch, key, now
        )
        gradient, value = parallel.mean((gradient, value))
        optimiser = choose(now.is_first, method.fresh(state.learned), state.optimiser)
        learned, optimiser = method.update(
            state.learned, optimiser, gradient, now.share, now.budget
        )
        values = {
            "loss": value + method.penalty(cost, now.target),
            "objective": value,
            "macs": cost_macs(model, kept),
            measure.unit.name: cost,
            f"target_{measure.unit.name}": now.target,
            "prune": kept.merge if kept.prune is None else kept.prune,
            "merge": kept.merge,
        }
        return state.after(learned, optimiser, now), values

    return step


def choose(condition: Array, one: Any, other: Any) -> Any:
    """Returns one tree or the other."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)
