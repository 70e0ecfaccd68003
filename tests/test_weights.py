"""Weights there and back, and every way in which weights or models do not fit."""

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, load_golden
from safetensors.numpy import save_file

import diffrate_jax as dr
from diffrate_jax.models.presets import presets
from diffrate_jax.models.vit import ViT
from diffrate_jax.sources import names
from diffrate_jax.weights import (
    abstract_weights,
    prefix_positions,
    read_weights,
    to_timm,
)

VIT = {
    "image_size": 12, "patch_size": 4, "width": 8, "depth": 2, "num_heads": 2,
    "num_classes": 3,
}  # fmt: skip
# Every kind of weight there is.
KINDS = {
    "class token": {},
    "average": {"pool": "avg"},
    "no prefix": {"pool": "avg", "prefix_tokens": 0},
    "distilled": {"prefix_tokens": 2, "distilled": True},
    "registers": {"prefix_tokens": 4, "position_prefix": False},
    "no head": {"num_classes": 0, "prefix_tokens": 3},
}
# One of each kind; a commit waits for them.
OFTEN = {
    *("deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"),
    *("deit3_small_patch16_384", "vit_base_patch32_224", "vit_small_patch14_dinov2"),
    *("vit_small_patch14_reg4_dinov2", "vit_base_patch16_224.mae_finetuned"),
    "caformer_s18",
}
COUNTS = {
    "deit_tiny_patch16_224": 5_717_416,
    "deit_small_patch16_224": 22_050_664,
    "deit_base_patch16_224": 86_567_656,
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
def small(pool: str = "cls", **fields: Any) -> tuple[ViT, dict[str, Any]]:
    """Returns a model with layer scale, and random weights."""
    fields = VIT | {"pool": pool, "layer_scale": 0.1} | fields
    model = dr.create_model("vit", **fields)
    return model, random_params(model)


def test_presets_have_their_published_number_of_weights():
    for name, count in COUNTS.items():
        shapes = abstract_weights(dr.create_model(name))
        assert sum(int(np.prod(w.shape)) for w in shapes.values()) == count, name


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow)
        for name in presets()
    ],
)
def test_every_preset_has_timms_parameters(name: str):
    """Names and shapes; launch/parity.sh compares the file with timm itself."""
    timm = json.loads((GOLDEN / "timm_shapes.json").read_text())[name]
    wanted = {}
    for key, shape in timm["shapes"].items():
        blocks = timm["blocks"].get(key.partition("*")[0] + "*", 1)
        wanted |= {key.replace("*", str(n)): tuple(shape) for n in range(blocks)}
    model = dr.create_model(name)
    layout = names.layout_of(model)
    found = {
        layout.name(path): layout.shape(path, weight.shape)
        for path, weight in abstract_weights(model).items()
    }
    assert found == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_bit_for_bit(tmp_path: Path, kind: str):
    model, params = small(**KINDS[kind])
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


def test_a_new_head_only_on_request():
    (model, params), (other, _) = small(), small(num_classes=7)
    tensors = to_timm(model, params)
    with pytest.raises(dr.UserError, match=r"head.bias has shape \(3,\), expected"):
        dr.load_weights(other, tensors)
    loaded = read_weights(other, tensors, new_head=True)
    found = to_timm(other, loaded.params)
    assert found["head.weight"].shape == (7, 8)
    assert 0.005 < found["head.weight"].std() < 0.05
    assert not found["head.bias"].any()
    for name in tensors.keys() - {"head.weight", "head.bias"}:
        np.testing.assert_array_equal(found[name], tensors[name])
    assert sorted(loaded.notes) == [
        "head.bias is ignored: a new head was asked for",
        "head.weight is ignored: a new head was asked for",
    ]


def test_what_a_model_has_no_use_for_is_named():
    (model, params), (headless, _) = small(), small(num_classes=0)
    tensors = to_timm(model, params) | {"mask_token": np.zeros((1, 8), np.float32)}
    loaded = read_weights(headless, tensors)
    assert len(loaded.notes) == 3
    assert "mask_token is ignored: it fills in hidden patches, " in loaded.notes[0]
    assert "head.bias is ignored: this model has no head" in loaded.notes
    assert "head" not in loaded.params


@pytest.mark.parametrize("kind", ["class token", "no prefix", "registers"])
def test_positions_follow_the_image_size(kind: str):
    """To a larger image and back: smooth tables return, prefix rows stay."""
    (model, params), (larger, _) = (
        small(**KINDS[kind]),
        small(image_size=24, **KINDS[kind]),
    )
    tensors = to_timm(model, params)
    prefix = prefix_positions(model)
    rows, columns = np.meshgrid(np.arange(3), np.arange(3), indexing="ij")
    slope = (rows + 2 * columns).reshape(9, 1) * np.ones((1, 8))
    tensors["pos_embed"] = np.float32(
        np.concatenate([tensors["pos_embed"][:, :prefix], slope[None]], axis=1)
    )
    loaded = read_weights(larger, tensors)
    assert loaded.notes == ("pos_embed is resized from 3 x 3 patches to 6 x 6",)
    table = to_timm(larger, loaded.params)["pos_embed"]
    assert table.shape == (1, 36 + prefix, 8)
    np.testing.assert_array_equal(table[:, :prefix], tensors["pos_embed"][:, :prefix])
    grid = table[0, prefix:, 0].reshape(6, 6)
    # In the middle a slope stays one: half a step per patch.
    np.testing.assert_allclose(np.diff(grid[2:4], axis=0), 0.5, atol=0.1)
    back = read_weights(model, to_timm(larger, loaded.params))
    found = to_timm(model, back.params)["pos_embed"]
    np.testing.assert_allclose(found, tensors["pos_embed"], atol=0.35)


