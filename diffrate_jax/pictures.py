"""Pictures for print: how they look, and PNG files that never differ for nothing."""

import io
import os

from matplotlib.figure import Figure

from diffrate_jax.files import write_bytes

WIDTH = 7.2  # inches: the width of a printed page between its margins
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
    "figure.dpi": 160,
    "hatch.color": "white",
    "hatch.linewidth": 1.2,
}


def to_png(figure: Figure) -> bytes:
    """Returns the figure as PNG; the same figure always gives the same bytes."""
    buffer = io.BytesIO()
    # Without the name and version of the library, which would change the bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def save_png(figure: Figure, path: str | os.PathLike) -> None:
    """Writes the figure as PNG; the file appears whole or not at all.

    Raises:
        UserError: the place cannot be written to.
    """
    write_bytes(path, to_png(figure))
