"""What refining came to, and the file that keeps it while other targets are refined."""

import dataclasses
from collections.abc import Callable
from typing import Self

from etils import epath

from diffrate_jax.errors import UserError
from diffrate_jax.files import Json, write_json
from diffrate_jax.schedule import Schedule
from diffrate_jax.workdir import has, read

FILE = "refined.json"


@dataclasses.dataclass(frozen=True)
class Refined:
    """What moving tokens between blocks came to.

    Attributes:
        schedule: after all moves.
        loss: its mean loss on the held-out images.
        gains: for each block that may compress, the change of the loss per token:
            {"block", "more", "fewer"}, None where it cannot leave more, or fewer.
        moves: {"step": change of what each block keeps [L], "loss", "standard_error"};
            before them {"line": name, …} if any, see `moves.best_line`, and
            {"rests": block, …}, see `moves.rest`.
    """

    schedule: Schedule
    loss: float
    gains: tuple[dict[str, Json], ...]
    moves: tuple[dict[str, Json], ...]

    def record(self) -> dict[str, Json]:
        """Returns what `from_record` reads."""
        return {
            **counts(self.schedule),
            "loss": self.loss,
            "gains": list(self.gains),
            "moves": list(self.moves),
        }

    @classmethod
    def from_record(cls, record: dict[str, Json]) -> Self:
        """Returns what a record says.

        Raises:
            KeyError, TypeError, ValueError, UserError: it is damaged.
        """
        schedule = Schedule(record["prune"], record["merge"], rule=record["rule"])
        gains, moves = tuple(record["gains"]), tuple(record["moves"])
        return cls(schedule, float(record["loss"]), gains, moves)


class RefinedFile:
    """Of each target what its counts were refined to, once they are.

    Refining may take as long as the descent, and a search that was killed in it goes on
    with the target that it had come to.

    Args:
        folder: of the search; None: nothing is kept.
    """

    def __init__(self, folder: epath.Path | None) -> None:
        self._folder = folder

    def get(
        self, target: str, learned: Schedule, refine: Callable[[], Refined]
    ) -> Refined:
        """Returns what is kept of a target, or refines its counts and keeps that.

        Args:
            target: its words.
            learned: counts to be refined; what is kept of others does not count.
            refine: does it.

        Raises:
            UserError: the file is damaged.
        """
        kept = self._kept()
        start = counts(learned)
        try:
            if target in kept and kept[target]["learned"] == start:
                return Refined.from_record(kept[target])
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise self._damaged() from error
        refined = refine()
        if self._folder is not None:
            record = kept | {target: refined.record() | {"learned": start}}
            write_json(self._folder / FILE, record)
        return refined

    def _kept(self) -> dict[str, Json]:
        if self._folder is None or not has(self._folder, FILE):
            return {}
        kept = read(self._folder, FILE)
        if not isinstance(kept, dict):
            raise self._damaged()
        return kept

    def _damaged(self) -> UserError:
        return UserError(
            f"{self._folder / FILE} is damaged; remove it, and refining begins anew"
        )


def counts(schedule: Schedule) -> dict[str, Json]:
    """Returns a schedule's rule and counts as they are read back from JSON."""
    prune = None if schedule.prune is None else list(schedule.prune)
    return {"rule": schedule.rule, "prune": prune, "merge": list(schedule.merge)}
