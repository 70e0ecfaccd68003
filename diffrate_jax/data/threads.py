"""Batches whose images threads make a few batches ahead."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from diffrate_jax.data import Batch

# Beyond these they wait for Python's lock.
_MOST_THREADS = 16
_BATCHES_AHEAD = 2

# The arguments of each image, and the labels.
Work = tuple[Sequence[tuple], Sequence[int]]
Made = tuple[list[np.ndarray], Sequence[int]]


def cores() -> int:
    """Returns the number of cores that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):  # Of a job with a share of a machine.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def batches_in_threads(
    image_of: Callable[..., np.ndarray], steps: Iterable[Work]
) -> Iterator[Batch]:
    """Yields batches in order.

    Args:
        image_of: Makes an image, uint8 [Y, X, C].
        steps: For each batch the arguments of `image_of`, image by image, and labels.
    """
    for images, labels in made_in_threads(image_of, steps):
        yield {"image": np.stack(images), "label": np.array(labels, np.int32)}


def made_in_threads(
    image_of: Callable[..., np.ndarray], steps: Iterable[Work]
) -> Iterator[Made]:
    """Yields what becomes a batch, image by image; see `batches_in_threads`."""
    # Its threads end with it: whoever leaves the stream early lets go of both.
    pool, ahead = ThreadPoolExecutor(min(_MOST_THREADS, cores())), deque()
    try:
        for arguments, labels in steps:
            ahead.append(([pool.submit(image_of, *own) for own in arguments], labels))
            if len(ahead) > _BATCHES_AHEAD:
                yield _waited(*ahead.popleft())
        while ahead:
            yield _waited(*ahead.popleft())
    finally:
        # Without modules, which are gone when a program ends within a stream.
        for futures, _ in ahead:
            for future in futures:
                future.cancel()


def _waited(images: list[Future], labels: Sequence[int]) -> Made:
    return [image.result() for image in images], labels
