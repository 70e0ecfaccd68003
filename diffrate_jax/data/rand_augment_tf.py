"""RandAugment in TensorFlow, image by image; see `rand_augment` for what there is.

Gives what Pillow gives, but for a few bytes off by one where an image is turned,
sheared or moved.
"""

from functools import partial

import tensorflow as tf

from diffrate_jax.data.rand_augment import (
    MOST,
    OPERATIONS,
    PROBABILITY,
    RandAugment,
    strength,
    warp_matrix,
)

# No other numbers of an image are drawn with its seed folded with this.
_PURPOSE = 1


def rand_augment(
    image_YXC: tf.Tensor, how: RandAugment, *, seed_2: tf.Tensor
) -> tf.Tensor:
    """Returns an image after a few operations.

    Args:
        image_YXC: Bytes.
        how: What to do.
        seed_2: All that the operations depend on.

    Returns:
        uint8 [Y, X, C].
    """
    seed_2 = tf.random.fold_in(seed_2, _PURPOSE, alg="philox")
    seeds_S2 = tf.random.split(seed_2, 2, alg="philox")
    numbers_L3 = tf.random.stateless_uniform([how.layers, 3], seeds_S2[0], alg="philox")
    levels_L = tf.random.stateless_normal([how.layers], seeds_S2[1], alg="philox")
    levels_L = tf.clip_by_value(how.magnitude + how.std * levels_L, 0.0, MOST)
    for layer in range(how.layers):
        which, chance, direction = tf.unstack(numbers_L3[layer])
        which = tf.cast(which * len(OPERATIONS), tf.int32)
        amount = _amount(which, levels_L[layer], tf.cast(direction < 0.5, tf.float32))
        changed = partial(_one_of_all, which, image_YXC, amount, how.fill)
        image_YXC = tf.cond(chance < PROBABILITY, changed, lambda x=image_YXC: x)
    return image_YXC


def apply(
    name: str, image_YXC: tf.Tensor, amount: tf.Tensor, fill: tuple[int, int, int]
) -> tf.Tensor:
    """Returns an image after one operation.

    Args:
        name: Of the operation.
        image_YXC: Bytes.
        amount: Strength, in the unit of the operation; float32 scalar.
        fill: Colour of pixels that come into view.

    Returns:
        uint8 [Y, X, C].
    """
    height, width = tf.unstack(tf.cast(tf.shape(image_YXC)[:2], tf.float32))
    matrix = warp_matrix(name, amount, width, height, cos=tf.cos, sin=tf.sin)
    if matrix is None:
        return _TONES[name](image_YXC, amount)
    return _warped(image_YXC, matrix, fill)


def _amount(which: tf.Tensor, level: tf.Tensor, negative: tf.Tensor) -> tf.Tensor:
    """Returns the strength of an operation that is known by its number."""
    _, *columns = zip(*OPERATIONS, strict=True)
    values = (
        tf.gather(tf.constant(c, tf.float32), which) for c in map(_floats, columns)
    )
    return strength(*values, magnitude=level, negative=negative)


def _floats(column: tuple) -> list[float]:
    return [float(value) for value in column]


def _one_of_all(
    which: tf.Tensor, image_YXC: tf.Tensor, amount: tf.Tensor, fill: tuple
) -> tf.Tensor:
    """Returns an image after the operation of this number; no other one runs."""
    ways = [partial(apply, op.name, image_YXC, amount, fill) for op in OPERATIONS]
    changed_YXC = tf.switch_case(which, ways)
    return tf.ensure_shape(changed_YXC, image_YXC.shape)


def _warped(image_YXC: tf.Tensor, matrix: tuple, fill: tuple) -> tf.Tensor:
    """Returns an image whose pixel at (x, y) shows (ax + by + c, dx + ey + f)."""
    a, b, c, d, e, f = (tf.convert_to_tensor(x, tf.float32) for x in matrix)
    size_2 = tf.shape(image_YXC)[:2]
    # Pillow counts from the edges of pixels, TensorFlow from their centres.
    row_8 = [a, b, c + (a + b - 1) / 2, d, e, f + (d + e - 1) / 2, 0.0, 0.0]
    moved_YXC = tf.raw_ops.ImageProjectiveTransformV3(
        images=image_YXC[None],
        transforms=tf.stack(row_8)[None],
        output_shape=size_2,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
        fill_value=0.0,
    )[0]
    height, width = (tf.cast(n, tf.float32) for n in tf.unstack(size_2))
    y_Y1 = tf.range(height)[:, None] + 0.5
    x_1X = tf.range(width)[None, :] + 0.5
    from_x_YX, from_y_YX = a * x_1X + b * y_Y1 + c, d * x_1X + e * y_Y1 + f
    inside_YX = (from_x_YX >= 0) & (from_x_YX < width)
    inside_YX &= (from_y_YX >= 0) & (from_y_YX < height)
    return tf.where(inside_YX[..., None], moved_YXC, tf.constant(fill, tf.uint8))


def _bytes(values: tf.Tensor) -> tf.Tensor:
    """Cuts to 0..255 and drops fractions, as Pillow does."""
    return tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8)


def _looked_up(image_YXC: tf.Tensor, table_VC: tf.Tensor) -> tf.Tensor:
    """Replaces every level of every channel by what its column of the table says."""
    index_YXC = tf.cast(image_YXC, tf.int32) * 3 + tf.range(3)
    return tf.gather(tf.reshape(tf.cast(table_VC, tf.uint8), [-1]), index_YXC)


