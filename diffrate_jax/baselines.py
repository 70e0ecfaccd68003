"""Hand-made schedules at a cost: what learned ones are compared with."""

import functools
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from diffrate_jax.budget import first_stage_only, fit_to_budget, uniform
from diffrate_jax.compress import Gathered
from diffrate_jax.compressions import schedule_of
from diffrate_jax.cost import Measure, Unit
from diffrate_jax.models.vit import Compression
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Geometry
from diffrate_jax.tome import ToMe

# A baseline may cost as much as what it is compared with, and this share more.
DEARER = 0.02
NUM_RANDOM = 5
Found = TypeVar("Found", ToMe, Gathered)


def baselines(
    measure: Measure,
    cost: float,
    seed: int = 0,
    rule: str = "diffrate",
    draws: int = NUM_RANDOM,
) -> dict[str, Compression]:
    """Returns the baselines at a cost: none cheaper, none more than 2 % dearer.

    What no schedule of a family can cost is left out; standard error says so.

    Args:
        measure: what schedules cost. A latency table tells what their counts cost
            by the rule that it was measured with.
        cost: of what they are compared with.
        seed: of the random schedules.
        rule: that is run at ToMe's constant counts, and evenly, too.
        draws: number of random schedules.
    """
    rng = np.random.default_rng(seed)
    randoms = [random_schedule(measure, cost, rng) for _ in range(draws)]
    named = {f"random {i}": schedule for i, schedule in enumerate(randoms, 1)}
    return hand_made(measure, cost, rule) | possible(named, cost, measure.unit)


def hand_made(measure: Measure, cost: float, rule: str) -> dict[str, Compression]:
    """Returns the baselines that nobody draws; see `baselines`."""
    geometry = measure.geometry
    constant = cheapest(measure, cost, map(ToMe, constant_removals(geometry)))
    lines = {"ToMe decreasing": (1, 0), "ToMe increasing": (0, 1)}
    families = {
        "ToMe constant": constant,
        **{
            name: cheapest(measure, cost, map(ToMe, linear_removals(geometry, *ends)))
            for name, ends in lines.items()
        },
        **at_constant_counts(geometry, constant, rule),
        "uniform": fitted(uniform(measure, rule), measure, cost),
    }
    if geometry.prefix_tokens:
        families["EViT"] = cheapest(measure, cost, evit_schedules(geometry))
    return possible(families, cost, measure.unit)


def possible(
    families: dict[str, Compression | None], cost: float, unit: Unit
) -> dict[str, Compression]:
    """Returns the families that can cost so much; standard error names the others."""
    for name in (name for name, found in families.items() if found is None):
        print(
            f"left out: no {name} schedule costs {unit.show(cost)} to within "
            f"{DEARER:.0%}",
            file=sys.stderr,
        )
    return {name: found for name, found in families.items() if found is not None}


def at_constant_counts(
    geometry: Geometry, constant: ToMe | None, rule: str
) -> dict[str, Compression | None]:
    """Returns pruning alone, merging alone and a rule at ToMe's constant counts.

    What the model cannot do, to prune, is not among them.
    """
    rules = {"merge only": "diffrate"}
    if rule not in ("diffrate", "merge_only", "prune_only"):
        rules[f"{rule} constant"] = rule
    prunes = not geometry.only_merges
    if constant is None:
        return dict.fromkeys(["prune only"] * prunes + [*rules])
    counts = constant.schedule(geometry).merge
    dense = Schedule.dense(geometry).merge
    merged = {
        name: Gathered(Schedule(None, counts, rule=rule))
        for name, rule in rules.items()
    }
    pruned = {"prune only": Gathered(Schedule(counts, dense))} if prunes else {}
    return pruned | merged


def constant_removals(geometry: Geometry) -> Iterator[tuple[int, ...]]:
    """Yields r per block: the same in all, or r + 1 in some neighbouring blocks."""
    depth = geometry.depth
    for r in range(geometry.num_patches):
        for first in range(depth):
            for more in range(depth - first):
                rest = depth - first - more
                yield (r,) * first + (r + 1,) * more + (r,) * rest


def linear_removals(
    geometry: Geometry, first: float, last: float
) -> Iterator[tuple[int, ...]]:
    """Yields r per block along a line, as ToMe's de- and increasing schedules do.

    The line is rounded down or to the nearest, and some blocks at its higher end get
    one more: one step of r alone is 5 % of the cost.

    Args:
        geometry: of the model.
        first: height of the line at the first block, relative to its largest r.
        last: height at the last block.
    """
    line = np.linspace(first, last, geometry.depth)
    for most in np.arange(0, geometry.num_patches, 1 / 8):
        for rounding in (0.0, 0.5):
            rounded = (most * line + rounding).astype(int)
            for more in range(geometry.depth):
                # At the higher end, so that the numbers still fall, or rise.
                ahead = np.argsort(-line, kind="stable")[:more]
                longer = rounded.copy()
                longer[ahead] += 1
                yield tuple(longer.tolist())


def evit_schedules(geometry: Geometry) -> Iterator[Gathered]:
    """Yields EViT's schedules: three blocks keep a share of their patches each.

    The blocks stand at a quarter, half and three quarters of the depth, the shares are
    alike, and every one of the three fuses what it does not keep into one token (EViT,
    arXiv 2202.07800, sections 3.2 and 4.1).
    """
    prefix = geometry.prefix_tokens
    at = sorted({quarter * geometry.depth // 4 for quarter in (1, 2, 3)})
    for share in np.linspace(0, 1, 20 * geometry.num_patches, endpoint=False):
        left, counts = geometry.num_tokens, []
        for block in range(geometry.depth):
            if block in at:
                fused = prefix + int(np.ceil(share * (left - prefix))) + 1
                left = min(left, fused)
            counts.append(left)
        yield Gathered(Schedule(None, counts, rule="evit"))


def cheapest(
    measure: Measure, cost: float, candidates: Iterable[Found]
) -> Found | None:
    """Returns the candidate of least cost that costs `cost` or up to 2 % more, if any.

    Of equal ones that which removes the least early.
    """
    # Many removals end in the same counts, as a block merges no more than half.
    price_of = functools.cache(measure)
    allowed = []
    for found in dict.fromkeys(candidates):
        schedule = schedule_of(found, measure.geometry)
        price = price_of(schedule)
        if cost <= price <= cost * (1 + DEARER):
            removed = [-count for count in schedule.merge]
            allowed.append((price, removed, found))
    return min(allowed, key=lambda row: row[:2])[2] if allowed else None


def random_schedule(
    measure: Measure, cost: float, rng: np.random.Generator
) -> Gathered | None:
    """Returns sorted uniform draws, alternately prune and merge counts, at the cost.

    Where a model only merges, just every second draw is of use.
    """
    geometry = measure.geometry
    draws = -np.sort(-rng.uniform(0, geometry.num_patches, 2 * geometry.depth))
    counts = geometry.prefix_tokens + np.ceil(draws).astype(int)
    prune = None if geometry.only_merges else counts[::2].tolist()
    drawn = Schedule(prune, first_stage_only(counts[1::2], geometry))
    return fitted(drawn, measure, cost)


def fitted(wanted: Schedule, measure: Measure, cost: float) -> Gathered | None:
    """Returns the nearest schedule that costs `cost` or up to 2 % more, if any."""
    for dearer in np.linspace(0.001, DEARER, 10):
        schedule = fit_to_budget(wanted, measure, cost * (1 + dearer))
        if measure(schedule) >= cost:
            return Gathered(schedule)
    return None
