"""Rematerialisation and bfloat16: the same gradients, for less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffrate_jax as dr
from diffrate_jax.cost import macs_of
from diffrate_jax.dry_run import LIKE_ACCELERATORS
from diffrate_jax.learning.projected import Projected
from diffrate_jax.recipe import Recipe

VIT = {"image_size": 32, "patch_size": 4, "width": 48, "num_heads": 3,
       "num_classes": 10}  # fmt: skip
MODELS = {
    "vit": ("vit", VIT | {"depth": 3}),
    "deep": ("vit", VIT | {"depth": 6}),
    "caformer": ("caformer", {"depths": (1, 1, 4, 1), "widths": (32, 32, 64, 64),
                              "num_classes": 10, "image_size": 64}),
}  # fmt: skip
NAMES = ["vit", pytest.param("caformer", marks=pytest.mark.slow)]


@functools.cache
def made(name: str):
    """Returns a model, weights, images, a way of learning and counts to learn."""
    kind, fields = MODELS[name]
    model = dr.create_model(kind, **fields)
    size, rng = model.image_size, np.random.default_rng(0)
    images = rng.standard_normal((4, size, size, 3)).astype(np.float32)
    method = Projected(macs_of(model), Recipe())
    counts = np.array(model.geometry.dense)
    counts[np.flatnonzero(model.geometry.compress)[0] :] -= counts[-1] // 4
    schedule = dr.Schedule(None, tuple(counts.tolist()), rule="redundancy")
    params = dr.init_weights(model)
    return model, params, jnp.asarray(images), method, method.start(schedule)


def gradient(name: str, **how):
    """Returns the compiled gradient of the first class, by the expected counts."""
    model, params, images, method, counts = made(name)

    def loss(counts):
        run = method.masked(counts, jnp.ones(()))
        out = dr.forward(model, params, images, run, **how)
        return jax.nn.log_softmax(out.logits)[:, 0].sum()

    return jax.jit(jax.grad(loss)).lower(counts).compile(LIKE_ACCELERATORS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_is_computed_again_is_the_same(name: str):
    counts = made(name)[-1]
    drop = {"drop_path": 0.3, "rng": jax.random.key(1)}
    kept, again = (gradient(name, remat=r, **drop) for r in (False, True))
    wanted = kept(counts)
    assert jnp.abs(wanted).max() > 0
    # Rounding differs: by 1.6e-6 of the largest here.
    np.testing.assert_allclose(
        again(counts), wanted, rtol=0, atol=1e-5 * float(jnp.abs(wanted).max())
    )


@pytest.mark.slow
def test_it_saves_memory():
    kept, again = (
        gradient("deep", remat=remat).memory_analysis().temp_size_in_bytes
        for remat in (False, True)
    )
    assert again < 0.7 * kept


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_keeps_what_must_be_exact_exact(name: str):
    model, params, images, method, counts = made(name)
    run = method.masked(counts, jnp.ones(()))
    wide, narrow = (
        dr.forward(model, params, images, run, dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    assert narrow.tokens.x.dtype == jnp.bfloat16
    assert narrow.tokens.size.dtype == narrow.logits.dtype == jnp.float32
    np.testing.assert_array_equal(wide.kept.merge, narrow.kept.merge)
    # Sizes are whole numbers, or products with similarities, summed without loss.
    total = lambda out: (out.tokens.size * out.tokens.alive).sum(axis=1)  # noqa: E731
    np.testing.assert_allclose(total(wide), total(narrow), rtol=0.02)
    error = jnp.abs(wide.logits - narrow.logits).max()
    assert 0 < error < 0.05 * jnp.abs(wide.logits).max()
    rough = gradient(name, dtype="bfloat16")(counts)
    assert rough.dtype == jnp.float32
    assert bool(jnp.isfinite(rough).all())