def test_a_table_of_no_square_is_refused():
    model, params = small()
    tensors = to_timm(model, params) | {"pos_embed": np.zeros((1, 12, 8), np.float32)}
    with pytest.raises(dr.UserError, match=r"pos_embed has shape \(1, 12, 8\), expec"):
        dr.load_weights(model, tensors)


def test_weights_of_another_pooling_do_not_fit():
    (model, _), (other, params) = small("cls"), small("avg")
    with pytest.raises(
        dr.UserError, match="missing norm.bias.*unexpected fc_norm.bias"
    ):
        dr.load_weights(model, to_timm(other, params))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_is_read_as_float32(tmp_path: Path, dtype: Any):
    model, params = small()
    halves = {k: v.astype(dtype) for k, v in to_timm(model, params).items()}
    save_file({k: np.ascontiguousarray(v) for k, v in halves.items()}, tmp_path / "h")
    (tmp_path / "h").rename(tmp_path / "h.safetensors")
    back = to_timm(model, dr.load_weights(model, tmp_path / "h.safetensors"))
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
    path = tmp_path / "w.ckpt"
    path.write_bytes(b"weights")
    with pytest.raises(dr.UserError, match="cannot tell what kind of weights .*w.ckpt"):
        dr.load_weights(small()[0], path)


@pytest.mark.parametrize(
    ("name", "fields", "sentence"),
    [
        ("deit_small", {}, "'deit_small'; did you mean 'deit_small_patch16_224'?"),
        ("zzz", {}, "unknown model 'zzz'; python -m diffrate_jax.convert --list"),
        ("vit", VIT | {"num_head": 2}, "no field 'num_head'; did you mean 'num_heads'"),
        ("deit_tiny_patch16_224", {"parent": 1}, "a ViT has no field 'parent'"),
        ("vit", {"image_size": 12, "width": 8}, "also needs patch_size, depth, num_h"),
        ("vit", VIT | {"image_size": 13}, "multiple of patch_size 4, got 13"),
        ("vit", VIT | {"width": 9}, "width must be a multiple of num_heads 2, got 9"),
        ("vit", VIT | {"pool": "max"}, "pool must be 'cls' or 'avg', got 'max'"),
        ("vit", VIT | {"prefix_tokens": 0}, "at least 1 with pool='cls' .*, got 0"),
        ("vit", VIT | {"prefix_tokens": -1}, "number of at least 1 .*, got -1"),
        ("vit", VIT | {"prefix_tokens": True}, "of type int, got True"),
        ("vit", VIT | {"distilled": True}, "at least 2 .*distilled=True, got 1"),
        (
            "vit",
            VIT | {"distilled": True, "prefix_tokens": 2, "pool": "avg"},
            "reads its first two tokens: it needs pool='cls', got 'avg'",
        ),
        ("vit", VIT | {"num_classes": -1}, "num_classes must be a positive whole"),
        ("vit", VIT | {"compress": (True,)}, "each of 2 blocks, got 1"),
    ],
)
def test_models_that_cannot_be(name: str, fields: dict, sentence: str):
    with pytest.raises(dr.UserError, match=sentence.replace("?", r"\?")):
        dr.create_model(name, **fields)


def test_a_tag_tells_weights_apart_not_models():
    name = "vit_base_patch16_224"
    tagged = dr.create_model(f"{name}.augreg_in21k_ft_in1k")
    assert tagged == dr.create_model(name)


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


PEAK = """
import sys, threading
import diffrate_jax as dr

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

model = dr.create_model("vit_large_patch16_224")
dr.weights.abstract_weights(model)
before, peak, done = anonymous(), [0], threading.Event()

def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], anonymous())

thread = threading.Thread(target=watch)
thread.start()
params = dr.load_weights(model, sys.argv[1])
done.set()
thread.join()
print(1024 * (max(peak[0], anonymous()) - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_reading_takes_hardly_more_memory_than_the_file(tmp_path: Path):
    """ViT-L, 1.2 GB: tensors are read one by one and not copied again."""
    model = dr.create_model("vit_large_patch16_224")
    params = jax.tree.map(
        lambda w: np.ones(w.shape, np.float32),
        jax.eval_shape(lambda: dr.init_weights(model)),
    )
    path = tmp_path / "w.safetensors"
    dr.save_weights(model, params, path)
    found = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    growth = int(found.stdout) / path.stat().st_size
    print(f"\ngrowth of anonymous memory over the file's size: {growth:.3f}")
    assert 0.9 < growth <= 1.3
