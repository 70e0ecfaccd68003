"""Compressions by name: what `--schedule` takes, what it leaves and costs."""

import re

from etils import epath

from diffrate_jax.budget import fit_to_budget, parse_budget, uniform
from diffrate_jax.compress import Gathered, Masked
from diffrate_jax.cost import HasCost, macs_of
from diffrate_jax.errors import UserError
from diffrate_jax.models.vit import Compression
from diffrate_jax.published import published_schedule
from diffrate_jax.rounding import rounded
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Geometry
from diffrate_jax.tome import ToMe

# By name; None is the dense model.
Cases = dict[str, Compression | None]


def parse_compression(text: str, model: HasCost, name: str) -> Compression | None:
    """Reads what `--schedule` takes.

    Args:
        text: "none", "published:2.9", "tome:8", "uniform:60%", or a path; with "@8"
            after it, kept counts in multiples of 8 for no more operations (`rounded`).
        model: the schedule is for.
        name: of the model's preset, for published schedules.

    Returns:
        The compression; None is the dense model.

    Raises:
        UserError: none of these, or it does not fit the model.
    """
    unrounded, multiple = split_multiple(text)
    if multiple is not None:
        wanted = parse_compression(unrounded, model, name)
        return round_compression(wanted, model, multiple)
    kind, _, value = text.partition(":")
    if text == "none":
        return None
    if kind == "published":
        # What was published of it was measured with the published inference.
        compression = Gathered(published_schedule(name, value), reference=True)
    elif kind == "tome":
        compression = ToMe(whole_number(value))
    elif kind == "uniform":
        budget = parse_budget(value, model)
        even = fit_to_budget(uniform(model), budget.measure, budget.limit)
        compression = Gathered(even)
    elif epath.Path(text).exists():
        compression = Gathered(Schedule.load(text))
    else:
        raise UserError(
            f"a schedule is none, published:2.9, tome:8, uniform:60% or the path of a "
            f"file that exists, got {text!r}"
        )
    compression.kept(model.geometry)
    return compression


def split_multiple(text: str) -> tuple[str, int | None]:
    """Returns what stands before "@8" in what `--schedule` takes, and the 8 if any.

    A file of just that name is no multiple.
    """
    found = re.fullmatch(r"(.+)@(\d+)", text)
    if found is None or epath.Path(text).exists():
        return text, None
    return found[1], int(found[2])


def round_compression(
    compression: Compression | None, model: HasCost, multiple: int
) -> Gathered:
    """Returns a compression with kept counts in multiples, as dear at the most.

    Raises:
        UserError: nothing is compressed, or what `rounded` refuses.
    """
    if compression is None:
        raise UserError("none keeps every token; leave @N out")
    schedule = schedule_of(compression, model.geometry)
    reference = isinstance(compression, Gathered) and compression.reference
    return Gathered(rounded(schedule, macs_of(model), multiple), reference)


def cost_of(model: HasCost, compression: Compression | None) -> int:
    """Returns the multiply-accumulates of one image with a compression in place."""
    return macs_of(model)(schedule_of(compression, model.geometry))


def schedule_of(compression: Compression | None, geometry: Geometry) -> Schedule:
    """Returns what a compression leaves in each block; None is the dense model."""
    if compression is None:
        return Schedule.dense(geometry)
    if isinstance(compression, Gathered):
        return compression.schedule
    kept, rule = compression.kept(geometry), "tome"
    if isinstance(compression, Masked):
        rule = compression.rule
    return Schedule.from_kept(kept, rule)


def whole_number(text: str) -> int:
    """Returns the r of "tome:r".

    Raises:
        UserError: not an integer.
    """
    try:
        return int(text)
    except ValueError as error:
        raise UserError(
            f"tome:r takes the whole number of tokens removed per block, got {text!r}"
        ) from error
