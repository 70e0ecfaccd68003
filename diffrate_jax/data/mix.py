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
    choice_key, share_key, box_key = jax.random.split(key, 3)
    by_both = jax.random.bernoulli(choice_key, CUTMIX_SHARE)
    cuts = by_both if mixup and cutmix else jnp.array(bool(cutmix))
    alpha = jnp.where(cuts, cutmix, mixup)
    share = jax.random.beta(share_key, alpha, alpha)
    outside_YX = 1.0 - cut_box(box_key, share, height, width)
    own_YX = jnp.where(cuts, outside_YX, share)
    # A box that reaches beyond the image takes less than its share.
    return own_YX, jnp.where(cuts, outside_YX.mean(), share)


def cut_box(key: jax.Array, share: jax.Array, height: int, width: int) -> jax.Array:
    """Returns a rectangle of ``1 - share`` of the area, cut at the borders, [Y, X].

    Its centre may lie anywhere; 1 inside, 0 outside.
    """
    size_2 = jnp.array([height, width])
    centre_2 = jax.random.randint(key, (2,), 0, size_2)
    half_2 = jnp.floor(size_2 * jnp.sqrt(1 - share)).astype(jnp.int32) // 2
    first_2, last_2 = centre_2 - half_2, centre_2 + half_2
    y_Y, x_X = jnp.arange(height), jnp.arange(width)
    rows_Y = (y_Y >= first_2[0]) & (y_Y < last_2[0])
    columns_X = (x_X >= first_2[1]) & (x_X < last_2[1])
    return (rows_Y[:, None] & columns_X[None, :]).astype(jnp.float32)
