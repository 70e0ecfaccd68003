"""Mixup and cutmix on the device: examples 2i and 2i + 1 of a batch become mixtures.

What happens to a pair depends on the key and the pair's number alone. Devices that hold
whole pairs, hence an even number of examples each, give the same mixtures however many
they are.
"""

import jax
import jax.numpy as jnp

from diffrate_jax.errors import UserError

# Share of the pairs that cutmix takes where both are on, as in DeiT.
CUTMIX_SHARE = 0.5


def check_pairs(size: int) -> None:
    """Refuses a device's share of a batch that holds half a pair.

    Raises:
        UserError: an odd number of examples.
    """
    if size % 2:
        raise UserError(
            "mixup and cutmix mix pairs of images, so that every device needs an even "
            f"number of them, got {size} per device; change batch_size or the number "
            "of devices, or set mixup=0 and cutmix=0"
        )


def mix(
    images_BYXC: jax.Array,
    labels_BV: jax.Array,
    keys_G: jax.Array,
    *,
    mixup: float,
    cutmix: float,
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image with its neighbour, and their labels in the same proportion.

    Zhang et al., "mixup" (arXiv 1710.09412), Yun et al., "CutMix" (arXiv 1905.04899).
    Both images of a pair keep the same share of themselves, as in timm's mode "pair".

    Args:
        images_BYXC: Normalised; 2i and 2i + 1 are neighbours.
        labels_BV: Probabilities.
        keys_G: A key for each pair.
        mixup: Both parameters of the beta distribution of the share; 0: no mixup.
        cutmix: The same; 0: no cutmix.

    Returns:
        Images and labels of the same shapes.

    Raises:
        UserError: an odd number of examples.
    """
    size, height, width, _ = images_BYXC.shape
    check_pairs(size)
    own_GYX, share_G = jax.vmap(
        lambda key: _own(key, height, width, mixup=mixup, cutmix=cutmix)
    )(keys_G)
    images_BYXC = _with_neighbour(images_BYXC, own_GYX[:, None, :, :, None])
    return images_BYXC, _with_neighbour(labels_BV, share_G[:, None, None])


def _with_neighbour(values: jax.Array, own: jax.Array) -> jax.Array:
    """Returns ``own * x + (1 - own) * neighbour`` of values [B, ...]."""
    pairs = values.reshape(-1, 2, *values.shape[1:])
    return (own * pairs + (1 - own) * pairs[:, ::-1]).reshape(values.shape)


def _own(
    key: jax.Array, height: int, width: int, *, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
    """Returns how much of each pixel [Y, X], and of the label, is an image's own."""
    tiny = jnp.finfo(jnp.float32).tiny
    choice, *numbers = jax.random.uniform(key, (7,), minval=tiny)
    cuts = choice < CUTMIX_SHARE if mixup and cutmix else jnp.array(bool(cutmix))
    share = symmetric_beta(jnp.where(cuts, cutmix, mixup), *numbers[:4])
    outside_YX = 1.0 - cut_box(share, *numbers[4:], height, width)
    own_YX = jnp.where(cuts, outside_YX, share)
    # A box that reaches beyond the image takes less than its share.
    return own_YX, jnp.where(cuts, outside_YX.mean(), share)


def symmetric_beta(
    alpha: jax.Array,
    radius: jax.Array,
    turn: jax.Array,
    one: jax.Array,
    other: jax.Array,
) -> jax.Array:
    """Makes a number from Beta(alpha, alpha) of four from the open interval (0, 1).

    `jax.random.beta` rejects in loops, which take longer to compile than all of the
    augmentation. This is exact too: Beta(alpha + 1, alpha + 1) by Ulrich's polar
    formula (Devroye, "Non-Uniform Random Variate Generation", IX.4.3), and from there
    to alpha because a gamma variate of shape alpha is one of shape alpha + 1, times a
    uniform number to the power 1 / alpha.
    """
    away = jnp.sqrt(1 - radius ** (2 / (2 * alpha + 1))) * jnp.cos(2 * jnp.pi * turn)
    # Odds multiply, so their logarithms add: no power of a small number vanishes.
    log_odds = 2 * jnp.arctanh(away) + (jnp.log(one) - jnp.log(other)) / alpha
    return jax.nn.sigmoid(log_odds)


def cut_box(
    share: jax.Array, down: jax.Array, right: jax.Array, height: int, width: int
) -> jax.Array:
    """Returns a rectangle of ``1 - share`` of the area, cut at the borders, [Y, X].

    Args:
        share: Of the area, left outside.
        down: Place of its centre, from 0 to below 1, anywhere in the image,
        right: across as well.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Returns:
        1 inside, 0 outside.
    """
    size_2 = jnp.array([height, width])
    centre_2 = jnp.floor(jnp.stack([down, right]) * size_2)
    half_2 = jnp.floor(size_2 * jnp.sqrt(1 - share)) // 2
    first_2, last_2 = centre_2 - half_2, centre_2 + half_2
    y_Y, x_X = jnp.arange(height), jnp.arange(width)
    rows_Y = (y_Y >= first_2[0]) & (y_Y < last_2[0])
    columns_X = (x_X >= first_2[1]) & (x_X < last_2[1])
    return (rows_Y[:, None] & columns_X[None, :]).astype(jnp.float32)
