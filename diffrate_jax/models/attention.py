"""Proportional attention on living tokens, and what it shows to compression."""

import jax
import jax.numpy as jnp
from flax import struct

from diffrate_jax.shapes import Array
from diffrate_jax.tokens import Attended, at_least_float32

# exp(80) times any float32 sum of tokens stays finite.
LARGEST_EXPONENT = 80.0


@struct.dataclass
class Weights:
    """Softmax in factors: query n gives key m the weight exp_nm · share_m / total_n.

    Where some are dead, what belongs to a key, its size and whether it lives,
    multiplies the values [M, E] and never the map [N, M]. So the gradient of sizes and
    mask comes out of a product that backpropagation needs anyway, not out of sums over
    maps, which halves the cost of attention in search. Dividing last saves a pass over
    the map.

    Attributes:
        exp: exponentials of the scores [B, H, N, M].
        share: what a key counts for [B, M]: its size, 0 where it is dead; None: all
            alive, and sizes are in the scores.
        own: what a dead query gives to itself [B, H, N, 1]; None: all alive.
        total: sums over the keys [B, H, N, 1].
        floor: what every key gets besides (epsilon of the published form).
    """

    exp: Array
    share: Array | None
    own: Array | None
    total: Array
    floor: float = struct.field(pytree_node=False, default=0.0)


def attend(
    query_BHNE: Array,
    key_BHNE: Array,
    value_BHNE: Array,
    *,
    size_BN: Array | None,
    alive_BN: Array | None,
    prefix_tokens: int,
    epsilon: float,
) -> tuple[Array, Attended]:
    """Mixes tokens, a key counting as many times as the patches it stands for.

    Args:
        query_BHNE: queries, unscaled; keys and values likewise.
        key_BHNE: keys.
        value_BHNE: values.
        size_BN: patches a token stands for; None leaves attention plain (ToMe,
            section 3.2, "proportional attention").
        alive_BN: 0/1 mask with the straight-through gradient; None: all alive.
        prefix_tokens: 0 where there is no class token to judge importance.
        epsilon: what the published masked softmax adds; 0 in the clean form, and
            where all are alive.

    Returns:
        The mixed values [B, H, N, E] and what compression may see.
    """
    scale = query_BHNE.shape[-1] ** -0.5
    score_BHNM = products(query_BHNE * scale, key_BHNE)
    if alive_BN is None:
        weights = soften(score_BHNM, size_BN)
    else:
        if size_BN is None:
            size_BN = jnp.ones_like(alive_BN, score_BHNM.dtype)
        own_BHN1 = jnp.sum(
            query_BHNE * scale * key_BHNE,
            axis=-1,
            keepdims=True,
            dtype=score_BHNM.dtype,
        )
        weights = soften_masked(score_BHNM, own_BHN1, size_BN, alive_BN, epsilon)
    if alive_BN is None and prefix_tokens:
        importance_BN = class_attention(query_BHNE[:, :, 0], key_BHNE, size_BN)
    else:
        importance_BN = importance(weights, alive_BN, prefix_tokens)
    seen = Attended(importance_BN, jnp.mean(key_BHNE, axis=1))
    return mix(weights, value_BHNE), jax.lax.stop_gradient(seen)


def products(query_BHNE: Array, key_BHME: Array) -> Array:
    """Returns the inner products of queries and keys [B, H, N, M], at least float32."""
    return jnp.einsum(
        "BHNE,BHME->BHNM",
        query_BHNE,
        key_BHME,
        preferred_element_type=at_least_float32(query_BHNE),
    )


def class_attention(query_BHE: Array, key_BHNE: Array, size_BN: Array | None) -> Array:
    """Returns the attention that the class token pays to each token [B, N].

    The mean over heads (DiffRate, section 3.2), from the class token's row alone: to
    take it out of the map is dearer, and a fused kernel has none.

    Args:
        query_BHE: of the class token, unscaled.
        key_BHNE: keys.
        size_BN: what a token counts for; None: each the same.
    """
    scale = query_BHE.shape[-1] ** -0.5
    score_BHN = products(query_BHE[:, :, None] * scale, key_BHNE)[:, :, 0]
    if size_BN is not None:
        score_BHN += jnp.log(size_BN)[:, None, :]
    return jnp.mean(jax.nn.softmax(score_BHN, axis=-1), axis=1)


def soften(score_BHNM: Array, size_BM: Array | None) -> Weights:
    """Softmax over keys that are all alive, log(size) added to their scores.

    On CPUs this is a tenth faster than sizes as factors: the sum over a map's rows is
    then a plain one, and no product.
    """
    if size_BM is not None:
        score_BHNM += jnp.log(size_BM)[:, None, None, :]
    most_BHN1 = jnp.max(score_BHNM, axis=-1, keepdims=True)
    exp_BHNM = jnp.exp(score_BHNM - jax.lax.stop_gradient(most_BHN1))
    total_BHN1 = jnp.sum(exp_BHNM, axis=-1, keepdims=True)
    return Weights(exp_BHNM, share=None, own=None, total=total_BHN1)


