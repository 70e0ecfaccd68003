"""Pictures and what became of their tokens, as one figure for a paper."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.path import Path

from diffrate_jax.depiction.groups import Corner, inset
from diffrate_jax.depiction.trace import PRUNED
from diffrate_jax.depiction.views import Picture, View
from diffrate_jax.pictures import STYLE, WIDTH
from diffrate_jax.shapes import Geometry

# Between columns, of a column's width; width of an outline, in patches.
GAP, LINE = 0.06, 0.12
# How much of a pruned patch is white.
DIMMED = 0.82
MARK = "#D55E00"
# Inches: a line of small print, the titles above the columns, and white at the sides.
PRINT, TITLES, SIDE = 0.1, 0.36, 0.04
# Letters of a line of small print that a page is wide.
LETTERS = 120
# Width of the widest title above a column, in sizes of its font.
TITLE_EMS = 5.5
Steps = Sequence[tuple[int, int, int]]


@matplotlib.rc_context(STYLE)
def token_figure(
    pictures: Sequence[Picture], steps: Steps, geometry: Geometry
) -> Figure:
    """Draws a row for each picture: the input, then a column for each block.

    Pruned patches are dimmed, and hatched in the block that prunes them; merged ones
    are outlined together, and filled with their mean colour.

    Args:
        pictures: of one model, with the same blocks.
        steps: tokens (coming in, after pruning, after merging) of each block.
        geometry: of the model.
    """
    columns = 1 + len(pictures[0].views)
    width = (WIDTH - 2 * SIDE) / (columns + (columns - 1) * GAP)
    below = PRINT * (1 + max(len(_words(picture)) for picture in pictures))
    height = (width + below) * len(pictures) + TITLES
    figure = Figure(figsize=(WIDTH, height), dpi=300)
    grid = figure.add_gridspec(
        len(pictures), columns, left=SIDE / WIDTH, right=1 - SIDE / WIDTH,
        top=1 - TITLES / height, bottom=below / height,
        wspace=GAP, hspace=below / width,
    )  # fmt: skip
    titles = [f"input\n{geometry.num_tokens} tokens"]
    titles += [f"block {v.block}\n{steps[v.block][2]}" for v in pictures[0].views]
    for row, picture in enumerate(pictures):
        for column, view in enumerate((None, *picture.views)):
            axes = figure.add_subplot(grid[row, column])
            _draw(axes, picture, view, 72 * width / picture.side)
            if row == 0:
                size = min(7.0, 72 * width / TITLE_EMS)
                axes.set_title(titles[column], fontsize=size, loc="center", pad=3)
            if column == 0:
                _caption(axes, _words(picture))
    return figure


def _caption(axes: Axes, lines: Sequence[str]) -> None:
    """Writes small print below a picture, as far below whatever the picture's size."""
    axes.annotate(
        "\n".join(map(_shortened, lines)), (0, 0), (0, -2), "axes fraction",
        "offset points", fontsize=5.5, va="top", linespacing=1.25, parse_math=False,
        annotation_clip=False,
    )  # fmt: skip


def _shortened(line: str) -> str:
    """Returns a line that fits; its ends tell what it is about, and how probable."""
    half = LETTERS // 2
    return line if len(line) <= LETTERS else f"{line[: half - 1]}…{line[-half:]}"


def _words(picture: Picture) -> list[str]:
    """Returns the lines below a picture."""
    said = lambda who, guess: f"{who}: {guess.label}, {guess.probability:.0%}"  # noqa: E731
    both = {"dense": picture.dense[:1], "compressed": picture.compressed[:1]}
    lines = [said(who, guess) for who, best in both.items() for guess in best]
    return [picture.name, *lines]


def _draw(axes: Axes, picture: Picture, view: View | None, points: float) -> None:
    """Draws a picture after a block, or as it is; a patch is so many points wide."""
    side, image_YXC = picture.side, picture.image_YXC
    axes.set_axis_off()
    small = len(image_YXC) < 128
    axes.imshow(
        image_YXC if view is None else filled(picture, view),
        extent=(0, side, side, 0),
        interpolation="nearest" if small else "antialiased",
    )
    if view is None:
        return
    merged = [group for group in view.groups if len(group.patches) > 1]
    paths = [_path(group.loops) for group in merged]
    colours = [np.array(group.edge) / 255 for group in merged]
    style = {"linewidths": LINE * points, "facecolors": "none"}
    axes.add_collection(PathCollection(paths, edgecolors=colours, **style))
    now_P = np.flatnonzero(picture.pruned_P == view.block)
    lines = [_diagonal(int(patch), side) for patch in now_P]
    axes.add_collection(LineCollection(lines, colors=MARK, linewidths=0.12 * points))


def filled(picture: Picture, view: View) -> np.ndarray:
    """Returns a picture in bytes: merged patches in their mean colour, pruned dimmed.

    Args:
        picture: of which patches are so many whole pixels.
        view: one of its views.
    """
    side = picture.side
    image = picture.image_YXC.copy()
    pixels = len(image) // side
    blocks = image.reshape(side, pixels, side, pixels, 3)
    for group in view.groups:
        if len(group.patches) > 1:
            rows, columns = np.divmod(group.patches, side)
            blocks[rows, :, columns] = group.colour
    gone_P = (picture.pruned_P != PRUNED) & (picture.pruned_P <= view.block)
    rows, columns = np.divmod(np.flatnonzero(gone_P), side)
    bright = blocks[rows, :, columns].mean(axis=-1, keepdims=True)
    blocks[rows, :, columns] = np.rint(bright + DIMMED * (255 - bright))
    return image


def _path(loops: Sequence[Sequence[Corner]]) -> Path:
    """Returns the outlines of a group as one path, drawn within it."""
    closed = [Path([*inset(loop, LINE / 2), (0, 0)], closed=True) for loop in loops]
    return Path.make_compound_path(*closed)


def _diagonal(patch: int, side: int) -> list[tuple[float, float]]:
    y, x = divmod(patch, side)
    return [(x + 0.15, y + 0.85), (x + 0.85, y + 0.15)]
