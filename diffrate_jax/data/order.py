"""Which examples of a split come when: slices, shuffling, and the shares of hosts."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from diffrate_jax.data.chance import Appearance
from diffrate_jax.errors import UserError, did_you_mean

_BOUND = r"(-?\d+|-?\d+(?:\.\d+)?%)?"
_SPLIT = re.compile(rf"([^\[\]]+)(?:\[{_BOUND}:{_BOUND}\])?")


def split_name(split: str, known: Iterable[str], dataset: str) -> str:
    """Returns the name of a split without its slice.

    Raises:
        UserError: `dataset` knows no split of that name, or the slice is none.
    """
    known = list(known)
    match = _SPLIT.fullmatch(split)
    name = match[1] if match else split
    if name not in known:
        hint = did_you_mean(name, known)
        raise UserError(f"{dataset} has no split {split!r}; {hint}")
    return name


def sliced(split: str, size: int) -> slice:
    """Returns which of a split's `size` examples its slice keeps.

    Raises:
        UserError: the slice reaches beyond them, or is empty.
    """
    name, first, last = _SPLIT.fullmatch(split).groups()
    start = 0 if first is None else _position(first, size)
    stop = size if last is None else _position(last, size)
    if not 0 <= start < stop <= size:
        raise UserError(
            f"a slice of {name!r} must lie within its {size} examples and hold "
            f"at least one, found {split!r}; change its bounds"
        )
    return slice(start, stop)


def _position(bound: str, size: int) -> int:
    """Turns a bound of a slice into an example's number, as TFDS does."""
    if bound.endswith("%"):
        position = round(float(bound[:-1]) * size / 100)
    else:
        position = int(bound)
    return position + size if bound.startswith("-") else position


class Share(NamedTuple):
    """One host's examples of a step.

    Attributes:
        epoch: That the step belongs to.
        rows_B: Numbers of the examples in their split.
        copies_B: Which of its repetitions in the epoch each is, from 0.
    """

    epoch: int
    rows_B: np.ndarray
    copies_B: np.ndarray


def training_rows(
    size: int,
    *,
    batch_size: int,
    seed: int,
    start: int,
    first: int,
    share: int,
    repeats: int,
) -> Iterator[Share]:
    """Yields this host's examples of each step from `start` on.

    Args:
        size: Examples of the split, at least `batch_size`.
        batch_size: Examples per step over all hosts.
        seed: Of the shuffling.
        start: Step to begin with.
        first: This host's first place in a global batch.
        share: Number of its places.
        repeats: Times that an example that is seen in an epoch is seen in it.

    Raises:
        UserError: a batch that is too small for so many repetitions.
    """
    # Now, not when the first batch is asked for.
    round_size = images_of_round(batch_size, repeats)
    steps = size // batch_size

    def shares() -> Iterator[Share]:
        epoch, step = divmod(start, steps)
        while True:
            order_N = permutation(size, seed, epoch)
            for begin in range(step * batch_size, steps * batch_size, batch_size):
                draws_B = np.arange(begin + first, begin + first + share)
                rounds_B, within_B = np.divmod(draws_B, round_size * repeats)
                places_B = rounds_B * round_size + within_B % round_size
                yield Share(epoch, order_N[places_B], within_B // round_size)
            epoch, step = epoch + 1, 0

    return shares()


def appearances(seed: int, share: Share) -> list[Appearance]:
    """Returns what the random numbers of each example of a step belong to."""
    numbers = zip(share.rows_B.tolist(), share.copies_B.tolist(), strict=True)
    return [Appearance(seed, share.epoch, row, copy) for row, copy in numbers]


def images_of_round(batch_size: int, repeats: int) -> int:
    """Returns how many images follow each other before all of them come again.

    As in the sampler that DeiT was trained with, all repetitions of an image come in
    one global batch, or in two that follow each other, on different devices. The number
    is odd, so that an image has another neighbour, which it may be mixed with, at every
    second of its repetitions.

    Raises:
        UserError: a batch so small that an image would be its own neighbour.
    """
    if repeats < 1:
        raise UserError(f"repeats must be at least 1, found {repeats}; raise it")
    if repeats == 1:
        return batch_size
    if batch_size < 3 * repeats:
        raise UserError(
            f"batch_size must be at least {3 * repeats}, three times the repeats, so "
            f"that no image is its own neighbour, found {batch_size}; raise it or "
            "lower repeats"
        )
    size = batch_size // repeats
    return size - 1 + size % 2


def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of an epoch, int64 [N].

    Sorting Philox's raw words gives the same order with every release of numpy, which
    `Generator.permutation` does not promise.
    """
    key_2 = np.array([seed, epoch], np.int64).view(np.uint64)
    return np.argsort(np.random.Philox(key=key_2).random_raw(size), kind="stable")


def evaluation_rows(
    size: int, *, share: int, start: int, process_index: int, process_count: int
) -> Iterator[np.ndarray]:
    """Yields this host's examples batch by batch [b]: every `process_count`-th.

    Args:
        size: Examples of the split.
        share: Examples of this host in a batch; the last batch may have fewer.
        start: Batch to begin with.
        process_index: Number of this host.
        process_count: Number of hosts.
    """
    rows_N = np.arange(process_index, size, process_count)
    for begin in range(start * share, len(rows_N), share):
        yield rows_N[begin : begin + share]
