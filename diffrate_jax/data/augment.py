"""Augmentation on the device: a pure, jittable part of the training step.

The randomness of an example depends on the key and on its number in the global batch
alone, so the number of devices that share a batch never changes a result.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from diffrate_jax.errors import UserError

Colour = tuple[float, float, float]
# Of the photos of ImageNet; what torchvision's and timm's models are made for.
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Augment:
    """What happens to training images and labels.

    Attributes:
        mean: Subtracted from each channel, of values in 0..1.
        std: Divides each channel afterwards.
        flip: Mirror every other image, left to right, by chance.
        shift: Largest random translation in each direction, in pixels; pixels that
            come into view repeat the border.
        label_smoothing: Share of each label that is spread over all classes, 0..1.

    Raises:
        UserError: a standard deviation or the shift or the smoothing is out of range.
    """

    mean: Colour
    std: Colour
    flip: bool = False
    shift: int = 0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if min(self.std) <= 0:
            raise UserError(f"std must be positive, found {self.std}; correct it")
        if self.shift < 0:
            raise UserError(
                f"shift must be 0 or more pixels, found {self.shift}; raise it"
            )
        if not 0 <= self.label_smoothing < 1:
            raise UserError(
                "label_smoothing must be at least 0 and below 1, found "
                f"{self.label_smoothing}; change it"
            )


def normalise(images_BYXC: jax.Array, mean: Colour, std: Colour) -> jax.Array:
    """Returns ``(images / 255 - mean) / std``, float32 [B, Y, X, C].

    Args:
        images_BYXC: Bytes, or floats in 0..255.
        mean: One number per channel, for values in 0..1.
        std: One number per channel, for values in 0..1.
    """
    mean_C, std_C = jnp.array(mean, jnp.float32), jnp.array(std, jnp.float32)
    return (images_BYXC.astype(jnp.float32) / 255 - mean_C) / std_C


def augment(
    images_BYXC: jax.Array,
    labels_B: jax.Array,
    index_B: jax.Array,
    key: jax.Array,
    config: Augment,
    num_classes: int,
) -> tuple[jax.Array, jax.Array]:
    """Flips, shifts and normalises images, and smooths labels.

    Args:
        images_BYXC: Bytes, or floats in 0..255.
        labels_B: Class numbers.
        index_B: Each example's number in the global batch.
        key: The key of the step, the same on every device.
        config: What to do; static under `jax.jit`.
        num_classes: Static under `jax.jit`.

    Returns:
        float32 images [B, Y, X, C] and float32 probabilities [B, V].
    """
    if config.flip or config.shift:
        keys_B = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index_B)
        images_BYXC = jax.vmap(_move, in_axes=(0, 0, None))(images_BYXC, keys_B, config)
    labels_BV = jax.nn.one_hot(labels_B, num_classes, dtype=jnp.float32)
    smooth = config.label_smoothing
    labels_BV = labels_BV * (1 - smooth) + smooth / num_classes
    return normalise(images_BYXC, config.mean, config.std), labels_BV


def _move(image_YXC: jax.Array, key: jax.Array, config: Augment) -> jax.Array:
    """Flips and shifts one image by choosing which pixel each pixel shows."""
    flip_key, shift_key = jax.random.split(key)
    height, width, _ = image_YXC.shape
    down, right = jax.random.randint(shift_key, (2,), -config.shift, config.shift + 1)
    rows_Y = jnp.clip(jnp.arange(height) - down, 0, height - 1)
    columns_X = jnp.clip(jnp.arange(width) - right, 0, width - 1)
    if config.flip:
        flipped = jax.random.bernoulli(flip_key)
        columns_X = jnp.where(flipped, width - 1 - columns_X, columns_X)
    return image_YXC[rows_Y[:, None], columns_X[None, :]]
