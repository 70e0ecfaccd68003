"""Weights there and back, and every way in which weights or models do not fit."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, load_golden

import diffrate_jax as dr
from diffrate_jax.models import PRESETS
from diffrate_jax.models.vit import ViT
from diffrate_jax.weights import abstract_weights, to_timm

COUNTS = {
    "deit_tiny_patch16_224": 5_717_416,
    "deit_small_patch16_224": 22_050_664,
    "deit_base_patch16_224": 86_567_656,
    # What `counted` says, which is right for the three published counts above.
    "vit_base_patch16_224.mae_finetuned": 86_567_656,
    "vit_large_patch16_224.mae_finetuned": 304_326_632,
    "vit_huge_patch14_224.mae_finetuned": 632_045_800,
}


def random_params(model: ViT, spread: float = 0.3) -> dict[str, Any]:
    """Returns weights that spread the tokens, without compiling anything."""
    rng = np.random.default_rng(0)

    def draw(path: tuple, weight: jax.ShapeDtypeStruct) -> np.ndarray:
        around = 1.0 if path[-1].key in ("scale", "gamma") else 0.0
        return np.float32(around + spread * rng.standard_normal(weight.shape))

    shapes = jax.eval_shape(lambda: dr.init_weights(model))
    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def small(pool: str = "cls") -> tuple[ViT, dict[str, Any]]:
    """Returns a model with every kind of weight: layer scale too."""
    model = dr.create_model(
        "vit", image_size=12, patch_size=4, width=8, depth=2, num_heads=2,
        num_classes=3, pool=pool, layer_scale=0.1,
    )  # fmt: skip
    return model, random_params(model)


def counted(width: int, depth: int, patch: int, classes: int) -> int:
    """Adds up a ViT's weights by hand, for 224 pixels."""
    tokens = (224 // patch) ** 2 + 1
    embedding = 3 * patch**2 * width + width + width + tokens * width
    block = 12 * width**2 + 13 * width
    return embedding + depth * block + 2 * width + width * classes + classes


def test_every_vit_has_its_published_number_of_weights():
    presets = json.loads(PRESETS.read_text())
    presets = {name: f for name, f in presets.items() if "family" not in f}
    assert set(presets) == set(COUNTS)
    for name, fields in presets.items():
        shapes = abstract_weights(dr.create_model(name))
        found = sum(int(np.prod(weight.shape)) for weight in shapes.values())
        assert found == COUNTS[name], name
        parts = (fields[key] for key in ("width", "depth", "patch_size", "num_classes"))
        assert found == counted(*parts), name


@pytest.mark.parametrize("pool", ["cls", "avg"])
def test_there_and_back_bit_for_bit(tmp_path: Path, pool: str):
    model, params = small(pool)
    path = tmp_path / "deep" / "w.safetensors"
    dr.save_weights(model, params, path)
    for source in (to_timm(model, params), path, str(path)):
        back = dr.load_weights(model, source)
        assert jax.tree.structure(back) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, back, params)
    assert [file.name for file in path.parent.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("name", ["deit", "mae"])
def test_back_and_there_bit_for_bit(name: str):
    """What the published implementations call a weight is what we call it."""
    golden = load_golden(name)
    with np.load(GOLDEN / f"{name}.npz") as file:
        published = {
            key.removeprefix("weights/"): file[key]
            for key in file.files
            if key.startswith("weights/")
        }
    assert published["pos_embed"].dtype == np.float16
    tensors = to_timm(golden.model, golden.params)
    assert set(tensors) == set(published)
    for key, array in published.items():
        assert tensors[key].dtype == np.float32
        np.testing.assert_array_equal(tensors[key], array)


def test_everything_wrong_is_listed_at_once():
    model, params = small()
    tensors = to_timm(model, params)
    del tensors["cls_token"]
    tensors["dist_token"] = np.zeros(3, np.float32)
    tensors["head.weight"] = tensors["head.weight"].T
    tensors["norm.bias"] = np.full_like(tensors["norm.bias"], np.nan)
    tensors["pos_embed"] = np.full_like(tensors["pos_embed"], np.inf)
    with pytest.raises(dr.UserError) as error:
        dr.load_weights(model, tensors)
    assert str(error.value) == (
        "the weights do not fit the model: "
        "head.weight has shape (8, 3), expected (3, 8); "
        "missing cls_token; "
        "norm.bias holds values that are not finite; "
        "pos_embed holds values that are not finite; "
        "unexpected dist_token; "
        "give weights of this architecture"
    )


def test_weights_of_another_pooling_do_not_fit():
    (model, _), (other, params) = small("cls"), small("avg")
    with pytest.raises(
        dr.UserError, match="missing norm.bias.*unexpected fc_norm.bias"
    ):
        dr.load_weights(model, to_timm(other, params))


def test_half_precision_is_read_as_float32():
    model, params = small()
    halves = {k: v.astype(np.float16) for k, v in to_timm(model, params).items()}
    back = to_timm(model, dr.load_weights(model, halves))
    for name, half in halves.items():
        assert back[name].dtype == np.float32
        np.testing.assert_array_equal(back[name], half)


@pytest.mark.parametrize("broken", ["absent", "empty", "header", "cut", "folder"])
def test_files_that_are_not_whole(tmp_path: Path, broken: str):
    model, params = small()
    whole, path = tmp_path / "whole.safetensors", tmp_path / "w.safetensors"
    dr.save_weights(model, params, whole)
    content = whole.read_bytes()
    if broken == "folder":
        path.mkdir()
    elif broken != "absent":
        length = {"empty": 0, "header": 20, "cut": len(content) - 1}[broken]
        path.write_bytes(content[:length])
    with pytest.raises(dr.UserError, match="cannot read the weights .*w.safetensors: "):
        dr.load_weights(model, path)


def test_files_of_another_kind(tmp_path: Path):
    with pytest.raises(dr.UserError, match="must be a .safetensors file or a dict"):
        dr.load_weights(small()[0], tmp_path / "w.ckpt")


VIT = {
    "image_size": 12, "patch_size": 4, "width": 8, "depth": 2, "num_heads": 2,
    "num_classes": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "fields", "sentence"),
    [
        ("deit_small", {}, "'deit_small'; did you mean 'deit_small_patch16_224'?"),
        ("zzz", {}, "unknown model 'zzz'; known: vit, caformer, deit_tiny"),
        ("vit", VIT | {"num_head": 2}, "no field 'num_head'; did you mean 'num_heads'"),
        ("deit_tiny_patch16_224", {"parent": 1}, "a ViT has no field 'parent'"),
        ("vit", {"image_size": 12, "width": 8}, "also needs patch_size, depth, num_h"),
        ("vit", VIT | {"image_size": 13}, "multiple of patch_size 4, got 13"),
        ("vit", VIT | {"width": 9}, "width must be a multiple of num_heads 2, got 9"),
        ("vit", VIT | {"pool": "max"}, "pool must be 'cls' or 'avg', got 'max'"),
        ("vit", VIT | {"prefix_tokens": 0}, "got 0 with pool='cls'"),
        ("vit", VIT | {"prefix_tokens": 2}, "prefix_tokens must be 1 .*, got 2"),
        ("vit", VIT | {"compress": (True,)}, "each of 2 blocks, got 1"),
    ],
)
def test_models_that_cannot_be(name: str, fields: dict, sentence: str):
    with pytest.raises(dr.UserError, match=sentence.replace("?", r"\?")):
        dr.create_model(name, **fields)


