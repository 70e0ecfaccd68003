"""Both readers prepare images as the published evaluations do, and say how."""

import io
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffrate_jax import cli, preprocess, recipes
from diffrate_jax.data import photo
from diffrate_jax.errors import UserError
from diffrate_jax.preprocess import of_preset

SIZES = [
    (300, 400),
    (400, 300),
    (257, 256),
    (256, 256),
    (100, 80),
    (37, 61),
    (260, 600),
]
KINDS = "smooth", "texture", "edges", "text"
# Channels of a preset, as timm has them for a model.
OWN = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
OWN |= {"crop_pct": 0.9, "interpolation": "bilinear"}


def picture(kind: str, height: int, width: int) -> Image.Image:
    """Returns a picture of soft colours, fine noise, stripes, or hard-edged marks."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(height + width)
    if kind == "smooth":
        waves = [np.sin(x / 31), np.cos(y / 17), np.sin((x + y) / 53)]
        image_YXC = 127 + 120 * np.stack(waves, -1)
    elif kind == "texture":
        image_YXC = rng.normal(128, 60, (height, width, 3))
    elif kind == "edges":
        image_YXC = 255 * np.stack([x // 7 % 2, y // 5 % 2, (x + y) // 9 % 2], -1)
    else:
        marks = np.repeat(rng.random((height, -(-width // 4))) < 0.3, 4, axis=1)
        image_YXC = 255 * np.repeat(marks[:, :width, None], 3, axis=2)
    return Image.fromarray(np.clip(image_YXC, 0, 255).astype(np.uint8))


def torchvision(image: Image.Image, resize: int, size: int, filter_: int) -> np.ndarray:
    """What Resize(resize) and CenterCrop(size) do, written in their own terms."""
    width, height = image.size
    short, long = sorted([width, height])
    new_long = int(resize * long / short)
    shape = (resize, new_long) if width <= height else (new_long, resize)
    image = image.resize(shape, filter_)
    top = int(round((image.height - size) / 2.0))  # noqa: RUF046
    left = int(round((image.width - size) / 2.0))  # noqa: RUF046
    return np.asarray(image)[top : top + size, left : left + size]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("resize", "size"), [(256, 224), (248, 224), (224, 224)])
@pytest.mark.parametrize("shape", SIZES)
def test_pillow_is_torchvision_to_the_byte(shape, resize, size, interpolation):
    image = picture("texture", *shape)
    how = {"resize": resize, "image_size": size, "interpolation": interpolation}
    wanted = torchvision(image, resize, size, Image.Resampling[interpolation.upper()])
    np.testing.assert_array_equal(photo.central(image, **how), wanted)


@settings(max_examples=50, deadline=None)
@given(*[st.integers(1, 200)] * 2, st.integers(1, 40), st.integers(0, 20))
def test_the_cut_is_torchvisions_for_any_size(width, height, size, margin):
    image = Image.fromarray(
        np.arange(height * width, dtype=np.uint8).reshape(height, -1)
    )
    image = image.convert("RGB")
    how = {"resize": size + margin, "image_size": size, "interpolation": "bilinear"}
    wanted = torchvision(image, size + margin, size, Image.Resampling.BILINEAR)
    found = photo.central(image, **how)
    assert found.shape == (size, size, 3)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("resize", "size"), [(256, 224), pytest.param(60, 56, marks=pytest.mark.slow)]
)
def test_tensorflow_is_pillow_but_for_rounding(resize, size, interpolation):
    """The last bit of a sum may decide between two levels, in a few bytes of 100."""
    import tensorflow as tf

    from diffrate_jax.data import photo_tf

    how = {"resize": resize, "image_size": size, "interpolation": interpolation}
    central = tf.function(lambda encoded: photo_tf.central(encoded, **how))
    formats = itertools.cycle(["PNG", "JPEG", "JPEG"])
    for kind, shape in itertools.product(KINDS, SIZES):
        file, file_format = io.BytesIO(), next(formats)
        picture(kind, *shape).save(file, file_format, quality=90)
        found = central(file.getvalue()).numpy().astype(int)
        wanted = photo.central(Image.open(file).convert("RGB"), **how)
        difference = np.abs(found - wanted)
        assert found.shape == (size, size, 3)
        assert difference.max() <= 2, (kind, shape, file_format)
        assert difference.mean() <= 0.03, (kind, shape, file_format)


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (384, 439), (32, 37)])
def test_published_keeps_the_proportion(size, resize):
    found = preprocess.published(size)
    assert (found.resize, found.image_size) == (resize, size)
    assert str(preprocess.published(224)) == (
        "preprocessing (published): shorter side to 256, bicubic; central 224 x 224; "
        "mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)"
    )


@pytest.mark.parametrize(
    ("name", "size", "resize"),
    [
        ("deit_small_patch16_224", 224, 248),
        ("vit_base_patch16_384.augreg_in21k_ft_in1k", 384, 384),
        ("vit_large_patch16_224.mae_finetuned", 224, 256),
        ("vit_base_patch16_224", 288, 320),
    ],
)
def test_timm_rounds_the_shorter_side_down(name: str, size: int, resize: int):
    found = of_preset(name, size)
    half = (0.5, 0.5, 0.5)
    assert (found.source, found.resize, found.image_size) == ("timm", resize, size)
    assert found.interpolation == "bicubic"
    augreg = name.startswith("vit_base")
    assert (found.mean == half, found.std == half) == (augreg, augreg)


def test_a_model_of_ones_own_has_no_preprocessing_of_timms():
    with pytest.raises(UserError, match="'vit' is none; set preprocess to published"):
        of_preset("vit", 224)
    with pytest.raises(UserError, match="unknown model 'deit'; did you mean"):
        of_preset("deit", 224)


def config_with(**fields):
    config = cli.load_recipe(cli.BASE.with_name("quickstart.py"))
    with config.unlocked():
        config.update(fields)
    return config


def test_one_choice_serves_data_evaluation_and_training():
    for kind, resize, mean in [("", 32, 0.5), ("published", 37, 0.485)]:
        config = config_with(preprocess=kind)
        model = recipes.model_of(config)
        found = recipes.preprocess_of(config, model)
        assert (found.resize, found.mean[0], found.image_size) == (resize, mean, 32)
        assert found.source == kind or found.source == "recipe"
        assert recipes.augment_of(config, model).mean == found.mean
        assert recipes.train_recipe(config, model).augment.std == found.std
        assert recipes.search_recipe(config, model).augment.mean == found.mean


def test_an_unknown_preprocessing():
    config = config_with(preprocess="publisht")
    with pytest.raises(UserError, match=r"'publisht'; did you mean 'published'\?"):
        recipes.preprocess_of(config, recipes.model_of(config))


@pytest.mark.parametrize(
    ("name", "target"),
    [("deit_tiny", "0.8"), ("deit_small", "2.9"), ("deit_base", "11.5"),
     ("mae_base", "11.5"), ("mae_large", "42.3"), ("mae_huge", "103.4")],
)  # fmt: skip
def test_recipes_of_the_published_models(name, target):
    config = cli.load_recipe(cli.BASE.with_name(f"{name}.py"))
    found = recipes.preprocess_of(config, recipes.model_of(config))
    assert (found.source, found.resize, found.image_size) == ("published", 256, 224)
    assert (config.dataset, config.eval_split) == ("imagenet2012", "validation")
    assert config.target == target
