"""The fast path: every form of attention, every batch, every device, one result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_weights import random_params

import diffrate_jax as dr
from diffrate_jax.models.attention import attend
from diffrate_jax.models.fused import attend_fused, best_form

pytestmark = pytest.mark.usefixtures("compiles_fast")

FIELDS = {"image_size": 16, "patch_size": 4, "width": 32, "depth": 3, "num_heads": 2}
SCHEDULES = {
    "dense": None,
    "diffrate": dr.Schedule((15, 11, 6), (13, 9, 3)),
    "redundancy": dr.Schedule(None, (13, 9, 3), rule="redundancy"),
    "tome": dr.ToMe(r=3),
}


@functools.cache
def small(pool: str = "cls"):
    """Returns a model of 17 tokens, weights, and nine images."""
    model = dr.create_model("vit", num_classes=5, pool=pool, **FIELDS)
    images = np.random.default_rng(0).standard_normal((9, 16, 16, 3))
    return model, random_params(model), images.astype(np.float32)


@functools.cache
def logits(name: str, pool: str = "cls") -> np.ndarray:
    """Returns what the plain float32 form says of the images."""
    model, params, images = small(pool)
    run = SCHEDULES[name]
    run = dr.Gathered(run) if isinstance(run, dr.Schedule) else run
    return np.asarray(dr.forward(model, params, images, run).logits)


# Few shapes: each is compiled.
@settings(max_examples=20, deadline=None)
@given(st.sampled_from([1, 2, 37]), st.integers(0, 2**32 - 1), st.booleans())
def test_fused_attention_is_attention(num_tokens: int, seed: int, sized: bool):
    rng = np.random.default_rng(seed)
    shape = (2, num_tokens, 3, 16)
    parts = [rng.standard_normal(shape).astype(np.float32) for _ in range(3)]
    size_BN = rng.uniform(1e-6, 196, shape[:2]).astype(np.float32) if sized else None
    fused, seen = attend_fused(*parts, size_BN=size_BN, implementation="xla")
    heads_first = (jnp.transpose(part, (0, 2, 1, 3)) for part in parts)
    plain, wanted = attend(
        *heads_first, size_BN=size_BN, alive_BN=None, prefix_tokens=1, epsilon=0.0
    )
    np.testing.assert_allclose(fused, jnp.transpose(plain, (0, 2, 1, 3)), atol=1e-5)
    np.testing.assert_allclose(seen.importance, wanted.importance, atol=1e-6)
    np.testing.assert_allclose(seen.keys, wanted.keys, atol=1e-6)


def test_sizes_survive_bfloat16():
    """A large size in one rounded channel alone would be off by a hundredth."""
    rng = np.random.default_rng(0)
    shape = (2, 50, 3, 64)
    parts = [jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for _ in range(3)]
    size_BN = jnp.asarray(rng.uniform(1, 196, shape[:2]), jnp.float32)
    narrow, _ = attend_fused(*parts, size_BN=size_BN, implementation="xla")
    wide = [part.astype(jnp.float32) for part in parts]
    exact, _ = attend_fused(*wide, size_BN=size_BN, implementation="xla")
    none = attend_fused(*parts, size_BN=None, implementation="xla")[0]
    dense = attend_fused(*wide, size_BN=None, implementation="xla")[0]
    error = jnp.abs(narrow - exact).max()
    assert error < 2 * jnp.abs(none - dense).max()


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        ("redundancy", "cls"),
        *(
            pytest.param(name, pool, marks=pytest.mark.slow)
            for name, pool in [
                ("diffrate", "cls"),
                ("tome", "cls"),
                ("redundancy", "avg"),
            ]
        ),
    ],
)
def test_forms_of_attention_give_the_same_logits(name: str, pool: str):
    model, params, images = small(pool)
    options = {"batch_size": 9, "attention": "xla"}
    predict = dr.compile_inference(model, params, SCHEDULES[name], **options)
    np.testing.assert_allclose(predict(images), logits(name, pool), atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 9])
def test_any_number_of_images_runs_in_the_smallest_batch(count: int):
    images = small()[2]
    predict = buckets()
    assert predict.batch_sizes == (1, 4)
    found = predict(images[:count])
    assert found.shape == (count, 5)
    np.testing.assert_allclose(found, logits("redundancy")[:count], atol=1e-5)


@functools.cache
def buckets():
    """Returns programs for one image and for four."""
    model, params, _ = small()
    schedule = SCHEDULES["redundancy"]
    return dr.compile_inference(model, params, schedule, batch_size=(4, 1))


def test_devices_share_a_batch():
    model, params, images = small()
    devices = jax.local_devices()[:2]
    predict = dr.compile_inference(
        model, params, SCHEDULES["diffrate"], batch_size=6, devices=devices
    )
    found = predict(images[:6])
    assert found.devices() == set(devices)
    np.testing.assert_allclose(found, logits("diffrate")[:6], atol=1e-5)
    with pytest.raises(dr.UserError, match=r"multiple of the 2 device\(s\), got 7"):
        dr.compile_inference(model, params, None, batch_size=7, devices=devices)


def test_attention_is_chosen_for_the_device():
    (cpu, *_) = jax.local_devices()
    assert best_form(cpu, jnp.bfloat16) == "plain"

    class Gpu:
        platform, compute_capability = "gpu", "9.0"

    assert best_form(Gpu(), "bfloat16") == "cudnn"
    assert best_form(Gpu(), "float32") == "plain"
    Gpu.compute_capability = "7.5"
    assert best_form(Gpu(), "bfloat16") == "plain"
    model, params, _ = small()
    with pytest.raises(dr.UserError, match="unknown attention 'cuddn'; did you mean"):
        dr.compile_inference(model, params, None, attention="cuddn")
    with pytest.raises(dr.UserError, match="needs an NVIDIA GPU .* got cpu and float"):
        dr.compile_inference(model, params, None, attention="cudnn")
    bare = dr.create_model("vit", num_classes=5, pool="avg", prefix_tokens=0, **FIELDS)
    with pytest.raises(dr.UserError, match="'xla' needs a ViT with a class token"):
        dr.compile_inference(bare, params, None, attention="xla")


@pytest.mark.parametrize(
    ("platform", "name"),
    [
        ("tpu", "redundancy"),
        *(
            pytest.param(platform, name, marks=pytest.mark.slow)
            for platform, name in [
                *(("tpu", n) for n in SCHEDULES),
                ("cuda", "diffrate"),
            ]
        ),
    ],
)
def test_the_fast_path_lowers_for_accelerators(platform: str, name: str):
    model, params, _ = small()
    run = SCHEDULES[name]
    run = dr.Gathered(run) if isinstance(run, dr.Schedule) else run
    shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, "bfloat16"), params)
    images = jax.ShapeDtypeStruct((4, 16, 16, 3), jnp.float32)
    for form in ("plain", "xla"):
        one = model.clone(dtype=jnp.bfloat16, attention=form)
        function = jax.jit(lambda p, x, m=one: dr.forward(m, p, x, run).logits)
        text = jax.export.export(function, platforms=[platform])(shapes, images)
        assert "stablehlo.scatter" not in text.mlir_module()
