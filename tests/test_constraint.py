"""Sequences that never rise, and that cost what they may."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.isotonic import IsotonicRegression

from diffrate_jax.learning.constraint import falling, on_budget

LENGTH, LEAST, MOST = 7, 0.5, 195.5
few = settings(max_examples=60, deadline=None)
jitted_falling = jax.jit(falling)
spans = MOST - LEAST
# As far outside of the bounds as they are apart.
values = hnp.arrays(
    np.float32, LENGTH, elements=st.floats(LEAST - spans, MOST + spans, width=32)
)
prices = hnp.arrays(
    np.float32, LENGTH, elements=st.floats(0.125, 8, width=32), fill=st.nothing()
)


def unlifted(value_L: jax.Array) -> jax.Array:
    """Returns what a rule says that can leave any number of tokens."""
    return value_L


def cost(value_L: jax.Array, price_L: jax.Array) -> jax.Array:
    """Returns a cost that rises faster and faster with every member."""
    return jnp.sum(price_L * (value_L + value_L**2 / 100))


@jax.jit
def projected(value_L: jax.Array, price_L: jax.Array, budget: jax.Array) -> jax.Array:
    priced = functools.partial(cost, price_L=price_L)
    return on_budget(value_L, priced, budget, (LEAST, MOST), unlifted)


@few
@given(value=values)
def test_falling_is_isotonic_regression(value):
    wanted = IsotonicRegression(increasing=False).fit_transform(range(LENGTH), value)
    np.testing.assert_allclose(jitted_falling(value), wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ([5, 4, 4, 1], [5, 4, 4, 1]),
        ([1, 2, 3, 6], [3, 3, 3, 3]),
        ([9, 2, 4, 1], [9, 3, 3, 1]),
        ([2, 1, 6, 0], [3, 3, 3, 0]),
        ([7], [7]),
    ],
)
def test_falling_by_eye(value: list[int], wanted: list[int]):
    assert falling(jnp.float32(value)).tolist() == wanted


@few
@given(value=values, price=prices, share=st.floats(0, 1))
def test_whatever_moves_is_brought_back_to_the_budget(value, price, share):
    least, most = (float(cost(jnp.full(LENGTH, b), price)) for b in (LEAST, MOST))
    budget = np.float32(least + share * (most - least))
    found = np.asarray(projected(value, price, budget))
    assert (np.diff(found) <= 0).all()
    assert found.min() >= LEAST
    assert found.max() <= MOST
    spent = float(cost(found, price))
    # Sums of float32 differ in their last digits from one program to the next.
    assert spent <= budget * (1 + 1e-6)
    assert spent >= budget * (1 - 1e-4)


@few
@given(value=values, price=prices)
def test_what_is_on_the_budget_stays(value, price):
    value = np.clip(-np.sort(-value), LEAST, MOST)
    found = projected(value, price, cost(value, price))
    np.testing.assert_allclose(found, value, atol=2e-3)


def test_all_are_shifted_alike():
    """Unit prices of one block each: 30 too many come off in equal parts."""
    plain = lambda value_L: value_L.sum()  # noqa: E731
    value = jnp.float32([50, 20, 30])
    found = on_budget(value, plain, jnp.float32(70), (1.0, 60.0), unlifted)
    np.testing.assert_allclose(found, [40, 15, 15], atol=1e-4)
    # The last two meet their bound, and the first one pays what they cannot.
    found = on_budget(value, plain, jnp.float32(12), (1.0, 60.0), unlifted)
    np.testing.assert_allclose(found, [10, 1, 1], atol=1e-4)
    found = on_budget(value, plain, jnp.float32(130), (1.0, 60.0), unlifted)
    np.testing.assert_allclose(found, [60, 35, 35], atol=1e-4)


@pytest.mark.parametrize(("budget", "wanted"), [(1.0, 1.0), (1e9, 60.0)])
def test_budgets_out_of_reach_end_at_the_bounds(budget: float, wanted: float):
    found = on_budget(
        jnp.float32([50, 20, 30]), jnp.sum, jnp.float32(budget), (1.0, 60.0), unlifted
    )
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_what_is_lifted_is_paid_by_the_others():
    """None may be less than half of the one before it."""

    def lift(value_L: jax.Array) -> jax.Array:
        second = jnp.maximum(value_L[1], value_L[0] / 2)
        return jnp.stack([value_L[0], second, jnp.maximum(value_L[2], second / 2)])

    value = jnp.float32([48, 20, 10])
    found = on_budget(value, jnp.sum, jnp.float32(70), (1.0, 60.0), lift)
    np.testing.assert_allclose(found, [40, 20, 10], atol=1e-4)
