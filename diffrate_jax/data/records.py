"""Records of prepared TensorFlow datasets: order, repetition, and the work on them.

Records stay encoded until order, step and the host's share are settled, so that
shuffling, repeating, skipping and sharing are cheap.
"""

from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from diffrate_jax.data import Batch
from diffrate_jax.data.order import images_of_round
from diffrate_jax.data.threads import cores

Example = tuple[tf.Tensor, tf.Tensor]

_FILES_AT_ONCE = 16
# Opening the next epoch of digits takes as long as three batches.
_BATCHES_AHEAD = 4
_COUNTED = 16


def files_of(info: tfds.core.SplitInfo) -> tf.data.Dataset:
    """Returns the files of a split and which of their records belong to it."""
    parts = info.file_instructions
    columns = {
        "path": [str(part.filename) for part in parts],
        "skip": np.array([part.skip for part in parts], np.int64),
        "take": np.array([part.take for part in parts], np.int64),
    }
    return tf.data.Dataset.from_tensor_slices(columns)


def records_of(files: tf.data.Dataset) -> tf.data.Dataset:
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


def training_records(
    files: tf.data.Dataset,
    *,
    buffer: int,
    steps: int,
    batch_size: int,
    seed: int,
    start: int,
    repeats: int,
) -> tf.data.Dataset:
    """Returns the endless shuffled stream of records from step `start` on.

    Args:
        files: Of the split.
        buffer: Records that are shuffled at a time.
        steps: Whole batches of an epoch.
        batch_size: Examples per step over all hosts.
        seed: Of the shuffling.
        start: Step to begin with.
        repeats: See `order.images_of_round`.

    Returns:
        Pairs of a record's number in the whole stream of the seed, and the record.

    Raises:
        UserError: a batch that is too small for so many repetitions.
    """
    first_epoch, first_step = divmod(start, steps)
    round_size = images_of_round(batch_size, repeats)
    rounds = -(-steps * batch_size // (round_size * repeats))

    @tf.autograph.experimental.do_not_convert
    def epoch_of(epoch: tf.Tensor) -> tf.data.Dataset:
        epoch_seed = tf.random.stateless_uniform(
            [], (seed, epoch), minval=None, maxval=None, dtype=tf.int64
        )
        order = {"seed": epoch_seed, "reshuffle_each_iteration": False}
        records = records_of(files.shuffle(files.cardinality(), **order))
        records = records.shuffle(buffer, **order)
        if repeats > 1:
            records = _repeated(records.take(rounds * round_size), round_size, repeats)
        return records.take(steps * batch_size)

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    records = epochs.flat_map(epoch_of).skip(first_step * batch_size)
    return records.enumerate(start * batch_size)


def _repeated(
    records: tf.data.Dataset, round_size: int, repeats: int
) -> tf.data.Dataset:
    """Returns every round of records several times before the next one."""

    @tf.autograph.experimental.do_not_convert
    def again(records: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(records).repeat(repeats)

    return records.batch(round_size).flat_map(again)


def on_all_cores(
    dataset: tf.data.Dataset, function: Callable[..., tf.Tensor | Example]
) -> tf.data.Dataset:
    """Maps every element, in order, on threads that nothing else uses."""
    # Without this, TensorFlow warns about every method it cannot read the source of.
    function = tf.autograph.experimental.do_not_convert(function)
    options = tf.data.Options()
    options.threading.private_threadpool_size = cores()
    # An image for each core at a time: within one there is too little to share.
    options.threading.max_intra_op_parallelism = 1
    mapped = dataset.map(function, num_parallel_calls=cores(), deterministic=True)
    return mapped.with_options(options)


def numpy_batches(examples: tf.data.Dataset, batch_size: int) -> Iterator[Batch]:
    """Yields batches of examples, a few of them made ahead."""
    batches = examples.batch(batch_size).prefetch(_BATCHES_AHEAD)
    for image_BYXC, label_B in batches.as_numpy_iterator():
        yield {"image": image_BYXC, "label": label_B}


def counts(examples: tf.data.Dataset, batch_size: int | None = None) -> Iterator[int]:
    """Makes examples, or batches of them, and yields numbers of those made."""
    if batch_size is not None:
        for images_BYXC in examples.batch(batch_size).as_numpy_iterator():
            yield len(images_BYXC)
        return

    @tf.autograph.experimental.do_not_convert
    def first_byte(image_YXC: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        return image_YXC[0, 0, 0]

    # One byte of each image: batches of whole ones are a stage of their own.
    for bytes_B in examples.map(first_byte).batch(_COUNTED).as_numpy_iterator():
        yield len(bytes_B)
