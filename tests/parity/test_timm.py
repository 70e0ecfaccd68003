"""Our models and readers beside timm's. `launch/parity.sh` runs this where timm is."""

import json
from pathlib import Path

import numpy as np
import pytest

timm = pytest.importorskip("timm", reason="launch/parity.sh has an environment for it")
import jax.numpy as jnp  # noqa: E402
import torch  # noqa: E402
from parity.shapes import FILE, shapes_of, timm_model  # noqa: E402
from timm.models import vision_transformer as timm_vit  # noqa: E402

import diffrate_jax as dr  # noqa: E402
from diffrate_jax.models.presets import presets  # noqa: E402
from diffrate_jax.sources.positions import resized  # noqa: E402

# One of each family, by its smallest member; sizes are reduced to what a CPU likes.
FAMILIES = {
    "deit_tiny_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},
    "vit_base_patch32_224": {},
    "vit_tiny_patch16_384": {"img_size": 96},
    "vit_base_patch16_224.mae_finetuned": {},
    "vit_huge_patch14_224.mae_finetuned": {"depth": 1},
    "vit_small_patch14_dinov2": {"img_size": 98},
    "vit_small_patch14_reg4_dinov2": {"img_size": 98},
}
CAFORMER = "caformer_s18"


def random_timm(name: str, **fields: object) -> torch.nn.Module:
    """Returns timm's model with weights that spread its tokens, ready to run."""
    fields = {"depth": 3} | fields
    model = timm_model(name, **{k: v for k, v in fields.items() if v is not None})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            fan_in = weight.shape[-1] if weight.ndim == 2 else 400
            around = 1.0 if weight.ndim == 1 and "bias" not in key else 0.0
            weight.copy_(around + noise / fan_in**0.5)
    return model.eval()


def arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {key: tensor.numpy() for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_dense_logits(name: str):
    theirs = random_timm(name, **FAMILIES[name])
    fields = {"depth": len(theirs.blocks)}
    size = FAMILIES[name].get("img_size")
    model = dr.create_model(name, **fields | ({"image_size": size} if size else {}))
    rng = np.random.default_rng(1)
    shape = (2, model.image_size, model.image_size, 3)
    images = rng.standard_normal(shape).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    params = dr.load_weights(model, arrays(theirs))
    found = dr.forward(model, params, jnp.asarray(images)).logits
    assert wanted.std() > 0.1
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


def test_dense_logits_of_caformer():
    theirs = random_timm(CAFORMER, depth=None)
    model = dr.create_model(CAFORMER)
    rng = np.random.default_rng(1)
    images = rng.standard_normal((2, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    params = dr.load_weights(model, arrays(theirs))
    found = dr.forward(model, params, jnp.asarray(images)).logits
    assert wanted.std() > 0.1
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


def test_features_of_every_token():
    name = "vit_small_patch14_reg4_dinov2"
    theirs = random_timm(name, img_size=98)
    model = dr.create_model(name, depth=3, image_size=98)
    rng = np.random.default_rng(1)
    images = rng.standard_normal((2, 98, 98, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs.forward_features(torch.from_numpy(images).permute(0, 3, 1, 2))
    params = dr.load_weights(model, arrays(theirs))
    out = dr.forward(model, params, jnp.asarray(images), features=True)
    found = dr.unmerge(out.features, out.tokens.origin)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)


def test_shapes_are_timms():
    stored = json.loads(FILE.read_text())
    assert list(stored) == list(presets())
    for name in presets():
        assert shapes_of(name) == stored[name], name


@pytest.mark.parametrize("name", [n for n in presets() if "mae" not in n])
def test_preprocessing_is_timms(name: str):
    config = timm.get_pretrained_cfg(name)
    own = presets()[name]
    assert dr.create_model(name).image_size == config.input_size[-1]
    assert own["crop_pct"] == config.crop_pct
    assert own["interpolation"] == config.interpolation
    assert tuple(own["mean"]) == tuple(config.mean)
    assert tuple(own["std"]) == tuple(config.std)


@pytest.mark.parametrize(("old", "new", "prefix"), [(14, 24, 1), (37, 7, 0), (4, 6, 2)])
def test_position_tables_are_resized_as_by_timm(old: int, new: int, prefix: int):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((1, old**2 + prefix, 8)).astype(np.float32)
    wanted = timm.layers.resample_abs_pos_embed(
        torch.from_numpy(table), (new, new), (old, old), num_prefix_tokens=prefix
    )
    found, notes = resized(table, (1, new**2 + prefix, 8), prefix)
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-6)
    assert notes == [
        f"pos_embed is resized from {old} x {old} patches to {new} x {new}"
    ]


def google_arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Returns random arrays in Google's layout for a small ViT."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    width, heads, patch = 24, 3, 8
    found = {
        "cls": draw(1, 1, width),
        "embedding/kernel": draw(patch, patch, 3, width),
        "embedding/bias": draw(width),
        "head/kernel": draw(width, 5),
        "head/bias": draw(5),
        "Transformer/posembed_input/pos_embedding": draw(1, 10, width),
        "Transformer/encoder_norm/scale": draw(width),
        "Transformer/encoder_norm/bias": draw(width),
    }
    each = width // heads
    for block in range(len(model.blocks)):
        start = f"Transformer/encoderblock_{block}/"
        attention = start + "MultiHeadDotProductAttention_1/"
        for part in ("query", "key", "value"):
            found[f"{attention}{part}/kernel"] = draw(width, heads, each)
            found[f"{attention}{part}/bias"] = draw(heads, each)
        found[f"{attention}out/kernel"] = draw(heads, each, width)
        found[f"{attention}out/bias"] = draw(width)
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            found[f"{start}{norm}/scale"] = draw(width)
            found[f"{start}{norm}/bias"] = draw(width)
        for dense, shape in (("0", (width, 4 * width)), ("1", (4 * width, width))):
            found[f"{start}MlpBlock_3/Dense_{dense}/kernel"] = draw(*shape)
            found[f"{start}MlpBlock_3/Dense_{dense}/bias"] = draw(shape[1])
    return found


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_googles_files_are_read_as_by_timm(tmp_path: Path, prefix: str):
    theirs = timm_vit.VisionTransformer(
        img_size=24, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5
    )
    path = tmp_path / "w.npz"
    given = google_arrays(theirs)
    np.savez(path, **{prefix + name: array for name, array in given.items()})
    timm_vit._load_weights(theirs, str(path))
    model = dr.create_model(
        "vit",
        image_size=24,
        patch_size=8,
        width=24,
        depth=2,
        num_heads=3,
        num_classes=5,
    )
    found = dr.load_weights(model, path)
    wanted = dr.load_weights(model, arrays(theirs))
    jax_equal(found, wanted)


def test_dinov2s_own_names_are_read_as_by_timm():
    """Its class token has a position there, which timm adds to the token."""
    theirs = random_timm("vit_small_patch14_reg4_dinov2", img_size=98)
    state = theirs.state_dict()
    own = {("register_tokens" if k == "reg_token" else k): v for k, v in state.items()}
    table = torch.randn(1, 50, 384, generator=torch.Generator().manual_seed(1))
    own |= {"pos_embed": table, "mask_token": torch.zeros(1, 384)}
    wanted = timm_vit.checkpoint_filter_fn(dict(own), theirs)
    model = dr.create_model("vit_small_patch14_reg4_dinov2", depth=3, image_size=98)
    found = dr.load_weights(model, {k: v.numpy() for k, v in own.items()})
    jax_equal(found, dr.load_weights(model, {k: v.numpy() for k, v in wanted.items()}))


def jax_equal(found: dict, wanted: dict) -> None:
    """Checks two trees of arrays bit for bit."""
    import jax

    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
