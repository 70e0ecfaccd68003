"""Corrupted images, to ask what a schedule is worth where the data has changed.

Three of the corruptions of ImageNet-C (Hendrycks & Dietterich, arXiv 1903.12261,
section 3), each with one severity in a unit of its own instead of levels from 1 to 5.
They come after cutting and scaling and before normalising, on the device. What happens
to an image depends on its number in the split alone: every schedule sees the same
images, on any number of devices and hosts and in batches of any size.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Self

import jax
import jax.numpy as jnp

from diffrate_jax.errors import UserError, did_you_mean

# Largest severity; what it means.
KINDS = {
    "noise": (1.0, "standard deviation of normal noise, of values from 0 to 1"),
    "blur": (100.0, "standard deviation of a Gaussian, in pixels"),
    "contrast": (1.0, "share of the contrast that is lost"),
}
_SEED = 0


@dataclass(frozen=True)
class Corruption:
    """What is done to the images of an evaluation.

    Attributes:
        kind: key of `KINDS`.
        severity: in the unit of its kind; 0 changes nothing.

    Raises:
        UserError: an unknown kind, or a severity out of its range.
    """

    kind: str
    severity: float

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.kind not in KINDS:
            hint = did_you_mean(self.kind, KINDS)
            raise UserError(f"unknown corruption {self.kind!r}; {hint}")
        most, meaning = KINDS[self.kind]
        if not (isfinite(self.severity) and 0 <= self.severity <= most):
            raise UserError(
                f"the severity of {self.kind} must be from 0 to {most:g} ({meaning}), "
                f"got {self.severity:g}"
            )

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Reads "noise:0.1", "blur:1.0" or "contrast:0.5"; nothing: None.

        Raises:
            UserError: none of them.
        """
        if not text:
            return None
        kind, _, number = text.partition(":")
        try:
            severity = float(number)
        except ValueError as error:
            raise UserError(
                "a corruption is noise:0.1, blur:1.0 or contrast:0.5, or nothing, got "
                f"{text!r}"
            ) from error
        return cls(kind, severity)

    def __call__(self, images_BYXC: jax.Array, number_B: jax.Array) -> jax.Array:
        """Returns the images, corrupted, float32 in 0..255 [B, Y, X, C].

        Args:
            images_BYXC: Bytes, or floats in 0..255.
            number_B: Each image's number in its split.
        """
        images_BYXC = images_BYXC.astype(jnp.float32)
        if not self.severity:
            return images_BYXC
        change = {"noise": _noisy, "blur": _blurred, "contrast": _faded}[self.kind]
        changed_BYXC = change(images_BYXC / 255, number_B, self.severity)
        return 255 * jnp.clip(changed_BYXC, 0.0, 1.0)


def _noisy(images_BYXC: jax.Array, number_B: jax.Array, std: float) -> jax.Array:
    key = jax.random.key(_SEED)
    shape = images_BYXC.shape[1:]

    def noise(number: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, number), shape)

    return images_BYXC + std * jax.vmap(noise)(number_B)


def _blurred(images_BYXC: jax.Array, number_B: jax.Array, sigma: float) -> jax.Array:
    """Returns weighted means; at the border of the pixels that are there."""
    _, height, width, _ = images_BYXC.shape
    # A Gaussian is a product over rows and columns, so two small matrices do it.
    return jnp.einsum(
        "YT,XU,BTUC->BYXC",
        _gaussian(height, sigma),
        _gaussian(width, sigma),
        images_BYXC,
        precision=jax.lax.Precision.HIGHEST,
    )


def _gaussian(size: int, sigma: float) -> jax.Array:
    """Returns what each pixel of a line takes of each other [Y, T]; rows sum to 1."""
    place_Y = jnp.arange(size, dtype=jnp.float32)
    distance_YT = (place_Y[:, None] - place_Y[None, :]) / sigma
    weight_YT = jnp.exp(-0.5 * distance_YT**2)
    return weight_YT / jnp.sum(weight_YT, axis=1, keepdims=True)


def _faded(images_BYXC: jax.Array, number_B: jax.Array, lost: float) -> jax.Array:
    mean_B11C = jnp.mean(images_BYXC, axis=(1, 2), keepdims=True)
    return mean_B11C + (1.0 - lost) * (images_BYXC - mean_B11C)
