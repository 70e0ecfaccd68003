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


@dataclasses.dataclass
class Tally:
    """Sums over the first batches of a split.

    A batch holds the same examples for any number of devices and hosts, so any may go
    on. JSON keeps every bit of a float: going on gives what an unbroken run gives.

    Attributes:
        batches: how many are counted.
        sums: of count, top-1, top-5 and loss over their examples.
        correct: "1" or "0" for each example, in the order of the split.
        images_per_second: of the run that counted last; 0 before it ends.
    """

    batches: int = 0
    sums: list[float] = dataclasses.field(default_factory=lambda: [0.0] * NUM_SUMS)
    correct: str = ""
    images_per_second: float = 0.0

    def add(self, sums: np.ndarray, verdict_B: np.ndarray) -> None:
        """Counts one more batch.

        Args:
            sums: of the batch.
            verdict_B: 1 for right, 0 for wrong and -1 for padding, of the examples of
                all hosts, host by host.
        """
        self.batches += 1
        self.sums = (np.array(self.sums) + np.asarray(sums, np.float64)).tolist()
        # Hosts take turns in the split, so the order goes across them.
        verdict_B = verdict_B.reshape(jax.process_count(), -1).T.ravel()
        self.correct += "".join("01"[int(right)] for right in verdict_B if right >= 0)

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
        record = read_json(path) if exists else {}
        try:
            return cls(**parallel.of_first_host(record))
        except TypeError as error:
            raise UserError(
                f"{path} is no tally of an evaluation; remove it to count again"
            ) from error
