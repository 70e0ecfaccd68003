"""Training a model's weights, with a schedule in place or without one."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from diffrate_jax import parallel
from diffrate_jax.batches import Batches, checked, prepare
from diffrate_jax.data.augment import Augment
from diffrate_jax.errors import UserError
from diffrate_jax.loop import Loop, Values
from diffrate_jax.models import Model, Params, forward
from diffrate_jax.models.vit import Compression
from diffrate_jax.shapes import Array


@dataclasses.dataclass(frozen=True)
class TrainRecipe:
    """How to train weights.

    Attributes:
        steps: gradient steps.
        learning_rate: of AdamW at its highest.
        final_learning_rate: at the end of the cosine.
        warmup_steps: steps of linear warm-up.
        weight_decay: on matrices; biases, norms and tables are not decayed.
        clip_norm: largest norm of the gradient.
        drop_path: largest rate of stochastic depth.
        remat: compute each block again for its gradient, instead of keeping it.
        augment: what happens to images and labels on the device.
        seed: of everything random in a step.
    """

    steps: int
    learning_rate: float
    final_learning_rate: float
    warmup_steps: int
    weight_decay: float
    clip_norm: float
    drop_path: float
    augment: Augment
    remat: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps < self.steps:
            raise UserError(
                f"warmup_steps must be fewer than the {self.steps} steps, "
                f"got {self.warmup_steps}"
            )

    def optimiser(self) -> optax.GradientTransformation:
        """Returns clipped AdamW with warm-up and cosine."""
        rate = optax.warmup_cosine_decay_schedule(
            0.0,
            self.learning_rate,
            self.warmup_steps,
            self.steps,
            self.final_learning_rate,
        )
        is_matrix = lambda params: jax.tree.map(lambda w: w.ndim == 2, params)  # noqa: E731
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(rate, weight_decay=self.weight_decay, mask=is_matrix),
        )


@struct.dataclass
class TrainState:
    """Everything that changes during training."""

    params: Params
    optimiser: Any
    step: Array


def train(
    model: Model,
    params: Params,
    batches: Batches,
    recipe: TrainRecipe,
    *,
    compression: Compression | None = None,
    workdir: Path | None = None,
    checkpoint_every: int = 100,
    log_every: int = 10,
) -> Params:
    """Trains weights by cross entropy, with the compression in place.

    Args:
        model: from `create_model`.
        params: weights to start from.
        batches: function from a step to an iterator of {"image", "label"}.
        recipe: how.
        compression: what runs in the forward pass; None trains the dense model.
        workdir: folder of checkpoints and metrics; none are written by default.
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of metrics.

    Returns:
        The trained weights, as host arrays.

    Raises:
        UserError: batches that do not fit or run out, or a loss that is not finite.
    """
    loop = Loop("train", recipe.steps, workdir, checkpoint_every, log_every)
    optimiser = recipe.optimiser()
    start = TrainState(params, optimiser.init(params), jnp.zeros((), jnp.int32))
    step = train_step(model, recipe, compression)
    state = loop.run(step, start, (), lambda k: checked(model, batches(k)))
    return state.params


def train_step(
    model: Model, recipe: TrainRecipe, compression: Compression | None
) -> Callable[[TrainState, tuple, dict[str, Array]], tuple[TrainState, Values]]:
    """Returns the plain function of one step; run it under `parallel.pmap_step`."""
    optimiser = recipe.optimiser()

    def loss(params: Params, batch: dict, key: Array):
        images, labels_BV, keys_B = prepare(
            batch, key, recipe.augment, model.num_classes
        )
        how = {"drop_path": recipe.drop_path, "rng": keys_B, "remat": recipe.remat}
        out = forward(model, params, images, compression, **how)
        return optax.softmax_cross_entropy(out.logits, labels_BV).mean()

    def step(
        state: TrainState, _: tuple, batch: dict[str, Array]
    ) -> tuple[TrainState, Values]:
        key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
        value, grads = jax.value_and_grad(loss)(state.params, batch, key)
        value, grads = parallel.mean((value, grads))
        updates, opt = optimiser.update(grads, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt, state.step + 1), {"loss": value}

    return step