def test_a_preset_takes_other_fields():
    model = dr.create_model("deit_tiny_patch16_224", num_classes=7, image_size=384)
    assert model.geometry.num_tokens == 24**2 + 1
    assert abstract_weights(model)["head", "bias"].shape == (7,)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (np.zeros((2, 12, 12)), r"images must be \[B, 12, 12, 3\], got \[2, 12, 12\]"),
        (np.zeros((2, 16, 16, 3)), r"got \[2, 16, 16, 3\]; resize them"),
        (np.zeros((2, 3, 12, 12)), r"got \[2, 3, 12, 12\]"),
        (np.zeros((2, 12, 12, 1)), r"got \[2, 12, 12, 1\]"),
        (np.zeros((2, 12, 12, 3), np.uint8), "must be floats, .* got uint8; use"),
    ],
)
def test_images_that_do_not_fit(images: np.ndarray, sentence: str):
    model, params = small()
    with pytest.raises(dr.UserError, match=sentence):
        dr.forward(model, params, images)


def test_drop_path_needs_randomness():
    model, params = small()
    with pytest.raises(dr.UserError, match="drop_path needs rng: give one key, or one"):
        dr.forward(model, params, np.zeros((2, 12, 12, 3)), drop_path=0.1)


@pytest.fixture(scope="module")
def dropped() -> Callable[..., np.ndarray]:
    """A jitted dense forward pass with half of the last block's branches dropped."""
    model, params = small()
    run = jax.jit(lambda x, k: dr.forward(model, params, x, drop_path=0.5, rng=k))
    return lambda images, keys: np.asarray(run(images, keys).logits)


def test_drop_path_belongs_to_the_example(dropped):
    """A batch gives what its halves give, and what its permutation gives."""
    images = np.random.default_rng(0).standard_normal((1, 12, 12, 3), np.float32)
    images = np.repeat(images, 16, axis=0)
    keys = jax.random.split(jax.random.key(0), 16)
    whole = dropped(images, keys)
    halves = [dropped(images[half], keys[half]) for half in (slice(8), slice(8, 16))]
    np.testing.assert_allclose(whole, np.concatenate(halves), atol=1e-5)
    order = np.random.default_rng(1).permutation(16)
    np.testing.assert_allclose(whole[order], dropped(images, keys[order]), atol=1e-5)
    # One image, two branches of the last block to keep or to drop: four results.
    different = np.unique(np.round(whole, 3), axis=0)
    assert 3 <= len(different) <= 4


def test_one_key_is_folded_with_the_place_in_the_batch(dropped):
    images = np.random.default_rng(0).standard_normal((16, 12, 12, 3), np.float32)
    key = jax.random.key(5)
    keys = jnp.stack([jax.random.fold_in(key, i) for i in range(16)])
    model, params = small()
    one = dr.forward(model, params, images, drop_path=0.5, rng=key)
    np.testing.assert_allclose(one.logits, dropped(images, keys), atol=1e-5)
