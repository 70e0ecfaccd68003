"""Rules: which tokens a block gives up first, and into which others they are folded.

Learning how many tokens a block keeps is not tied to one way of choosing them. A rule
says how tokens are ranked, how close two tokens are, and how they are averaged; the
masked and the gathered form (`compress`) both run it. None of it carries gradients.
"""

import abc
from typing import ClassVar

import jax
import jax.numpy as jnp

from diffrate_jax import tokens as tk
from diffrate_jax.errors import UserError, did_you_mean
from diffrate_jax.shapes import Array, Geometry
from diffrate_jax.tokens import Attended, Tokens

# A size is scaled by a similarity, and its logarithm is taken: never let it reach 0.
LEAST_SIMILARITY = 1e-6
# Softmax can round what a token gets to 0.
LEAST_ATTENTION = 1e-12


class Rule(abc.ABC):
    """What rules have in common; each overrides what it does differently.

    Attributes:
        name: by which schedules and recipes know it.
        prunes: whether tokens may be dropped too, before others are merged.
        folds_gradient: whether the gradient of a mask says what folding a token would
            do; if not, it says what dropping it would do, as the published one does.
        drops: whether what goes is dropped, and folded into nothing.
        proportional: whether attention counts a token by its size.
        ranks_pairs: whether ranking compares all tokens with all others, so that
            matching finds what it needs there.
    """

    name: ClassVar[str]
    prunes: ClassVar[bool] = False
    folds_gradient: ClassVar[bool] = True
    drops: ClassVar[bool] = False
    proportional: ClassVar[bool] = True
    ranks_pairs: ClassVar[bool] = True

    def on(self, geometry: Geometry) -> "Rule":
        """Returns the form that the rule takes on a model.

        Raises:
            UserError: it has none there.
        """
        return self

    def features(self, tokens: Tokens, seen: Attended) -> Array:
        """Returns what tokens are compared by [B, N, E]: the residual stream."""
        return jax.lax.stop_gradient(tokens.x)

    def offered(self, tokens: Tokens) -> Array | None:
        """Returns which tokens may receive others at all [B, N]; None: any."""
        return None

    def closeness(
        self, cosine_BSK: Array, size_BS: Array, size_BK: Array, importance_BK: Array
    ) -> Array:
        """Returns how gladly token s would go to token k [B, S, K]: their cosine."""
        return cosine_BSK

    def weight(self, size_BN: Array, importance_BN: Array) -> Array | None:
        """Returns what tokens count in a mean [B, N]: their sizes. None: all alike."""
        return size_BN

    @abc.abstractmethod
    def score(self, seen: Attended, closeness_BNM: Array, receives_BN: Array) -> Array:
        """Returns the ranking score [B, N]: the lowest go first, infinite ones never.

        Args:
            seen: what attention shows.
            closeness_BNM: of every pair of tokens.
            receives_BN: True for living, offered tokens that are no prefix tokens.
        """

    def source_size(self, size_BS: Array, closeness_BS: Array) -> Array:
        """Returns what sources add to the sizes of their destinations."""
        return size_BS

    def fewest(self, coming: Array | int, prefix_tokens: int) -> Array | int:
        """Returns the fewest tokens that a block can leave of those that come in."""
        return prefix_tokens + 1


class DiffRate(Rule):
    """The published rule: rank by class attention, fold into the most similar.

    Plain means, sizes scaled by similarity (DiffRate, section 3.2).
    """

    name = "diffrate"
    prunes = True
    folds_gradient = False
    ranks_pairs = False

    def on(self, geometry: Geometry) -> Rule:
        """Returns the rule, or the published one of models that only merge."""
        return MergingDiffRate() if geometry.only_merges else self

    def score(self, seen: Attended, closeness_BNM: Array, receives_BN: Array) -> Array:
        """Returns the importance."""
        return seen.importance

    def weight(self, size_BN: Array, importance_BN: Array) -> None:
        """Returns None: plain means."""

    def source_size(self, size_BS: Array, closeness_BS: Array) -> Array:
        """Returns sizes scaled by similarity."""
        return size_BS * jnp.maximum(closeness_BS, LEAST_SIMILARITY)


class MergingDiffRate(DiffRate):
    """The published rule where a map is restored: no token is dropped, sizes add up.

    Reference: DiffRate/patch/caformer.py — sizes are not scaled by similarity.
    """

    prunes = False

    def source_size(self, size_BS: Array, closeness_BS: Array) -> Array:
        """Returns the sizes as they are."""
        return size_BS


class MergeOnly(DiffRate):
    """The published rule without its pruning."""

    name = "merge_only"
    prunes = False


class PruneOnly(DiffRate):
    """The published rule without its merging: all that goes is dropped."""

    name = "prune_only"
    prunes = False
    drops = True

    def on(self, geometry: Geometry) -> Rule:
        """Returns the rule.

        Raises:
            UserError: the model only merges.
        """
        if geometry.only_merges:
            raise UserError(
                "rule 'prune_only' drops tokens, and this model only merges, since "
                "every token's place is filled again before the next stage; use "
                "another rule"
            )
        return self


