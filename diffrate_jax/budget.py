"""Budgets: "2.9" (GMACs), "60%" (of dense), "6.5ms"; and schedules that meet one."""

import dataclasses

import numpy as np

from diffrate_jax.cost import HasCost, Measure, macs_of
from diffrate_jax.errors import UserError
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Geometry

# The least a learned schedule may leave unused of its budget, as a share.
CLOSE = 0.995
MILLISECONDS = "ms"


@dataclasses.dataclass(frozen=True)
class Budget:
    """A cost not to be exceeded.

    Attributes:
        text: as the user wrote it.
        limit: the cost, in what `measure` returns.
        measure: what schedules cost.
    """

    text: str
    limit: float
    measure: Measure


def parse_budget(
    text: str | float, model: HasCost, latency: Measure | None = None
) -> Budget:
    """Reads a budget: "2.9" in GMACs, "60%" of the dense GMACs, "6.5ms".

    Args:
        text: the budget.
        model: with geometry and cost terms.
        latency: of the model's schedules (`latency.LatencyTable.measure`), which
            budgets in milliseconds need.

    Raises:
        UserError: none of them, milliseconds without their measure, or outside what
            the model's schedules can cost.
    """
    text = str(text).strip()
    in_ms = text.endswith(MILLISECONDS)
    share = text.endswith("%")
    try:
        number = float(text.removesuffix(MILLISECONDS if in_ms else "%"))
    except ValueError as error:
        raise UserError(
            f"a budget is GMACs such as '2.9', a share of dense such as '60%' or "
            f"milliseconds such as '6.5ms', got {text!r}"
        ) from error
    if in_ms and latency is None:
        raise UserError(
            f"the target {text} needs a latency table of this model on the device "
            "meant: write one with benchmark --latency_table=FILE and give it to the "
            "search as config.latency_table"
        )
    measure = latency if in_ms else macs_of(model)
    limit = measure(None) * number / 100 if share else number * measure.unit.size
    check_reach(text, limit, measure)
    return Budget(text, limit, measure)


def check_reach(text: str, limit: float, measure: Measure) -> None:
    """Refuses what no schedule costs.

    Raises:
        UserError: saying what they cost.
    """
    dense, least = measure(None), measure(smallest_schedule(measure))
    if least >= dense:
        raise UserError(
            f"the target {text} is out of reach: by the latency table compressing this "
            f"model takes longer than it saves ({measure.unit.show(dense)} dense, "
            f"{measure.unit.show(least)} compressed most); measure larger batches"
        )
    if not least <= limit <= dense:
        raise UserError(
            f"the target {text} is out of reach: this model's schedules cost between "
            f"{least / measure.unit.size:.4g} and {measure.unit.show(dense)} "
            f"({least / dense:.1%} to 100%); choose one of them"
        )


def smallest_schedule(model: HasCost | Measure) -> Schedule:
    """Returns the schedule that keeps one patch wherever search may compress."""
    geometry = model.geometry
    least = geometry.prefix_tokens + 1
    pairs = zip(geometry.compress, geometry.dense, strict=True)
    return Schedule(None, [least if free else every for free, every in pairs])


def uniform(model: HasCost | Measure, rule: str = "diffrate") -> Schedule:
    """Returns a merge-only schedule that loses tokens evenly over the free blocks."""
    geometry = model.geometry
    left = np.cumsum(geometry.compress) / (sum(geometry.compress) + 1)
    removed = np.rint(geometry.num_patches * left).astype(int)
    kept = first_stage_only(geometry.num_tokens - removed, geometry)
    return Schedule(None, kept, rule=rule).feasible(geometry)


def first_stage_only(kept_L: np.ndarray, geometry: Geometry) -> list[int]:
    """Returns counts of which those of later stages, with fewer tokens, keep all."""
    every_L = np.array(geometry.dense)
    is_later_L = every_L < geometry.num_tokens
    return np.where(is_later_L, every_L, kept_L).tolist()


