"""Groups of patches that one token stands for: where they are, and their mean colour.

A grid has as many rows as columns; patches count from its upper left corner in rows,
and so do its corners, in units of a patch: (x, y) from (0, 0) to (side, side).
"""

import colorsys
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from diffrate_jax.depiction.trace import PRUNED

Corner = tuple[int, int]
Point = tuple[float, float]
# From a corner in one of the four ways.
Edge = tuple[int, int, int]
# By a quarter turn to the right, as y points down: east, south, west, north.
_WAYS = ((1, 0), (0, 1), (-1, 0), (0, -1))


@dataclasses.dataclass(frozen=True)
class Group:
    """The patches of one token.

    Attributes:
        patches: their numbers, rising.
        size: the token's, by which attention counts it.
        colour: mean of all their pixels, in bytes.
        edge: colour of the outline, in bytes; see `edge_colour`.
        loops: corners of the outline; see `outline`.
    """

    patches: tuple[int, ...]
    size: float
    colour: tuple[int, int, int]
    edge: tuple[int, int, int]
    loops: tuple[tuple[Corner, ...], ...]


def group_patches(
    owner_P: np.ndarray, size_K: np.ndarray, colour_PC: np.ndarray
) -> tuple[Group, ...]:
    """Returns the tokens that are left, by their first patches.

    Args:
        owner_P: token that each patch ended in; `PRUNED` is none.
        size_K: of the tokens.
        colour_PC: mean colour of each patch, in bytes.
    """
    side = math.isqrt(len(owner_P))
    groups = []
    for token in dict.fromkeys(owner_P.tolist()):
        if token == PRUNED:
            continue
        is_in_P = owner_P == token
        colour = np.rint(colour_PC[is_in_P].mean(axis=0)).astype(int)
        patches = tuple(np.flatnonzero(is_in_P).tolist())
        groups.append(
            Group(
                patches,
                float(size_K[token]),
                tuple(colour.tolist()),
                edge_colour(*divmod(patches[0], side)),
                outline(is_in_P.reshape(side, side)),
            )
        )
    return tuple(groups)


def patch_colours(image_YXC: np.ndarray, side: int) -> np.ndarray:
    """Returns the mean colour of every patch [P, C].

    Args:
        image_YXC: bytes, a whole number of them to a patch.
        side: patches in a row.
    """
    pixels = len(image_YXC) // side
    blocks = image_YXC.astype(float).reshape(side, pixels, side, pixels, -1)
    return blocks.mean(axis=(1, 3)).reshape(side * side, -1)


def outline(is_in_YX: np.ndarray) -> tuple[tuple[Corner, ...], ...]:
    """Returns the loops around some patches.

    Args:
        is_in_YX: which patches.

    Returns:
        The corners of each loop, clockwise around patches and counter-clockwise around
        holes, the inside always to the right. Patches that only touch at a corner are
        not joined. The last corner is not the first again.
    """
    left, loops = set(borders := _borders(is_in_YX)), []
    for edge in sorted(borders):
        loop = []
        while edge in left:
            left.remove(edge)
            loop.append(edge)
            edge = _after(edge, borders)
        if loop:
            loops.append(_bends(loop))
    return tuple(loops)


def _borders(is_in_YX: np.ndarray) -> set[Edge]:
    """Returns the sides of patches, clockwise, beyond which there is none."""
    padded_YX = np.pad(is_in_YX.astype(bool), 1)
    # Where the upper, right, lower and left side begin, and what lies beyond.
    sides = ((0, 0, 0, -1), (1, 0, 1, 0), (1, 1, 0, 1), (0, 1, -1, 0))
    return {
        (int(x) - 1 + right, int(y) - 1 + down, way)
        for y, x in np.argwhere(padded_YX)
        for way, (right, down, beside, below) in enumerate(sides)
        if not padded_YX[y + below, x + beside]
    }


def _after(edge: Edge, borders: set[Edge]) -> Edge:
    """Returns the next edge: to the right, so that loops that touch stay two."""
    x, y, way = edge
    x, y = x + _WAYS[way][0], y + _WAYS[way][1]
    turns = [(x, y, (way + turn) % 4) for turn in (1, 0, 3)]
    return next(turn for turn in turns if turn in borders)


def _bends(loop: Sequence[Edge]) -> tuple[Corner, ...]:
    """Returns the corners of a loop at which it turns."""
    return tuple(
        (x, y) for number, (x, y, way) in enumerate(loop) if way != loop[number - 1][2]
    )


def inset(loop: Sequence[Corner], distance: float) -> tuple[Point, ...]:
    """Returns a loop moved to its inside, to the right of its sides.

    Args:
        loop: corners of an outline.
        distance: in patches, below one half.
    """
    moved = []
    for number, (x, y) in enumerate(loop):
        points = loop[number - 1], loop[(number + 1) % len(loop)]
        right = -_sign(y - points[0][1]) - _sign(points[1][1] - y)
        down = _sign(x - points[0][0]) + _sign(points[1][0] - x)
        moved.append((x + right * distance, y + down * distance))
    return tuple(moved)


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def edge_colour(y: int, x: int) -> tuple[int, int, int]:
    """Returns the colour of an outline, in bytes: the same in every picture and block.

    Args:
        y: row of the group's first patch.
        x: its column.
    """
    # Next to each other, and across corners, hues are at least 3/16 of a turn apart,
    # within a square of four by four at least 1/16; no other steps do better there.
    hue = (x * 3 / 4 + y * 9 / 16) % 1.0
    # The next square has the same hues again, lighter or darker.
    lightness = (0.6, 0.45, 0.72)[(x // 4 + 2 * (y // 4)) % 3]
    channels = colorsys.hls_to_rgb(hue, lightness, 0.8)
    return tuple(round(255 * channel) for channel in channels)
