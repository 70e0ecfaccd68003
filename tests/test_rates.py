"""Rates: the published expectation, ceiling and survival, and nothing at the edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffrate_jax as dr
from diffrate_jax.rates import (
    Located,
    candidate_counts,
    kept_counts,
    straight_through_ceiling,
    survival,
    zero_rates,
)
from diffrate_jax.shapes import Geometry

GEOMETRY = Geometry(17, 1, (False, True, True))

jitted_survival = jax.jit(survival, static_argnums=(2, 3))
jitted_counts = jax.jit(kept_counts, static_argnums=(1, 2), static_argnames="reference")

few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**32 - 1)
granularities = st.sampled_from([1, 3, 16])


def random_logits(seed: int, granularity: int, *leading: int) -> np.ndarray:
    num = len(candidate_counts(GEOMETRY.num_patches, granularity))
    rng = np.random.default_rng(seed)
    return 3 * rng.standard_normal((*leading, num)).astype(np.float32)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax in float64, written out."""
    weights = np.exp(logits.astype(np.float64))
    return weights / weights.sum(axis=-1, keepdims=True)


@few
@given(seed=seeds, granularity=granularities, prefix=st.sampled_from([0, 1]))
def test_survival_is_a_loop_over_candidates(seed, granularity, prefix):
    geometry = Geometry(16 + prefix, prefix, (True,))
    logits_R = random_logits(seed, granularity)
    rank_N = np.random.default_rng(seed).permutation(geometry.num_tokens)
    wanted = np.zeros(geometry.num_tokens)
    for probability, count in zip(
        probabilities(logits_R),
        range(16, 0, -granularity),
        strict=True,
    ):
        for token, rank in enumerate(rank_N):
            if count + prefix > rank:
                wanted[token] += probability
    found = jitted_survival(logits_R, rank_N[None], geometry, granularity)
    np.testing.assert_allclose(found[0], wanted, atol=5e-7)


@few
@given(seed=seeds, granularity=granularities)
def test_survival_falls_and_sums_to_the_expected_count(seed, granularity):
    logits_R = random_logits(seed, granularity)
    rank_BN = np.arange(GEOMETRY.num_tokens)[None]
    found = jitted_survival(logits_R, rank_BN, GEOMETRY, granularity)[0]
    assert (np.diff(found) <= 1e-6).all()
    expected = probabilities(logits_R) @ candidate_counts(16, granularity)
    np.testing.assert_allclose(found.sum(), expected + 1, rtol=1e-6)


def test_survival_by_eye():
    """Candidates 4, 3, 2, 1 of 4 patches and a class token, equally likely."""
    geometry = Geometry(5, 1, (True,))
    found = survival(jnp.zeros(4), jnp.array([[4, 0, 2, 1, 3]]), geometry, 1)
    np.testing.assert_allclose(found[0], [0.25, 1, 0.75, 1, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "slack", "wanted"),
    [
        (2.3, 0.0, 3.0),
        (2.0, 0.0, 2.0),
        (2.00001, 0.0, 3.0),
        (2.00001, 1e-4, 2.0),
        (2.001, 1e-4, 3.0),
    ],
)
def test_straight_through_ceiling(value: float, slack: float, wanted: float):
    rounded = lambda x: straight_through_ceiling(x, slack)  # noqa: E731
    found, slope = jax.value_and_grad(rounded)(jnp.float32(value))
    assert float(found) == wanted
    assert float(slope) == 1.0


@few
@given(seed=seeds, granularity=granularities)
def test_kept_counts_are_the_expectation_rounded_up(seed, granularity):
    logits_LR = random_logits(seed, granularity, 3)
    candidates_R = candidate_counts(16, granularity)
    expected_L = probabilities(logits_LR) @ candidates_R
    wanted_L = np.ceil(expected_L - 1e-4) + 1
    found_L = jitted_counts(logits_LR, GEOMETRY, granularity, reference=False)
    # Within rounding of the slack either side is right.
    clear_L = np.abs((expected_L - 1e-4) % 1 - 0.5) < 0.5 - 1e-5
    np.testing.assert_array_equal(found_L[1:][clear_L[1:]], wanted_L[1:][clear_L[1:]])
    assert found_L[0] == 17


@functools.partial(jax.jit, static_argnums=2)
@jax.grad
def weighted_gradient(logits_LR, weight_L, granularity):
    kept_L = kept_counts(logits_LR, GEOMETRY, granularity, reference=False)
    return jnp.sum(kept_L * weight_L)


@few
@given(seed=seeds, granularity=granularities)
def test_counts_have_the_gradient_of_the_expectation(seed, granularity):
    """d e / d a_r = p_r (c_r - e); blocks without rates have none."""
    logits_LR = random_logits(seed, granularity, 3)
    weight_L = np.array([5.0, 2.0, -1.0], np.float32)

    probs_LR = probabilities(logits_LR)
    candidates_R = candidate_counts(16, granularity)
    spread_LR = candidates_R - (probs_LR @ candidates_R)[:, None]
    wanted_LR = weight_L[:, None] * probs_LR * spread_LR
    found_LR = np.asarray(weighted_gradient(logits_LR, weight_L, granularity))
    np.testing.assert_allclose(found_LR[1:], wanted_LR[1:], atol=2e-5)
    assert not found_LR[0].any()


