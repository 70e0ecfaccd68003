"""Kept counts in multiples: shapes that suit a machine, for no more operations."""

import dataclasses

from diffrate_jax.cost import Measure
from diffrate_jax.errors import UserError
from diffrate_jax.rules import rule_of
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Geometry


def rounded(
    schedule: Schedule, measure: Measure, multiple: int, limit: float | None = None
) -> Schedule:
    """Returns the schedule with kept counts that are multiples, within a cost.

    Counts are rounded down wherever a block compresses, then multiples are given back
    while they fit, first where the schedule lies furthest below the wanted one. A block
    leaves a multiple, or all that enters it; where the rule cannot go down to a
    multiple it leaves the next.

    Args:
        schedule: whose counts are wanted.
        measure: what schedules cost.
        multiple: of what the counts are to be multiples, in tokens.
        limit: cost not to be exceeded; that of the schedule by default.

    Raises:
        UserError: a multiple below 1 or above the model's tokens, or the limit cannot
            be kept.

    >>> geometry = Geometry(16, 1, (True,) * 3)
    >>> in_multiples(Schedule(None, (16, 13, 7)), geometry, 4, [0, 12, 4]).merge
    (16, 12, 4)
    """
    geometry = measure.geometry
    if not 1 <= multiple <= geometry.num_tokens:
        raise UserError(
            "kept counts are rounded to a multiple from 1 to the "
            f"{geometry.num_tokens} tokens of the model, got {multiple}"
        )
    wanted = schedule.feasible(geometry)
    limit = measure(wanted) if limit is None else limit
    least = rounded_down(wanted, geometry, multiple)
    if measure(least) > limit:
        raise UserError(
            f"in multiples of {multiple} this schedule costs at least "
            f"{measure.unit.show(measure(least))}, more than the "
            f"{measure.unit.show(limit)} allowed; take a smaller multiple"
        )
    return given_back(least, wanted, measure, multiple, limit)


def rounded_down(wanted: Schedule, geometry: Geometry, multiple: int) -> Schedule:
    """Returns the schedule with the next lower multiples that the rule can reach."""
    kept_L = [kept - kept % multiple for kept in wanted.merge]
    return in_multiples(wanted, geometry, multiple, kept_L)


def given_back(
    least: Schedule, wanted: Schedule, measure: Measure, multiple: int, limit: float
) -> Schedule:
    """Returns the least schedule after all multiples were given back that fit."""
    geometry, now, kept_L = measure.geometry, least, list(least.merge)
    while True:
        found = []
        for block in range(wanted.depth):
            more_L = [*kept_L]
            more_L[block] += multiple
            longer = in_multiples(wanted, geometry, multiple, more_L)
            if longer != now and measure(longer) <= limit:
                missing = wanted.merge[block] - now.merge[block]
                found.append((missing, block, more_L, longer))
        if not found:
            return now
        _, _, kept_L, now = max(found, key=lambda row: row[:2])


def in_multiples(
    wanted: Schedule, geometry: Geometry, multiple: int, kept_L: list[int]
) -> Schedule:
    """Returns a schedule of given kept counts, at rest where the wanted one is.

    Args:
        wanted: feasible.
        geometry: of the model.
        multiple: of what the counts are multiples.
        kept_L: multiples of it, raised where the rule cannot reach them.
    """
    rule, left, prune, merge = rule_of(wanted.rule), geometry.num_tokens, [], []
    up = lambda count: -(-count // multiple) * multiple  # noqa: E731
    least = up(geometry.prefix_tokens + 1)
    for block, (entering, pruned, last) in enumerate(wanted.steps(geometry)):
        coming = geometry.coming(block, left)
        middle = left = coming
        if pruned < entering:
            middle = max(least, kept_L[block], pruned - pruned % multiple)
            middle = min(coming, middle)
        if last < entering:
            fewest = rule.fewest(middle, geometry.prefix_tokens)
            left = min(middle, up(max(kept_L[block], fewest)))
        prune.append(middle)
        merge.append(left)
    prune = None if wanted.prune is None else tuple(prune)
    # Nothing that is known of the wanted schedule is true of this one.
    own = {"rounded_to": multiple}
    return dataclasses.replace(wanted, prune=prune, merge=tuple(merge), provenance=own)
