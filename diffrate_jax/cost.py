"""Cost in multiply-accumulates: one formula for integers and for traced counts.

DiffRate, section 3.4; the papers call these FLOPs. Only matrix products count.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from diffrate_jax.rates import Kept
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Array, Geometry
from diffrate_jax.tome import ToMe


@dataclasses.dataclass(frozen=True)
class MacsTerms:
    """Cost of a model as a polynomial in its token counts, in multiply-accumulates.

    All but the first are one number for every block, or one for each.

    Attributes:
        fixed: everything that does not depend on compression.
        linear_in: per token that enters a block (the four projections of attention).
        quadratic_in: per pair of tokens that enter a block (scores and their sum).
        linear_out: per token left after compression (the MLP).
    """

    fixed: int
    linear_in: int | tuple[int, ...]
    quadratic_in: int | tuple[int, ...]
    linear_out: int | tuple[int, ...]

    def of_block(self, block: int) -> tuple[int, ...]:
        """Returns linear_in, quadratic_in and linear_out of one block."""
        terms = (self.linear_in, self.quadratic_in, self.linear_out)
        return tuple(t[block] if isinstance(t, tuple) else t for t in terms)


class HasCost(Protocol):
    """A model that states its geometry and its cost terms."""

    @property
    def geometry(self) -> Geometry:
        """What compression knows of the model."""

    @property
    def macs(self) -> MacsTerms:
        """The model's cost terms."""


def cost_macs(model: HasCost, counts: Kept | Schedule | ToMe | None) -> int | Array:
    """Returns the multiply-accumulates of one image.

    Args:
        model: with geometry and cost terms.
        counts: a `Schedule` or `ToMe` gives an exact int, as does None (dense);
            `Kept` of a forward pass gives a float32 scalar whose gradient goes
            whole to the prune and the merge count of a block, whichever is smaller,
            and not to the tokens that came in (the published rule).

    Raises:
        UserError: a schedule that does not fit the model.
    """
    geometry, terms = model.geometry, model.macs
    if counts is None:
        counts = Schedule.dense(geometry)
    if isinstance(counts, ToMe):
        counts = counts.schedule(geometry)
    traced = isinstance(counts, Kept)
    if not traced:
        counts.check(geometry)
    number = float if traced else int
    total, left = number(terms.fixed), geometry.num_tokens
    for block in range(geometry.depth):
        tokens = geometry.coming(block, left)
        kept = [c[block] for c in (counts.prune, counts.merge) if c is not None]
        left = straight_through_minimum(tokens, *kept) if traced else min(tokens, *kept)
        linear_in, quadratic_in, linear_out = map(number, terms.of_block(block))
        total += linear_in * tokens + linear_out * left
        total += quadratic_in * tokens * tokens
    return total


def straight_through_minimum(tokens: Array | float, *counts: Array) -> Array:
    """Returns the minimum; every count gets the whole gradient, `tokens` none.

    Reference: the published minimum does this; DESIGN.md, section 1, Cost.
    """
    least = jax.lax.stop_gradient(jnp.asarray(tokens, jnp.float32))
    for count in counts:
        least = jnp.minimum(least, jax.lax.stop_gradient(count))
    return least + sum(count - jax.lax.stop_gradient(count) for count in counts)
