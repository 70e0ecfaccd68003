"""Images and labels for training and evaluation, by name.

>>> dataset = open_dataset("digits", data_dir="/data", image_size=32)  # doctest: +SKIP
>>> batch = next(dataset.batches("train", batch_size=64, seed=0))  # doctest: +SKIP

Every kind of dataset obeys the rules of `Dataset`. TensorFlow is loaded only when a
TensorFlow dataset is opened.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from diffrate_jax.data.rand_augment import RandAugment
from diffrate_jax.errors import UserError, did_you_mean

ARRAYS, FOLDER = "arrays:", "folder:"
CROPS = ("none", "random_resized")
INTERPOLATIONS = ("bicubic", "bilinear")

Batch = dict[str, np.ndarray]


class Dataset(Protocol):
    """Labelled RGB images in named splits.

    A split may carry a slice, in examples or in percent: ``train[:2000]``,
    ``train[90%:]``.

    Attributes:
        name: What `open_dataset` was asked for.
        num_classes: Labels are 0 to ``num_classes - 1``.
        image_size: Rows and columns of every image, in pixels.
    """

    name: str
    num_classes: int
    image_size: int

    def size(self, split: str) -> int:
        """Returns the number of examples in `split`.

        Raises:
            UserError: there is no such split, or its slice is empty.
        """
        ...

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
        """Returns the endless shuffled stream of training batches from step `start`.

        The batch of a step is a pure function of `seed` and the step: resuming needs
        the step number and nothing else. An epoch visits every example at most once
        and drops the remainder; where examples repeat, it is as long, and so visits
        fewer. Hosts take consecutive shares of each global batch.

        Args:
            split: Name of a split, perhaps with a slice.
            batch_size: Examples per step over all hosts.
            seed: Of the shuffling and the cropping.
            start: Step to begin with.
            process_index: Number of this host.
            process_count: Number of hosts.

        Returns:
            ``image`` uint8 [b, Y, X, 3] and ``label`` int32 [b], with
            b = batch_size / process_count.

        Raises:
            UserError: no such split, fewer examples than `batch_size`, hosts that do
                not divide `batch_size`, or too few examples a step for the repeats.
        """
        ...

    def stages(
        self, split: str, *, batch_size: int, seed: int
    ) -> dict[str, Callable[[], Iterator[int]]]:
        """Returns the stages of `batches`, each to be timed alone.

        Args:
            split: Name of a split, perhaps with a slice.
            batch_size: Examples per step.
            seed: Of the stream.

        Returns:
            By name, functions that begin a stage anew and return an endless iterator
            over the numbers of images done; see `diffrate_jax.data.stages`.

        Raises:
            UserError: as `batches`.
        """
        ...

    def epoch(
        self,
        split: str,
        *,
        batch_size: int,
        start: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Batch]:
        """Returns every example exactly once over all hosts, in a fixed order.

        Example i goes to host i modulo `process_count`, so that a batch holds the same
        examples for any number of hosts. Every host yields the same number of equally
        shaped batches, because a host with fewer would leave the others waiting in a
        collective.

        Args:
            split: Name of a split, perhaps with a slice.
            batch_size: Examples per step over all hosts.
            start: Batch to begin with; those before it are not read.
            process_index: Number of this host.
            process_count: Number of hosts.

        Returns:
            As `batches`, and ``mask`` float32 [b]: 1 for an example, 0 for padding.

        Raises:
            UserError: no such split, or hosts that do not divide `batch_size`.
        """
        ...


def open_dataset(
    name: str,
    *,
    image_size: int,
    data_dir: str | None = None,
    crop: str = "none",
    resize: int | None = None,
    interpolation: str = "bicubic",
    rand_augment: RandAugment | None = None,
    repeats: int = 1,
) -> Dataset:
    """Opens a dataset by name.

    Args:
        name: ``digits`` (made on first use), any prepared TensorFlow dataset
            (``cifar10``, ``imagenet2012``), ``arrays:PATH.npz``, or ``folder:PATH``
            with a folder of images to a class.
        image_size: Rows and columns of the images returned, in pixels.
        data_dir: Where TensorFlow datasets are; its own default without.
        crop: What training images go through: ``random_resized`` is a random crop
            brought to `image_size`, ``none`` is the same as in evaluation.
        resize: What evaluation brings the shorter side to before it cuts the central
            `image_size` pixels; `image_size` without.
        interpolation: ``bicubic`` or ``bilinear``, both with antialiasing, of training
            and evaluation.
        rand_augment: What training images go through after the crop; None: nothing.
        repeats: Times that an example of a training epoch comes in it, each time with
            a crop and a RandAugment of its own; DeiT has 3.

    Raises:
        UserError: unknown name, dataset not prepared, or images that cannot be
            brought to `image_size` in the way asked for.
    """
    _check_choice("crop", crop, CROPS)
    _check_choice("interpolation", interpolation, INTERPOLATIONS)
    _check_resize(resize, image_size)
    how = {"rand_augment": rand_augment, "repeats": repeats}
    if name.startswith(ARRAYS):
        from diffrate_jax.data.arrays import Arrays

        _check_final_size(name, image_size, crop, resize)
        return Arrays(name.removeprefix(ARRAYS), image_size=image_size, **how)
    sizes = {"image_size": image_size, "resize": resize}
    how |= {"crop": crop, "interpolation": interpolation}
    if name.startswith(FOLDER):
        from diffrate_jax.data.folder import Folder

        return Folder(name.removeprefix(FOLDER), **sizes, **how)
    return _open_tfds(name, data_dir=data_dir, **sizes, **how)


def _open_tfds(name: str, **options: Any) -> Dataset:
    """Loads TensorFlow, which would talk on standard error, and opens a dataset."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    from diffrate_jax.data.tfds import Tfds

    return Tfds(name, **options)


