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
    num_batches,
    pad_batches,
    steps_per_epoch,
)
from diffrate_jax.data.photo_tf import central, random_crop
from diffrate_jax.errors import UserError, did_you_mean

Example = tuple[tf.Tensor, tf.Tensor]

_SHUFFLE_BYTES = 2**29
_FILES_AT_ONCE = 16
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
        interpolation: str = "bicubic",
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
        self._resize, self._interpolation = resize or image_size, interpolation
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
            own |= {"interpolation": self._interpolation}
            return self._example(record, partial(random_crop, **own))

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
        start: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Batch]:
        """Returns every example once; see `Dataset.epoch`."""
        share = host_batch_size(batch_size, process_count)
        info = self._split(split)
        records = _records(_files(info)).shard(process_count, process_index)
        return pad_batches(
            _numpy_batches(
                records.skip(start * share), self._evaluation_example, share
            ),
            count=num_batches(info.num_examples, batch_size) - start,
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
        how = {"resize": self._resize, "image_size": self.image_size}
        how |= {"interpolation": self._interpolation}
        return self._example(record, partial(central, **how))


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
