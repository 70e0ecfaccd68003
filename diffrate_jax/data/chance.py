"""Random numbers of one image of a training stream, the same on every host.

The words of a Philox counter stay the same with every release of numpy, which its
distributions do not promise.
"""

from typing import NamedTuple

import numpy as np

# What numbers are drawn for: no two purposes share any, nor with a shuffling.
CROP, RAND_AUGMENT = 0, 1


class Appearance(NamedTuple):
    """One appearance of an example in a stream; no two have the same numbers.

    Attributes:
        seed: Of the stream.
        epoch: Of the stream.
        index: Number of the example in its split.
        copy: Which of its repetitions in the epoch, from 0.
    """

    seed: int
    epoch: int
    index: int
    copy: int = 0


def uniform(appearance: Appearance, purpose: int, count: int) -> np.ndarray:
    """Returns `count` numbers from 0 to below 1, float64."""
    seed, epoch, index, copy = appearance
    counter_4 = np.array([0, index + 1, purpose, copy], np.uint64)
    key_2 = np.array([seed, epoch], np.int64).view(np.uint64)
    words = np.random.Philox(counter=counter_4, key=key_2).random_raw(count)
    # The 53 bits that a float holds, so that no number is rounded to 1.
    return (words >> np.uint64(11)) / 2**53
