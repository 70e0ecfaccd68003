"""Training a model's weights, with a schedule in place or without one.

A schedule runs in its gathered form: sequences really get shorter, and so does a step.
What is ranked and matched carries no gradient in either form, so that both give the
weights the same one; a test proves it.
"""

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
from diffrate_jax.training.average import averaged
from diffrate_jax.training.distillation import distillation, taught
from diffrate_jax.training.layer_decay import scale_by_layer


@dataclasses.dataclass(frozen=True)
class TrainRecipe:
    """How to train weights.

    Attributes:
        steps: gradient steps.
        learning_rate: of AdamW at its highest.
        final_learning_rate: at the end of the cosine.
        warmup_steps: steps of linear warm-up.
        weight_decay: on kernels; biases, norms and tables are not decayed.
        clip_norm: largest norm of the gradient.
        drop_path: largest rate of stochastic depth.
        augment: what happens to images and labels on the device.
        distill: share of the loss that is the divergence from the dense model with the
            weights of the start; the rest is cross entropy. With 1 no label is used.
        temperature: that softens both outputs in this comparison.
        layer_decay: the learning rate of each layer over that of the next.
        ema: decay of the moving average of the weights that a run ends in; 0 ends
            in the last ones.
        remat: compute each block again for its gradient, instead of keeping it.
        seed: of everything random in a step.

    Raises:
        UserError: a value that no training can use.
    """

    steps: int
    learning_rate: float
    final_learning_rate: float
    warmup_steps: int
    weight_decay: float
    clip_norm: float
    drop_path: float
    augment: Augment
    distill: float = 0.0
    temperature: float = 1.0
    layer_decay: float = 1.0
    ema: float = 0.0
    remat: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps < self.steps:
            raise UserError(
                f"warmup_steps must be fewer than the {self.steps} steps, "
                f"got {self.warmup_steps}"
            )
        if not 0 <= self.distill <= 1:
            raise UserError(f"distill must be from 0 to 1, got {self.distill}")
        if not self.temperature > 0:
            raise UserError(f"temperature must be above 0, got {self.temperature}")
        if not 0 < self.layer_decay <= 1:
            raise UserError(
                f"layer_decay must be above 0 and at most 1, got {self.layer_decay}"
            )
        if not 0 <= self.ema < 1:
            raise UserError(f"ema must be at least 0 and below 1, got {self.ema}")

    def rate(self) -> optax.Schedule:
        """Returns the learning rate by step: linear warm-up, then a cosine."""
        return optax.warmup_cosine_decay_schedule(
            0.0,
            self.learning_rate,
            self.warmup_steps,
            self.steps,
            self.final_learning_rate,
        )

    def optimiser(self) -> optax.GradientTransformation:
        """Returns clipped AdamW, its rate perhaps smaller in earlier layers."""
        chain = [
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(self.rate(), weight_decay=self.weight_decay, mask=kernels),
        ]
        if self.layer_decay < 1:
            chain.append(scale_by_layer(self.layer_decay))
        return optax.chain(*chain)

    def start(self, params: Params) -> "TrainState":
        """Returns the state before the first step."""
        average = jax.tree.map(jnp.array, params) if self.ema else None
        fresh = self.optimiser().init(params)
        return TrainState(params, fresh, jnp.zeros((), jnp.int32), average)


def kernels(params: Params) -> Params:
    """Returns which weights are kernels, of dense layers and convolutions."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


@struct.dataclass
class TrainState:
    """Everything that changes during training; `average` is None without one."""

    params: Params
    optimiser: Any
    step: Array
    average: Params | None = None

    @property
    def best(self) -> Params:
        """The weights that a run ends in: their average, where there is one."""
        return self.params if self.average is None else self.average


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
    """Trains weights by labels, dense outputs or both, with the compression in place.

    Args:
        model: from `create_model`.
        params: weights to start from; those of the teacher, where there is one.
        batches: function from a step to an iterator of {"image", "label"}; labels are
            needed unless all is distilled.
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
    describe = lambda values: (  # noqa: E731
        f"loss {values['loss']:.3f}, rate {values['learning_rate']:.1e}"
    )
    loop = Loop("train", recipe.steps, workdir, checkpoint_every, log_every, describe)
    state = loop.run(
        train_step(model, recipe, compression),
        recipe.start(params),
        params if recipe.distill else (),
        lambda step: checked(model, batches(step), labels=recipe.distill < 1),
    )
    return state.best


def train_step(
    model: Model, recipe: TrainRecipe, compression: Compression | None
) -> Callable[[TrainState, Any, dict[str, Array]], tuple[TrainState, Values]]:
    """Returns the plain function of one step; run it under `parallel.pmap_step`.

    Its constants are the teacher's weights, or nothing where nothing is distilled.
    """
    optimiser, rate = recipe.optimiser(), recipe.rate()

    def loss(params: Params, teacher: Any, batch: dict, key: Array):
        images, labels_BV, keys_B = prepare(
            batch, key, recipe.augment, model.num_classes
        )
        how = {"drop_path": recipe.drop_path, "rng": keys_B, "remat": recipe.remat}
        logits_BV = forward(model, params, images, compression, **how).logits
        total, parts = 0.0, {}
        if recipe.distill < 1:
            value = optax.softmax_cross_entropy(logits_BV, labels_BV).mean()
            total += (1 - recipe.distill) * value
            parts["cross_entropy"] = value
        if recipe.distill:
            taught_BV = taught(model, teacher, images)
            value = distillation(logits_BV, taught_BV, recipe.temperature).mean()
            total += recipe.distill * value
            parts["distillation"] = value
        return total, parts

    def step(
        state: TrainState, teacher: Any, batch: dict[str, Array]
    ) -> tuple[TrainState, Values]:
        key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
        found = jax.value_and_grad(loss, has_aux=True)(
            state.params, teacher, batch, key
        )
        (value, parts), grads = parallel.mean(found)
        updates, opt = optimiser.update(grads, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            average = averaged(average, params, recipe.ema, state.step)
        values = {"loss": value, **parts, "learning_rate": rate(state.step)}
        values["gradient_norm"] = optax.tree.norm(grads)
        return TrainState(params, opt, state.step + 1, average), values

    return step
