"""ToMe's bipartite matching, by hand and at its edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_weights import random_params

import diffrate_jax as dr
from diffrate_jax.shapes import Geometry
from diffrate_jax.tokens import Tokens
from diffrate_jax.tome import merge_bipartite

# Token 0 is the class token. Even tokens 2 and 4 look for odd partners: token 2 points
# nearly where token 1 does, token 4 exactly where token 3 does.
KEYS = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.0, 2.0]]
FEATURES = [[10.0], [1.0], [2.0], [3.0], [7.0]]


@functools.cache
def tiny():
    """Returns a model of 17 tokens and three blocks, weights and images."""
    model = dr.create_model(
        "vit", image_size=8, patch_size=2, width=12, depth=3, num_heads=2, num_classes=5
    )
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32)
    return model, random_params(model), images


def example(size: list[float] | None = None) -> Tokens:
    return Tokens(
        x=jnp.array([FEATURES]),
        size=None if size is None else jnp.array([size]),
        origin=jnp.eye(5)[None],
    )


def merged(tokens: Tokens, r: int, prefix_tokens: int = 1) -> tuple[list, list, list]:
    out = merge_bipartite(tokens, jnp.array([KEYS]), r, prefix_tokens)
    origin = [[o for o in range(5) if row[o]] for row in np.asarray(out.origin[0])]
    return out.x[0, :, 0].tolist(), out.size[0].tolist(), origin


def test_the_most_similar_pair_is_merged():
    """Token 4 goes into 3; what stays: even 0 and 2, then odd 1 and 3."""
    assert merged(example(), r=1) == (
        [10.0, 2.0, 1.0, (3.0 + 7.0) / 2],
        [1.0, 1.0, 1.0, 2.0],
        [[0], [2], [1], [3, 4]],
    )


def test_both_pairs_are_merged():
    assert merged(example(), r=2) == (
        [10.0, (1.0 + 2.0) / 2, (3.0 + 7.0) / 2],
        [1.0, 2.0, 2.0],
        [[0], [1, 2], [3, 4]],
    )


def test_means_are_weighted_by_size():
    """Token 3 stands for three patches already."""
    assert merged(example([1.0, 1.0, 1.0, 3.0, 1.0]), r=1) == (
        [10.0, 2.0, 1.0, (3 * 3.0 + 7.0) / 4],
        [1.0, 1.0, 1.0, 4.0],
        [[0], [2], [1], [3, 4]],
    )


def test_without_a_class_token_every_even_token_may_go():
    """Tokens 0 and 4 both match exactly: the earlier goes first."""
    assert merged(example(), r=1, prefix_tokens=0) == (
        [7.0, 2.0, (1.0 + 10.0) / 2, 3.0],
        [1.0, 1.0, 2.0, 1.0],
        [[4], [2], [0, 1], [3]],
    )


def test_two_sources_share_a_destination():
    keys = jnp.array([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 3.0]]])
    out = merge_bipartite(example(), keys, 2, 1)
    np.testing.assert_allclose(out.x[0, :, 0], [10.0, (1 + 2 + 7) / 3, 3.0], rtol=1e-6)
    assert out.size[0].tolist() == [1.0, 3.0, 1.0]


def test_nothing_removed_is_the_dense_model():
    model, params, images = tiny()
    dense = dr.forward(model, params, images)
    nothing = dr.forward(model, params, images, dr.ToMe(0))
    np.testing.assert_array_equal(nothing.logits, dense.logits)
    assert nothing.tokens.size.tolist() == np.ones((2, 17)).tolist()


def test_asking_for_all_leaves_half_each_time():
    """17 tokens with a class token: 8 of 16 patches stay, then 4, then 2."""
    model, params, images = tiny()
    run = dr.ToMe(1000)
    out = jax.eval_shape(lambda: dr.forward(model, params, jnp.array(images), run))
    assert out.tokens.x.shape[1] == 3
    assert run.schedule(model.geometry).merge == (9, 5, 3)


@settings(max_examples=60, deadline=None)
@given(
    r=st.lists(st.integers(0, 20), min_size=1, max_size=6),
    patches=st.integers(1, 40),
    prefix=st.sampled_from([0, 1]),
)
def test_removal_never_exceeds_half(r, patches, prefix):
    geometry = Geometry(patches + prefix, prefix, (True,) * len(r))
    schedule = dr.ToMe(tuple(r)).schedule(geometry)
    tokens = geometry.num_tokens
    for asked, left in zip(r, schedule.merge, strict=True):
        assert tokens - left == min(asked, (tokens - prefix) // 2)
        tokens = left
    assert schedule.prune is None
    assert tokens > prefix


@settings(max_examples=30, deadline=None)
@given(r=st.integers(0, 30), slope=st.floats(-1, 1), depth=st.integers(1, 24))
def test_an_inflection_moves_removals_and_keeps_their_sum(r, slope, depth):
    removed = dr.ToMe(r, inflection=slope).removed(depth)
    assert list(removed) == sorted(removed, reverse=slope < 0)
    assert 0 <= min(removed) <= max(removed) <= 2 * r
    if depth > 1:
        # Each block rounds down, and the first block's rounding moves the last's.
        assert abs(sum(removed) - r * depth) <= depth


def test_inflection_by_eye():
    assert dr.ToMe(4).removed(3) == (4, 4, 4)
    assert dr.ToMe(4, inflection=1.0).removed(5) == (0, 2, 4, 6, 8)
    assert dr.ToMe(4, inflection=-1.0).removed(5) == (8, 6, 4, 2, 0)
    assert dr.ToMe([3, 0, 1]).removed(3) == (3, 0, 1)


@pytest.mark.parametrize("r", [-1, True, (1, -2), (1, 2.5), (True, 1), "8"])
def test_removals_that_are_no_counts(r):
    with pytest.raises(dr.UserError, match="ToMe removes a whole number"):
        dr.ToMe(r)


@pytest.mark.parametrize("inflection", [-1.1, 2.0, float("nan")])
def test_inflections_out_of_range(inflection: float):
    with pytest.raises(dr.UserError, match="inflection must lie between -1 and 1, got"):
        dr.ToMe(8, inflection=inflection)


def test_as_many_removals_as_blocks():
    model, params, images = tiny()
    with pytest.raises(dr.UserError, match="one r for each of 3 blocks, got 2"):
        dr.forward(model, params, images, dr.ToMe((1, 2)))