def fit_to_budget(schedule: Schedule, measure: Measure, limit: float) -> Schedule:
    """Returns the nearest schedule that costs at most `limit` and fills the budget.

    The number of tokens removed is scaled alike in all blocks, then single tokens are
    given back while they fit. Blocks that may not compress keep what they keep.

    Args:
        schedule: whose shape over the blocks is to be kept.
        measure: what schedules cost.
        limit: cost not to be exceeded.
    """
    geometry = measure.geometry
    wanted = spared(schedule.feasible(geometry), measure)
    if CLOSE * limit <= measure(wanted) <= limit:
        return wanted
    low, high = 0.0, float(geometry.num_tokens)
    for _ in range(40):
        middle = (low + high) / 2
        too_dear = measure(scale_removed(wanted, geometry, middle)) > limit
        low, high = (middle, high) if too_dear else (low, middle)
    fitted, filled = None, scale_removed(wanted, geometry, high)
    while fitted != filled:
        fitted = spared(filled, measure)
        filled = fill(fitted, wanted, measure, limit)
    return filled


def spared(schedule: Schedule, measure: Measure) -> Schedule:
    """Returns the schedule without compressions that cost more than they save.

    In operations there are none. In time a block that takes few tokens away may be
    slower than one that leaves it to the next.
    """
    for block in np.flatnonzero(measure.geometry.compress).tolist():
        resting = at_rest(schedule, block, measure.geometry)
        if resting is not None and measure(resting) <= measure(schedule):
            schedule = resting
    return schedule


def at_rest(schedule: Schedule, block: int, geometry: Geometry) -> Schedule | None:
    """Returns the schedule with all tokens left by a block, None if it cannot be.

    Those that follow leave what they left.
    """
    coming, _, _ = schedule.steps(geometry)[block]
    while schedule is not None and schedule.merge[block] < coming:
        schedule = one_more(schedule, block, geometry)
    return schedule


def scale_removed(schedule: Schedule, geometry: Geometry, factor: float) -> Schedule:
    """Returns the schedule with `factor` times as many tokens removed in all."""
    least, dense = geometry.prefix_tokens + 1, geometry.dense
    # Beyond its own shape a schedule that removes nothing must shrink too.
    extra = [max(0.0, factor - 1.0) * free for free in geometry.compress]

    def scaled(counts: tuple[int, ...]) -> tuple[int, ...]:
        rows = zip(dense, counts, extra, strict=True)
        return tuple(max(least, n - round((n - c) * factor + e)) for n, c, e in rows)

    prune = None if schedule.prune is None else scaled(schedule.prune)
    new = dataclasses.replace(schedule, prune=prune, merge=scaled(schedule.merge))
    return new.feasible(geometry)


def fill(
    schedule: Schedule, wanted: Schedule, measure: Measure, limit: float
) -> Schedule:
    """Gives single tokens back while the cost stays within `limit`.

    First where the schedule lies furthest below the wanted one, among equals last
    blocks first: they cost least, and close the gap most exactly.
    """
    while True:
        longer = [
            one_more(schedule, block, measure.geometry)
            for block in range(schedule.depth)
        ]
        fitting = [
            (wanted.merge[block] - schedule.merge[block], block, candidate)
            for block, candidate in enumerate(longer)
            if candidate is not None and measure(candidate) <= limit
        ]
        if not fitting:
            return schedule
        schedule = max(fitting, key=lambda row: row[:2])[2]


def one_more(schedule: Schedule, block: int, geometry: Geometry) -> Schedule | None:
    """Returns the schedule with one token more after a block, None if there is none.

    Blocks right after it that may not compress, and do not, keep that token too.
    """
    steps = schedule.steps(geometry)
    if steps[block][2] == steps[block][0]:
        return None
    merge, prune = list(schedule.merge), list(schedule.prune or schedule.merge)
    for later in range(block, schedule.depth):
        coming, middle, last = steps[later]
        if later > block and (geometry.compress[later] or last < coming):
            break
        merge[later], prune[later] = last + 1, max(middle, last + 1)
    prune = None if schedule.prune is None else tuple(prune)
    longer = dataclasses.replace(schedule, prune=prune, merge=tuple(merge))
    return longer.feasible(geometry)
