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
    """Returns the nearest falling sequence within bounds that costs at most `budget`.

    All members are shifted alike; the shift is found by bisection.

    Args:
        value_L: expected counts.
        cost: of a falling sequence; rises with every member.
        budget: what it may cost.
        bounds: of all members.
        lift: raises members to the least that can be reached from those before.
    """
    least, most = bounds
    falling_L = falling(value_L)

    def shifted(shift: Array) -> Array:
        return lift(jnp.clip(falling_L - shift, least, most))

    def halve(_: int, shifts: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = shifts
        middle = (low + high) / 2
        too_dear = cost(shifted(middle)) > budget
        return jnp.where(too_dear, middle, low), jnp.where(too_dear, high, middle)

    reach = jnp.float32(2 * (most - least))
    _, high = jax.lax.fori_loop(0, BISECTIONS, halve, (-reach, reach))
    return shifted(high)
