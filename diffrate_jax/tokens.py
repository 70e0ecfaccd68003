"""Tokens, and the operations on them: rank, match, take.

Both ways of running compression, masked for search and gathered for inference, are made
of these, and of `folding`, so there is one definition of scores and matching.
"""

import jax
import jax.numpy as jnp
from flax import struct

from diffrate_jax.shapes import Array


@struct.dataclass
class Tokens:
    """The state that flows through the blocks.

    Attributes:
        x: features [B, N, D].
        size: how many patches a token stands for [B, N], similarity-weighted, at
            least float32; None while all are 1.
        alive: 1.0 for tokens that still exist, else 0.0 [B, N]; carries the gradient
            of the rates. None where every token present is alive.
        origin: 1.0 where original token o ended in token n [B, N, O]; None unless
            traced.
    """

    x: Array
    size: Array | None = None
    alive: Array | None = None
    origin: Array | None = None

    def sizes(self) -> Array:
        """Returns the sizes [B, N], ones where nothing was merged yet."""
        if self.size is not None:
            return self.size
        return jnp.ones(self.x.shape[:2], at_least_float32(self.x))


@struct.dataclass
class Attended:
    """What attention shows to compression, without gradients.

    Attributes:
        importance: [B, N] attention a token receives from the class token, mean over
            heads; from all living tokens where there is no class token.
        keys: [B, N, E] mean over heads of the keys, the features ToMe compares.
    """

    importance: Array
    keys: Array


def one_each(x_BND: Array) -> Array:
    """Returns the origin [B, N, N] of tokens of which each is still itself."""
    batch, num_tokens = x_BND.shape[:2]
    itself_NN = jnp.eye(num_tokens, dtype=jnp.float32)
    return jnp.broadcast_to(itself_NN, (batch, num_tokens, num_tokens))


def finished(tokens: Tokens) -> Tokens:
    """Fills in sizes and marks of life; the dead have no origin."""
    alive_BN = tokens.alive
    if alive_BN is None:
        alive_BN = jnp.ones_like(tokens.sizes())
    origin = tokens.origin
    if origin is not None:
        origin = origin * jax.lax.stop_gradient(alive_BN)[..., None]
    return tokens.replace(size=tokens.sizes(), alive=alive_BN, origin=origin)


def at_least_float32(x: Array) -> jnp.dtype:
    """Returns the type for sizes and scores beside activations of `x`'s type."""
    return jnp.promote_types(x.dtype, jnp.float32)


def ranking_score(
    importance_BN: Array, alive_BN: Array | None, prefix_tokens: int
) -> Array:
    """Returns scores [B, N] that fall in rank order: prefix, living, dead tokens."""
    score_BN = importance_BN
    if alive_BN is not None:
        score_BN = jnp.where(alive_BN > 0, score_BN, -jnp.inf)
    is_prefix_N = jnp.arange(score_BN.shape[1]) < prefix_tokens
    return jnp.where(is_prefix_N, jnp.inf, score_BN)


def before(score_BN: Array) -> Array:
    """Returns whether token m comes before token n [B, N, M] by falling score.

    Ties go to the lower position.
    """
    position_N = jnp.arange(score_BN.shape[1])
    other_B1M, own_BN1 = score_BN[:, None, :], score_BN[:, :, None]
    earlier_NM = position_N[None, :] < position_N[:, None]
    return (other_B1M > own_BN1) | ((other_B1M == own_BN1) & earlier_NM)


def rank(score_BN: Array) -> Array:
    """Returns each token's rank [B, N] by falling score; ties to the lower position.

    Counting the tokens that come before, instead of sorting, keeps positions and
    shapes fixed and needs no gather.
    """
    return jnp.sum(before(score_BN), axis=-1, dtype=jnp.int32)


def unit(x_BND: Array) -> Array:
    """Scales features to length 1; zero features stay zero."""
    x_BND = x_BND.astype(at_least_float32(x_BND))
    square_BN1 = jnp.sum(x_BND * x_BND, axis=-1, keepdims=True)
    tiny = jnp.finfo(x_BND.dtype).tiny
    return x_BND * jax.lax.rsqrt(jnp.maximum(square_BN1, tiny))


def products(a_BSE: Array, b_BKE: Array) -> Array:
    """Returns the inner product of every pair [B, S, K]: of units, their cosine."""
    return jnp.einsum("BSE,BKE->BSK", a_BSE, b_BKE)


def most(value_BSK: Array, allowed: Array) -> Array:
    """Returns the largest allowed value of each row [B, S]; -inf where there is none.

    Args:
        value_BSK: values.
        allowed: of any shape that broadcasts to theirs.
    """
    return jnp.max(jnp.where(allowed, value_BSK, -jnp.inf), axis=-1)


def match(closeness_BSK: Array, allowed: Array) -> tuple[Array, Array]:
    """Finds the closest allowed destination of every source.

    Args:
        closeness_BSK: of sources to destinations.
        allowed: where a destination may be used; of any shape that broadcasts.

    Returns:
        Index into K and closeness, both [B, S]; ties go to the lower index.
    """
    best_BS = most(closeness_BSK, allowed)
    # The first of the best: two plain reductions run in vector registers on CPU,
    # argmax does not.
    index_K = jnp.arange(closeness_BSK.shape[-1])
    is_best_BSK = allowed & (closeness_BSK == best_BS[..., None])
    index_BS = jnp.min(jnp.where(is_best_BSK, index_K, len(index_K)), axis=-1)
    return index_BS, best_BS


def rows(value: Array, index_BK: Array) -> Array:
    """Returns the rows of an array [B, N, …] at the given positions [B, K, …]."""
    index = index_BK.reshape(index_BK.shape + (1,) * (value.ndim - 2))
    return jnp.take_along_axis(value, index, axis=1)


def take(tokens: Tokens, index_BK: Array) -> Tokens:
    """Returns the tokens at the given positions, all living."""
    given = lambda value: None if value is None else rows(value, index_BK)  # noqa: E731
    return Tokens(
        x=given(tokens.x), size=given(tokens.size), origin=given(tokens.origin)
    )
