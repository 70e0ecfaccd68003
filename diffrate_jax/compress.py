"""Compression of one block, masked for search and gathered for inference.

The two forms run the same rules (`rules`) by the same ranking, matching and folding
(`tokens`); a test proves them equal. Masked keeps every token in place and marks the
dead, so that shapes are static for any rates and the straight-through gradient of the
masks exists; Gathered really shortens the sequence, one static shape per block.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from diffrate_jax import tokens as tk
from diffrate_jax.errors import UserError
from diffrate_jax.folding import fold, merge
from diffrate_jax.pairs import Pairs
from diffrate_jax.rates import Kept, Located, Rates, refuse_pruning
from diffrate_jax.rules import Rule, rule_of
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Array, Geometry
from diffrate_jax.tokens import Attended, Tokens

REFERENCE_EPSILON = 1e-6


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Gathered:
    """Compression on really shorter sequences, by a fixed schedule.

    Attributes:
        schedule: what each block keeps.
        reference: on models that only merge, fold nothing into the first token of the
            ranking, as if it were a class token (the published inference).
    """

    schedule: Schedule
    reference: bool = False
    softmax_epsilon = 0.0

    @property
    def proportional(self) -> bool:
        """Whether attention counts a token by its size."""
        return rule_of(self.schedule.rule).proportional

    def kept(self, geometry: Geometry) -> Kept:
        """Returns the schedule's counts.

        Raises:
            UserError: the schedule does not fit the model.
        """
        self.schedule.check(geometry)
        if self._spares_first(geometry):
            self._check_reference(geometry)
        return counts_of(self.schedule)

    def _check_reference(self, geometry: Geometry) -> None:
        if self.schedule.rule != "diffrate":
            raise UserError(
                "reference=True is the published inference, which has rule 'diffrate', "
                f"got a schedule of {self.schedule.rule!r}; leave reference out"
            )
        for block, (coming, _, last) in enumerate(self.schedule.steps(geometry)):
            if last == 1 < coming:
                raise UserError(
                    "with reference=True nothing is folded into a block's first token, "
                    f"and block {block} is to keep no other; keep at least 2 there, or "
                    "leave reference out"
                )

    def begin(self, tokens: Tokens) -> Tokens:
        """Returns the tokens as they enter the first block."""
        return tokens

    def step(
        self, block: int, tokens: Tokens, seen: Attended, kept: Kept, geometry: Geometry
    ) -> Tokens:
        """Prunes and merges after the attention of a block."""
        coming, middle, last = self.schedule.steps(geometry)[block]
        if last == coming:
            return tokens
        rule = rule_of(self.schedule.rule, geometry)
        pairs = Pairs(rule, tokens, seen, geometry.prefix_tokens)
        score_BN = tk.ranking_score(pairs.score(), None, geometry.prefix_tokens)
        _, order_BK = jax.lax.top_k(score_BN, middle)
        if self._spares_first(geometry):
            pairs.spare(order_BK[:, :1])
        # Destinations return to their original order: ties go to the lower position.
        stays_BK, goes_BS = jnp.sort(order_BK[:, :last], axis=1), order_BK[:, last:]
        destination = tk.take(tokens, stays_BK)
        if last == middle or rule.drops:
            return destination
        source = tk.take(tokens, goes_BS)
        index_BS, closeness_BS = pairs.match(goes_BS, stays_BK)
        size_BS = rule.source_size(source.sizes(), closeness_BS)
        weight_BN = rule.weight(tokens.sizes(), seen.importance)
        weights = None
        if weight_BN is not None:
            weights = tk.rows(weight_BN, stays_BK), tk.rows(weight_BN, goes_BS)
        source = source.replace(size=size_BS)
        return merge(destination, source, index_BS, weights)

    def _spares_first(self, geometry: Geometry) -> bool:
        return self.reference and geometry.only_merges


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of one block in the masked form.

    Attributes:
        name: "prune" or "merge".
        block: number of the block.
        kept_L: what the operation keeps in each block.
        last: tokens that live before it.
        geometry: of the model.
    """

    name: str
    block: int
    kept_L: Array
    last: Array
    geometry: Geometry


