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

    What belongs to a key, its size and whether it lives, multiplies the values [M, E]
    and never the map [N, M]. So the gradient of sizes and mask comes out of a product
    that backpropagation needs anyway, not out of sums over maps, which halves the
    cost of attention in search; and dividing last saves a pass over the map.

    Attributes:
        exp: exponentials of the scores [B, H, N, M].
        share: what a key counts for [B, M]: its size, 0 where it is dead.
        own: what a dead query gives to itself [B, H, N, 1]; None: all alive.
        total: sums over the keys [B, H, N, 1].
        floor: what every key gets besides (epsilon of the published form).
    """

    exp: Array
    share: Array
    own: Array | None
    total: Array
    floor: float = struct.field(pytree_node=False)


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
        epsilon: what the published masked softmax adds; 0 in the clean form.

    Returns:
        The mixed values [B, H, N, E] and what compression may see.
    """
    query_BHNE = query_BHNE * query_BHNE.shape[-1] ** -0.5
    score_BHNM = jnp.einsum(
        "BHNE,BHME->BHNM",
        query_BHNE,
        key_BHNE,
        preferred_element_type=at_least_float32(query_BHNE),
    )
    if size_BN is None:
        size_BN = jnp.ones(score_BHNM.shape[::3], score_BHNM.dtype)
    own_BHN1 = None
    if alive_BN is not None:
        own_BHN1 = jnp.sum(
            query_BHNE * key_BHNE, axis=-1, keepdims=True, dtype=score_BHNM.dtype
        )
    weights = soften(score_BHNM, own_BHN1, size_BN, alive_BN, epsilon)
    importance_BN = importance(jax.lax.stop_gradient(weights), alive_BN, prefix_tokens)
    keys_BNE = jax.lax.stop_gradient(jnp.mean(key_BHNE, axis=1))
    return mix(weights, value_BHNE), Attended(importance_BN, keys_BNE)


def soften(
    score_BHNM: Array,
    own_BHN1: Array | None,
    size_BN: Array,
    alive_BN: Array | None,
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
        own_BHN1: every query's score with its own key, needed where some are dead.
        size_BN: what a living key counts for.
        alive_BN: see `attend`; None: all alive.
        epsilon: see `attend`.
    """
    share_BM = size_BN if alive_BN is None else size_BN * alive_BN
    most_BHN1 = largest(score_BHNM, own_BHN1, size_BN if epsilon else share_BM)
    exponent_BHNM = score_BHNM - most_BHN1
    if alive_BN is not None:
        exponent_BHNM = bounded(exponent_BHNM)
    exp_BHNM = jnp.exp(exponent_BHNM)
    total_BHN1 = jnp.einsum("BHNM,BM->BHN", exp_BHNM, share_BM)[..., None] + epsilon
    if alive_BN is not None:
        dead_BN = size_BN * (1.0 - alive_BN)
        own_BHN1 = jnp.exp(own_BHN1 - most_BHN1) * dead_BN[:, None, :, None]
        total_BHN1 += own_BHN1
    floor = epsilon / score_BHNM.shape[-1]
    return Weights(exp_BHNM, share_BM, own_BHN1, total_BHN1, floor)


def largest(score_BHNM: Array, own_BHN1: Array | None, seen_BM: Array) -> Array:
    """Returns the largest score that a query sees [B, H, N, 1], without gradient."""
    score_BHNM, own_BHN1, seen_BM = jax.lax.stop_gradient(
        (score_BHNM, own_BHN1, seen_BM)
    )
    seen_BHNM = score_BHNM + jnp.log(seen_BM)[:, None, None, :]
    most_BHN1 = jnp.max(seen_BHNM, axis=-1, keepdims=True)
    return most_BHN1 if own_BHN1 is None else jnp.maximum(most_BHN1, own_BHN1)


def bounded(exponent_BHNM: Array) -> Array:
    """Limits exponents and lets the gradient through: where it matters it is zero.

    Only a dead key can need the limit, and what it weighs is multiplied by zero.
    """
    excess_BHNM = jnp.maximum(exponent_BHNM - LARGEST_EXPONENT, 0.0)
    return exponent_BHNM - jax.lax.stop_gradient(excess_BHNM)


def mix(weights: Weights, value_BHNE: Array) -> Array:
    """Returns the weighted means of the values [B, H, N, E]."""
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
    if prefix_tokens:
        row_BHM = weights.exp[:, :, 0] * weights.share[:, None, :] + weights.floor
        return jnp.mean(row_BHM / weights.total[:, :, 0], axis=1)
    living_BN = jnp.ones_like(weights.share) if alive_BN is None else alive_BN
    living_BN = jax.lax.stop_gradient(living_BN)
    voice_BHN = living_BN[:, None, :] / weights.total[..., 0]
    voice_BHN /= jnp.sum(living_BN, axis=1)[:, None, None] * voice_BHN.shape[1]
    # Exactly, wherever it runs: ranks hang on it.
    received_BM = weights.share * jnp.einsum(
        "BHNM,BHN->BM", weights.exp, voice_BHN, precision=jax.lax.Precision.HIGHEST
    )
    return received_BM + weights.floor * jnp.sum(voice_BHN, axis=(1, 2))[:, None]
