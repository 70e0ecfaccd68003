"""Image classification datasets of TensorFlow Datasets, read from prepared files.

Importing this loads TensorFlow.
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
from diffrate_jax.data.rand_augment import RandAugment
from diffrate_jax.data.rand_augment_tf import rand_augment as rand_augmented
from diffrate_jax.data.records import (
    Example,
    counts,
    files_of,
    numpy_batches,
    on_all_cores,
    records_of,
    training_records,
)
from diffrate_jax.data.stages import BATCH, RAND_AUGMENT, READ
from diffrate_jax.errors import UserError, did_you_mean

_SHUFFLE_BYTES = 2**29
# Images by which stages after the first are measured.
_SAMPLE = 64


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
        rand_augment: RandAugment | None = None,
        repeats: int = 1,
    ) -> None:
        """Finds the files; `diffrate_jax.data.open_dataset` explains the arguments.

        Raises:
            UserError: unknown name, not prepared, or not a dataset of labelled images.
        """
        # Left alone, TensorFlow takes the memory that JAX needs.
        tf.config.set_visible_devices([], "GPU")
        self.name = name
        self.image_size = image_size
        self._crop, self._rand_augment, self._repeats = crop, rand_augment, repeats
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
        stream = {"batch_size": batch_size, "seed": seed, "start": start}
        records = self._training_records(split, **stream)

        def is_mine(index: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
            return index % batch_size // share == process_index

        example = partial(self._training_example, seed)
        return numpy_batches(on_all_cores(records.filter(is_mine), example), share)

    def stages(
        self, split: str, *, batch_size: int, seed: int
    ) -> dict[str, Callable[[], Iterator[int]]]:
        """Returns each stage of `batches` alone; see `Dataset.stages`."""
        stream = {"batch_size": batch_size, "seed": seed, "start": 0}
        records = self._training_records(split, **stream)
        cropped = on_all_cores(records, partial(self._cropped_example, seed))
        sample = next(cropped.batch(min(batch_size, _SAMPLE)).as_numpy_iterator())[0]
        images = tf.data.Dataset.from_tensor_slices(sample).repeat()
        found = {READ: partial(counts, cropped)}
        if self._rand_augment is not None:
            randomised = partial(self._randomised, seed)
            found[RAND_AUGMENT] = partial(
                counts, on_all_cores(images.enumerate(), randomised)
            )
        return found | {BATCH: partial(counts, images, batch_size)}

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
        records = records_of(files_of(info)).shard(process_count, process_index)
        examples = on_all_cores(records.skip(start * share), self._evaluation_example)
        return pad_batches(
            numpy_batches(examples, share),
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

    def _training_records(
        self, split: str, *, batch_size: int, seed: int, start: int
    ) -> tf.data.Dataset:
        """Returns the whole training stream of all hosts, numbered."""
        return training_records(
            files_of(self._split(split)),
            buffer=min(self._shuffle_buffer, self.size(split)),
            steps=steps_per_epoch(self, split, batch_size),
            batch_size=batch_size,
            seed=seed,
            start=start,
            repeats=self._repeats,
        )

    def _example(self, record: tf.Tensor, image_of: Callable) -> Example:
        """Parses a record; `image_of` makes the image from its encoded bytes."""
        image_key, label_key = self._keys
        example = self._info.features.deserialize_example(
            record, decoders={image_key: tfds.decode.SkipDecoding()}
        )
        shape = (self.image_size, self.image_size, 3)
        image_YXC = tf.ensure_shape(image_of(example[image_key]), shape)
        return image_YXC, tf.cast(example[label_key], tf.int32)

    def _training_example(
        self, seed: int, index: tf.Tensor, record: tf.Tensor
    ) -> Example:
        """Makes an example of the record of this number in the stream of the seed."""
        image_YXC, label = self._cropped_example(seed, index, record)
        if self._rand_augment is not None:
            image_YXC = self._randomised(seed, index, image_YXC)
        return image_YXC, label

    def _cropped_example(
        self, seed: int, index: tf.Tensor, record: tf.Tensor
    ) -> Example:
        if self._crop == "none":
            return self._evaluation_example(record)
        how = {"size": self.image_size, "interpolation": self._interpolation}
        seed_2 = tf.stack([np.int64(seed), index])
        return self._example(record, partial(random_crop, seed_2=seed_2, **how))

    def _randomised(
        self, seed: int, index: tf.Tensor, image_YXC: tf.Tensor
    ) -> tf.Tensor:
        seed_2 = tf.stack([np.int64(seed), index])
        return rand_augmented(image_YXC, self._rand_augment, seed_2=seed_2)

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