@pytest.mark.parametrize(
    ("patches", "granularity", "mean"),
    [(64, 4, 34), (15, 1, 8), (16, 5, None), (196, 4, 100), (255, 1, 128)],
)
def test_an_integer_expectation_does_not_jump(patches, granularity, mean):
    """Equal logits: the mean of the candidates is exact, its float32 sum is not."""
    geometry = Geometry(patches + 1, 1, (True, True))
    rates = zero_rates(geometry, granularity)
    kept_L = jitted_counts(rates.merge, geometry, granularity, reference=False)
    wanted = mean or np.ceil(candidate_counts(patches, granularity).mean())
    assert np.asarray(kept_L).tolist() == [wanted + 1] * 2


def test_a_certain_rate_keeps_exactly_its_candidate():
    geometry = Geometry(65, 1, (True,) * 16)
    candidates_R = candidate_counts(64, 4)
    logits_LR = jnp.where(jnp.eye(16, dtype=bool), 60.0, 0.0)
    kept_L = jitted_counts(logits_LR, geometry, 4, reference=False)
    np.testing.assert_array_equal(kept_L, candidates_R + 1)


def test_blocks_without_rates_keep_all_whatever_their_logits():
    logits_LR = jnp.full((3, 16), -1.0).at[:, -1].set(60.0)
    for reference in (True, False):
        kept_L = jitted_counts(logits_LR, GEOMETRY, 1, reference=reference)
        assert np.asarray(kept_L).tolist() == [17, 2, 2]


def test_rates_are_a_tree_whose_granularity_is_not_a_leaf():
    rates = zero_rates(GEOMETRY, 4)
    assert len(jax.tree.leaves(rates)) == 2
    assert jax.tree.map(lambda x: x + 1, rates).granularity == 4
    merge_only = zero_rates(GEOMETRY, 4, prune=False)
    assert merge_only.prune is None
    assert merge_only.merge.shape == (3, 4)


@pytest.mark.parametrize("granularity", [0, -1, 17])
def test_granularities_out_of_range(granularity: int):
    sentence = f"granularity must lie between 1 and the 16 patches, got {granularity}"
    with pytest.raises(dr.UserError, match=sentence):
        zero_rates(GEOMETRY, granularity)


@pytest.mark.parametrize("granularity", [1, 3, 16])
def test_candidates_fall_from_all_patches_and_never_below_one(granularity: int):
    found = candidate_counts(16, granularity)
    assert found[0] == 16
    assert 1 <= found[-1] <= granularity
    assert set(np.diff(found)) <= {-granularity}


def located(merge: list[float], spread: float = 1.0) -> Located:
    return Located(None, jnp.float32(merge), jnp.float32(spread))


def test_located_counts_are_rounded_up_and_pass_the_gradient():
    """Blocks that may not compress keep all, and have no gradient."""

    def kept(merge):
        return Located(merge, merge, jnp.float32(1.0)).kept(GEOMETRY)

    merge = jnp.float32([3.5, 8.2, 4.00005])
    for found in (kept(merge).prune, kept(merge).merge):
        assert found.tolist() == [17, 10, 5]
    slope = jax.jacobian(lambda merge: kept(merge).merge)(merge)
    np.testing.assert_array_equal(slope, np.diag([0, 1, 1]))
    reference = located([3.5, 8.2, 4.00005]).kept(GEOMETRY, reference=True)
    assert reference.merge.tolist() == [17, 10, 6]
    assert reference.prune is None


def test_located_counts_of_another_model():
    with pytest.raises(
        dr.UserError, match="has 3 blocks, got expected counts of shape"
    ):
        located([3.5, 8.2]).kept(GEOMETRY)


@functools.partial(jax.jit, static_argnames="geometry")
def shares(merge, spread, rank_BN, can_go_BN, geometry):
    """Returns how one token more in block 1 is shared among the tokens [B, N]."""

    def survival(merge):
        rates = Located(None, merge, spread)
        return rates.survival("merge", 1, rank_BN, geometry, can_go_BN)

    return jax.jacobian(survival)(merge)[..., 1]


@few
@given(
    seed=seeds,
    expected=st.floats(0.5, 15.5, width=32),
    spread=st.floats(0.25, 4, width=32),
    prefix=st.sampled_from([0, 1]),
)
def test_one_token_more_is_shared_by_those_next_in_line(seed, expected, spread, prefix):
    """In all by one token, by a logistic density, and never by one that cannot go."""
    rng = np.random.default_rng(seed)
    geometry = Geometry(16 + prefix, prefix, (True, True, True))
    rank = np.stack([rng.permutation(16 + prefix) for _ in range(2)])
    can_go = rng.uniform(size=rank.shape) < 0.7
    merge = np.float32([15.5, expected, 0.5])
    found = np.asarray(shares(merge, np.float32(spread), rank, can_go, geometry))
    density = 1 / np.cosh((expected - (rank - prefix)) / (2 * spread)) ** 2
    density = np.where(can_go, density, 0.0)
    wanted = density / density.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_where_no_token_can_go_none_has_a_share():
    rank = np.arange(17)[None]
    nobody = np.zeros((1, 17), bool)
    found = shares(np.float32([15, 9, 3]), np.float32(0.5), rank, nobody, GEOMETRY)
    assert not np.asarray(found).any()
