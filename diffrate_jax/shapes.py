"""The alphabet of the code: dimension letters, and what a model tells the algorithm.

Every array of rank >= 1 in the numeric code ends in the letters of its dimensions,
``x_BND``; the same letters stand in einsum strings.

    B batch          N tokens (class token included)   M tokens as keys
    S sources        K kept tokens or destinations     P patches
    D width          H heads                           E width of a head
    L blocks         R candidates of a rate            V classes
    Y rows           X columns                         C channels
    A attempts at a random crop
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
    """

    num_tokens: int
    prefix_tokens: int
    compress: tuple[bool, ...]

    @property
    def depth(self) -> int:
        """Number of attention blocks."""
        return len(self.compress)

    @property
    def num_patches(self) -> int:
        """Tokens that are not prefix tokens."""
        return self.num_tokens - self.prefix_tokens
