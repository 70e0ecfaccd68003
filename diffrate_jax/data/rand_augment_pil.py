"""RandAugment with Pillow; see `rand_augment` for what there is."""

import math
from statistics import NormalDist

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from diffrate_jax.data.chance import RAND_AUGMENT, Appearance, uniform
from diffrate_jax.data.rand_augment import (
    MOST,
    OPERATIONS,
    PROBABILITY,
    RandAugment,
    strength,
    warp_matrix,
)

Colour = tuple[int, int, int]


def rand_augment(
    image: Image.Image, how: RandAugment, appearance: Appearance
) -> Image.Image:
    """Returns an image after a few operations, drawn for this appearance alone."""
    numbers = uniform(appearance, RAND_AUGMENT, 4 * how.layers).reshape(-1, 4)
    for which, chance, level, direction in numbers.tolist():
        if chance >= PROBABILITY:
            continue
        operation = OPERATIONS[int(which * len(OPERATIONS))]
        # The middle of the number's 2⁻⁵³, as a normal deviate of 0 has no limit.
        magnitude = how.magnitude + how.std * NormalDist().inv_cdf(level + 2**-54)
        amount = strength(
            *operation[1:],
            magnitude=min(max(magnitude, 0.0), MOST),
            negative=direction < 0.5,
        )
        image = apply(operation.name, image, amount, how.fill)
    return image


def rand_augment_array(
    image_YXC: np.ndarray, how: RandAugment, appearance: Appearance
) -> np.ndarray:
    """Does the same to bytes [Y, X, C]."""
    return np.asarray(rand_augment(Image.fromarray(image_YXC), how, appearance))


def apply(name: str, image: Image.Image, amount: float, fill: Colour) -> Image.Image:
    """Returns an image after one operation.

    Args:
        name: Of the operation.
        image: In RGB.
        amount: Strength, in the unit of the operation.
        fill: Colour of pixels that come into view.
    """
    matrix = warp_matrix(name, amount, *image.size, cos=math.cos, sin=math.sin)
    if matrix is None:
        return _TONES[name](image, amount)
    how = {"resample": Image.Resampling.BILINEAR, "fillcolor": fill}
    return image.transform(image.size, Image.Transform.AFFINE, matrix, **how)


def _posterize(image: Image.Image, lost: float) -> Image.Image:
    # ImageOps.posterize refuses to lose all eight bits, which magnitude 10 asks for.
    kept = 256 - 2 ** (4 + int(lost))
    return image.point([i & kept for i in range(256)] * 3)


def _solarize_add(image: Image.Image, amount: float) -> Image.Image:
    table = [min(255, i + int(amount)) if i < 128 else i for i in range(256)]
    return image.point(table * 3)


_TONES = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "posterize": _posterize,
    "solarize": lambda image, levels: ImageOps.solarize(image, 256 - int(levels)),
    "solarize_add": _solarize_add,
    "colour": lambda image, by: ImageEnhance.Color(image).enhance(1 + by),
    "contrast": lambda image, by: ImageEnhance.Contrast(image).enhance(1 + by),
    "brightness": lambda image, by: ImageEnhance.Brightness(image).enhance(1 + by),
    "sharpness": lambda image, by: ImageEnhance.Sharpness(image).enhance(1 + by),
}
