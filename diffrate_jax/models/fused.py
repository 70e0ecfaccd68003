"""Attention as one fused operation, sizes and all, for inference.

A fused kernel never writes the map of attention down, so log(size) cannot be added to
it; kernels that take a bias take one as large as the map, which costs what fusing had
saved. Here the sizes ride in channels of queries and keys instead: the products of the
extra channels add log(size) to every score, with nothing left for the kernel to know.
"""

import jax
import jax.numpy as jnp

from diffrate_jax.models.attention import class_attention
from diffrate_jax.shapes import Array
from diffrate_jax.tokens import Attended

FORMS = ("plain", "xla", "cudnn")
# Kernels want heads whose width is a multiple of this.
MULTIPLE = 8


def best_form(device: jax.Device, dtype: jnp.dtype) -> str:
    """Returns the form of attention for a device and a type of activations.

    On CPUs the plain form is two to five times as fast as XLA's fused one (DeiT-S's
    heads, 40 to 197 tokens, batch 16); cuDNN's kernel takes narrow types alone, from
    NVIDIA's Ampere on.
    """
    capability = float(getattr(device, "compute_capability", 0))
    narrow = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    return (
        "cudnn" if device.platform == "gpu" and narrow and capability >= 8 else "plain"
    )


def attend_fused(
    query_BNHE: Array,
    key_BNHE: Array,
    value_BNHE: Array,
    *,
    size_BN: Array | None,
    implementation: str,
) -> tuple[Array, Attended]:
    """Mixes tokens as `attention.attend` does where all are alive.

    What the class token pays to others, which is importance, comes from its own row,
    one query to a head. So there has to be a class token.

    Args:
        query_BNHE: queries, unscaled; keys and values likewise.
        key_BNHE: keys.
        value_BNHE: values.
        size_BN: patches a token stands for; None leaves attention plain.
        implementation: of `jax.nn.dot_product_attention`: "xla" or "cudnn".

    Returns:
        The mixed values [B, N, H, E] and what compression may see.
    """
    scale = query_BNHE.shape[-1] ** -0.5
    seen = Attended(
        class_attention(query_BNHE[:, 0], jnp.swapaxes(key_BNHE, 1, 2), size_BN),
        jnp.mean(key_BNHE, axis=2),
    )
    width = value_BNHE.shape[-1]
    if size_BN is not None:
        query_BNHE, key_BNHE = with_sizes(query_BNHE, key_BNHE, size_BN, scale)
        value_BNHE = widened(value_BNHE, [])
    mixed_BNHE = jax.nn.dot_product_attention(
        query_BNHE, key_BNHE, value_BNHE, scale=scale, implementation=implementation
    )
    return mixed_BNHE[..., :width], seen


def with_sizes(
    query_BNHE: Array, key_BNHE: Array, size_BN: Array, scale: float
) -> tuple[Array, Array]:
    """Returns queries and keys whose scaled products hold log(size) of the key.

    In a narrow type one channel carries log(size) rounded to that type and the next
    what rounding left over, so that the sum is about as exact as a float32 bias.
    """
    wanted_BN = jnp.log(size_BN) / scale
    high_BN = wanted_BN.astype(key_BNHE.dtype)
    low_BN = (wanted_BN - high_BN.astype(wanted_BN.dtype)).astype(key_BNHE.dtype)
    one_BN = jnp.ones(query_BNHE.shape[:2], query_BNHE.dtype)
    return widened(query_BNHE, [one_BN, one_BN]), widened(key_BNHE, [high_BN, low_BN])


def widened(x_BNHE: Array, channels: list[Array]) -> Array:
    """Returns heads with channels [B, N] at their end, filled up with zeros."""
    batch, num_tokens, heads, _ = shape = x_BNHE.shape
    columns = [
        jnp.broadcast_to(channel_BN[:, :, None, None], (*shape[:3], 1))
        for channel_BN in channels
    ]
    rest = jnp.zeros((batch, num_tokens, heads, MULTIPLE - len(channels)), x_BNHE.dtype)
    return jnp.concatenate([x_BNHE, *columns, rest], axis=-1)
