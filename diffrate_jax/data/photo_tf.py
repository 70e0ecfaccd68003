"""Encoded photos to images of the model's size, in TensorFlow; see `photo` for Pillow.

Evaluation gives what Pillow gives, to about one byte in a thousand off by one.
"""

from functools import partial

import tensorflow as tf

# As Pillow, to the bit; TensorFlow's default is 1.5 of 255 levels away and no faster.
_JPEG = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}


def central(
    encoded: tf.Tensor, *, resize: int, image_size: int, interpolation: str
) -> tf.Tensor:
    """Brings the shorter side to `resize` and cuts the central square.

    The longer side is rounded down and the cut to the nearest even pixel, as in
    torchvision.

    Args:
        encoded: Bytes of a file, a scalar.
        resize: Shorter side before the cut, in pixels.
        image_size: Sides of the square, in pixels.
        interpolation: "bicubic" or "bilinear".

    Returns:
        uint8 [Y, X, C].
    """
    image_YXC = _decoded(encoded)
    size_2 = tf.shape(image_YXC)[:2]
    size_2 = size_2 * resize // tf.reduce_min(size_2)
    y, x = tf.unstack(tf.cast(tf.round((size_2 - image_size) / 2), tf.int32))
    # Rows first and rounded in between, as Pillow: at once, hard edges would end up to
    # 12 of 255 levels away.
    wide_2 = tf.stack([tf.shape(image_YXC)[0], size_2[1]])
    image_YXC = _resized(image_YXC, wide_2, interpolation)[:, x : x + image_size]
    high_2 = tf.stack([size_2[0], image_size])
    return _resized(image_YXC, high_2, interpolation)[y : y + image_size]


def random_crop(
    encoded: tf.Tensor, *, seed_2: tf.Tensor, size: int, interpolation: str
) -> tf.Tensor:
    """Returns a random part of a photo, uint8 [Y, X, C], brought to `size`."""

    def from_jpeg() -> tf.Tensor:
        # Only JPEG can be decoded in part, which is what makes large photos cheap.
        window_4 = _random_window(tf.io.extract_jpeg_shape(encoded), seed_2)
        return tf.io.decode_and_crop_jpeg(encoded, window_4, **_JPEG)

    def from_other() -> tf.Tensor:
        image_YXC = _decoded(encoded)
        y, x, height, width = tf.unstack(_random_window(tf.shape(image_YXC), seed_2))
        return image_YXC[y : y + height, x : x + width]

    image_YXC = tf.cond(tf.io.is_jpeg(encoded), from_jpeg, from_other)
    return _resized(image_YXC, tf.constant([size, size]), interpolation)


def _decoded(encoded: tf.Tensor) -> tf.Tensor:
    """Returns RGB bytes [Y, X, C], whatever the colours and the format of the file."""
    jpeg = partial(tf.io.decode_jpeg, encoded, **_JPEG)
    other = partial(tf.io.decode_image, encoded, channels=3, expand_animations=False)
    image_YXC = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
    return tf.ensure_shape(image_YXC, (None, None, 3))


def _random_window(shape_3: tf.Tensor, seed_2: tf.Tensor) -> tf.Tensor:
    """Returns y, x, height and width of a random rectangle, int32 [4].

    It covers 8 % to 100 % of the area, with sides of ratio 3/4 to 4/3 (Szegedy et al.,
    "Going deeper with convolutions", Sec. 6).
    """
    start_3, size_3, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape_3,
        bounding_boxes=tf.zeros([1, 0, 4]),
        seed=seed_2,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([start_3[:2], size_3[:2]], axis=0)


def _resized(image_YXC: tf.Tensor, size_2: tf.Tensor, interpolation: str) -> tf.Tensor:
    """Returns bytes of the given size; bytes that have it already stay untouched."""

    def filtered() -> tf.Tensor:
        # Antialiasing is what makes this the filter of Pillow; halves go up there.
        values_YXC = tf.image.resize(image_YXC, size_2, interpolation, antialias=True)
        return tf.cast(tf.clip_by_value(tf.floor(values_YXC + 0.5), 0, 255), tf.uint8)

    same = tf.reduce_all(tf.shape(image_YXC)[:2] == size_2)
    return tf.cond(same, lambda: image_YXC, filtered)
