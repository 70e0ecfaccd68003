"""Jitted inference: one compilation for one schedule and each batch size."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffrate_jax.compress import Gathered
from diffrate_jax.errors import UserError, did_you_mean
from diffrate_jax.models import Model, Params, check_images, forward
from diffrate_jax.models.fused import FORMS, best_form
from diffrate_jax.models.precision import narrowed
from diffrate_jax.models.vit import Compression, ViT
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Array

DTYPES = ("float32", "bfloat16")
AXIS = "devices"


class Predict:
    """Compiled programs of one model: `logits = predict(images)`.

    Any number of images will do: they run in the smallest batch that holds them, the
    rest of it filled with zeros; what is more than the largest batch runs in several.

    Attributes:
        batch_sizes: of the compiled programs, ascending.
        programs: by batch size, `jax.stages.Compiled`.
        compile_seconds: how long compiling all of them took.
        attention: the form of attention in them.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        compression: Compression | None,
        batch_sizes: Sequence[int],
        devices: Sequence[jax.Device],
    ) -> None:
        self.batch_sizes, self._model = tuple(sorted(batch_sizes)), model
        self.attention = getattr(model, "attention", "plain")
        mesh = Mesh(np.array(devices), (AXIS,))
        whole = NamedSharding(mesh, PartitionSpec())
        self._split = NamedSharding(mesh, PartitionSpec(AXIS))
        self._params = jax.device_put(params, whole)
        run = jax.jit(
            lambda p, x: forward(model, p, x, compression).logits,
            in_shardings=(whole, self._split),
            out_shardings=self._split,
        )
        began = time.perf_counter()
        self.programs = {
            size: run.lower(self._params, self._images(size)).compile()
            for size in self.batch_sizes
        }
        self.compile_seconds = time.perf_counter() - began

    def _images(self, batch_size: int) -> jax.ShapeDtypeStruct:
        shape = (batch_size, self._model.image_size, self._model.image_size, 3)
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def __call__(self, images: Array) -> Array:
        """Returns logits [B, V] of normalised images [B, Y, X, 3], on the devices.

        Raises:
            UserError: images of another size or type.
        """
        check_images(self._model, images)
        largest = self.batch_sizes[-1]
        if len(images) <= largest:
            return self._run(images)
        starts = range(0, len(images), largest)
        parts = [self._run(images[start : start + largest]) for start in starts]
        return jnp.concatenate(parts)

    def put(self, images: Array) -> Array:
        """Returns a whole batch of images as the programs take it, on the devices."""
        return jax.device_put(jnp.asarray(images, jnp.float32), self._split)

    def _run(self, images: Array) -> Array:
        count = len(images)
        size = next(size for size in self.batch_sizes if size >= count)
        if count < size:
            images = jnp.pad(images, ((0, size - count), (0, 0), (0, 0), (0, 0)))
        logits_BV = self.programs[size](self._params, self.put(images))
        return logits_BV[:count] if count < size else logits_BV


def compile_inference(
    model: Model,
    params: Params,
    schedule: Schedule | Compression | None,
    *,
    batch_size: int | Sequence[int] = 64,
    dtype: Any = "float32",
    devices: Sequence[jax.Device] | None = None,
    attention: str = "auto",
) -> Predict:
    """Compiles a model with a schedule in place for inference.

    Args:
        model: from `create_model`.
        params: its weights.
        schedule: a `Schedule`, a `ToMe`, or None for the dense model.
        batch_size: images to a call; several, such as (1, 8, 64), compile a program
            each, and a call takes the smallest that holds its images.
        dtype: of weights and activations: "float32" or "bfloat16" (in which a ViT's
            embedding, and sums within blocks of attention, stay float32).
        devices: over which every batch is split; one by default.
        attention: "plain", "xla" or "cudnn" (`fused`); "auto" takes the fastest for the
            device and the type.

    Raises:
        UserError: a schedule that does not fit the model, an unknown dtype or
            attention, or a batch that the devices cannot share.
    """
    if str(dtype) not in DTYPES:
        raise UserError(f"dtype must be 'float32' or 'bfloat16', got {dtype!r}")
    sizes = (batch_size,) if isinstance(batch_size, int) else tuple(batch_size)
    devices = list(devices or jax.local_devices()[:1])
    if not sizes or any(size < 1 or size % len(devices) for size in sizes):
        raise UserError(
            f"batch_size must be a positive multiple of the {len(devices)} device(s), "
            f"got {batch_size}; change it"
        )
    if isinstance(schedule, Schedule):
        schedule = Gathered(schedule)
    params = narrowed(params, jnp.dtype(dtype))
    model = model.clone(dtype=jnp.dtype(dtype))
    form = form_of(attention, model, devices[0], str(dtype))
    if isinstance(model, ViT):
        model = model.clone(attention=form)
    return Predict(model, params, schedule, sizes, devices)


def form_of(attention: str, model: Model, device: jax.Device, dtype: str) -> str:
    """Returns the form of attention that an argument asks for.

    Raises:
        UserError: there is none of that name, or it does not run there.
    """
    if attention not in ("auto", *FORMS):
        hint = did_you_mean(attention, ("auto", *FORMS))
        raise UserError(f"unknown attention {attention!r}; {hint}")
    best = best_form(device, dtype) if has_fused_forms(model) else "plain"
    if attention == "auto":
        return best
    if attention != "plain" and not has_fused_forms(model):
        raise UserError(
            f"attention {attention!r} needs a ViT with a class token; take 'auto'"
        )
    if attention == "cudnn" != best:
        raise UserError(
            "attention 'cudnn' needs an NVIDIA GPU from Ampere on, and bfloat16, got "
            f"{device.device_kind} and {dtype}; take 'auto'"
        )
    return attention


def has_fused_forms(model: Model) -> bool:
    """Returns whether importance can be had without the whole map of attention."""
    return isinstance(model, ViT) and model.prefix_tokens > 0
