"""Photo files to images of the model's size, with Pillow.

Evaluation is what timm and torchvision do with Pillow, byte for byte: convert to RGB,
bring the shorter side to a length, cut the central square. Orientation tags are ignored
there, and so they are here.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from diffrate_jax.data.chance import CROP, Appearance, uniform
from diffrate_jax.errors import UserError

Box = tuple[int, int, int, int]

# Szegedy et al., "Going deeper with convolutions", Sec. 6.
_AREA, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_ATTEMPTS = 10


def read_photo(path: str | Path) -> Image.Image:
    """Returns a decoded photo in RGB.

    Raises:
        UserError: it cannot be read, or is damaged, or no image.
    """
    try:
        with Image.open(path) as image:
            # A palette's transparency changes no colour, but Pillow would warn of it.
            image.info.pop("transparency", None)
            return image.convert("RGB")
    except Exception as error:  # Decoders of a dozen formats: anything may happen.
        raise UserError(
            f"expected an image in {path}, cannot decode it ({error}); replace the "
            "file or remove it"
        ) from error


def central(
    image: Image.Image, *, resize: int, image_size: int, interpolation: str
) -> np.ndarray:
    """Brings the shorter side to `resize` and cuts the central square.

    Args:
        image: Of any size.
        resize: Shorter side before the cut, in pixels; at least `image_size`.
        image_size: Sides of the square, in pixels.
        interpolation: "bicubic" or "bilinear".

    Returns:
        uint8 [Y, X, C].
    """
    # torchvision rounds the longer side down, and the cut to the nearest even pixel.
    width, height = (side * resize // min(image.size) for side in image.size)
    left, top = (round((side - image_size) / 2) for side in (width, height))
    image = _resized(image, width, height, interpolation)
    return np.asarray(image.crop((left, top, left + image_size, top + image_size)))


def random_crop(
    image: Image.Image, appearance: Appearance, *, image_size: int, interpolation: str
) -> np.ndarray:
    """Returns a random part of a photo, brought to `image_size`.

    Args:
        image: Of any size.
        appearance: The part depends on this and on nothing else.
        image_size: Rows and columns wanted.
        interpolation: "bicubic" or "bilinear".

    Returns:
        uint8 [Y, X, C].
    """
    uniform_4A = uniform(appearance, CROP, 4 * _ATTEMPTS).reshape(4, -1)
    image = image.crop(random_box(image.width, image.height, uniform_4A))
    return np.asarray(_resized(image, image_size, image_size, interpolation))


def random_box(width: int, height: int, uniform_4A: np.ndarray) -> Box:
    """Returns a rectangle of 8 % to 100 % of the area, with sides of ratio 3/4 to 4/3.

    Args:
        width: Of the image, in pixels.
        height: Of the image, in pixels.
        uniform_4A: Four numbers from 0 to below 1 for each attempt. The first that
            lies within the image counts; failing all, the largest central one.

    Returns:
        Left, upper, right and lower edge, in pixels.
    """
    area_A, ratio_A, x_A, y_A = uniform_4A
    low, high = np.log(_RATIO)
    area_A = width * height * (_AREA[0] + (_AREA[1] - _AREA[0]) * area_A)
    ratio_A = np.exp(low + (high - low) * ratio_A)
    width_A = np.rint(np.sqrt(area_A * ratio_A)).astype(int)
    height_A = np.rint(np.sqrt(area_A / ratio_A)).astype(int)
    fits_A = (width_A <= width) & (height_A <= height) & (width_A * height_A > 0)
    if not fits_A.any():
        return _largest_box(width, height)
    a = int(np.argmax(fits_A))
    left = int(x_A[a] * (width - width_A[a] + 1))
    top = int(y_A[a] * (height - height_A[a] + 1))
    return left, top, left + int(width_A[a]), top + int(height_A[a])


def _largest_box(width: int, height: int) -> Box:
    """Returns the largest central rectangle whose sides have a ratio allowed."""
    wide = min(width, max(1, round(height * _RATIO[1])))
    high = min(height, max(1, round(width / _RATIO[0])))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def _resized(
    image: Image.Image, width: int, height: int, interpolation: str
) -> Image.Image:
    """Returns a picture of the given size; Pillow's filters are antialiased."""
    return image.resize((width, height), Image.Resampling[interpolation.upper()])
