"""Batches: what a stream must hold, and how a step makes images and labels of it."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffrate_jax import parallel
from diffrate_jax.data.augment import Augment, augment
from diffrate_jax.errors import UserError
from diffrate_jax.models import Model
from diffrate_jax.shapes import Array

# From a step to this host's batches from that step onward.
Batches = Callable[[int], Iterator[dict[str, np.ndarray]]]


def prepare(
    batch: dict[str, Array], key: Array, config: Augment, num_classes: int
) -> tuple[Array, Array, Array]:
    """Returns images, label probabilities and one random key per example.

    Bytes are augmented and normalised here, on the device; floats are taken as final.
    So are probabilities, but where images are mixed they are mixed too.
    """
    index_B = batch["index"]
    keys_B = jax.vmap(lambda index: jax.random.fold_in(key, index))(index_B)
    drop_keys_B = jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys_B)
    images, labels = batch["image"], batch["label"]
    if images.dtype == jnp.uint8:
        images, labels = augment(images, labels, index_B, key, config, num_classes)
    elif labels.ndim == 1:
        labels = jax.nn.one_hot(labels, num_classes)
        labels = optax.smooth_labels(labels, config.label_smoothing)
    return images, labels, drop_keys_B


def checked(
    model: Model, batches: Iterator[dict[str, np.ndarray]], *, labels: bool = True
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches, refusing any that does not fit the model.

    Args:
        model: the batches are for.
        batches: of images, and labels if they are needed.
        labels: whether they are; without, they are not even looked at.

    Raises:
        UserError: what is missing or wrong, and what was expected.
    """
    shape = (model.image_size, model.image_size, 3)
    for batch in batches:
        if not labels:
            batch = unlabelled(batch)
        missing = {"image", "label"} - set(batch)
        if missing:
            raise UserError(
                f"a batch must hold 'image' and 'label', got {sorted(batch)}"
            )
        image, label = np.asarray(batch["image"]), np.asarray(batch["label"])
        if image.ndim != 4 or image.shape[1:] != shape:
            raise UserError(
                f"images must be [B, {shape[0]}, {shape[1]}, 3], got "
                f"{list(image.shape)}; resize them to the model's image_size"
            )
        if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
            raise UserError(
                f"images must be uint8, or normalised floats, got {image.dtype}"
            )
        parallel.check_batch_size(len(image) * jax.process_count())
        check_labels(label, len(image), model.num_classes)
        yield {"image": image, "label": label}


def unlabelled(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a batch of images with class 0 for a label, for steps that use none."""
    images = {"image": batch["image"]} if "image" in batch else {}
    return images | {"label": np.zeros(len(batch.get("image", ())), np.int32)}


def check_labels(label: np.ndarray, count: int, num_classes: int) -> None:
    """Refuses labels that are neither class numbers nor probabilities.

    Raises:
        UserError: of another shape or type, or out of range.
    """
    if label.shape not in ((count,), (count, num_classes)):
        raise UserError(
            f"a batch must hold one label for each of {count} images, or {num_classes} "
            f"probabilities each, got {list(label.shape)}"
        )
    if label.ndim == 2:
        return
    if not np.issubdtype(label.dtype, np.integer):
        raise UserError(f"labels must be integers or probabilities, got {label.dtype}")
    if not 0 <= label.min() <= label.max() < num_classes:
        raise UserError(
            f"labels must lie in 0..{num_classes - 1}, got "
            f"{label.min()}..{label.max()}; check the data or num_classes"
        )


def skip(batches: Iterator[dict], start: int) -> Iterator[dict]:
    """Passes over the batches of the steps that a resumed run has done already."""
    stream = iter(batches)
    for _ in range(start):
        next(stream, None)
    return stream
