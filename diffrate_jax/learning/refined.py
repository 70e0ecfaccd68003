"""What refining came to, and the file that keeps it while other targets are refined."""

import dataclasses
from collections.abc import Callable
from typing import Self

from etils import epath

from diffrate_jax.errors import UserError
from diffrate_jax.files import Json, write_json
from diffrate_jax.parallel import of_first_host
from diffrate_jax.schedule import Schedule
from diffrate_jax.version import __version__
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
        moves: {"step": change of what each block keeps [L], "loss",
            "standard_error", "images": how many say so}; among them {"line": name, …},
            see `moves.best_line`, {"rests": block, …}, see `moves.rest`, and {"step",
            "settles": True, …}, see `refine.settling_step`.
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
    """What the counts of each target were refined to, by few images and by many.

    On a CPU refining may take several times as long as the descent. A search that was
    killed in it goes on with the target, and the images, that it had come to.

    Args:
        folder: of the search; None: nothing is kept.
    """

    def __init__(self, folder: epath.Path | None) -> None:
        self._folder = folder

    def get(self, name: str, start: Schedule, refine: Callable[[], Refined]) -> Refined:
        """Returns what is kept under a name, or refines counts and keeps that.

        Args:
            name: of the target and of the images.
            start: counts to be refined. What is kept of others does not count, nor what
                another version of this package made of them.
            refine: does it.

        Raises:
            UserError: the file is damaged.
        """
        # Refining takes all processes: they have to agree on whether to do it.
        made_of = of_first_host({"start": counts(start), "version": __version__})
        kept = self._kept()
        try:
            if name in kept and kept[name]["made_of"] == made_of:
                found = Refined.from_record(kept[name])
                if found.schedule.depth != start.depth:
                    raise ValueError("of another model")
                return found
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise self._damaged() from error
        refined = refine()
        if self._folder is not None:
            record = {name: refined.record() | {"made_of": made_of}}
            write_json(self._folder / FILE, kept | record)
        return refined

    def _kept(self) -> dict[str, Json]:
        if self._folder is None or not has(self._folder, FILE):
            return {}
        try:
            kept = read(self._folder, FILE)
        except UserError as error:
            raise self._damaged() from error
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
