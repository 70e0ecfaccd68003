"""Jitted inference: one compilation for one schedule and one batch size."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffrate_jax.compress import Gathered
from diffrate_jax.errors import UserError
from diffrate_jax.models import Model, Params, check_images, forward
from diffrate_jax.models.vit import Compression
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Array


class Predict:
    """A compiled model: `logits = predict(images)`.

    Attributes:
        batch_size: of the compiled program; fewer images are padded to it.
        compile_seconds: how long compiling took.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        compression: Compression | None,
        batch_size: int,
    ) -> None:
        self.batch_size, self._model = batch_size, model
        self._params = jax.device_put(params)
        size = model.image_size
        images = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.float32)
        run = jax.jit(lambda p, x: forward(model, p, x, compression).logits)
        began = time.perf_counter()
        self._run = run.lower(self._params, images).compile()
        self.compile_seconds = time.perf_counter() - began

    def __call__(self, images: Array) -> Array:
        """Returns logits [B, V] of normalised float32 images [B, Y, X, 3].

        Raises:
            UserError: images of another size or type, or more than `batch_size`.
        """
        images = jnp.asarray(images)
        check_images(self._model, images)
        missing = self.batch_size - len(images)
        if missing < 0:
            raise UserError(
                f"this program was compiled for at most {self.batch_size} images, "
                f"got {len(images)}; compile it with a larger batch_size"
            )
        if missing:
            images = jnp.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
        logits_BV = self._run(self._params, images.astype(jnp.float32))
        return logits_BV[: self.batch_size - missing] if missing else logits_BV


def compile_inference(
    model: Model,
    params: Params,
    schedule: Schedule | Compression | None,
    *,
    batch_size: int = 64,
    dtype: Any = "float32",
) -> Predict:
    """Compiles a model with a schedule in place for inference.

    Args:
        model: from `create_model`.
        params: its weights.
        schedule: a `Schedule`, a `ToMe`, or None for the dense model.
        batch_size: images to a call.
        dtype: of weights and activations: "float32" or "bfloat16".

    Raises:
        UserError: a schedule that does not fit the model, or an unknown dtype.
    """
    if str(dtype) not in ("float32", "bfloat16"):
        raise UserError(f"dtype must be 'float32' or 'bfloat16', got {dtype!r}")
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    if isinstance(schedule, Schedule):
        schedule = Gathered(schedule)
    params = jax.tree.map(lambda w: np.asarray(w, jnp.dtype(dtype)), params)
    return Predict(model.clone(dtype=jnp.dtype(dtype)), params, schedule, batch_size)