def _check_choice(what: str, choice: str, known: tuple[str, ...]) -> None:
    if choice not in known:
        raise UserError(f"unknown {what} {choice!r}; {did_you_mean(choice, known)}")


def _check_resize(resize: int | None, image_size: int) -> None:
    if resize is not None and resize < image_size:
        raise UserError(
            f"resize must be at least image_size, {image_size}, found {resize}; "
            "raise it or leave it out"
        )


def _check_final_size(
    name: str, image_size: int, crop: str, resize: int | None
) -> None:
    """Refuses to crop or resize the images of an `.npz` file."""
    if crop != "none" or resize not in (None, image_size):
        raise UserError(
            f"{name!r} holds images of the final size, found crop {crop!r} and "
            f"resize {resize}; set crop=none and resize={image_size}, and no "
            "preprocess"
        )


def host_batch_size(batch_size: int, process_count: int) -> int:
    """Returns one host's share of a global batch.

    Raises:
        UserError: `batch_size` is not a positive multiple of `process_count`.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size must be a positive multiple of the {process_count} "
            f"process(es), found {batch_size}; change it"
        )
    return batch_size // process_count


def steps_per_epoch(dataset: Dataset, split: str, batch_size: int) -> int:
    """Returns the number of whole batches in `split`.

    Raises:
        UserError: there is not even one.
    """
    size = dataset.size(split)
    if batch_size > size:
        raise UserError(
            f"batch_size must be at most the {size} examples of {split!r} in "
            f"{dataset.name}, found {batch_size}; lower it"
        )
    return size // batch_size


def num_batches(size: int, batch_size: int) -> int:
    """Returns how many batches an evaluation of `size` examples takes."""
    return -(-size // batch_size)


def pad_batches(
    batches: Iterator[Batch], *, count: int, batch_size: int, image_size: int
) -> Iterator[Batch]:
    """Yields exactly `count` batches of exactly `batch_size`, and their masks.

    Args:
        batches: At most `count` batches of at most `batch_size` examples.
        count: Batches wanted; those that are missing consist of padding.
        batch_size: Examples per batch on this host.
        image_size: Rows and columns of the images, in pixels.
    """
    nothing = {
        "image": np.zeros((0, image_size, image_size, 3), np.uint8),
        "label": np.zeros(0, np.int32),
    }
    for _ in range(count):
        batch = next(batches, nothing)
        found = len(batch["label"])
        missing = (0, batch_size - found)
        yield {
            "image": np.pad(batch["image"], (missing, (0, 0), (0, 0), (0, 0))),
            "label": np.pad(batch["label"], missing),
            "mask": (np.arange(batch_size) < found).astype(np.float32),
        }
