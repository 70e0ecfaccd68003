"""Parabolas of the loss: measured, pooled, and the step to their lowest point."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_refine import START, small, wide

import diffrate_jax as dr
from diffrate_jax.budget import one_more
from diffrate_jax.cost import macs_of
from diffrate_jax.learning.parabolas import (
    Parabola,
    Side,
    parabolas_of,
    probed,
    shifted,
)
from diffrate_jax.learning.valley import LEAST, TRUST, Valley, pooled

MOST = round(TRUST * 196)


def quadratic(slope_L: np.ndarray, curvature_L: np.ndarray):
    """Returns the losses of two images whose mean is a parabola in each count."""

    def loss(schedule: dr.Schedule) -> np.ndarray:
        tokens_L = np.subtract(schedule.merge, START.merge)
        mean = slope_L @ tokens_L + curvature_L @ tokens_L**2 / 2
        return mean + np.array([1.0, -1.0])

    return loss


curves = st.lists(st.floats(0.01, 1), min_size=4, max_size=4).map(np.array)
slopes = st.lists(st.floats(-3, 0.5), min_size=4, max_size=4).map(np.array)


@settings(max_examples=30, deadline=None)
@given(slope_L=slopes, curvature_L=curves)
def test_a_parabola_is_measured_exactly(slope_L, curvature_L):
    model, loss = wide(), quadratic(slope_L, curvature_L)
    cost = macs_of(model)
    found = parabolas_of(START, cost, loss, loss(START))
    np.testing.assert_allclose([p.slope for p in found], slope_L, atol=1e-9)
    np.testing.assert_allclose([p.curvature for p in found], curvature_L, rtol=1e-6)
    for block, parabola in enumerate(found):
        shorter, longer = (shifted(START, block, n, model.geometry)[0] for n in (-1, 1))
        price = (cost(longer) - cost(shorter)) / 2
        assert parabola.price == pytest.approx(price, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(slope_L=slopes, curvature_L=curves, share=st.floats(0.99, 1.01))
def test_at_the_bottom_all_tokens_earn_alike(slope_L, curvature_L, share):
    """Kuhn and Tucker's conditions, by the curvatures that are gone by."""
    model, loss = wide(), quadratic(slope_L, curvature_L)
    measure, limit = macs_of(model), share * dr.cost_macs(wide(), START)
    found = parabolas_of(START, measure, loss, loss(START))
    tokens_M = Valley(START, found, measure, limit).bottom()
    assert np.abs(tokens_M).max() <= MOST
    price_M = np.array([p.price for p in found])
    spare = limit - measure(START)
    assert price_M @ tokens_M == pytest.approx(spare, abs=1e-6 * limit)
    curvature_M = pooled([p.curvature for p in found], 1.0)
    worth_M = -(slope_L + curvature_M * tokens_M) / price_M
    inside = np.abs(tokens_M) < MOST - 1e-6
    if inside.any():
        common = worth_M[inside].mean()
        np.testing.assert_allclose(worth_M[inside], common, rtol=1e-3, atol=1e-12)
        # Who gave all that it may is worth less there, who took all is worth more.
        assert (worth_M[tokens_M <= 1e-6 - MOST] <= common + 1e-9).all()
        assert (worth_M[tokens_M >= MOST - 1e-6] >= common - 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(
    slope_L=slopes,
    curvature_L=curves,
    rule=st.sampled_from(["redundancy", "diffrate", "tome"]),
    part=st.floats(0, 1),
)
def test_whatever_the_step_the_schedule_fits(slope_L, curvature_L, rule, part):
    model, loss = wide(), quadratic(slope_L, curvature_L)
    prune = (160, 120, 90, 62) if rule == "diffrate" else None
    start = dr.Schedule(prune, START.merge, rule=rule).feasible(model.geometry)
    measure, limit = macs_of(model), dr.cost_macs(model, start)
    found = parabolas_of(start, measure, loss, loss(start))
    valley = Valley(start, found, measure, limit)
    there = valley.toward(part * valley.bottom())
    there.check(model.geometry)
    assert there.rule == rule
    assert measure(there) <= limit
    for block in range(4):
        longer = one_more(there, block, model.geometry)
        assert longer is None or measure(longer) > limit


def test_no_step_is_no_change():
    model, loss = wide(), quadratic(np.full(4, -1.0), np.full(4, 0.1))
    measure, limit = macs_of(model), dr.cost_macs(wide(), START)
    found = parabolas_of(START, measure, loss, loss(START))
    assert Valley(START, found, measure, limit).toward(np.zeros(4)) == START


def test_what_cannot_be_given_or_taken_is_not():
    geometry = small().geometry
    dense = dr.Schedule(None, (17, 17, 17, 2), rule="redundancy")
    assert shifted(dense, 0, 3, geometry) == (dense, 0)
    assert shifted(dense, 3, -1, geometry) == (dense, 0)
    assert shifted(dense, 3, 2, geometry)[1] == 2
    assert shifted(dense, 3, 99, geometry)[1] == 15
    assert shifted(dense, 0, -99, geometry)[1] == -15
    measure = macs_of(small())
    found = parabolas_of(dense, measure, lambda s: np.ones(3), np.ones(3))
    assert found[0].more == Side(0, 0.0, 0.0)
    assert found[0].record()["more"] is None
    assert found[0].curvature is None
    assert (found[0].middle, found[1].middle) == (-0.5, -0.5)
    assert all(parabola.moves for parabola in found)
    tokens_M = Valley(dense, found, measure, measure(dense)).bottom()
    assert tokens_M[0] <= 0 <= tokens_M[3]
    assert not Parabola(0, Side(0, 0.0, 0.0), Side(0, 0.0, 0.0)).moves


def test_a_short_block_does_not_hold_the_others():
    """Its curvature is hundreds of times theirs, and they are 10 to 15 tokens off."""
    model = wide()
    start = dr.Schedule(None, (150, 110, 80, 4), rule="redundancy")

    def loss(schedule: dr.Schedule) -> np.ndarray:
        off = np.subtract(schedule.merge[:3], (135, 125, 90))
        return np.full(2, 1e-3 * off @ off + 20 / schedule.merge[3])

    measure = macs_of(model)
    found = parabolas_of(start, measure, loss, loss(start))
    tokens_M = Valley(start, found, measure, measure(start)).bottom()
    assert tokens_M[0] < -10
    assert min(tokens_M[1], tokens_M[2]) > 5
    assert tokens_M[3] >= -2


def test_a_block_that_can_only_lose_tokens_is_not_held_to_want_it():
    model = wide()
    start = dr.Schedule(None, (197, 110, 80, 4), rule="redundancy")

    def loss(schedule: dr.Schedule) -> np.ndarray:
        return np.full(2, -0.01 * sum(schedule.merge[:3]) + 20 / schedule.merge[3])

    measure = macs_of(model)
    found = parabolas_of(start, measure, loss, loss(start))
    assert found[0].more.tokens == 0
    tokens_M = Valley(start, found, measure, 1.2 * measure(start)).bottom()
    assert tokens_M[0] == pytest.approx(0, abs=1e-9)


def test_idle_blocks_stay_idle_with_the_block_before_them():
    geometry = wide((True, True, False, True)).geometry
    tied = dr.Schedule(None, (120, 90, 90, 90), rule="redundancy")
    assert shifted(tied, 1, 2, geometry)[0].merge == (120, 92, 92, 92)
    assert shifted(tied, 1, -2, geometry)[0].merge == (120, 88, 88, 88)
    assert shifted(tied, 0, 2, geometry)[0].merge == (122, 90, 90, 90)
    assert shifted(tied, 3, 1, geometry) == (tied, 0)
    assert shifted(tied, 3, -1, geometry)[0].merge == (120, 90, 90, 89)


def test_blocks_that_should_rise_together_do():
    """Neither of two equal counts is worth more alone, and both are together."""
    model = wide()
    start = dr.Schedule(None, (150, 110, 70, 70), rule="redundancy")
    measure = macs_of(model)

    def loss(schedule: dr.Schedule) -> np.ndarray:
        wanted = np.array([140, 100, 76, 76])
        return np.full(2, np.subtract(schedule.merge, wanted) ** 2 @ np.ones(4))

    found = parabolas_of(start, measure, loss, loss(start))
    assert found[3].more.tokens == 0
    valley = Valley(start, found, measure, 1.01 * measure(start))
    there = valley.toward(valley.bottom())
    assert there.merge[2] > 73
    assert there.merge[3] >= there.merge[2] - 1
    assert loss(there).mean() < loss(start).mean()


def test_few_tokens_are_probed_with_few():
    geometry = wide().geometry
    assert [probed(n, geometry) for n in (2, 7, 8, 16, 24, 197)] == [1, 1, 2, 4, 6, 6]


def test_curvatures_are_drawn_together_and_never_negative():
    np.testing.assert_allclose(pooled([1.0, 3.0], 9.0), [1.5, 2.5])
    np.testing.assert_allclose(pooled([1.0, None, 3.0], 9.0), [1.5, 2.0, 2.5])
    np.testing.assert_allclose(pooled([1.0, 1.0, 99.0], 9.0), [1.0, 1.0, 50.0])
    np.testing.assert_allclose(pooled([-4.0, 6.0], 9.0), [LEAST, 3.5])
    np.testing.assert_allclose(pooled([-4.0, 2.0], 9.0), [LEAST * 9, 5.5])
    np.testing.assert_allclose(pooled([None, None], 9.0), [9, 9])
    assert (pooled([0.0], 0.0) > 0).all()


def test_a_parabola_by_eye():
    """Two tokens given lower the loss by 1, two taken raise it by 3."""
    parabola = Parabola(5, Side(2, -1.0, 20.0), Side(-2, 3.0, -20.0))
    assert (parabola.slope, parabola.price, parabola.curvature) == (-1.0, 10.0, 0.5)
    assert parabola.record() == {"block": 5, "more": -0.5, "fewer": 1.5}
