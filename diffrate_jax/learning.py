"""Learning a schedule: gradient descent on the rate logits, and on nothing else."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from diffrate_jax import parallel
from diffrate_jax.batches import Batches, checked, prepare, skip
from diffrate_jax.budget import Budget, fit_to_budget, parse_budget
from diffrate_jax.compress import Masked
from diffrate_jax.cost import cost_macs
from diffrate_jax.data.augment import Augment
from diffrate_jax.errors import UserError
from diffrate_jax.files import Json
from diffrate_jax.loop import Loop, Values
from diffrate_jax.models import Params, architecture, forward, init_rates
from diffrate_jax.models.vit import ViT
from diffrate_jax.rates import Rates
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Array
from diffrate_jax.workdir import claim

# The published penalty was set for DeiT-S, whose dense cost is 4.6 GMACs.
PUBLISHED_DENSE_GMACS = 4.6


def imagenet_colours() -> Augment:
    """Returns ImageNet's mean and standard deviation, and no augmentation."""
    return Augment(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to learn a schedule; rates and penalty are the published ones by default.

    Attributes:
        steps: gradient steps.
        learning_rate: of AdamW at the start.
        final_learning_rate: at the end of the cosine.
        granularity: step between candidate counts, in tokens.
        penalty: weight of the squared distance between cost and target.
        penalty_unit: what cost is measured in there: "relative" scales the model's
            dense cost to DeiT-S's 4.6, "gmacs" is the published absolute unit.
        reference: reproduce the published search path (see `Masked`).
        drop_path: largest rate of stochastic depth.
        augment: what happens to uint8 images and to integer labels on the device.
        seed: of everything random in a step.
    """

    steps: int = 1000
    learning_rate: float = 0.01
    final_learning_rate: float = 0.001
    granularity: int = 1
    penalty: float = 5.0
    penalty_unit: str = "relative"
    reference: bool = False
    drop_path: float = 0.0
    augment: Augment = dataclasses.field(default_factory=imagenet_colours)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, got {self.steps}")
        if self.learning_rate <= 0:
            raise UserError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.penalty_unit not in ("relative", "gmacs"):
            raise UserError(
                f"penalty_unit must be 'relative' or 'gmacs', got {self.penalty_unit!r}"
            )

    def optimiser(self) -> optax.GradientTransformation:
        """Returns AdamW without decay on a cosine (DiffRate, section 4.1)."""
        cosine = optax.cosine_decay_schedule(
            self.learning_rate,
            self.steps,
            self.final_learning_rate / self.learning_rate,
        )
        return optax.adamw(cosine, weight_decay=0.0)

    def macs_per_unit(self, model: ViT) -> float:
        """Returns the multiply-accumulates that count as one unit of cost."""
        if self.penalty_unit == "gmacs":
            return 1e9
        return cost_macs(model, None) / PUBLISHED_DENSE_GMACS


@struct.dataclass
class SearchState:
    """Everything that changes during a search: kilobytes."""

    rates: Rates
    optimiser: Any
    step: Array


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        schedule: costs at most the target.
        learned: the counts as they were learned, before the last tokens were moved.
        rates: the rate logits.
        macs: cost of `schedule`.
    """

    schedule: Schedule
    learned: Schedule
    rates: Rates
    macs: int


def learn_schedule(
    model: ViT,
    params: Params,
    batches: Iterator[dict[str, np.ndarray]] | Batches,
    target: str | float,
    *,
    recipe: Recipe | None = None,
    workdir: str | Path | None = None,
    checkpoint_every: int = 100,
    log_every: int = 10,
) -> SearchResult:
    """Learns how many tokens each block keeps, under a cost budget.

    Args:
        model: from `create_model`.
        params: its weights; they stay as they are.
        batches: iterator of {"image", "label"}: images [B, Y, X, 3], uint8 or
            normalised floats; labels [B] integers, or [B, V] probabilities. Or a
            function from a step to such an iterator, which makes resuming exact.
        target: "2.9" GMACs, or "60%" of the dense cost.
        recipe: how, and which mean and standard deviation bytes are normalised
            with: ImageNet's by default.
        workdir: folder of checkpoints and metrics; none are written by default.
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of metrics.

    Raises:
        UserError: a target out of reach, batches that do not fit the model or run
            out, a loss that is not finite, or a folder of another search.
    """
    recipe = recipe or Recipe()
    budget = parse_budget(target, model)
    if workdir is not None:
        claim(Path(workdir), identity(model, params, budget, recipe), "search.json")
    stream = batches if callable(batches) else lambda start: skip(batches, start)
    loop = Loop(
        what="search",
        steps=recipe.steps,
        workdir=None if workdir is None else Path(workdir),
        checkpoint_every=checkpoint_every,
        log_every=log_every,
        describe=lambda values: describe(values, budget),
    )
    state = loop.run(
        search_step(model, recipe, budget),
        initial_state(model, recipe),
        params,
        lambda start: checked(model, stream(start)),
    )
    return found(model, recipe, budget, state.rates)


def identity(
    model: ViT, params: Params, budget: Budget, recipe: Recipe
) -> dict[str, Json]:
    """Returns all that a search depends on, except the stream of batches."""
    return {
        "target": budget.text,
        "recipe": dataclasses.asdict(recipe),
        "model": architecture(model),
        "params_sha256": fingerprint(params),
    }


def found(model: ViT, recipe: Recipe, budget: Budget, rates: Rates) -> SearchResult:
    """Returns what the rates stand for, brought to the budget."""
    run = Masked(rates, reference=recipe.reference)
    learned = Schedule.from_kept(run.kept(model.geometry))
    schedule = fit_to_budget(learned, model, budget.macs)
    macs = cost_macs(model, schedule)
    provenance = {
        "target": budget.text,
        "macs": macs,
        "dense_macs": cost_macs(model, None),
        "learned": {"prune": learned.prune, "merge": learned.merge},
        "model": architecture(model),
    }
    schedule = dataclasses.replace(schedule, provenance=provenance)
    return SearchResult(schedule, learned, rates, macs)


def fingerprint(params: Params) -> str:
    """Returns the SHA-256 of the weights, in the order of their names."""
    found = hashlib.sha256()
    for path, array in jax.tree.leaves_with_path(jax.device_get(params)):
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()


def initial_state(model: ViT, recipe: Recipe) -> SearchState:
    """Returns the state before the first step."""
    rates = init_rates(model, recipe.granularity)
    return SearchState(rates, recipe.optimiser().init(rates), jnp.zeros((), jnp.int32))


def search_step(
    model: ViT, recipe: Recipe, budget: Budget
) -> Callable[[SearchState, Params, dict[str, Array]], tuple[SearchState, Values]]:
    """Returns the plain function of one step; run it under `parallel.pmap_step`."""
    optimiser = recipe.optimiser()
    unit = recipe.macs_per_unit(model)

    def loss(rates: Rates, params: Params, batch: dict, key: Array):
        images, labels_BV, keys_B = prepare(
            batch, key, recipe.augment, model.num_classes
        )
        run = Masked(rates, reference=recipe.reference)
        out = forward(
            model, params, images, run, drop_path=recipe.drop_path, rng=keys_B
        )
        cross_entropy = optax.softmax_cross_entropy(out.logits, labels_BV).mean()
        macs = cost_macs(model, out.kept)
        penalty = recipe.penalty * ((macs - budget.macs) / unit) ** 2
        return cross_entropy + penalty, (cross_entropy, macs, out.kept)

    def step(
        state: SearchState, params: Params, batch: dict[str, Array]
    ) -> tuple[SearchState, Values]:
        key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
        grads, (cross_entropy, macs, kept) = jax.grad(loss, has_aux=True)(
            state.rates, params, batch, key
        )
        grads, cross_entropy = parallel.mean((grads, cross_entropy))
        penalty = recipe.penalty * ((macs - budget.macs) / unit) ** 2
        updates, opt = optimiser.update(grads, state.optimiser, state.rates)
        rates = optax.apply_updates(state.rates, updates)
        values = {
            "loss": cross_entropy + penalty,
            "cross_entropy": cross_entropy,
            "macs": macs,
            "target_macs": jnp.float32(budget.macs),
            "prune": kept.prune,
            "merge": kept.merge,
        }
        return SearchState(rates, opt, state.step + 1), values

    return step


def describe(values: Values, budget: Budget) -> str:
    """Returns what the progress bar shows: cost against target and the counts."""
    counts = " ".join(str(round(float(count))) for count in values["merge"])
    return (
        f"loss {values['loss']:.3f}, cost {values['macs'] / budget.macs:.1%} of target,"
        f" kept {counts}"
    )
