"""What an evaluation has counted so far, in a file that survives a kill."""

import dataclasses
from pathlib import Path
from typing import Self

import jax
import numpy as np

from diffrate_jax import parallel
from diffrate_jax.errors import UserError
from diffrate_jax.files import read_json, write_json

NUM_SUMS = 4
# Labels are the digits of a number in this base; its remainder tells orders apart.
BASE, PRIME = 1_000_003, 2**61 - 1


@dataclasses.dataclass
class Tally:
    """Sums over the first batches of a split.

    A batch holds the same examples for any number of devices and hosts, so any may go
    on. JSON keeps every bit of a float: going on gives what an unbroken run gives.

    Attributes:
        batches: how many are counted.
        sums: of count, top-1, top-5 and loss over their examples.
        correct: "1" or "0" for each example, in the order of the split.
        labels: a hash of their labels, in that order.
        images_per_second: of the run that counted last; 0 before it ends.
    """

    batches: int = 0
    sums: list[float] = dataclasses.field(default_factory=lambda: [0.0] * NUM_SUMS)
    correct: str = ""
    labels: int = 0
    images_per_second: float = 0.0

    def add(self, sums: np.ndarray, verdict_B: np.ndarray) -> None:
        """Counts one more batch.

        Args:
            sums: of the batch.
            verdict_B: twice the label, and 1 more if it was told right, or -1 for
                padding, of the examples of all hosts, host by host.
        """
        self.batches += 1
        self.sums = (np.array(self.sums) + np.asarray(sums, np.float64)).tolist()
        # Hosts take turns in the split, so the order goes across them.
        verdict_B = verdict_B.reshape(jax.process_count(), -1).T.ravel()
        for verdict in verdict_B[verdict_B >= 0].tolist():
            label, right = divmod(verdict, 2)
            self.correct += "01"[right]
            self.labels = (self.labels * BASE + label + 1) % PRIME

    def save(self, path: Path | None) -> None:
        """Writes the file from the first host; with no path, nothing."""
        if path is not None and jax.process_index() == 0:
            write_json(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """Returns what the first host's file holds, the same on every host.

        Raises:
            UserError: the file is damaged.
        """
        exists = path is not None and path.exists()
        record = read_json(path) if exists else dataclasses.asdict(cls())
        record = parallel.of_first_host(record)
        fields = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(record, dict) or set(record) != fields:
            raise UserError(
                f"{path} is no tally of this version's evaluation; remove the folder "
                f"{path.parent} to count again"
            )
        return cls(**record)
