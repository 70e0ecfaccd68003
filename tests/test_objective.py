"""What a search minimises, and recipes that no search can follow."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_compress import tiny

import diffrate_jax as dr
from diffrate_jax.learning.objective import (
    CROSS_ENTROPY,
    MATCH_DENSE,
    MATCH_LOGITS,
    distance,
    wanted_outputs,
)


def softmax(logits: np.ndarray) -> np.ndarray:
    weight = np.exp(np.float64(logits) - logits.max(axis=-1, keepdims=True))
    return weight / weight.sum(axis=-1, keepdims=True)


def logits_of(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 3 * rng.standard_normal((4, 5)).astype(np.float32)


def test_what_equals_the_dense_outputs_costs_nothing():
    model, params, images = tiny("cls")
    logits = dr.forward(model, params, images).logits
    wanted = wanted_outputs(MATCH_DENSE, model, params, images, None)
    np.testing.assert_allclose(wanted, softmax(np.asarray(logits)), atol=1e-6)
    np.testing.assert_allclose(distance(MATCH_DENSE, logits, wanted), 0, atol=1e-6)
    slope = jax.grad(lambda z: distance(MATCH_DENSE, z, wanted).sum())(logits)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    shifted = distance(MATCH_DENSE, logits + 7, wanted)
    np.testing.assert_allclose(shifted, 0, atol=1e-5)
    assert (distance(MATCH_DENSE, logits[:, ::-1], wanted) > 1e-3).all()


def test_match_dense_is_the_divergence():
    logits, dense = logits_of(0), logits_of(1)
    p, q = softmax(dense), softmax(logits)
    wanted = (p * np.log(p / q)).sum(axis=-1)
    found = distance(MATCH_DENSE, jnp.asarray(logits), jnp.float32(p))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_match_logits_is_the_distance_but_for_a_constant():
    model, params, images = tiny("cls")
    dense = dr.forward(model, params, images).logits
    wanted = wanted_outputs(MATCH_LOGITS, model, params, images, None)
    np.testing.assert_allclose(wanted, dense, atol=1e-6)
    logits, dense = np.float64(logits_of(0)), np.float64(logits_of(1))
    apart = logits - logits.mean(1, keepdims=True) - dense
    apart += dense.mean(1, keepdims=True)
    found = distance(MATCH_LOGITS, jnp.float32(logits), jnp.float32(dense))
    np.testing.assert_allclose(found, np.sqrt((apart**2).mean(axis=1)), rtol=1e-5)
    shifted = distance(MATCH_LOGITS, jnp.float32(logits + 7), jnp.float32(dense))
    np.testing.assert_allclose(shifted, found, rtol=1e-5)


def test_equal_logits_have_no_distance_and_a_gradient_of_zero():
    logits = jnp.asarray(logits_of(0))
    found, slope = jax.value_and_grad(
        lambda z: distance(MATCH_LOGITS, z, logits).sum()
    )(logits)
    assert found < 1e-5
    np.testing.assert_array_equal(slope, np.zeros_like(slope))


def test_a_dense_model_that_is_certain():
    """Probabilities of 0 count for nothing, and spoil no gradient."""
    logits, certain = jnp.asarray(logits_of(0)), jnp.eye(5)[:4]
    found, slope = jax.value_and_grad(
        lambda z: distance(MATCH_DENSE, z, certain).sum()
    )(logits)
    wanted = -np.log(softmax(np.asarray(logits))[np.arange(4), np.arange(4)]).sum()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    wanted = softmax(np.asarray(logits)) - certain
    np.testing.assert_allclose(slope, wanted, atol=1e-6)


def test_cross_entropy_is_that_of_optax():
    labels = jnp.float32(softmax(logits_of(2)))
    assert wanted_outputs(CROSS_ENTROPY, None, None, None, labels) is labels
    found = distance(CROSS_ENTROPY, jnp.asarray(logits_of(3)), labels)
    wanted = optax.softmax_cross_entropy(logits_of(3), labels)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "projcted"}, "method cannot be 'projcted'; did you mean 'projec"),
        (
            {"objective": "mse"},
            "objective cannot be 'mse'; known: match_logits",
        ),
        ({"blocks": "none"}, "blocks cannot be 'none'; "),
        ({"blocks": None}, "blocks cannot be None; known: all, model"),
        ({"penalty_unit": "macs"}, "penalty_unit cannot be 'macs'; did you mean 'gma"),
        ({"rule": "tomme"}, "unknown rule 'tomme'; did you mean 'tome'?"),
        ({"start": "even"}, "start is 'uniform', 'dense' or a schedule, got 'even'"),
        ({"spread": 0}, "^spread must be above 0, got 0"),
        ({"spread": float("nan")}, "^spread must be above 0, got nan"),
        ({"final_spread": -1.0}, "final_spread must be above 0, got -1.0"),
        ({"learning_rate": 0.0}, "^learning_rate must be above 0, got 0.0"),
        ({"final_learning_rate": -0.1}, "final_learning_rate must not be negative"),
        ({"penalty": -1}, "penalty must not be negative, got -1"),
        ({"refine_images": -1}, "refine_images must not be negative, got -1"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"tighten": 1.0}, "tighten must lie from 0 to below 1, got 1.0"),
        ({"drop_path": -0.1}, "drop_path must lie from 0 to below 1, got -0.1"),
        ({"reference": True}, "published search, .* got 'redundancy' and 'projected'"),
    ],
)
def test_recipes_that_no_search_can_follow(changes: dict, sentence: str):
    with pytest.raises(dr.UserError, match=sentence) as caught:
        dr.Recipe(**changes)
    assert "\n" not in str(caught.value)


def test_the_reference_is_the_published_search():
    assert dr.Recipe.published(reference=True).rule == "diffrate"
    for changes in ({"rule": "tome"}, {"method": "projected"}):
        with pytest.raises(dr.UserError, match="reference=True is the published sear"):
            dr.Recipe.published(reference=True, **changes)
