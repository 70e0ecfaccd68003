"""Random erasing on the device: a rectangle of an image becomes noise."""

import math

import jax
import jax.numpy as jnp

# Zhong et al., "Random Erasing Data Augmentation" (arXiv 1708.04896), with the ranges
# of timm, which DeiT trains with: share of the area, ratio of the sides, attempts.
AREA, RATIO, ATTEMPTS = (0.02, 1 / 3), (0.3, 1 / 0.3), 10


def erase(image_YXC: jax.Array, key: jax.Array, probability: float) -> jax.Array:
    """Returns an image, by chance with normal noise in a rectangle of it.

    Args:
        image_YXC: Normalised.
        key: Of this image alone.
        probability: That it is changed.
    """
    noise_key, box_key = jax.random.split(key)
    numbers = jax.random.uniform(box_key, (1 + 4 * ATTEMPTS,))
    inside_YX = box(numbers[1:].reshape(4, ATTEMPTS), *image_YXC.shape[:2])
    inside_YX &= numbers[0] < probability
    noise_YXC = jax.random.normal(noise_key, image_YXC.shape, image_YXC.dtype)
    return jnp.where(inside_YX[..., None], noise_YXC, image_YXC)


def box(uniform_4A: jax.Array, height: int, width: int) -> jax.Array:
    """Returns which pixels lie in a random rectangle, bool [Y, X].

    Args:
        uniform_4A: Four numbers from 0 to below 1 for each attempt. The first that is
            smaller than the image counts; failing all, there is none.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    """
    area_A, ratio_A, top_A, left_A = uniform_4A
    area_A = height * width * (AREA[0] + (AREA[1] - AREA[0]) * area_A)
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio_A = jnp.exp(low + (high - low) * ratio_A)
    high_A = jnp.round(jnp.sqrt(area_A * ratio_A))
    wide_A = jnp.round(jnp.sqrt(area_A / ratio_A))
    fits_A = (high_A < height) & (wide_A < width)
    first_A = fits_A & (jnp.arange(ATTEMPTS) == jnp.argmax(fits_A))
    top_A = jnp.floor(top_A * (height - high_A + 1))
    left_A = jnp.floor(left_A * (width - wide_A + 1))
    y_Y, x_X = jnp.arange(height), jnp.arange(width)
    # A sum over one attempt picks it, where an index would gather.
    top, left, high, wide = (
        jnp.sum(x_A * first_A) for x_A in (top_A, left_A, high_A, wide_A)
    )
    rows_Y = (y_Y >= top) & (y_Y < top + high)
    columns_X = (x_X >= left) & (x_X < left + wide)
    return rows_Y[:, None] & columns_X[None, :]
