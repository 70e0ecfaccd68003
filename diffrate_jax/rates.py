"""Compression rates: logits over candidate counts, and the counts they stand for.

DiffRate (arXiv 2305.17997), section 3.3: a block's rate is the expectation of a
distribution over candidates, made an integer by a straight-through ceiling, and the
same distribution says how likely the token of a given rank is to survive.
All of it is float32, whatever the activations are: a count is a discrete thing.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from diffrate_jax.errors import UserError
from diffrate_jax.shapes import Array, Geometry

# An expectation that is an integer up to rounding must not jump to the next one.
CEILING_SLACK = 1e-4


@struct.dataclass
class Kept:
    """Tokens kept after each operation, float32 [L], class token included."""

    prune: Array | None
    merge: Array


@struct.dataclass
class Rates:
    """What search learns: rate logits, one row per block.

    Attributes:
        prune: logits [L, R] of pruning; None where a model only merges.
        merge: logits [L, R] of merging.
        granularity: step between neighbouring candidates, in tokens.
    """

    prune: Array | None
    merge: Array
    granularity: int = struct.field(pytree_node=False, default=1)

    def kept(self, geometry: Geometry, *, reference: bool = False) -> Kept:
        """Returns the counts the rates stand for; see `kept_counts`.

        Raises:
            UserError: rates of another model.
        """
        num_candidates = len(candidate_counts(geometry.num_patches, self.granularity))
        shape = (geometry.depth, num_candidates)
        if self.merge.shape != shape:
            raise UserError(
                f"this model has rates of shape {shape} at granularity "
                f"{self.granularity}, got {self.merge.shape}; make them with "
                "init_rates(model, granularity)"
            )
        rows = (self.prune, self.merge)
        return Kept(
            *(
                a
                if a is None
                else kept_counts(a, geometry, self.granularity, reference=reference)
                for a in rows
            )
        )

    def survival(
        self,
        operation: str,
        block: int,
        rank_BN: Array,
        geometry: Geometry,
        can_go_BN: Array,
    ) -> Array:
        """Returns the probability [B, N] that the token of a rank survives a block."""
        del can_go_BN  # The published probability asks no token whether it can go.
        logits_R = getattr(self, operation)[block]
        return survival(logits_R, rank_BN, geometry, self.granularity)


@struct.dataclass
class Located:
    """Rates with one number per block: the expected count itself.

    One token more is shared among the tokens next in line to go or to stay, by a
    logistic density of their distance from the line. So the gradient is that of one
    token more or less; uniform logits spread it over all tokens alike.

    Attributes:
        prune: expected patches kept after pruning [L]; None for rules that only merge.
        merge: expected patches kept after merging [L].
        spread: scale of the density, in tokens.
    """

    prune: Array | None
    merge: Array
    spread: Array

    def kept(self, geometry: Geometry, *, reference: bool = False) -> Kept:
        """Returns the counts, rounded up straight-through; blocks without rates: all.

        Raises:
            UserError: expectations of another model.
        """
        if self.merge.shape != (geometry.depth,):
            raise UserError(
                f"this model has {geometry.depth} blocks, got expected counts of shape "
                f"{self.merge.shape}; give one per block"
            )
        slack = 0.0 if reference else CEILING_SLACK
        free_L = np.array(geometry.compress)

        def counts(expected_L: Array | None) -> Array | None:
            if expected_L is None:
                return None
            kept_L = straight_through_ceiling(expected_L, slack)
            every_L = np.array(geometry.dense, np.float32)
            return jnp.where(free_L, kept_L + geometry.prefix_tokens, every_L)

        return Kept(counts(self.prune), counts(self.merge))

    def survival(
        self,
        operation: str,
        block: int,
        rank_BN: Array,
        geometry: Geometry,
        can_go_BN: Array,
    ) -> Array:
        """Returns what is differentiated for survival [B, N]; its value means nothing.

        The shares of an example's tokens add up to one, so that near the ends, where
        few tokens can go or come back, a token counts as much as elsewhere.
        """
        expected = getattr(self, operation)[block]
        distance_BN = (expected - (rank_BN - geometry.prefix_tokens)) / self.spread
        near_BN = jax.nn.sigmoid(distance_BN) * jax.nn.sigmoid(-distance_BN)
        near_BN = jax.lax.stop_gradient(jnp.where(can_go_BN, near_BN, 0.0))
        total_B1 = jnp.sum(near_BN, axis=1, keepdims=True)
        tiny = jnp.finfo(near_BN.dtype).tiny
        return expected * near_BN / jnp.maximum(total_B1, tiny)


def zero_rates(
    geometry: Geometry, granularity: int = 1, *, prune: bool = True
) -> Rates:
    """Returns the start of a published search: every candidate equally likely."""
    num_candidates = len(candidate_counts(geometry.num_patches, granularity))
    zeros_LR = jnp.zeros((geometry.depth, num_candidates), jnp.float32)
    return Rates(zeros_LR if prune else None, zeros_LR, granularity)


def refuse_pruning(prune: object, geometry: Geometry) -> None:
    """Refuses to prune where only merging is possible.

    Args:
        prune: counts or rates of pruning; None where nothing is pruned.
        geometry: of the model.

    Raises:
        UserError: there are some, for a model that only merges.
    """
    if prune is not None and geometry.only_merges:
        raise UserError(
            "this model only merges, since every token's place is filled again before "
            "the next stage, and got counts or rates of pruning; give prune=None"
        )


def candidate_counts(num_patches: int, granularity: int) -> np.ndarray:
    """Returns the kept patches a block may choose from, float32 [R], falling.

    >>> candidate_counts(9, 4).tolist()
    [9.0, 5.0, 1.0]

    Raises:
        UserError: a granularity outside 1 .. num_patches.
    """
    if not 1 <= granularity <= num_patches:
        raise UserError(
            f"granularity must lie between 1 and the {num_patches} patches, "
            f"got {granularity}"
        )
    return np.arange(num_patches, 0, -granularity, dtype=np.float32)


def straight_through_ceiling(value: Array, slack: float = 0.0) -> Array:
    """Rounds up and lets the gradient through unchanged."""
    ceiling = jnp.ceil(jax.lax.stop_gradient(value) - slack)
    return ceiling + (value - jax.lax.stop_gradient(value))


def kept_counts(
    logits_LR: Array, geometry: Geometry, granularity: int, *, reference: bool
) -> Array:
    """Returns the tokens kept by each block [L], with the gradient of the expectation.

    Blocks without rates keep everything.

    Args:
        logits_LR: rate logits of one operation.
        geometry: of the model the rates belong to.
        granularity: step between candidates.
        reference: round up as the published code does, without slack.
    """
    candidates_R = candidate_counts(geometry.num_patches, granularity)
    probs_LR = jax.nn.softmax(logits_LR.astype(jnp.float32), axis=-1)
    expected_L = jnp.sum(probs_LR * candidates_R, axis=-1)
    slack = 0.0 if reference else CEILING_SLACK
    kept_L = straight_through_ceiling(expected_L, slack) + geometry.prefix_tokens
    every_L = np.array(geometry.dense, np.float32)
    return jnp.where(np.array(geometry.compress), kept_L, every_L)


def survival(
    logits_R: Array, rank_BN: Array, geometry: Geometry, granularity: int
) -> Array:
    """Returns the probability [B, N] that the token of a given rank survives.

    It is the mass of the candidates that keep more tokens than the rank: one
    comparison for all candidates (DiffRate, section 3.3).
    """
    counts_R = candidate_counts(geometry.num_patches, granularity)
    keeps_BNR = counts_R + geometry.prefix_tokens > rank_BN[..., None]
    probs_R = jax.nn.softmax(logits_R.astype(jnp.float32))
    return jnp.sum(jnp.where(keeps_BNR, probs_R, 0.0), axis=-1)
