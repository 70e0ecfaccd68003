"""DiffRate's compression of one block, masked for search and gathered for inference.

The two forms call the same ranking, matching and folding (`tokens`); a test proves
them equal. Masked keeps every token in place and marks the dead, so that shapes are
static for any rates and the straight-through gradient of the masks exists; Gathered
really shortens the sequence, one static shape per block.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from diffrate_jax import tokens as tk
from diffrate_jax.errors import UserError
from diffrate_jax.rates import Kept, Rates, candidate_counts, kept_counts, survival
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Array, Geometry
from diffrate_jax.tokens import Attended, Tokens

# A size is scaled by a similarity, and its logarithm is taken: never let it reach 0.
LEAST_SIMILARITY = 1e-6
REFERENCE_EPSILON = 1e-6


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Gathered:
    """Compression on really shorter sequences, by a fixed schedule."""

    schedule: Schedule
    proportional = True
    softmax_epsilon = 0.0

    def kept(self, geometry: Geometry) -> Kept:
        """Returns the schedule's counts.

        Raises:
            UserError: the schedule does not fit the model.
        """
        self.schedule.check(geometry)
        return counts_of(self.schedule)

    def begin(self, tokens: Tokens) -> Tokens:
        """Returns the tokens as they enter the first block."""
        return tokens

    def step(
        self, block: int, tokens: Tokens, seen: Attended, kept: Kept, geometry: Geometry
    ) -> Tokens:
        """Prunes and merges after the attention of a block."""
        _, middle, last = self.schedule.steps(geometry.num_tokens)[block]
        if last == tokens.x.shape[1]:
            return tokens
        prefix = geometry.prefix_tokens
        score_BN = tk.ranking_score(seen.importance, None, prefix)
        _, order_BK = jax.lax.top_k(score_BN, middle)
        # Destinations return to their original order: ties go to the lower position.
        destination = tk.take(tokens, jnp.sort(order_BK[:, :last], axis=1))
        if last == middle:
            return destination
        source = tk.take(tokens, order_BK[:, last:])
        index_BS, similarity_BS = tk.match(
            *jax.lax.stop_gradient((source.x, destination.x[:, prefix:]))
        )
        assignment_BSK = jax.nn.one_hot(
            index_BS + prefix, last, dtype=similarity_BS.dtype
        )
        factor_BS = jnp.maximum(similarity_BS, LEAST_SIMILARITY)
        source = source.replace(size=source.sizes() * factor_BS)
        return tk.fold(destination, source, assignment_BSK)


@struct.dataclass
class Masked:
    """Compression at fixed shapes, by rates that carry gradients or by any counts.

    Attributes:
        counts: `Rates` to search; or a `Schedule` (or its `Kept`), whose counts are
            traced, so that one compilation runs every schedule.
        reference: reproduce the published search path: sizes floored at 1 after
            merging, and epsilon in the masked softmax.
    """

    counts: Rates | Kept | Schedule
    reference: bool = struct.field(pytree_node=False, default=False)

    def __post_init__(self) -> None:
        if isinstance(self.counts, Schedule):
            object.__setattr__(self, "counts", counts_of(self.counts))

    @property
    def proportional(self) -> bool:
        """Attention always counts a token by its size."""
        return True

    @property
    def softmax_epsilon(self) -> float:
        """What the published masked softmax adds to numerator and denominator."""
        return REFERENCE_EPSILON if self.reference else 0.0

    def kept(self, geometry: Geometry) -> Kept:
        """Returns the counts of all blocks, with gradients where they are learned.

        Raises:
            UserError: counts known at this point do not fit the model.
        """
        if isinstance(self.counts, Kept):
            if isinstance(self.counts.merge, np.ndarray):
                Schedule.from_kept(self.counts).check(geometry)
            return self.counts
        rates = self.counts
        self._check(rates, geometry)

        def counts(logits_LR: Array | None) -> Array | None:
            if logits_LR is None:
                return None
            return kept_counts(
                logits_LR, geometry, rates.granularity, reference=self.reference
            )

        return Kept(counts(rates.prune), counts(rates.merge))

    def _check(self, rates: Rates, geometry: Geometry) -> None:
        """Refuses rates of another model."""
        candidates_R = candidate_counts(geometry.num_patches, rates.granularity)
        shape = (geometry.depth, len(candidates_R))
        if rates.merge.shape != shape:
            raise UserError(
                f"this model has rates of shape {shape} at granularity "
                f"{rates.granularity}, got {rates.merge.shape}; make them with "
                "init_rates(model, granularity)"
            )

    def begin(self, tokens: Tokens) -> Tokens:
        """Returns the tokens as they enter the first block."""
        if not self.reference:
            return tokens
        return tokens.replace(alive=jnp.ones(tokens.x.shape[:2], jnp.float32))

    def step(
        self, block: int, tokens: Tokens, seen: Attended, kept: Kept, geometry: Geometry
    ) -> Tokens:
        """Prunes, then merges, after the attention of a block."""
        if isinstance(self.counts, Rates) and not geometry.compress[block]:
            return tokens
        if tokens.alive is None:
            ones_BN = jnp.ones(tokens.x.shape[:2], tk.at_least_float32(tokens.x))
            tokens = tokens.replace(alive=ones_BN)
        alive_BN = tokens.alive
        rank_BN = tk.rank(
            tk.ranking_score(seen.importance, alive_BN, geometry.prefix_tokens)
        )
        # All examples lose equally many tokens, so one count speaks for the batch.
        last = jnp.sum(jax.lax.stop_gradient(alive_BN[0]))
        middle = last
        if kept.prune is not None:
            mask_BN = self._mask("prune", block, rank_BN, kept.prune, last, geometry)
            alive_BN = alive_BN * mask_BN.astype(alive_BN.dtype)
            middle = jnp.minimum(last, jax.lax.stop_gradient(kept.prune[block]))
        mask_BN = self._mask("merge", block, rank_BN, kept.merge, middle, geometry)
        end = jnp.minimum(middle, jax.lax.stop_gradient(kept.merge[block]))
        tokens = self._merge(tokens, rank_BN, middle, end, geometry.prefix_tokens)
        return tokens.replace(alive=alive_BN * mask_BN.astype(alive_BN.dtype))

    def _mask(
        self,
        operation: str,
        block: int,
        rank_BN: Array,
        kept_L: Array,
        last: Array,
        geometry: Geometry,
    ) -> Array:
        """Returns the exact 0/1 mask [B, N] with the survival's gradient."""
        kept = jax.lax.stop_gradient(kept_L[block])
        dies_BN = (kept <= rank_BN) & (rank_BN < last)
        hard_BN = jnp.where(dies_BN, 0.0, 1.0)
        if isinstance(self.counts, Kept):
            return hard_BN
        logits_R = getattr(self.counts, operation)[block]
        soft_BN = survival(logits_R, rank_BN, geometry, self.counts.granularity)
        straight_BN = hard_BN + (soft_BN - jax.lax.stop_gradient(soft_BN))
        # An operation that removes nothing gives its mask no gradient.
        return jnp.where(kept < last, straight_BN, 1.0)

    def _merge(
        self, tokens: Tokens, rank_BN: Array, middle: Array, end: Array, prefix: int
    ) -> Tokens:
        """Folds ranks [end, middle) into ranks [prefix, end), every token in place."""
        is_source_BN = (end <= rank_BN) & (rank_BN < middle)
        is_destination_BN = (prefix <= rank_BN) & (rank_BN < end)
        x_BND = jax.lax.stop_gradient(tokens.x)
        index_BN, similarity_BN = tk.match(x_BND, x_BND, is_destination_BN)
        num_tokens = x_BND.shape[1]
        assignment_BNK = is_source_BN[..., None] * jax.nn.one_hot(
            index_BN, num_tokens, dtype=similarity_BN.dtype
        )
        size_BN = tokens.sizes()
        scaled_BN = size_BN * jnp.maximum(similarity_BN, LEAST_SIMILARITY)
        if self.reference:
            scaled_BN = jnp.maximum(size_BN * similarity_BN, 1.0)
        tokens = tokens.replace(size=jnp.where(is_source_BN, scaled_BN, size_BN))
        return tk.fold(tokens, tokens, assignment_BNK)


def counts_of(schedule: Schedule) -> Kept:
    """Returns a schedule's counts as float32 arrays [L]."""
    as_array = lambda counts: np.array(counts, np.float32)  # noqa: E731
    prune = None if schedule.prune is None else as_array(schedule.prune)
    return Kept(prune, as_array(schedule.merge))
