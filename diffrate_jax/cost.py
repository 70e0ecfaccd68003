"""Costs of schedules: one way to count for integers and for traced counts.

Multiply-accumulates are counted as in DiffRate, section 3.4, where they are called
FLOPs: only matrix products count. `latency` counts milliseconds.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp

from diffrate_jax.rates import Kept
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Array, Geometry
from diffrate_jax.tome import ToMe

Counts = Sequence[int] | Sequence[Array]


class Terms(Protocol):
    """What a model's blocks cost by the tokens that enter them and are left."""

    def total(self, coming: Counts, left: Counts) -> float | Array:
        """Returns the cost of a model, exact for integers, traced for traced counts.

        Args:
            coming: tokens that enter each block.
            left: tokens after its compression.
        """


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

    def total(self, coming: Counts, left: Counts) -> int | Array:
        """Returns the multiply-accumulates of one image."""
        number = float if any(isinstance(n, Array) for n in left) else int
        total = number(self.fixed)
        for block, (tokens, kept) in enumerate(zip(coming, left, strict=True)):
            linear_in, quadratic_in, linear_out = map(number, self.of_block(block))
            total += linear_in * tokens + linear_out * kept
            total += quadratic_in * tokens * tokens
        return total


@dataclasses.dataclass(frozen=True)
class Unit:
    """What costs are counted in.

    Attributes:
        name: key of costs in records.
        symbol: of the unit that users read and write.
        size: how many costs make one such unit.
    """

    name: str
    symbol: str
    size: float

    def show(self, cost: float) -> str:
        """Returns a cost as users read it.

        >>> MACS.show(2_900_000_000)
        '2.9 GMACs'
        """
        return f"{cost / self.size:.4g} {self.symbol}"


MACS = Unit("macs", "GMACs", 1e9)


class HasCost(Protocol):
    """A model that states its geometry and its cost terms."""

    @property
    def geometry(self) -> Geometry:
        """What compression knows of the model."""

    @property
    def macs(self) -> MacsTerms:
        """The model's cost terms."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """What a model's schedules cost, in one unit: all that a search knows of costs.

    Attributes:
        geometry: of the model.
        terms: what its blocks cost.
        unit: of the costs.
    """

    geometry: Geometry
    terms: Terms
    unit: Unit

    def __call__(self, counts: Kept | Schedule | ToMe | None) -> float | Array:
        """Returns the cost.

        Args:
            counts: a `Schedule` or `ToMe` gives an exact number, as does None (dense);
                `Kept` of a forward pass gives a float32 scalar whose gradient goes
                whole to the prune and the merge count of a block, whichever is
                smaller, and not to the tokens that came in (the published rule).

        Raises:
            UserError: a schedule that does not fit the model.
        """
        geometry = self.geometry
        if counts is None:
            counts = Schedule.dense(geometry)
        if isinstance(counts, ToMe):
            counts = counts.schedule(geometry)
        traced = isinstance(counts, Kept)
        if not traced:
            counts.check(geometry)
        least = straight_through_minimum if traced else min
        coming, left, last = [], [], geometry.num_tokens
        for block in range(geometry.depth):
            tokens = geometry.coming(block, last)
            kept = [c[block] for c in (counts.prune, counts.merge) if c is not None]
            last = least(tokens, *kept)
            coming.append(tokens)
            left.append(last)
        return self.terms.total(coming, left)


def macs_of(model: HasCost) -> Measure:
    """Returns what schedules of a model cost in multiply-accumulates of one image."""
    return Measure(model.geometry, model.macs, MACS)


def cost_macs(model: HasCost, counts: Kept | Schedule | ToMe | None) -> int | Array:
    """Returns the multiply-accumulates of one image; see `Measure`.

    Args:
        model: with geometry and cost terms.
        counts: a `Schedule` or `ToMe` gives an exact int, as does None (dense);
            `Kept` a float32 scalar with gradients.

    Raises:
        UserError: a schedule that does not fit the model.
    """
    return macs_of(model)(counts)


def straight_through_minimum(tokens: Array | float, *counts: Array) -> Array:
    """Returns the minimum; every count gets the whole gradient, `tokens` none.

    Reference: the published search does this.
    """
    least = jax.lax.stop_gradient(jnp.asarray(tokens, jnp.float32))
    for count in counts:
        least = jnp.minimum(least, jax.lax.stop_gradient(count))
    return least + sum(count - jax.lax.stop_gradient(count) for count in counts)
