"""What a search found for a target."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffrate_jax.budget import Budget, fit_to_budget
from diffrate_jax.cost import cost_macs
from diffrate_jax.files import Json
from diffrate_jax.learning.descent import Learned, SearchState, method_of
from diffrate_jax.learning.moves import Loss
from diffrate_jax.learning.refine import improve, refine
from diffrate_jax.learning.refined import Refined, RefinedFile
from diffrate_jax.models import Model, architecture
from diffrate_jax.recipe import Recipe
from diffrate_jax.schedule import Schedule

# A search has settled if its last tenth moved no count by more than this.
SETTLED = 1


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        schedule: costs at most the target.
        learned: the counts as they were learned, before they were refined.
        rates: what was learned: `rates.Rates`, or expected counts [M] (`projected`).
        macs: cost of `schedule`.
        refined: what refining them came to; None if they were not to be.
        settled: whether no count moved by more than a token in the last tenth.
    """

    schedule: Schedule
    learned: Schedule
    rates: Any
    macs: int
    refined: Refined | None
    settled: bool


def row(rows: Learned, index: int) -> Learned:
    """Returns what was learned for one target."""
    return jax.tree.map(lambda x: x[index], rows)


def found(
    model: Model,
    recipe: Recipe,
    index: int,
    budget: Budget,
    state: SearchState,
    losses: Sequence[Loss],
    file: RefinedFile,
) -> SearchResult:
    """Returns what the rates of one target stand for, brought to its budget.

    For `losses` and `file` see `refined_by`; without losses counts are not refined.

    Raises:
        UserError: the file is damaged.
    """
    measure = budget.measure
    method = method_of(measure, recipe)
    rates, late = row(state.found, index), row(state.late, index)

    def counts(rates: Learned) -> Schedule:
        kept = method.masked(rates, jnp.ones(())).kept(model.geometry)
        return Schedule.from_kept(kept, recipe.rule)

    learned = counts(rates)
    moved = np.subtract(learned.merge, counts(late).merge)
    schedule, refined = fit_to_budget(learned, measure, budget.limit), None
    if losses:
        refined = refined_by(losses, schedule, budget, file)
        schedule = refined.schedule
        schedule.check(model.geometry)
    settled = bool(abs(moved).max() <= SETTLED)
    provenance = {
        **costs(model, budget, schedule),
        "learned": {"prune": learned.prune, "merge": learned.merge},
        "settled": settled,
        "model": architecture(model),
    }
    if refined is not None:
        provenance |= {
            "held_out_loss": refined.loss,
            "gains": list(refined.gains),
            "moves": list(refined.moves),
        }
    schedule = dataclasses.replace(schedule, provenance=provenance)
    macs = provenance["macs"]
    return SearchResult(schedule, learned, rates, macs, refined, settled)


def refined_by(
    losses: Sequence[Loss], schedule: Schedule, budget: Budget, file: RefinedFile
) -> Refined:
    """Returns a schedule refined by few images, then by all.

    Args:
        losses: see `refine.held_out_losses`; at least one. A straight line is worth
            much or nothing, so the first says whether to take it.
        schedule: costs at most the budget.
        budget: of the schedule.
        file: keeps what each of them came to.

    Raises:
        UserError: the file is damaged.
    """
    moves: tuple[dict[str, Json], ...] = ()
    for number, loss in enumerate(losses):
        how = refine if number else improve
        work = partial(how, schedule, budget.measure, budget.limit, loss)
        name = f"{budget.text}, {number + 1} of {len(losses)}"
        found = file.get(name, schedule, work)
        schedule, moves = found.schedule, moves + found.moves
    return dataclasses.replace(found, moves=moves)


def costs(model: Model, budget: Budget, schedule: Schedule) -> dict[str, Json]:
    """Returns what a schedule costs, and what it was to cost."""
    measure = budget.measure
    return {
        "target": budget.text,
        "macs": cost_macs(model, schedule),
        "dense_macs": cost_macs(model, None),
        measure.unit.name: measure(schedule),
        f"dense_{measure.unit.name}": measure(None),
    }
