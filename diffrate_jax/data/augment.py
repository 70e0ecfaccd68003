"""Augmentation on the device: a pure, jittable part of the training step.

The randomness of an example depends on the key and on its number in the global batch
alone, that of a mixed pair on the pair's number: how many devices share a batch never
changes a result.
"""

from dataclasses import dataclass, replace
from typing import Self

import jax
import jax.numpy as jnp

from diffrate_jax.data.erase import erase
from diffrate_jax.data.mix import mix
from diffrate_jax.errors import UserError

Colour = tuple[float, float, float]
# Of the photos of ImageNet; what torchvision's and timm's models are made for.
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# Folded into a key, so that no two purposes share one: 0 and 1 move images and drop
# paths.
_ERASE, _MIX = 2, 3


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
        mixup: Parameter of the beta distribution by which neighbours are mixed, 0 for
            not at all; DeiT has 0.8.
        cutmix: The same for a rectangle of the neighbour; DeiT has 1. Where both are
            on, each takes half of the pairs.
        erasing: Share of the images of which a rectangle becomes noise; DeiT has 0.25.

    Raises:
        UserError: a value out of its range.
    """

    mean: Colour
    std: Colour
    flip: bool = False
    shift: int = 0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0

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

        for name in ("mixup", "cutmix"):
            if not getattr(self, name) >= 0:
                raise UserError(
                    f"{name} must be 0 or more, found {getattr(self, name)}; raise it"
                )
        if not 0 <= self.erasing <= 1:
            raise UserError(
                f"erasing must be from 0 to 1, found {self.erasing}; change it"
            )

    @property
    def mixes(self) -> bool:
        """Whether pairs of images are mixed."""
        return bool(self.mixup or self.cutmix)

    def plain(self) -> Self:
        """Returns the same without anything random."""
        return replace(self, flip=False, shift=0, mixup=0.0, cutmix=0.0, erasing=0.0)


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
    labels: jax.Array,
    index_B: jax.Array,
    key: jax.Array,
    config: Augment,
    num_classes: int,
) -> tuple[jax.Array, jax.Array]:
    """Flips, shifts, normalises, erases and mixes images; smooths and mixes labels.

    Args:
        images_BYXC: Bytes, or floats in 0..255.
        labels: Class numbers [B], or probabilities [B, V], which are not smoothed.
        index_B: Each example's number in the global batch.
        key: The key of the step, the same on every device.
        config: What to do; static under `jax.jit`.
        num_classes: Static under `jax.jit`.

    Returns:
        float32 images [B, Y, X, C] and float32 probabilities [B, V].

    Raises:
        UserError: an odd number of examples, if pairs are to be mixed.
    """
    if config.flip or config.shift:
        keys_B = _keys(key, index_B)
        images_BYXC = jax.vmap(_move, in_axes=(0, 0, None))(images_BYXC, keys_B, config)
    images_BYXC = normalise(images_BYXC, config.mean, config.std)
    if config.erasing:
        keys_B = jax.vmap(jax.random.fold_in, (0, None))(_keys(key, index_B), _ERASE)
        images_BYXC = jax.vmap(erase, (0, 0, None))(images_BYXC, keys_B, config.erasing)
    labels_BV = labels if labels.ndim == 2 else smoothed(labels, config, num_classes)
    if config.mixes:
        keys_G = jax.vmap(jax.random.fold_in, (0, None))(
            _keys(key, index_B[::2] // 2), _MIX
        )
        alphas = {"mixup": config.mixup, "cutmix": config.cutmix}
        images_BYXC, labels_BV = mix(images_BYXC, labels_BV, keys_G, **alphas)
    return images_BYXC, labels_BV


def smoothed(labels_B: jax.Array, config: Augment, num_classes: int) -> jax.Array:
    """Returns probabilities of which a share is spread over all classes [B, V]."""
    labels_BV = jax.nn.one_hot(labels_B, num_classes, dtype=jnp.float32)
    smooth = config.label_smoothing
    return labels_BV * (1 - smooth) + smooth / num_classes


def _keys(key: jax.Array, number_B: jax.Array) -> jax.Array:
    """Returns a key for each example or pair."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, number_B)


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
