"""What happens to an image before a model evaluates it: resize, cut, normalise."""

import dataclasses
import math

from diffrate_jax.data.augment import IMAGENET, Colour
from diffrate_jax.errors import UserError
from diffrate_jax.models.presets import PREPROCESSING, preset


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How images come to a model.

    Attributes:
        source: whose choice this is: "published", "timm" or "recipe".
        resize: length that the shorter side is brought to, in pixels.
        image_size: sides of the central square that is cut from it, in pixels.
        interpolation: "bicubic" or "bilinear".
        mean: subtracted from each channel, of values in 0..1.
        std: divides each channel afterwards.
    """

    source: str
    resize: int
    image_size: int
    interpolation: str
    mean: Colour
    std: Colour

    def __str__(self) -> str:
        size = self.image_size
        return (
            f"preprocessing ({self.source}): shorter side to {self.resize}, "
            f"{self.interpolation}; central {size} x {size}; mean {self.mean}, "
            f"std {self.std}"
        )


def published(image_size: int) -> Preprocess:
    """Returns what DiffRate evaluated all its models with: 256 for a cut of 224.

    Other sizes keep the proportion.
    """
    resize = round(image_size * 256 / 224)
    return Preprocess("published", resize, image_size, "bicubic", **IMAGENET)


def of_preset(name: str, image_size: int) -> Preprocess:
    """Returns a preset's own, as timm evaluates it.

    Args:
        name: of the preset.
        image_size: of the model, which may differ from the preset's.

    Raises:
        UserError: no such preset.
    """
    if name in ("vit", "caformer"):
        raise UserError(
            f"config.preprocess=timm takes {', '.join(PREPROCESSING)} from the model's "
            f"preset, and {name!r} is none; set preprocess to published, or to nothing "
            "and resize, mean and std yourself"
        )
    own = preset(name)
    return Preprocess(
        "timm",
        math.floor(image_size / own["crop_pct"]),
        image_size,
        own["interpolation"],
        tuple(own["mean"]),
        tuple(own["std"]),
    )
