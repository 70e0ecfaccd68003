"""Images set aside from a training stream, as a dataset that can be evaluated."""

from collections.abc import Iterator, Sequence

import numpy as np

from diffrate_jax.data import Batch, Dataset


class HeldOut:
    """A few batches of a stream, every image once; see `diffrate_jax.data.Dataset`.

    It has one split, whatever its name, and no training stream. Every host keeps the
    examples that the stream gave it. Their labels may be of other classes than those
    of the dataset that they come from.
    """

    def __init__(
        self,
        dataset: Dataset,
        batches: Sequence[Batch],
        process_count: int,
        num_classes: int,
    ) -> None:
        self.name = f"{dataset.name}, held out"
        self.num_classes, self.image_size = num_classes, dataset.image_size
        self._batches, self._process_count = batches, process_count

    def size(self, split: str) -> int:
        """Returns the number of examples of all hosts."""
        return self._process_count * sum(len(batch["label"]) for batch in self._batches)

    def epoch(
        self,
        split: str,
        *,
        batch_size: int,
        start: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Batch]:
        """Returns every example once, in the batches it came in."""
        for batch in self._batches[start:]:
            mask_B = np.ones(len(batch["label"]), np.float32)
            yield {"image": batch["image"], "label": batch["label"], "mask": mask_B}