@struct.dataclass
class Masked:
    """Compression at fixed shapes, by rates that carry gradients or by any counts.

    Attributes:
        counts: `Rates` or `Located` to search; or a `Schedule` (or its `Kept`), whose
            counts are traced, so that one compilation runs every schedule of a rule.
        reference: reproduce the published search path: sizes floored at 1 after
            merging, and epsilon in the masked softmax.
        rule: name of the rule; a `Schedule` brings its own.
    """

    counts: Rates | Located | Kept | Schedule
    reference: bool = struct.field(pytree_node=False, default=False)
    rule: str = struct.field(pytree_node=False, default="diffrate")

    def __post_init__(self) -> None:
        if isinstance(self.counts, Schedule):
            object.__setattr__(self, "rule", self.counts.rule)
            object.__setattr__(self, "counts", counts_of(self.counts))

    @property
    def proportional(self) -> bool:
        """Whether attention counts a token by its size."""
        return rule_of(self.rule).proportional

    @property
    def softmax_epsilon(self) -> float:
        """What the published masked softmax adds to numerator and denominator."""
        return REFERENCE_EPSILON if self.reference else 0.0

    def kept(self, geometry: Geometry) -> Kept:
        """Returns the counts of all blocks, with gradients where they are learned.

        Raises:
            UserError: counts known at this point do not fit the model, or there is no
                published search to reproduce.
        """
        kept = self.counts
        if self.reference and geometry.only_merges:
            raise UserError(
                "reference=True reproduces the published search, which cannot run on "
                "models with several stages; leave it out"
            )
        if not isinstance(kept, Kept):
            kept = kept.kept(geometry, reference=self.reference)
        elif isinstance(kept.merge, np.ndarray):
            Schedule.from_kept(kept, self.rule).check(geometry)
        refuse_pruning(kept.prune, geometry)
        return feasible(kept, rule_of(self.rule, geometry), geometry)

    def begin(self, tokens: Tokens) -> Tokens:
        """Returns the tokens as they enter the first block."""
        if not self.reference:
            return tokens
        return tokens.replace(alive=jnp.ones(tokens.x.shape[:2], jnp.float32))

    def step(
        self, block: int, tokens: Tokens, seen: Attended, kept: Kept, geometry: Geometry
    ) -> Tokens:
        """Prunes, then merges, after the attention of a block."""
        learned = not isinstance(self.counts, Kept)
        if learned and not geometry.compress[block]:
            return tokens
        rule, prefix = rule_of(self.rule, geometry), geometry.prefix_tokens
        if tokens.alive is None:
            ones_BN = jnp.ones(tokens.x.shape[:2], tk.at_least_float32(tokens.x))
            tokens = tokens.replace(alive=ones_BN)
        alive_BN = tokens.alive
        pairs = Pairs(rule, tokens, seen, prefix)
        score_BN = tk.ranking_score(pairs.score(), alive_BN, prefix)
        rank_BN = tk.rank(score_BN)
        # All examples lose equally many tokens, so one count speaks for the batch.
        last = jnp.sum(jax.lax.stop_gradient(alive_BN[0]))
        middle = last
        can_go_BN = (prefix <= rank_BN) & (rank_BN < last) & jnp.isfinite(score_BN)
        if kept.prune is not None:
            now = Operation("prune", block, kept.prune, last, geometry)
            mask_BN = self._mask(now, rank_BN, can_go_BN)
            alive_BN = alive_BN * mask_BN.astype(alive_BN.dtype)
            middle = jnp.minimum(last, jax.lax.stop_gradient(kept.prune[block]))
            can_go_BN &= rank_BN < middle
        now = Operation("merge", block, kept.merge, middle, geometry)
        mask_BN = self._mask(now, rank_BN, can_go_BN)
        end = jnp.minimum(middle, jax.lax.stop_gradient(kept.merge[block]))
        goes_BN = (end <= rank_BN) & (rank_BN < middle)
        stays_BN = (prefix <= rank_BN) & (rank_BN < end)
        gone_BN = goes_BN.astype(mask_BN.dtype)
        if rule.folds_gradient or isinstance(self.counts, Located):
            # The dead were folded before, and what no rule gives up never is.
            mask_BN = jnp.where(can_go_BN, mask_BN, 1.0)
            gone_BN = 1.0 - mask_BN
        if not rule.drops:
            tokens = self._merge(tokens, pairs, stays_BN, goes_BN, gone_BN)
        return tokens.replace(alive=alive_BN * mask_BN.astype(alive_BN.dtype))

    def _mask(self, now: Operation, rank_BN: Array, can_go_BN: Array) -> Array:
        """Returns the exact 0/1 mask [B, N] with the survival's gradient."""
        kept = jax.lax.stop_gradient(now.kept_L[now.block])
        dies_BN = (kept <= rank_BN) & (rank_BN < now.last)
        hard_BN = jnp.where(dies_BN, 0.0, 1.0)
        if isinstance(self.counts, Kept):
            return hard_BN
        soft_BN = self.counts.survival(
            now.name, now.block, rank_BN, now.geometry, can_go_BN
        )
        straight_BN = hard_BN + (soft_BN - jax.lax.stop_gradient(soft_BN))
        if isinstance(self.counts, Located):
            return straight_BN
        # The published rule: what removes nothing gives its mask no gradient.
        return jnp.where(kept < now.last, straight_BN, 1.0)

    def _merge(
        self,
        tokens: Tokens,
        pairs: Pairs,
        stays_BN: Array,
        goes_BN: Array,
        gone_BN: Array,
    ) -> Tokens:
        """Folds tokens that go into tokens that stay, all in their places.

        Args:
            tokens: before.
            pairs: of these tokens.
            stays_BN: True for possible destinations.
            goes_BN: True for sources.
            gone_BN: how much of a token is folded: 1 for sources, else 0, with the
                gradient of the masks where the rule has it pass through the fold.
        """
        rule, num_tokens = pairs.rule, stays_BN.shape[1]
        other_NM = ~jnp.eye(num_tokens, dtype=bool)
        allowed_BNM = (stays_BN & pairs.receives_BN)[:, None, :] & other_NM
        index_BN, closeness_BN = tk.match(pairs.closeness(), allowed_BNM)
        # The only destination has none itself, and no gradient may meet its infinity.
        closeness_BN = jnp.where(jnp.isfinite(closeness_BN), closeness_BN, 0.0)
        assignment_BNK = gone_BN[..., None] * jax.nn.one_hot(
            index_BN, num_tokens, dtype=closeness_BN.dtype
        )
        size_BN = tokens.sizes()
        weight_BN = rule.weight(size_BN, pairs.seen.importance)
        weights = None if weight_BN is None else (weight_BN, weight_BN)
        scaled_BN = rule.source_size(size_BN, closeness_BN)
        if self.reference:
            scaled_BN = jnp.maximum(size_BN * closeness_BN, 1.0)
        source = tokens.replace(size=scaled_BN)
        if not isinstance(self.counts, Located):
            # The published rule: a dead source keeps its scaled size.
            tokens = tokens.replace(size=jnp.where(goes_BN, scaled_BN, size_BN))
        return fold(tokens, source, assignment_BNK, weights)


def counts_of(schedule: Schedule) -> Kept:
    """Returns a schedule's counts as float32 arrays [L]."""
    as_array = lambda counts: np.array(counts, np.float32)  # noqa: E731
    prune = None if schedule.prune is None else as_array(schedule.prune)
    return Kept(prune, as_array(schedule.merge))


def feasible(kept: Kept, rule: Rule, geometry: Geometry) -> Kept:
    """Raises counts to the fewest that a rule can leave; gradients pass unchanged."""
    left, counts = geometry.num_tokens, []
    for block in range(geometry.depth):
        coming = geometry.coming(block, left)
        least = rule.fewest(coming, geometry.prefix_tokens)
        raised = jnp.maximum(kept.merge[block], least)
        raised = kept.merge[block] + jax.lax.stop_gradient(raised - kept.merge[block])
        counts.append(raised)
        left = jnp.minimum(coming, jax.lax.stop_gradient(raised))
    return kept.replace(merge=jnp.stack(counts))
