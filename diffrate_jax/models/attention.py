"""Proportional attention on living tokens, and what it shows to compression."""

import jax
import jax.numpy as jnp

from diffrate_jax.shapes import Array
from diffrate_jax.tokens import Attended, at_least_float32

# exp(80) times any float32 sum of tokens stays finite.
LARGEST_EXPONENT = 80.0


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
    scale = query_BHNE.shape[-1] ** -0.5
    score_BHNM = jnp.einsum("BHNE,BHME->BHNM", query_BHNE * scale, key_BHNE)
    score_BHNM = score_BHNM.astype(at_least_float32(score_BHNM))
    if size_BN is not None:
        score_BHNM += jnp.log(size_BN)[:, None, None, :]
    if alive_BN is None:
        weight_BHNM = jax.nn.softmax(score_BHNM, axis=-1)
    else:
        weight_BHNM = masked_softmax(score_BHNM, alive_BN, epsilon)
    mixed_BHNE = jnp.einsum(
        "BHNM,BHME->BHNE", weight_BHNM.astype(value_BHNE.dtype), value_BHNE
    )
    importance_BN = importance(
        jax.lax.stop_gradient(weight_BHNM), alive_BN, prefix_tokens
    )
    keys_BNE = jax.lax.stop_gradient(jnp.mean(key_BHNE, axis=1))
    return mixed_BHNE, Attended(importance_BN, keys_BNE)


def masked_softmax(score_BHNM: Array, alive_BN: Array, epsilon: float) -> Array:
    """Softmax over living keys, the mask multiplied in: its gradient is the method.

    A dead key weighs exactly 0 and still passes a gradient to the mask, which neither
    adding minus infinity nor a guard would do. A token always sees itself, so that no
    sum is empty. The maximum is taken over what is seen, so that the living never
    underflow; the exponent of the others is bounded, so that they never overflow.
    """
    open_B1NM = open_keys(alive_BN)
    fixed_BHNM = jax.lax.stop_gradient(score_BHNM)
    if not epsilon:
        fixed_BHNM = jnp.where(open_B1NM > 0, fixed_BHNM, -jnp.inf)
    most_BHN1 = jnp.max(fixed_BHNM, axis=-1, keepdims=True)
    exponent_BHNM = jnp.minimum(score_BHNM - most_BHN1, LARGEST_EXPONENT)
    weight_BHNM = jnp.exp(exponent_BHNM) * open_B1NM
    total_BHN1 = jnp.sum(weight_BHNM, axis=-1, keepdims=True)
    num_tokens = score_BHNM.shape[-1]
    return (weight_BHNM + epsilon / num_tokens) / (total_BHN1 + epsilon)


def open_keys(alive_BN: Array) -> Array:
    """Returns [B, 1, N, M]: 1 where query n may see key m, with the mask's gradient."""
    self_NM = jnp.eye(alive_BN.shape[1], dtype=alive_BN.dtype)
    alive_B11M = alive_BN[:, None, None, :]
    return alive_B11M + (1.0 - alive_B11M) * self_NM


def importance(weight_BHNM: Array, alive_BN: Array | None, prefix_tokens: int) -> Array:
    """Returns attention received [B, M]: from the class token, or from all the living.

    DiffRate, section 3.2 (class attention); without a class token the mean over heads
    and living queries.
    """
    if prefix_tokens:
        return jnp.mean(weight_BHNM[:, :, 0, :], axis=1)
    received_BNM = jnp.mean(weight_BHNM, axis=1)
    if alive_BN is None:
        return jnp.mean(received_BNM, axis=1)
    living_BN = jax.lax.stop_gradient(alive_BN)
    total_BM = jnp.einsum("BNM,BN->BM", received_BNM, living_BN)
    return total_BM / jnp.sum(living_BN, axis=1, keepdims=True)
