"""Folding: tokens that go become part of those that stay, whichever way they run."""

import jax
import jax.numpy as jnp

from diffrate_jax.shapes import Array
from diffrate_jax.tokens import Tokens, rows


def fold(
    destination: Tokens,
    source: Tokens,
    assignment_BSK: Array,
    weights: tuple[Array, Array] | None = None,
) -> Tokens:
    """Folds sources into destinations: features are averaged, sizes and origins added.

    Features, sizes and provenance all pass through the same assignment matrix, which
    is ToMe's (arXiv 2210.09461) one matching with many uses, held as data.

    Args:
        destination: the K tokens that stay.
        source: the S tokens to fold away.
        assignment_BSK: 1.0 where source s goes to destination k, else 0.0.
        weights: ([B, K], [B, S]) weights of the mean; plain mean by default.
    """
    x_BKD, x_BSD = destination.x, source.x
    A_BSK = assignment_BSK.astype(x_BKD.dtype)
    if weights is None:
        total_BK = 1.0 + jnp.sum(A_BSK, axis=1)
    else:
        weight_BK, weight_BS = weights
        total_BK = weight_BK + spread(assignment_BSK, weight_BS[..., None])[..., 0]
        x_BKD, x_BSD = x_BKD * weight_BK[..., None], x_BSD * weight_BS[..., None]
    mean_BKD = (x_BKD + spread(A_BSK, x_BSD)) / total_BK[..., None]
    size_BK = (
        destination.sizes() + spread(assignment_BSK, source.sizes()[..., None])[..., 0]
    )
    origin = destination.origin
    if origin is not None:
        origin = origin + spread(assignment_BSK, source.origin)
    return destination.replace(
        x=mean_BKD.astype(destination.x.dtype), size=size_BK, origin=origin
    )


def merge(
    destination: Tokens,
    source: Tokens,
    index_BS: Array,
    weights: tuple[Array, Array] | None = None,
) -> Tokens:
    """Folds every source into one destination, as `fold` does.

    On CPUs, where gathering is cheap, means are computed of those destinations alone
    that receive a source: one pass over the features in place of three.

    Args:
        destination: the K tokens that stay.
        source: the S tokens to fold away.
        index_BS: the destination of each source.
        weights: ([B, K], [B, S]) weights of the mean; plain mean by default.
    """
    num_tokens = destination.x.shape[1]
    size = destination.sizes().dtype

    def everywhere(destination: Tokens, source: Tokens) -> Tokens:
        assignment_BSK = jax.nn.one_hot(index_BS, num_tokens, dtype=size)
        return fold(destination, source, assignment_BSK, weights)

    def received(destination: Tokens, source: Tokens) -> Tokens:
        x_BKD = where_received(destination.x, source.x, index_BS, weights)
        # The compiler drops what this computes of the features.
        return everywhere(destination, source).replace(x=x_BKD)

    return jax.lax.platform_dependent(
        destination, source, cpu=received, default=everywhere
    )


def where_received(
    x_BKD: Array,
    x_BSD: Array,
    index_BS: Array,
    weights: tuple[Array, Array] | None = None,
) -> Array:
    """Returns destinations' features [B, K, D], the mean where a source is folded in.

    Args:
        x_BKD: features of the destinations.
        x_BSD: features of the sources.
        index_BS: the destination of each source.
        weights: see `merge`.
    """
    exact = jax.lax.Precision.HIGHEST
    ones = lambda x: jnp.ones(x.shape[:2], x.dtype)  # noqa: E731
    weight_BK, weight_BS = weights or (ones(x_BKD), ones(x_BSD))
    together_BST = (index_BS[:, :, None] == index_BS[:, None, :]).astype(x_BSD.dtype)
    weight_BS1, own_BS1 = weight_BS[..., None], rows(weight_BK, index_BS)[..., None]
    sum_BSD = own_BS1 * rows(x_BKD, index_BS) + jnp.einsum(
        "BST,BTD->BSD", together_BST, weight_BS1 * x_BSD, precision=exact
    )
    total_BS1 = own_BS1 + jnp.einsum(
        "BST,BTD->BSD", together_BST, weight_BS1, precision=exact
    )
    mean_BSD = (sum_BSD / total_BS1).astype(x_BKD.dtype)
    source_S1 = jnp.arange(index_BS.shape[1])[:, None]
    hits_BSK = index_BS[:, :, None] == jnp.arange(x_BKD.shape[1])
    last_BK = jnp.max(jnp.where(hits_BSK, source_S1, -1), axis=1)
    received_BKD = rows(mean_BSD, jnp.maximum(last_BK, 0))
    return jnp.where((last_BK >= 0)[..., None], received_BKD, x_BKD)


def spread(assignment_BSK: Array, value_BSD: Array) -> Array:
    """Sums the values of the sources at their destinations [B, K, D], exactly."""
    return jnp.einsum(
        "BSK,BSD->BKD",
        assignment_BSK.astype(value_BSD.dtype),
        value_BSD,
        precision=jax.lax.Precision.HIGHEST,
    )


def restore(tokens: Tokens, x_BND: Array) -> Array:
    """Returns features [B, O, D] in the places of the tokens that the model began with.

    A place takes the features of the token it ended in. Where the dead are still there
    a place blends its own token's and those by the mask, whose gradient so tells what
    the place would gain by its own token; the published restoring does that too.

    Args:
        tokens: with their origin.
        x_BND: their features, or what became of them.
    """
    origin_BNO = jax.lax.stop_gradient(tokens.origin)
    if tokens.alive is None:
        # All are there in their order, or some were really folded away.
        whole = origin_BNO.shape[1] == origin_BNO.shape[2]
        return x_BND if whole else spread(origin_BNO, x_BND)
    own_BN1 = tokens.alive[..., None]
    ended_BND = spread(origin_BNO * jax.lax.stop_gradient(own_BN1), x_BND)
    return (own_BN1 * x_BND + (1.0 - own_BN1) * ended_BND).astype(x_BND.dtype)
