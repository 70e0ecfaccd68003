"""Learning schedules: gradient descent on the rates, and on nothing else."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from diffrate_jax.batches import Batches, checked, skip
from diffrate_jax.budget import Budget, parse_budget
from diffrate_jax.checkpoint import fingerprint
from diffrate_jax.cost import Unit
from diffrate_jax.errors import UserError
from diffrate_jax.files import Json
from diffrate_jax.latency import LatencyTable
from diffrate_jax.learning.descent import (
    initial_state,
    method_of,
    search_step,
)
from diffrate_jax.learning.objective import CROSS_ENTROPY
from diffrate_jax.learning.refine import held_out_losses
from diffrate_jax.learning.refined import RefinedFile
from diffrate_jax.learning.result import SearchResult, found
from diffrate_jax.loop import Loop, Values
from diffrate_jax.models import Model, Params, architecture
from diffrate_jax.rates import candidate_counts
from diffrate_jax.recipe import Recipe
from diffrate_jax.workdir import claim


def learn_schedule(
    model: Model,
    params: Params,
    batches: Iterator[dict[str, np.ndarray]] | Batches,
    target: str | float,
    *,
    recipe: Recipe | None = None,
    latency: LatencyTable | None = None,
    workdir: str | Path | None = None,
    checkpoint_every: int = 100,
    log_every: int = 10,
) -> SearchResult:
    """Learns how many tokens each block keeps, under a cost budget.

    Args:
        model: from `create_model`.
        params: its weights; they stay as they are.
        batches: iterator of {"image", "label"}: images [B, Y, X, 3], uint8 or
            normalised floats; labels [B] integers, or [B, V] probabilities, needed only
            where the objective is cross entropy. Or a function from a step to such an
            iterator, which makes resuming exact.
        target: "2.9" GMACs, "60%" of the dense cost, or "6.5ms" of a batch.
        recipe: how, and how bytes are normalised: as ImageNet's by default.
        latency: the model's table, which targets in milliseconds need.
        workdir: folder of checkpoints and metrics; none are written by default. What
            is finished in it is neither learned nor refined again.
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of metrics.

    Raises:
        UserError: a target out of reach, batches that do not fit the model or run
            out, a loss that is not finite, or a folder of another search.
    """
    return learn_schedules(
        model,
        params,
        batches,
        [target],
        recipe=recipe,
        latency=latency,
        workdir=workdir,
        checkpoint_every=checkpoint_every,
        log_every=log_every,
    )[0]


def learn_schedules(
    model: Model,
    params: Params,
    batches: Iterator[dict[str, np.ndarray]] | Batches,
    targets: Sequence[str | float],
    *,
    recipe: Recipe | None = None,
    latency: LatencyTable | None = None,
    workdir: str | Path | None = None,
    checkpoint_every: int = 100,
    log_every: int = 10,
) -> list[SearchResult]:
    """Learns a schedule for each target in one run, dearest first.

    Each search starts from what the one before it learned; they share one compilation.

    Args and errors are those of `learn_schedule`, with several targets.

    Returns:
        Results in the order of `targets`.
    """
    recipe = recipe or Recipe()
    model = searched(model, recipe)
    wanted = budgets_of(model, recipe, targets, latency)
    budgets = sorted(wanted, key=lambda budget: -budget.limit)
    candidate_counts(model.geometry.num_patches, recipe.granularity)
    folder = None if workdir is None else epath.Path(workdir)
    if folder is not None:
        claim(folder, identity(model, params, budgets, recipe, latency), "search.json")
    held_out, stream = set_aside(model, recipe, batches)
    steps = recipe.steps * len(budgets)
    shown = partial(describe, budgets[0].measure.unit)
    loop = Loop("search", steps, folder, checkpoint_every, log_every, shown)
    state = loop.run(
        search_step(model, recipe, budgets),
        initial_state(model, recipe, budgets),
        params,
        stream,
    )
    losses = held_out_losses(model, params, recipe, held_out) if held_out else []
    file = RefinedFile(folder)
    results = [
        found(model, recipe, *each, state, losses, file) for each in enumerate(budgets)
    ]
    return [results[budgets.index(budget)] for budget in wanted]


def searched(model: Model, recipe: Recipe) -> Model:
    """Returns the model with the blocks free that the recipe lets compress.

    Raises:
        UserError: a model without classes.
    """
    if not model.num_classes:
        raise UserError(
            "a search compares class probabilities, and this model has no classes; "
            "give it a head (convert --num_classes) and train it, or take uniform:60%"
        )
    if recipe.blocks == "model" or model.compress is not None:
        return model
    return model.clone(compress=(True,) * model.depth)


def budgets_of(
    model: Model,
    recipe: Recipe,
    targets: Sequence[str | float],
    latency: LatencyTable | None = None,
) -> list[Budget]:
    """Returns the budgets of a search, all in one unit.

    Args:
        model: as it is `searched`.
        recipe: of the search.
        targets: see `learn_schedule`.
        latency: table that targets in milliseconds need.

    Raises:
        UserError: a target that is none or out of reach, a table of another model or
            rule, or targets in several units.
    """
    measure = None if latency is None else latency.measure(model, recipe.rule)
    budgets = [parse_budget(target, model, measure) for target in targets]
    units = sorted({budget.measure.unit.symbol for budget in budgets})
    if len(units) > 1:
        raise UserError(
            f"the targets of one search are all in one unit, got {' and '.join(units)};"
            " make a search of each"
        )
    method_of(budgets[0].measure, recipe)  # Refuses what does not fit it.
    return budgets


def set_aside(
    model: Model, recipe: Recipe, batches: Iterator[dict[str, np.ndarray]] | Batches
) -> tuple[list[dict[str, np.ndarray]], Batches]:
    """Returns the first batches, held out for refining, and the stream after.

    Raises:
        UserError: the batches end before there are enough of them.
    """
    labels = recipe.objective == CROSS_ENTROPY
    fits = lambda stream: checked(model, stream, labels=labels)  # noqa: E731
    if callable(batches) and not recipe.refine_images:
        return [], lambda start: fits(batches(start))
    first = iter(fits(batches(0) if callable(batches) else iter(batches)))
    held_out, images = [], 0
    while images < recipe.refine_images:
        batch = next(first, None)
        if batch is None:
            raise UserError(
                f"the batches ended after {images} images, {recipe.refine_images} are "
                "held out for refining the counts; give more, or lower refine_images"
            )
        held_out.append(batch)
        images += len(batch["image"]) * jax.process_count()
    if callable(batches):
        return held_out, lambda start: fits(batches(len(held_out) + start))
    return held_out, lambda start: skip(first, start)


def identity(
    model: Model,
    params: Params,
    budgets: Sequence[Budget],
    recipe: Recipe,
    latency: LatencyTable | None,
) -> dict[str, Json]:
    """Returns all that a search depends on, except the stream of batches."""
    table = {} if latency is None else {"latency": latency.record()}
    return table | {
        "target": [budget.text for budget in budgets],
        "recipe": dataclasses.asdict(recipe),
        "model": architecture(model) | {"dtype": jnp.dtype(model.dtype).name},
        "params_sha256": fingerprint(params),
    }


def describe(unit: Unit, values: Values) -> str:
    """Returns what the progress bar shows: cost against target and the counts."""
    counts = " ".join(str(round(float(count))) for count in values["merge"])
    share = values[unit.name] / values[f"target_{unit.name}"]
    return f"loss {values['loss']:.3g}, cost {share:.1%} of target, kept {counts}"
