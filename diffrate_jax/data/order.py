"""Which examples of a split come when: slices, shuffling, and the shares of hosts."""

import re
from collections.abc import Iterable, Iterator

import numpy as np

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


def training_rows(
    size: int, *, batch_size: int, seed: int, start: int, first: int, share: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields for each step from `start` on its epoch and this host's examples [b].

    Args:
        size: Examples of the split, at least `batch_size`.
        batch_size: Examples per step over all hosts.
        seed: Of the shuffling.
        start: Step to begin with.
        first: This host's first place in a global batch.
        share: Number of its places.
    """
    steps = size // batch_size
    epoch, step = divmod(start, steps)
    while True:
        order_N = permutation(size, seed, epoch)
        for begin in range(step * batch_size, steps * batch_size, batch_size):
            yield epoch, order_N[begin + first :][:share]
        epoch, step = epoch + 1, 0


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
