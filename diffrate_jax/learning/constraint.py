"""The counts that a search may visit: never rising, and exactly at the budget."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffrate_jax.shapes import Array

BISECTIONS = 40


def falling(value_L: Array) -> Array:
    """Returns the nearest sequence that never rises (isotonic regression).

    By its closed form, the least over starts of the largest over ends of the means
    (Barlow et al. 1972): static shapes, and a sequence has a few dozen members.
    """
    length = value_L.shape[0]
    index_L = jnp.arange(length)
    sum_L = jnp.concatenate([jnp.zeros(1, value_L.dtype), jnp.cumsum(value_L)])
    first, end = index_L[:, None], index_L[None, :]
    mean_LL = (sum_L[end + 1] - sum_L[first]) / jnp.maximum(end - first + 1, 1)
    # What a run [first, end] holds must contain the member in question.
    runs_LLL = (first <= index_L[:, None, None]) & (end >= index_L[:, None, None])
    largest_LL = jnp.max(jnp.where(runs_LLL, mean_LL, -jnp.inf), axis=2)
    starts_LL = index_L[None, :] <= index_L[:, None]
    return jnp.min(jnp.where(starts_LL, largest_LL, jnp.inf), axis=1)


def on_budget(
    value_L: Array,
    cost: Callable[[Array], Array],
    budget: Array,
    bounds: tuple[float, float],
    lift: Callable[[Array], Array],
) -> Array:
    """Returns a falling sequence within bounds that costs at most `budget`.

    Members are shifted in proportion to their prices, so that a step along the gradient
    which ends here rests only where all members earn the same for what they cost; how
    far is found by bisection.

    Args:
        value_L: expected counts.
        cost: of a falling sequence; no member lowers it.
        budget: what it may cost.
        bounds: of all members.
        lift: raises members to the least that can be reached from those before.
    """
    least, most = bounds
    price_L = jax.grad(cost)(jnp.clip(falling(value_L), least, most))
    price_L /= jnp.max(price_L)
    # Cheap members shift slowly: far enough for the cheapest to meet its bound.
    cheapest = jnp.min(jnp.where(price_L > 0, price_L, 1.0))

    def shifted(shift: Array) -> Array:
        return lift(jnp.clip(falling(value_L - shift * price_L), least, most))

    def halve(_: int, shifts: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = shifts
        middle = (low + high) / 2
        too_dear = cost(shifted(middle)) > budget
        return jnp.where(too_dear, middle, low), jnp.where(too_dear, high, middle)

    reach = 2 * (most - least) / cheapest
    _, high = jax.lax.fori_loop(0, BISECTIONS, halve, (-reach, reach))
    return shifted(high)
