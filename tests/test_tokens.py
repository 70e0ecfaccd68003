"""Ranking, matching and folding on tokens that the eye can follow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffrate_jax.folding import fold, merge
from diffrate_jax.tokens import (
    Tokens,
    match,
    products,
    rank,
    ranking_score,
    take,
    unit,
)

few = settings(max_examples=40, deadline=None)
jitted_rank = jax.jit(rank)


@pytest.mark.parametrize(
    ("score", "wanted"),
    [
        ([0.5, 0.9, 0.1, 0.7], [2, 0, 3, 1]),
        ([0.5, 0.5, 0.5, 0.5], [0, 1, 2, 3]),
        ([0.1, 0.9, 0.1, 0.9], [2, 0, 3, 1]),
        ([-np.inf, 0.2, -np.inf, 0.3], [2, 1, 3, 0]),
        ([0.0, -0.0, 1e-30, -1.0], [1, 2, 0, 3]),
    ],
)
def test_rank_by_eye(score: list[float], wanted: list[int]):
    assert jitted_rank(jnp.array([score]))[0].tolist() == wanted


def test_class_token_first_and_the_dead_last():
    """Token 0 is a class token nobody looks at; tokens 2 and 3 are dead."""
    importance = jnp.array([[0.0, 0.2, 0.9, 0.8, 0.6]])
    alive = jnp.array([[1.0, 1.0, 0.0, 0.0, 1.0]])
    assert rank(ranking_score(importance, alive, 1))[0].tolist() == [0, 2, 3, 4, 1]
    assert rank(ranking_score(importance, alive, 0))[0].tolist() == [2, 1, 3, 4, 0]
    assert rank(ranking_score(importance, None, 1))[0].tolist() == [0, 4, 1, 2, 3]


@few
@given(score=hnp.arrays(np.float32, (3, 9), elements=st.sampled_from([0, 1, 2, 0.5])))
def test_rank_is_the_place_in_a_stable_sort(score):
    order = np.argsort(-score, axis=1, kind="stable")
    wanted = np.argsort(order, axis=1)
    np.testing.assert_array_equal(jitted_rank(score), wanted)


def test_unit_leaves_zero_at_zero():
    found = unit(jnp.array([[[3.0, 4.0], [0.0, 0.0]]]))
    np.testing.assert_allclose(found[0], [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    assert unit(jnp.ones((1, 1, 4), jnp.bfloat16)).dtype == jnp.float32


def test_match_by_eye():
    """Length does not count; among equals the lower destination wins."""
    destination = jnp.array([[[1.0, 0.0], [0.0, 1.0], [0.0, 7.0], [1.0, 1.0]]])
    source = jnp.array([[[0.0, 0.1], [5.0, 5.0], [-1.0, 0.1], [0.0, 0.0]]])
    index, similarity = match(products(unit(source), unit(destination)), True)
    assert index[0].tolist() == [1, 3, 1, 0]
    expected = 0.1 / np.sqrt(1.01)
    np.testing.assert_allclose(similarity[0], [1.0, 1.0, expected, 0.0], atol=1e-6)


def test_match_only_where_it_is_allowed():
    features = jnp.array([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]])
    allowed = jnp.array([[False, True, True]])
    index, _ = match(products(unit(features), unit(features)), allowed)
    assert index[0].tolist() == [1, 1, 2]


def test_fold_by_hand():
    """Sources 0 and 2 go to destination 1, source 1 to destination 0; 2 gets none."""
    destination = Tokens(
        x=jnp.array([[[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]]),
        size=jnp.array([[1.0, 2.0, 4.0]]),
        origin=jnp.eye(6)[None, :3],
    )
    source = Tokens(
        x=jnp.array([[[6.0, 0.0], [5.0, 0.0], [7.0, 1.0]]]),
        size=jnp.array([[0.5, 1.0, 0.25]]),
        origin=jnp.eye(6)[None, 3:],
    )
    assignment = jnp.array([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    out = fold(destination, source, assignment)
    wanted = [[3.0, 5.0], [5.0, 7.0], [3.0, 30.0]]
    np.testing.assert_allclose(out.x[0], wanted, rtol=1e-6)
    assert out.size[0].tolist() == [2.0, 2.75, 4.0]
    assert out.origin[0].tolist() == [
        [1, 0, 0, 0, 1, 0],
        [0, 1, 0, 1, 0, 1],
        [0, 0, 1, 0, 0, 0],
    ]
    weights = (destination.sizes(), source.sizes())
    weighted = fold(destination, source, assignment, weights)
    by_hand = (2 * 2.0 + 0.5 * 6.0 + 0.25 * 7.0) / 2.75
    np.testing.assert_allclose(weighted.x[0, 1, 0], by_hand, rtol=1e-6)


@functools.partial(jax.jit, static_argnames="weighted")
def folded(x, source_x, size, source_size, target, *, weighted):
    assignment = jax.nn.one_hot(target, x.shape[1])
    origin = jnp.eye(9)[None].repeat(len(x), axis=0)
    destination = Tokens(x, size, origin=origin[:, :4])
    source = Tokens(source_x, source_size, origin=origin[:, 4:])
    return fold(
        destination, source, assignment, (size, source_size) if weighted else None
    )


@functools.partial(jax.jit, static_argnames=("platform", "weighted"))
def merged(destination, source, index, *, platform, weighted):
    weights = (destination.sizes(), source.sizes()) if weighted else None
    if platform == "cpu":
        return merge(destination, source, index, weights)
    return fold(destination, source, jax.nn.one_hot(index, 4), weights)


@few
@given(seed=st.integers(0, 2**32 - 1), weighted=st.booleans())
def test_merge_on_a_cpu_is_as_folding_by_a_matrix(seed, weighted):
    """Whatever no source goes to stays as it is, to the bit."""
    rng = np.random.default_rng(seed)
    eye = jnp.eye(9)[None].repeat(2, axis=0)
    parts = [
        Tokens(
            jnp.float32(rng.standard_normal((2, count, 3))),
            jnp.float32(rng.uniform(0.1, 4, (2, count))),
            origin=origin,
        )
        for count, origin in ((4, eye[:, :4]), (5, eye[:, 4:]))
    ]
    index = rng.integers(0, 4, (2, 5))
    found, wanted = (
        merged(*parts, index, platform=platform, weighted=weighted)
        for platform in ("cpu", "any")
    )
    np.testing.assert_allclose(found.x, wanted.x, atol=2e-6)
    np.testing.assert_array_equal(found.size, wanted.size)
    np.testing.assert_array_equal(found.origin, wanted.origin)
    for batch, k in np.ndindex(2, 4):
        if k not in index[batch]:
            np.testing.assert_array_equal(found.x[batch, k], parts[0].x[batch, k])


@few
@given(seed=st.integers(0, 2**32 - 1), weighted=st.booleans())
def test_fold_conserves_what_it_folds(seed, weighted):
    """Sizes and origins add up; weighted by size, so do the features."""
    rng = np.random.default_rng(seed)
    x, source_x = rng.standard_normal((2, 4, 3)), rng.standard_normal((2, 5, 3))
    size, source_size = rng.uniform(0.1, 4, (2, 4)), rng.uniform(0.1, 4, (2, 5))
    target = rng.integers(0, 4, (2, 5))
    arrays = [a.astype(np.float32) for a in (x, source_x, size, source_size)]
    out = folded(*arrays, target, weighted=weighted)
    total = size.sum(axis=1) + source_size.sum(axis=1)
    np.testing.assert_allclose(out.size.sum(axis=1), total, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(out.origin).sum(axis=1), 1)
    for batch, k in np.ndindex(2, 4):
        mine = target[batch] == k
        members = np.concatenate([x[batch, k][None], source_x[batch, mine]])
        sizes = np.append(size[batch, k], source_size[batch, mine])
        mean = np.average(members, axis=0, weights=sizes if weighted else None)
        np.testing.assert_allclose(out.x[batch, k], mean, atol=2e-6)
        np.testing.assert_allclose(out.size[batch, k], sizes.sum(), rtol=1e-6)


def test_take_carries_everything_along():
    tokens = Tokens(
        x=jnp.arange(12.0).reshape(2, 3, 2),
        size=jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        origin=jnp.eye(3)[None].repeat(2, axis=0),
    )
    out = take(tokens, jnp.array([[2, 0], [1, 1]]))
    assert out.x.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
    assert out.size.tolist() == [[3, 1], [5, 5]]
    assert out.origin[0].tolist() == [[0, 0, 1], [1, 0, 0]]
    assert take(Tokens(tokens.x), jnp.array([[0], [0]])).size is None
