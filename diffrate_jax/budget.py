"""Budgets: "2.9" (GMACs) or "60%" (of dense), and schedules made to meet one."""

import dataclasses

import numpy as np

from diffrate_jax.cost import HasCost, cost_macs
from diffrate_jax.errors import UserError
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Geometry

# The least a learned schedule may leave unused of its budget, as a share.
CLOSE = 0.995


@dataclasses.dataclass(frozen=True)
class Budget:
    """A cost not to be exceeded.

    Attributes:
        text: as the user wrote it.
        macs: multiply-accumulates of one image.
    """

    text: str
    macs: float


def parse_budget(text: str | float, model: HasCost) -> Budget:
    """Reads a budget: "2.9" in GMACs, "60%" of the dense cost.

    Raises:
        UserError: neither of them, or outside what the model's schedules can cost.
    """
    text = str(text).strip()
    dense = cost_macs(model, None)
    try:
        number = float(text.removesuffix("%"))
    except ValueError as error:
        raise UserError(
            f"a budget is GMACs such as '2.9' or a share of dense such as '60%', "
            f"got {text!r}"
        ) from error
    macs = dense * number / 100 if text.endswith("%") else number * 1e9
    least = cost_macs(model, smallest_schedule(model))
    if not least <= macs <= dense:
        raise UserError(
            f"the target {text} is out of reach: this model's schedules cost between "
            f"{least / 1e9:.4g} and {dense / 1e9:.4g} GMACs "
            f"({least / dense:.1%} to 100%); choose one of them"
        )
    return Budget(text, macs)


def smallest_schedule(model: HasCost) -> Schedule:
    """Returns the schedule that keeps one patch wherever search may compress."""
    geometry = model.geometry
    least = geometry.prefix_tokens + 1
    pairs = zip(geometry.compress, geometry.dense, strict=True)
    return Schedule(None, [least if free else every for free, every in pairs])


def uniform(model: HasCost, rule: str = "diffrate") -> Schedule:
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


def fit_to_budget(schedule: Schedule, model: HasCost, macs: float) -> Schedule:
    """Returns the nearest schedule that costs at most `macs` and fills the budget.

    The number of tokens removed is scaled alike in all blocks, then single tokens are
    given back while they fit. Blocks that may not compress keep what they keep.

    Args:
        schedule: whose shape over the blocks is to be kept.
        model: with geometry and cost terms.
        macs: multiply-accumulates not to be exceeded.
    """
    tokens = model.geometry.num_tokens
    wanted = schedule.feasible(model.geometry)
    if CLOSE * macs <= cost_macs(model, wanted) <= macs:
        return wanted
    low, high = 0.0, float(tokens)
    for _ in range(40):
        middle = (low + high) / 2
        too_dear = cost_macs(model, scale_removed(wanted, model, middle)) > macs
        low, high = (middle, high) if too_dear else (low, middle)
    return fill(scale_removed(wanted, model, high), wanted, model, macs)


def scale_removed(schedule: Schedule, model: HasCost, factor: float) -> Schedule:
    """Returns the schedule with `factor` times as many tokens removed in all."""
    geometry = model.geometry
    least, dense = geometry.prefix_tokens + 1, geometry.dense
    # Beyond its own shape a schedule that removes nothing must shrink too.
    extra = [max(0.0, factor - 1.0) * free for free in geometry.compress]

    def scaled(counts: tuple[int, ...]) -> tuple[int, ...]:
        rows = zip(dense, counts, extra, strict=True)
        return tuple(max(least, n - round((n - c) * factor + e)) for n, c, e in rows)

    prune = None if schedule.prune is None else scaled(schedule.prune)
    new = dataclasses.replace(schedule, prune=prune, merge=scaled(schedule.merge))
    return new.feasible(geometry)


def fill(schedule: Schedule, wanted: Schedule, model: HasCost, macs: float) -> Schedule:
    """Gives single tokens back while the cost stays within `macs`.

    First where the schedule lies furthest below the wanted one, among equals last
    blocks first: they cost least, and close the gap most exactly.
    """
    while True:
        longer = [
            one_more(schedule, block, model.geometry) for block in range(schedule.depth)
        ]
        fitting = [
            (wanted.merge[block] - schedule.merge[block], block, candidate)
            for block, candidate in enumerate(longer)
            if candidate is not None and cost_macs(model, candidate) <= macs
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
