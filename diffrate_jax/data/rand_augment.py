"""RandAugment: which operations there are, and how strong they get.

Cubuk et al., "RandAugment" (arXiv 1909.13719), in the form in which DeiT uses it,
timm's ``rand-m9-mstd0.5-inc1``: operations whose effect grows with the magnitude, two
drawn for an image, each applied with probability 1/2. What they do to an image is in
`rand_augment_tf` for TensorFlow datasets and in `rand_augment_pil` for all others. Both
interpolate linearly; timm takes the filter of its crops there, or one by chance.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from diffrate_jax.errors import UserError

PROBABILITY = 0.5
MOST = 10.0
GREY = (128, 128, 128)


class Operation(NamedTuple):
    """One way to change an image.

    Attributes:
        name: Of the function that does it.
        most: Strength at magnitude 10, in the unit of the operation; 0: it has none.
        signed: Whether the strength is negative half of the time.
        whole: Whether it is rounded down.
    """

    name: str
    most: float = 0.0
    signed: bool = False
    whole: bool = False


OPERATIONS = (
    Operation("autocontrast"),
    Operation("equalize"),
    Operation("invert"),
    Operation("rotate", 30.0, signed=True),  # degrees
    Operation("posterize", 4.0, whole=True),  # bits lost, beyond the four lost always
    Operation("solarize", 256.0, whole=True),  # levels inverted, from the brightest
    Operation("solarize_add", 110.0, whole=True),  # levels, added to the darker half
    Operation("colour", 0.9, signed=True),  # factor beyond 1, as in the next three
    Operation("contrast", 0.9, signed=True),
    Operation("brightness", 0.9, signed=True),
    Operation("sharpness", 0.9, signed=True),
    Operation("shear_x", 0.3, signed=True),
    Operation("shear_y", 0.3, signed=True),
    Operation("translate_x", 0.45, signed=True),  # share of the width
    Operation("translate_y", 0.45, signed=True),  # share of the height
)


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """How strongly, and how often, training images are changed.

    Attributes:
        magnitude: Mean of the magnitudes, above 0 and at most 10.
        std: Their standard deviation; drawn for each operation, cut to 0..10.
        layers: Operations drawn for an image, one after the other.
        fill: Colour of pixels that come into view, 0..255.

    Raises:
        UserError: a value out of its range.
    """

    magnitude: float = 9.0
    std: float = 0.5
    layers: int = 2
    fill: tuple[int, int, int] = GREY

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0 < self.magnitude <= MOST:
            raise UserError(
                f"rand_augment_magnitude must be above 0 and at most {MOST:g}, found "
                f"{self.magnitude}; change it, or set it to 0 in a config for none"
            )
        if not 0 <= self.std <= MOST:
            raise UserError(
                f"rand_augment_std must be from 0 to {MOST:g}, found {self.std}; "
                "change it"
            )
        if self.layers < 1:
            raise UserError(
                f"rand_augment_layers must be at least 1, found {self.layers}; raise "
                "it, or set rand_augment_magnitude to 0 for none"
            )


def strength(
    most: Any, signed: Any, whole: Any, *, magnitude: Any, negative: Any
) -> Any:
    """Returns an operation's strength; numbers, arrays and tensors alike.

    Args:
        most: Of the operation, as are the next two, 0 or 1.
        signed: See `Operation`.
        whole: See `Operation`.
        magnitude: 0..10.
        negative: 1 to turn the sign around where there is one, else 0.
    """
    found = most * magnitude / MOST
    found = found - whole * (found % 1.0)
    return found * (1.0 - 2.0 * signed * negative)


def warp_matrix(
    name: str, by: Any, width: Any, height: Any, *, cos: Callable, sin: Callable
) -> tuple | None:
    """Returns where the pixels of an image come from; numbers and tensors alike.

    Args:
        name: Of the operation.
        by: Its strength.
        width: Of the image, in pixels.
        height: Of the image, in pixels.
        cos: Of radians, for the kind of number that `by` is.
        sin: The same.

    Returns:
        a, b, c, d, e, f: the pixel at (x, y) shows (ax + by + c, dx + ey + f). None if
        the operation moves no pixel.
    """
    if name == "rotate":
        angle, x, y = by * (math.pi / 180), width / 2, height / 2
        c, s = cos(angle), sin(angle)
        return c, -s, x - c * x + s * y, s, c, y - s * x - c * y
    return {
        "shear_x": (1, by, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, by, 1, 0),
        "translate_x": (1, 0, by * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, by * height),
    }.get(name)