class Fusion(Rule):
    """EViT's rule: keep what the class token attends to, fuse all the rest into one.

    Of the tokens left the least attended one is the fused one: the mean of itself and
    of all that go, weighted by attention (EViT, arXiv 2202.07800, section 3.2). There
    it is their sum, which weights that are trained along can do with; without training
    a token of a few per cent of the others' length stands for nothing. Attention counts
    every token once, as there.
    """

    name = "evit"
    proportional = False
    ranks_pairs = False

    def on(self, geometry: Geometry) -> Rule:
        """Returns the rule.

        Raises:
            UserError: the model has no class token.
        """
        if not geometry.prefix_tokens:
            raise UserError(
                "rule 'evit' keeps what the class token attends to, and this model has "
                "no class token; use another rule"
            )
        return self

    def closeness(
        self, cosine_BSK: Array, size_BS: Array, size_BK: Array, importance_BK: Array
    ) -> Array:
        """Returns how little attention token k gets, whoever asks."""
        return jnp.broadcast_to(-importance_BK[:, None, :], cosine_BSK.shape)

    def weight(self, size_BN: Array, importance_BN: Array) -> Array:
        """Returns the attention, above 0: a mean divides by it."""
        return jnp.maximum(importance_BN, LEAST_ATTENTION)

    def score(self, seen: Attended, closeness_BNM: Array, receives_BN: Array) -> Array:
        """Returns the importance."""
        return seen.importance


class Alternate(Rule):
    """ToMe's matching: every other token may be folded into one of those between.

    Keys are compared and the most similar pairs go first (ToMe, arXiv 2210.09461,
    section 3.2). ToMe strings the two halves together, so that later on neighbours in
    the sequence are none in the image; here tokens keep their order.
    """

    name = "tome"

    def features(self, tokens: Tokens, seen: Attended) -> Array:
        """Returns the keys."""
        return seen.keys

    def offered(self, tokens: Tokens) -> Array:
        """Returns the second, the fourth, … of the living."""
        if tokens.alive is None:
            position_BN = jnp.broadcast_to(
                jnp.arange(tokens.x.shape[1]), tokens.x.shape[:2]
            )
        else:
            living_BN = (jax.lax.stop_gradient(tokens.alive) > 0).astype(jnp.int32)
            position_BN = jnp.cumsum(living_BN, axis=1) - living_BN
        return position_BN % 2 == 1

    def score(self, seen: Attended, closeness_BNM: Array, receives_BN: Array) -> Array:
        """Returns the distance to the nearest partner; partners never go."""
        best_BN = tk.most(closeness_BNM, receives_BN[:, None, :])
        return jnp.where(receives_BN, jnp.inf, -best_BN)

    def fewest(self, coming: Array | int, prefix_tokens: int) -> Array | int:
        """Returns what is left when all that have a partner are gone."""
        return coming - (coming - prefix_tokens) // 2


class Redundancy(Rule):
    """The first to go is what another, more important token says almost as well.

    Folding token i into token j costs Ward's criterion on the unit sphere, (1 - cosine)
    times s_i s_j / (s_i + s_j) with sizes s (Ward 1963): how far both drift from the
    patches they stand for. A token's rank is its least cost among more important ones:
    so just one of two alike is ranked low, and all that goes has a place to go to.
    """

    name = "redundancy"

    def closeness(
        self, cosine_BSK: Array, size_BS: Array, size_BK: Array, importance_BK: Array
    ) -> Array:
        """Returns Ward's cost of each pair, negative."""
        share_BS1, share_B1K = 1.0 / size_BS[:, :, None], 1.0 / size_BK[:, None, :]
        return jnp.minimum(cosine_BSK - 1.0, 0.0) / (share_BS1 + share_B1K)

    def score(self, seen: Attended, closeness_BNM: Array, receives_BN: Array) -> Array:
        """Returns the least cost; the most important token never goes."""
        superior_BNM = tk.before(seen.importance) & receives_BN[:, None, :]
        return -tk.most(closeness_BNM, superior_BNM)


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Redundancy(),
        DiffRate(),
        MergeOnly(),
        PruneOnly(),
        Alternate(),
        Fusion(),
    )
}


def rule_of(name: str, geometry: Geometry | None = None) -> Rule:
    """Returns a rule by its name.

    Args:
        name: key of `RULES`.
        geometry: of the model that the rule is to run on; None: of no one in
            particular.

    Raises:
        UserError: there is none of that name, or it cannot run on the model.
    """
    if name not in RULES:
        raise UserError(f"unknown rule {name!r}; {did_you_mean(str(name), RULES)}")
    rule = RULES[name]
    return rule if geometry is None else rule.on(geometry)
