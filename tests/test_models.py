"""Models with prefix tokens of every kind, without heads, and their features."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffrate_jax as dr

KINDS = {
    "distilled": {"prefix_tokens": 2, "distilled": True},
    "registers": {"prefix_tokens": 5, "position_prefix": False},
    "class and registers": {"prefix_tokens": 3},
    "no prefix": {"prefix_tokens": 0, "pool": "avg"},
}


@functools.cache
def made(kind: str, **fields: Any):
    """Returns a model of 4 x 4 patches, weights that spread its tokens, and images."""
    fields = {"num_classes": 5} | KINDS[kind] | fields
    model = dr.create_model(
        "vit", image_size=16, patch_size=4, width=24, depth=2, num_heads=2, **fields
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda w: w + 0.3 * rng.standard_normal(w.shape).astype(np.float32),
        dr.init_weights(model),
    )
    images = rng.standard_normal((3, 16, 16, 3)).astype(np.float32)
    return model, params, jnp.asarray(images)


def schedule_of(model, rule: str) -> dr.Schedule:
    """Returns one that prunes, if its rule does, and merges in both blocks."""
    prefix = model.prefix_tokens
    merge = tuple(prefix + left for left in (11, 6))
    prune = tuple(prefix + left for left in (14, 8))
    return dr.Schedule(prune if rule == "diffrate" else None, merge, rule=rule)


@pytest.mark.parametrize(
    ("kind", "rule"),
    [("distilled", "tome")]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            *(("no prefix", "redundancy"), ("distilled", "redundancy")),
            ("class and registers", "redundancy"),
            ("registers", "diffrate"),
            ("registers", "redundancy"),
        )
    ],
)
def test_masked_equals_gathered_whatever_comes_first(kind: str, rule: str):
    model, params, images = made(kind)
    schedule = schedule_of(model, rule).feasible(model.geometry)
    gathered = dr.forward(model, params, images, dr.Gathered(schedule), trace=True)
    masked = dr.forward(model, params, images, dr.Masked(schedule), trace=True)
    np.testing.assert_allclose(gathered.logits, masked.logits, atol=1e-5)
    assert gathered.tokens.x.shape[1] == schedule.merge[-1]
    prefix = model.prefix_tokens
    for out in (gathered, masked):
        own = out.tokens.origin[:, :prefix]
        # Each is itself and nothing else, and nothing was merged into it.
        identity = np.broadcast_to(np.eye(prefix, own.shape[2]), own.shape)
        np.testing.assert_array_equal(own, identity)
        np.testing.assert_array_equal(out.tokens.size[:, :prefix], 1.0)
    lost = dr.forward(model, params, images).logits - gathered.logits
    assert np.abs(lost).max() > 1e-3


def test_a_distilled_model_averages_its_two_heads():
    model, params, images = made("distilled")
    both = dr.forward(model, params, images).logits
    single = {}
    for head, other in (("head", "head_dist"), ("head_dist", "head")):
        silent = jax.tree.map(jnp.zeros_like, params[other])
        changed = params | {other: silent}
        single[head] = dr.forward(model, changed, images).logits
    np.testing.assert_allclose(both, single["head"] + single["head_dist"], atol=1e-5)
    assert np.abs(single["head"] - single["head_dist"]).max() > 0.1


def test_a_distilled_model_costs_two_heads_and_a_token():
    distilled = dr.create_model("deit_small_distilled_patch16_224")
    plain = dr.create_model("deit_small_patch16_224", prefix_tokens=2)
    difference = dr.cost_macs(distilled, None) - dr.cost_macs(plain, None)
    assert difference == 384 * 1000


def test_a_model_without_a_head_returns_its_pooled_features():
    model, params, images = made("registers", num_classes=0)
    out = dr.forward(model, params, images, features=True)
    assert "head" not in params
    assert out.logits.shape == (3, 24)
    np.testing.assert_allclose(out.logits, out.features[:, 0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["registers", pytest.param("no prefix", marks=pytest.mark.slow)]
)
def test_features_return_to_the_grid(kind: str):
    model, params, images = made(kind)
    whole = dr.forward(model, params, images, features=True)
    dense = dr.unmerge(whole.features, whole.tokens.origin)
    np.testing.assert_allclose(dense, whole.features, atol=1e-6)
    schedule = schedule_of(model, "redundancy")
    out = dr.forward(model, params, images, dr.Gathered(schedule), features=True)
    grid = np.asarray(dr.unmerge(out.features, out.tokens.origin))
    assert grid.shape == dense.shape
    # Every position has the features of exactly one token that is left.
    same = (grid[:, :, None] == np.asarray(out.features)[:, None]).all(axis=-1)
    np.testing.assert_array_equal(same, np.swapaxes(out.tokens.origin, 1, 2) == 1)
    # The masked form says the same; there the dead have no origin.
    masked = dr.forward(model, params, images, dr.Masked(schedule), features=True)
    found = dr.unmerge(masked.features, masked.tokens.origin)
    np.testing.assert_allclose(found, grid, atol=1e-4)


def test_what_was_pruned_has_no_features():
    model, params, images = made("registers")
    schedule = schedule_of(model, "diffrate")
    out = dr.forward(model, params, images, dr.Gathered(schedule), features=True)
    grid = np.asarray(dr.unmerge(out.features, out.tokens.origin))
    covered = np.asarray(out.tokens.origin).sum(axis=1)
    assert set(np.unique(covered)) == {0.0, 1.0}
    assert not grid[covered == 0].any()
    assert grid[covered == 1].any(axis=-1).all()


@pytest.mark.slow
def test_search_finds_a_schedule_with_registers():
    model, params, _ = made("registers")
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8),
        "label": np.arange(8, dtype=np.int32) % 5,
    }
    recipe = dr.Recipe(steps=3, refine_images=0)
    found = dr.learn_schedule(
        model, params, iter([batch] * 3), target="70%", recipe=recipe
    )
    fraction = dr.cost_macs(model, found.schedule) / dr.cost_macs(model, None)
    assert 0.6 < fraction <= 0.7
    assert min(found.schedule.merge) > model.prefix_tokens


def test_a_model_without_classes_is_not_searched():
    model, params, _ = made("registers", num_classes=0)
    with pytest.raises(dr.UserError, match="this model has no classes; "):
        dr.learn_schedule(model, params, iter([]), target="70%")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("mlp_ratio", "4"), ("mlp_ratio", -1.0), ("layer_norm_eps", None)),
        *(("qkv_bias", 1), ("compress", 3), ("compress", ["a", "b"]), ("width", "24")),
        *(("layer_scale", "x"), ("depth", True), ("pool", 3)),
    ],
)
def test_a_field_of_another_type_is_refused(field: str, value: object):
    fields = {"width": 24, "depth": 2, "num_heads": 2, "num_classes": 3}
    with pytest.raises(dr.UserError, match=f"^{field} must be "):
        dr.create_model("vit", image_size=16, patch_size=4, **fields | {field: value})


def test_the_form_of_attention_is_no_field_of_a_model():
    with pytest.raises(dr.UserError, match="a ViT has no field 'attention'"):
        dr.create_model("deit_tiny_patch16_224", attention="cudnn")
