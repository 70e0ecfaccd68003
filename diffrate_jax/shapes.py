"""The alphabet of the code: dimension letters, and what a model tells the algorithm.

Every array of rank >= 1 in the numeric code ends in the letters of its dimensions,
``x_BND``; the same letters stand in einsum strings.

    B batch          N tokens (class token included)   M tokens as keys
    S sources        K kept tokens or destinations     P patches
    D width          H heads                           E width of a head
    L blocks         R candidates of a rate            V classes
    Y rows           X columns                         C channels
    A attempts at a random crop or box                 G pairs of examples
    O tokens the model started with (rows of provenance)
"""

import dataclasses

import jax

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What token compression has to know of a model, and all that it may know.

    Attributes:
        num_tokens: tokens that enter the first block, prefix tokens included.
        prefix_tokens: leading tokens (the class token) that are never pruned, merged
            or merged into; 0 where the model has none.
        compress: for each attention block, whether search may give it rates.
        later_stages: (block, tokens) of each attention block before which the map of
            tokens is restored and made smaller, so that so many tokens enter it
            whatever was left before.
    """

    num_tokens: int
    prefix_tokens: int
    compress: tuple[bool, ...]
    later_stages: tuple[tuple[int, int], ...] = ()

    @property
    def depth(self) -> int:
        """Number of attention blocks."""
        return len(self.compress)

    @property
    def num_patches(self) -> int:
        """Tokens that are not prefix tokens."""
        return self.num_tokens - self.prefix_tokens

    @property
    def first_stage(self) -> int:
        """Number of attention blocks before the first that starts anew; or of all."""
        return min((block for block, _ in self.later_stages), default=self.depth)

    @property
    def only_merges(self) -> bool:
        """Whether no token may be dropped, as its place has to be filled again."""
        return bool(self.later_stages)

    @property
    def dense(self) -> tuple[int, ...]:
        """Tokens of each block while nothing is compressed."""
        counts, left = [], self.num_tokens
        for block in range(self.depth):
            left = self.coming(block, left)
            counts.append(left)
        return tuple(counts)

    def coming(self, block: int, left: Array | float) -> Array | float:
        """Returns the tokens that enter a block, of those `left` by the one before."""
        return {0: self.num_tokens, **dict(self.later_stages)}.get(block, left)