def _autocontrast(image_YXC: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
    levels_NC = tf.reshape(image_YXC, [-1, 3])
    low_C = tf.cast(tf.reduce_min(levels_NC, axis=0), tf.float64)
    high_C = tf.cast(tf.reduce_max(levels_NC, axis=0), tf.float64)
    flat_C = high_C <= low_C
    scale_C = 255 / tf.where(flat_C, tf.ones_like(low_C), high_C - low_C)
    level_V1 = tf.range(256, dtype=tf.float64)[:, None]
    spread_VC = tf.clip_by_value(level_V1 * scale_C - low_C * scale_C, 0, 255)
    return _looked_up(image_YXC, tf.where(flat_C, level_V1, spread_VC))


def _equalize(image_YXC: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
    """Spreads levels so that all are about as frequent: ImageOps.equalize."""
    index_YXC = tf.cast(image_YXC, tf.int32) * 3 + tf.range(3)
    sizes = {"minlength": 768, "maxlength": 768}
    count_VC = tf.reshape(
        tf.math.bincount(tf.reshape(index_YXC, [-1]), **sizes), [256, 3]
    )
    brightest_C = tf.reduce_max(image_YXC, axis=(0, 1))
    last_C = tf.gather(
        tf.transpose(count_VC), tf.cast(brightest_C, tf.int32), batch_dims=1
    )
    step_C = (tf.reduce_sum(count_VC, axis=0) - last_C) // 255
    below_VC = tf.cumsum(count_VC, exclusive=True)
    even_VC = (step_C // 2 + below_VC) // tf.maximum(step_C, 1)
    table_VC = tf.where(step_C > 0, tf.minimum(even_VC, 255), tf.range(256)[:, None])
    return _looked_up(image_YXC, table_VC)


def _posterize(image_YXC: tf.Tensor, lost: tf.Tensor) -> tf.Tensor:
    step = tf.cast(2 ** (4 + tf.cast(lost, tf.int32)), tf.int32)
    kept = tf.cast(255 - (step - 1), tf.uint8)
    return tf.bitwise.bitwise_and(image_YXC, kept)


def _solarize(image_YXC: tf.Tensor, levels: tf.Tensor) -> tf.Tensor:
    # From 256 on none is inverted, which a byte cannot say.
    darkest = tf.cast(tf.maximum(256 - levels, 0), tf.int32)
    bright_YXC = tf.cast(image_YXC, tf.int32) >= darkest
    return tf.where(bright_YXC, 255 - image_YXC, image_YXC)


def _solarize_add(image_YXC: tf.Tensor, added: tf.Tensor) -> tf.Tensor:
    # At most 110 are added to at most 127: a byte holds that.
    brighter_YXC = image_YXC + tf.cast(added, tf.uint8)
    return tf.where(image_YXC < 128, brighter_YXC, image_YXC)


def _grey(image_YXC: tf.Tensor) -> tf.Tensor:
    """Returns luma as Pillow rounds it, float32 [Y, X, 1]."""
    weight_C1 = tf.constant([[19595.0], [38470.0], [7471.0]])
    values_NC = tf.cast(tf.reshape(image_YXC, [-1, 3]), tf.float32)
    grey_N1 = tf.floor((values_NC @ weight_C1 + 32768) / 65536)
    return tf.reshape(grey_N1, [*tf.unstack(tf.shape(image_YXC)[:2]), 1])


def _away_from(
    other_YXC: tf.Tensor | float, image_YXC: tf.Tensor, by: tf.Tensor
) -> tf.Tensor:
    """Goes from another image to this one and on: ImageEnhance, factor ``1 + by``."""
    image_YXC = tf.cast(image_YXC, tf.float32)
    return _bytes(other_YXC + (1 + by) * (image_YXC - other_YXC))


def _contrast(image_YXC: tf.Tensor, by: tf.Tensor) -> tf.Tensor:
    # Sums of bytes exceed what float32 counts without rounding.
    mean = tf.reduce_mean(tf.cast(_grey(image_YXC), tf.float64))
    return _away_from(tf.cast(tf.floor(mean + 0.5), tf.float32), image_YXC, by)


def _sharpness(image_YXC: tf.Tensor, by: tf.Tensor) -> tf.Tensor:
    """Goes away from the image smoothed, but for its border: ImageFilter.SMOOTH."""
    values_YXC = tf.cast(image_YXC, tf.float32)
    sum_YXC = values_YXC[:-2] + values_YXC[1:-1] + values_YXC[2:]
    sum_YXC = sum_YXC[:, :-2] + sum_YXC[:, 1:-1] + sum_YXC[:, 2:]
    inner_YXC = tf.floor((sum_YXC + 4 * values_YXC[1:-1, 1:-1]) / 13 + 0.5)
    change_YXC = inner_YXC - values_YXC[1:-1, 1:-1]
    smooth_YXC = values_YXC + tf.pad(change_YXC, [[1, 1], [1, 1], [0, 0]])
    return _away_from(smooth_YXC, image_YXC, by)


_TONES = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": lambda image_YXC, _: 255 - image_YXC,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "colour": lambda image_YXC, by: _away_from(_grey(image_YXC), image_YXC, by),
    "contrast": _contrast,
    "brightness": lambda image_YXC, by: _away_from(0.0, image_YXC, by),
    "sharpness": _sharpness,
}
