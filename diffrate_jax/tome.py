"""Token Merging (ToMe, arXiv 2210.09461) as a compression of its own.

Bipartite soft matching on the keys, size-weighted means, proportional attention: the
true baseline, run by the same models and programs as DiffRate.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffrate_jax import tokens as tk
from diffrate_jax.errors import UserError
from diffrate_jax.folding import merge
from diffrate_jax.rates import Kept
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Array, Geometry
from diffrate_jax.tokens import Attended, Tokens


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ToMe:
    """Removes r tokens per block by merging alternate tokens.

    Attributes:
        r: tokens removed per block: an int, or a tuple with one int per block.
        inflection: slope of r over the blocks when r is an int: 0 constant, -1 falling
            from 2r to 0, 1 rising from 0 to 2r (ToMe, section 4.1).
        proportional_attention: add log(size) to the attention scores.

    >>> ToMe(4, inflection=-1.0).removed(6)
    (8, 6, 4, 3, 1, 0)
    """

    r: int | tuple[int, ...]
    inflection: float = 0.0
    proportional_attention: bool = True
    softmax_epsilon = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.r, list):
            object.__setattr__(self, "r", tuple(self.r))
        counts = self.r if isinstance(self.r, tuple) else (self.r,)
        if any(isinstance(r, bool) or not isinstance(r, int) or r < 0 for r in counts):
            raise UserError(
                "ToMe removes a whole number of tokens per block, or a tuple of one "
                f"for each block, got {self.r!r}"
            )
        if not -1.0 <= self.inflection <= 1.0:
            raise UserError(
                f"ToMe's inflection must lie between -1 and 1, got {self.inflection}"
            )

    @property
    def proportional(self) -> bool:
        """Whether attention counts a token by its size."""
        return self.proportional_attention

    def removed(self, depth: int) -> tuple[int, ...]:
        """Returns the tokens to remove in each block, before what is possible.

        Raises:
            UserError: a tuple of r of another length than the model is deep.
        """
        if isinstance(self.r, tuple):
            if len(self.r) != depth:
                raise UserError(
                    f"ToMe needs one r for each of {depth} blocks, got {len(self.r)}"
                )
            return self.r
        least = int(self.r * (1.0 - self.inflection))
        step = (2 * self.r - 2 * least) / max(depth - 1, 1)
        return tuple(int(least + step * block) for block in range(depth))

    def schedule(self, geometry: Geometry) -> Schedule:
        """Returns the tokens really left after each block, as a merge-only schedule."""
        counts, left = [], geometry.num_tokens
        for block, r in enumerate(self.removed(geometry.depth)):
            coming = geometry.coming(block, left)
            left = coming - min(r, (coming - geometry.prefix_tokens) // 2)
            counts.append(left)
        return Schedule(prune=None, merge=tuple(counts))

    def kept(self, geometry: Geometry) -> Kept:
        """Returns the tokens left after each block."""
        return Kept(None, np.array(self.schedule(geometry).merge, np.float32))

    def begin(self, tokens: Tokens) -> Tokens:
        """Returns the tokens as they enter the first block."""
        return tokens

    def step(
        self, block: int, tokens: Tokens, seen: Attended, kept: Kept, geometry: Geometry
    ) -> Tokens:
        """Merges after the attention of a block."""
        num_tokens = tokens.x.shape[1]
        r = num_tokens - self.schedule(geometry).merge[block]
        if r == 0:
            return tokens
        return merge_bipartite(tokens, seen.keys, r, geometry.prefix_tokens)


def merge_bipartite(
    tokens: Tokens, keys_BNE: Array, r: int, prefix_tokens: int
) -> Tokens:
    """Merges the r most similar pairs between tokens at even and at odd positions.

    ToMe, section 3.2. The order of what stays (unmerged even tokens, then odd ones)
    matters: it decides who is even in the next block.

    Args:
        tokens: living tokens only.
        keys_BNE: features to compare, mean over heads.
        r: tokens to remove, at most half of those that are not prefix tokens.
        prefix_tokens: leading tokens that are never merged nor merged into.
    """
    even_BS, odd_BK = tk.take(tokens, _positions(tokens, 0)), _positions(tokens, 1)
    odd_BK = tk.take(tokens, odd_BK)
    score_BSK = _bipartite_scores(keys_BNE, prefix_tokens)
    best_BS = jnp.max(score_BSK, axis=-1)
    order_BS = jnp.argsort(-best_BS, axis=-1, stable=True)
    source_BS, stay_BS = order_BS[:, :r], order_BS[:, r:]
    if prefix_tokens:
        stay_BS = jnp.sort(stay_BS, axis=1)
    index_BS = jnp.take_along_axis(jnp.argmax(score_BSK, axis=-1), source_BS, axis=1)
    source = tk.take(even_BS, source_BS)
    weights = odd_BK.sizes(), source.sizes()
    merged = merge(odd_BK, source, index_BS, weights)
    stay = tk.take(even_BS, stay_BS)
    stay = stay.replace(size=stay.sizes())
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), stay, merged)


def _positions(tokens: Tokens, start: int) -> Array:
    batch, num_tokens = tokens.x.shape[:2]
    index_K = jnp.arange(start, num_tokens, 2)
    return jnp.broadcast_to(index_K, (batch, index_K.shape[0]))


def _bipartite_scores(keys_BNE: Array, prefix_tokens: int) -> Array:
    """Returns the similarity of even to odd tokens, -inf where a prefix token is."""
    unit_BNE = tk.unit(keys_BNE)
    score_BSK = jnp.einsum("BSE,BKE->BSK", unit_BNE[:, ::2], unit_BNE[:, 1::2])
    even_S = jnp.arange(0, keys_BNE.shape[1], 2) < prefix_tokens
    odd_K = jnp.arange(1, keys_BNE.shape[1], 2) < prefix_tokens
    return jnp.where(even_S[:, None] | odd_K[None, :], -jnp.inf, score_BSK)
