"""Position tables brought to another number of patches, as timm does it."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def resized(
    table_1ND: np.ndarray, shape: tuple[int, ...], prefix: int
) -> tuple[np.ndarray, list[str]]:
    """Returns a position table for another image size, and a note that says so.

    The rows of patches are an image of D channels, resized bicubically with
    antialiasing; those of prefix tokens stay as they are.

    Args:
        table_1ND: of a square grid of patches, after `prefix` rows.
        shape: wanted [1, N, D].
        prefix: rows that belong to no patch.

    Returns:
        The table as it is, without a note, where it is of another kind altogether.
    """
    if table_1ND.ndim != 3 or table_1ND.shape[::2] != shape[::2]:
        return table_1ND, []
    old, new = (math.isqrt(max(0, n - prefix)) for n in (table_1ND.shape[1], shape[1]))
    if old < 1 or old**2 + prefix != table_1ND.shape[1] or new**2 + prefix != shape[1]:
        return table_1ND, []
    width = shape[2]
    grid_YXD = np.asarray(table_1ND[0, prefix:], np.float32).reshape(old, old, width)
    grid_YXD = jax.image.resize(
        jnp.asarray(grid_YXD),
        (new, new, width),
        "bicubic",
        antialias=True,
        precision=jax.lax.Precision.HIGHEST,
    )
    rows_ND = np.asarray(grid_YXD).reshape(new * new, width)
    table_1ND = np.concatenate([table_1ND[:, :prefix], rows_ND[None]], axis=1)
    return table_1ND, [
        f"pos_embed is resized from {old} x {old} patches to {new} x {new}"
    ]
