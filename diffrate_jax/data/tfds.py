"""Image classification datasets of TensorFlow Datasets, read from prepared files.

Importing this loads TensorFlow. Records stay encoded until order, step and the host's
share are settled, so that shuffling, skipping and sharing are cheap.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from diffrate_jax.data import (
    Batch,
    digits,
    host_batch_size,
    pad_batches,
    steps_per_epoch,
)
from diffrate_jax.errors import UserError, did_you_mean

Example = tuple[tf.Tensor, tf.Tensor]

_SHUFFLE_BYTES = 2**29
_FILES_AT_ONCE = 16
# As Pillow, to the bit; TensorFlow's default is 1.5 of 255 levels away and no faster.
_JPEG = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
# Opening the next epoch of digits takes as long as three batches.
_BATCHES_AHEAD = 4


class Tfds:
    """A prepared TensorFlow dataset; see `diffrate_jax.data.Dataset`.

    Shuffling is uniform for splits of up to 512 MiB of encoded images; larger ones
    shuffle their files and then pass through a buffer of that size.
    """

    def __init__(
        self,
        name: str,
        *,
        image_size: int,
        data_dir: str | None = None,
        crop: str = "none",
        resize: int | None = None,
    ) -> None:
        """Finds the files; `diffrate_jax.data.open_dataset` explains the arguments.

        Raises:
            UserError: unknown name, not prepared, or not a dataset of labelled images.
        """
        # Left alone, TensorFlow takes the memory that JAX needs.
        tf.config.set_visible_devices([], "GPU")
        self.name = name
        self.image_size = image_size
        self._crop = crop
        self._resize = resize or image_size
        self._info = info = _prepared(name, data_dir).info
        self._keys = _image_and_label(name, info)
        self.num_classes = info.features[self._keys[1]].num_classes
        # A slice does not know its bytes, so the mean over all splits has to do.
        record_bytes = info.dataset_size // info.splits.total_num_examples
        self._shuffle_buffer = _SHUFFLE_BYTES // max(1, record_bytes) + 1

    def size(self, split: str) -> int:
        """Returns the number of examples; see `Dataset.size`."""
        return self._split(split).num_examples

    def batches(
        self,
        split: str,
        *,
        batch_size: int,
        seed: int,
        start: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Batch]:
        """Returns the training stream; see `Dataset.batches`."""
        share = host_batch_size(batch_size, process_count)
        steps = steps_per_epoch(self, split, batch_size)
        first_epoch, first_step = divmod(start, steps)
        files = _files(self._split(split))
        buffer = min(self._shuffle_buffer, self.size(split))

        @tf.autograph.experimental.do_not_convert
        def records_of(epoch: tf.Tensor) -> tf.data.Dataset:
            epoch_seed = tf.random.stateless_uniform(
                [], (seed, epoch), minval=None, maxval=None, dtype=tf.int64
            )
            order = {"seed": epoch_seed, "reshuffle_each_iteration": False}
            records = _records(files.shuffle(files.cardinality(), **order))
            return records.shuffle(buffer, **order).take(steps * batch_size)

        def is_mine(index: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
            return index % batch_size // share == process_index

        def example(index: tf.Tensor, record: tf.Tensor) -> Example:
            if self._crop == "none":
                return self._evaluation_example(record)
            own = {"seed_2": tf.stack([np.int64(seed), index]), "size": self.image_size}
            return self._example(record, partial(_random_crop, **own))

        epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        records = epochs.flat_map(records_of).skip(first_step * batch_size)
        # From here on a record has its number in the whole stream of the seed.
        records = records.enumerate(start * batch_size)
        return _numpy_batches(records.filter(is_mine), example, share)

    def epoch(
        self,
        split: str,
        *,
        batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Batch]:
        """Returns every example once; see `Dataset.epoch`."""
        share = host_batch_size(batch_size, process_count)
        info = self._split(split)
        records = _records(_files(info)).shard(process_count, process_index)
        return pad_batches(
            _numpy_batches(records, self._evaluation_example, share),
            count=-(-info.num_examples // batch_size),
            batch_size=share,
            image_size=self.image_size,
        )

    def _split(self, split: str) -> tfds.core.SplitInfo:
        """Returns a split, whole or sliced, that has examples."""
        splits = self._info.splits
        with contextlib.suppress(KeyError, ValueError, AssertionError):
            if splits[split].num_examples:
                return splits[split]
        base = split.split("[")[0]
        hint = "change its slice" if base in splits else did_you_mean(base, splits)
        raise UserError(f"{self.name} has no examples in split {split!r}; {hint}")

    def _example(self, record: tf.Tensor, image_of: Callable) -> Example:
        """Parses a record; `image_of` makes the image from its encoded bytes."""
        image_key, label_key = self._keys
        example = self._info.features.deserialize_example(
            record, decoders={image_key: tfds.decode.SkipDecoding()}
        )
        shape = (self.image_size, self.image_size, 3)
        image_YXC = tf.ensure_shape(image_of(example[image_key]), shape)
        return image_YXC, tf.cast(example[label_key], tf.int32)

    def _evaluation_example(self, record: tf.Tensor) -> Example:
        sizes = {"resize": self._resize, "image_size": self.image_size}
        return self._example(record, partial(_central_crop, **sizes))


def _prepared(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Returns the builder of a dataset whose files are there."""
    if name == "digits":
        return digits.prepare(data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise UserError(f"unknown dataset {name!r}; {_suggestion(name)}") from error
    stored = builder.info.file_format if builder.is_prepared() else None
    if stored != tfds.core.FileFormat.TFRECORD:
        option = f" --data_dir={data_dir}" if data_dir else ""
        found = f"{stored.value} files" if stored else "nothing"
        raise UserError(
            f"expected tfrecord files of {name!r} in {builder.data_dir}, found "
            f"{found}; run 'tfds build {name}{option}' or correct data_dir"
        )
    return builder


def _suggestion(name: str) -> str:
    """Returns a hint of a few names, not of the thousand that exist."""
    known = tfds.list_builders(with_community_datasets=False)
    hint = did_you_mean(name, {"digits", *known})
    few = "known: digits, cifar10, imagenet2012 and the like, arrays:PATH.npz"
    return hint if hint.startswith("did") else few


def _image_and_label(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str]:
    """Returns the names of the features that hold the image and its class."""
    wanted = (tfds.features.Image, tfds.features.ClassLabel)
    keys = info.supervised_keys or ("image", "label")
    found = [type(info.features[key]) for key in keys if key in info.features]
    if found != list(wanted):
        raise UserError(
            f"dataset {name!r} must pair an image with a class, found features "
            f"{', '.join(info.features)}; choose one for image classification"
        )
    return keys


def _files(info: tfds.core.SplitInfo) -> tf.data.Dataset:
    """Returns the files of a split and which of their records belong to it."""
    parts = info.file_instructions
    columns = {
        "path": [str(part.filename) for part in parts],
        "skip": np.array([part.skip for part in parts], np.int64),
        "take": np.array([part.take for part in parts], np.int64),
    }
    return tf.data.Dataset.from_tensor_slices(columns)


def _records(files: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the records of the files, unparsed, in an order that does not vary."""
    return files.interleave(
        lambda part: (
            tf.data.TFRecordDataset(part["path"]).skip(part["skip"]).take(part["take"])
        ),
        cycle_length=_FILES_AT_ONCE,
        block_length=_FILES_AT_ONCE,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _numpy_batches(
    records: tf.data.Dataset, example: Callable[..., Example], batch_size: int
) -> Iterator[Batch]:
    """Turns records into examples on all cores, and examples into batches."""
    # Without this, TensorFlow warns about every method it cannot read the source of.
    example = tf.autograph.experimental.do_not_convert(example)
    examples = records.map(
        example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    batches = examples.batch(batch_size).prefetch(_BATCHES_AHEAD)
    for image_BYXC, label_B in batches.as_numpy_iterator():
        yield {"image": image_BYXC, "label": label_B}


def _decoded(encoded: tf.Tensor) -> tf.Tensor:
    """Returns RGB bytes [Y, X, C], whatever the colours and the format of the file."""
    jpeg = partial(tf.io.decode_jpeg, encoded, **_JPEG)
    other = partial(tf.io.decode_image, encoded, channels=3, expand_animations=False)
    image_YXC = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
    return tf.ensure_shape(image_YXC, (None, None, 3))


def _random_crop(encoded: tf.Tensor, *, seed_2: tf.Tensor, size: int) -> tf.Tensor:
    """Returns a random part of an image, uint8 [Y, X, C], brought to `size`."""

    def from_jpeg() -> tf.Tensor:
        # Only JPEG can be decoded in part, which is what makes large photos cheap.
        window_4 = _random_window(tf.io.extract_jpeg_shape(encoded), seed_2)
        return tf.io.decode_and_crop_jpeg(encoded, window_4, **_JPEG)

    def from_other() -> tf.Tensor:
        image_YXC = _decoded(encoded)
        y, x, height, width = tf.unstack(_random_window(tf.shape(image_YXC), seed_2))
        return image_YXC[y : y + height, x : x + width]

    image_YXC = tf.cond(tf.io.is_jpeg(encoded), from_jpeg, from_other)
    return _resized(image_YXC, tf.constant([size, size]))


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


def _central_crop(encoded: tf.Tensor, *, resize: int, image_size: int) -> tf.Tensor:
    """Brings the shorter side to `resize` and cuts the central square."""
    image_YXC = _decoded(encoded)
    size_2 = tf.shape(image_YXC)[:2]
    size_2 = size_2 * resize // tf.reduce_min(size_2)
    y, x = tf.unstack(tf.cast(tf.round((size_2 - image_size) / 2), tf.int32))
    return _resized(image_YXC, size_2)[y : y + image_size, x : x + image_size]


def _resized(image_YXC: tf.Tensor, size_2: tf.Tensor) -> tf.Tensor:
    """Returns bytes of the given size; bytes that have it already stay untouched."""

    def bicubic() -> tf.Tensor:
        # Antialiasing is what makes the result that of Pillow, to 0.2 of 255 levels.
        values_YXC = tf.image.resize(image_YXC, size_2, "bicubic", antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(values_YXC), 0, 255), tf.uint8)

    same = tf.reduce_all(tf.shape(image_YXC)[:2] == size_2)
    return tf.cond(same, lambda: image_YXC, bicubic)
