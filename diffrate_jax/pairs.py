"""Pairs of tokens of one block: what a rule makes of them, in both forms."""

import functools

import jax
import jax.numpy as jnp

from diffrate_jax import tokens as tk
from diffrate_jax.rules import Rule
from diffrate_jax.shapes import Array
from diffrate_jax.tokens import Attended, Tokens


class Pairs:
    """Tokens of one block, two by two; what is compared once is kept.

    Attributes:
        rule: that compares them.
        seen: what attention shows of the tokens.
        receives_BN: True for living, offered tokens that are no prefix tokens.
    """

    def __init__(
        self, rule: Rule, tokens: Tokens, seen: Attended, prefix_tokens: int
    ) -> None:
        self.rule, self.seen = rule, seen
        self._unit_BNE = tk.unit(rule.features(tokens, seen))
        self._size_BN = jax.lax.stop_gradient(tokens.sizes())
        receives_BN = jnp.arange(tokens.x.shape[1]) >= prefix_tokens
        receives_BN = jnp.broadcast_to(receives_BN, tokens.x.shape[:2])
        offered_BN = rule.offered(tokens)
        if offered_BN is not None:
            receives_BN &= offered_BN
        if tokens.alive is not None:
            receives_BN &= tokens.alive > 0
        self.receives_BN = receives_BN

    def spare(self, position_B1: Array) -> None:
        """Makes one token of each example receive no others from now on."""
        position_N = jnp.arange(self.receives_BN.shape[1])
        self.receives_BN &= position_N != position_B1

    @functools.cached_property
    def _cosines(self) -> Array:
        """The cosine of every pair [B, N, N]."""
        return tk.products(self._unit_BNE, self._unit_BNE)

    def closeness(self) -> Array:
        """Returns the closeness of all pairs [B, N, N]."""
        size_BN, importance_BN = self._size_BN, self.seen.importance
        return self.rule.closeness(self._cosines, size_BN, size_BN, importance_BN)

    def score(self) -> Array:
        """Returns the ranking score [B, N]."""
        return self.rule.score(self.seen, self.closeness(), self.receives_BN)

    def match(self, goes_BS: Array, stays_BK: Array) -> tuple[Array, Array]:
        """Returns destination (index into K) and closeness of each source [B, S].

        Args:
            goes_BS: positions of the sources.
            stays_BK: positions of the tokens that stay.
        """
        if self.rule.ranks_pairs:
            cosine_BSN = tk.rows(self._cosines, goes_BS)
            cosine_BSK = jnp.take_along_axis(cosine_BSN, stays_BK[:, None, :], axis=2)
        else:
            unit_BSE, unit_BKE = (
                tk.rows(self._unit_BNE, index) for index in (goes_BS, stays_BK)
            )
            cosine_BSK = tk.products(unit_BSE, unit_BKE)
        sizes = (tk.rows(self._size_BN, index) for index in (goes_BS, stays_BK))
        importance_BK = tk.rows(self.seen.importance, stays_BK)
        closeness_BSK = self.rule.closeness(cosine_BSK, *sizes, importance_BK)
        return tk.match(closeness_BSK, tk.rows(self.receives_BN, stays_BK)[:, None, :])