def soften_masked(
    score_BHNM: Array,
    own_BHN1: Array,
    size_BN: Array,
    alive_BN: Array,
    epsilon: float,
) -> Weights:
    """Softmax over living keys, the mask multiplied in: its gradient is the method.

    A dead key weighs exactly 0 and still passes a gradient to the mask, which neither
    adding minus infinity nor a guard would do. A token always sees itself, so that no
    sum is empty; the gradient of `own` cancels that of the token as its own key. The
    maximum is taken over what is seen, so that the living never underflow; the
    exponent of the others is bounded, so that they never overflow.

    Args:
        score_BHNM: scaled products of queries and keys, sizes not counted.
        own_BHN1: every query's score with its own key.
        size_BN: what a living key counts for.
        alive_BN: see `attend`, as is epsilon.
        epsilon: added to every sum.
    """
    share_BM = size_BN * alive_BN
    most_BHN1 = largest(score_BHNM, own_BHN1, size_BN if epsilon else share_BM)
    exp_BHNM = jnp.exp(bounded(score_BHNM - most_BHN1))
    total_BHN1 = jnp.einsum("BHNM,BM->BHN", exp_BHNM, share_BM)[..., None] + epsilon
    dead_BN = size_BN * (1.0 - alive_BN)
    own_BHN1 = jnp.exp(own_BHN1 - most_BHN1) * dead_BN[:, None, :, None]
    total_BHN1 += own_BHN1
    floor = epsilon / score_BHNM.shape[-1]
    return Weights(exp_BHNM, share_BM, own_BHN1, total_BHN1, floor)


def largest(score_BHNM: Array, own_BHN1: Array, seen_BM: Array) -> Array:
    """Returns the largest score that a query sees [B, H, N, 1], without gradient."""
    score_BHNM, own_BHN1, seen_BM = jax.lax.stop_gradient(
        (score_BHNM, own_BHN1, seen_BM)
    )
    seen_BHNM = score_BHNM + jnp.log(seen_BM)[:, None, None, :]
    return jnp.maximum(jnp.max(seen_BHNM, axis=-1, keepdims=True), own_BHN1)


def bounded(exponent_BHNM: Array) -> Array:
    """Limits exponents and lets the gradient through: where it matters it is zero.

    Only a dead key can need the limit, and what it weighs is multiplied by zero.
    """
    excess_BHNM = jnp.maximum(exponent_BHNM - LARGEST_EXPONENT, 0.0)
    return exponent_BHNM - jax.lax.stop_gradient(excess_BHNM)


def mix(weights: Weights, value_BHNE: Array) -> Array:
    """Returns the weighted means of the values [B, H, N, E]."""
    shared_BHME = value_BHNE
    if weights.share is not None:
        shared_BHME = value_BHNE * weights.share[:, None, :, None]
    mixed_BHNE = jnp.einsum(
        "BHNM,BHME->BHNE",
        weights.exp.astype(value_BHNE.dtype),
        shared_BHME.astype(value_BHNE.dtype),
        preferred_element_type=weights.exp.dtype,
    )
    if weights.own is not None:
        mixed_BHNE += weights.own * value_BHNE
    if weights.floor:
        mixed_BHNE += weights.floor * jnp.sum(value_BHNE, axis=2, keepdims=True)
    return (mixed_BHNE / weights.total).astype(value_BHNE.dtype)


def importance(weights: Weights, alive_BN: Array | None, prefix_tokens: int) -> Array:
    """Returns attention received [B, M]: from the class token, or from all the living.

    DiffRate, section 3.2 (class attention); without a class token the mean over heads
    and living queries.
    """
    share_BM = weights.share
    if share_BM is None:
        share_BM = jnp.ones(weights.exp.shape[::3], weights.exp.dtype)
    if prefix_tokens:
        row_BHM = weights.exp[:, :, 0] * share_BM[:, None, :] + weights.floor
        return jnp.mean(row_BHM / weights.total[:, :, 0], axis=1)
    living_BN = jnp.ones_like(share_BM) if alive_BN is None else alive_BN
    living_BN = jax.lax.stop_gradient(living_BN)
    voice_BHN = living_BN[:, None, :] / weights.total[..., 0]
    voice_BHN /= jnp.sum(living_BN, axis=1)[:, None, None] * voice_BHN.shape[1]
    # Exactly, wherever it runs: ranks hang on it.
    received_BM = share_BM * jnp.einsum(
        "BHNM,BHN->BM", weights.exp, voice_BHN, precision=jax.lax.Precision.HIGHEST
    )
    return received_BM + weights.floor * jnp.sum(voice_BHN, axis=(1, 2))[:, None]
