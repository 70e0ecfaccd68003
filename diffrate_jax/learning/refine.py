"""The last tokens: exchanged between blocks where held-out images say that it pays."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from diffrate_jax import parallel
from diffrate_jax.batches import prepare
from diffrate_jax.budget import CLOSE, one_more
from diffrate_jax.compress import Masked, counts_of
from diffrate_jax.cost import Measure
from diffrate_jax.distributed import stop_if_asked
from diffrate_jax.files import Json
from diffrate_jax.learning.moves import Loss, best_line, best_of, one_fewer, rest
from diffrate_jax.learning.objective import distance, wanted_outputs
from diffrate_jax.models import Model, Params, forward
from diffrate_jax.progress import track
from diffrate_jax.rates import Kept
from diffrate_jax.recipe import Recipe
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Array, Geometry

ROUNDS, TRIED = 4, 4


@dataclasses.dataclass(frozen=True)
class Refined:
    """What exchanging tokens came to.

    Attributes:
        schedule: after all moves.
        loss: its mean loss on the held-out images.
        gains: for each block that may leave one token more or fewer, the change of the
            loss: {"block", "more", "fewer"}, None where it cannot.
        moves: what was exchanged: {"more", "fewer" (block and number of tokens),
            "loss", "standard_error"}; before them {"line": name, …} if any, see
            `best_line`, and {"rests": block, …}, see `rest`.
    """

    schedule: Schedule
    loss: float
    gains: tuple[dict[str, Json], ...]
    moves: tuple[dict[str, Json], ...]


def held_out_loss(
    model: Model,
    params: Params,
    recipe: Recipe,
    batches: Sequence[dict[str, np.ndarray]],
) -> Loss:
    """Returns a function from a schedule to each image's loss [n].

    One compilation runs every schedule of the recipe's rule. What the objective wants
    of each image is computed once.
    """
    plain = recipe.augment.plain()
    key = jax.random.key(recipe.seed)

    def prepared(batch: dict[str, Array]) -> tuple[Array, Array]:
        return prepare(batch, key, plain, model.num_classes)[:2]

    def wanted(_: tuple, params: Params, batch: dict[str, Array]) -> Array:
        outputs = wanted_outputs(recipe.objective, model, params, *prepared(batch))
        return parallel.every_example(outputs)

    def run(kept: Kept, params: Params, batch: dict[str, Array]) -> Array:
        images, wanted_BV = prepared(batch)
        out = forward(model, params, images, Masked(kept, rule=recipe.rule))
        return parallel.all_examples(distance(recipe.objective, out.logits, wanted_BV))

    params = parallel.replicate(params)
    first = parallel.pmap_step(wanted, donate_state=False)
    shards = [
        parallel.shard(batch | {"label": first((), params, parallel.shard(batch))})
        for batch in batches
    ]
    step = parallel.pmap_step(run, donate_state=False)

    def loss(schedule: Schedule) -> np.ndarray:
        stop_if_asked()
        kept = parallel.replicate(counts_of(schedule))
        return np.concatenate(
            [np.asarray(step(kept, params, shard), np.float64) for shard in shards]
        )

    return loss


def improve(schedule: Schedule, measure: Measure, limit: float, loss: Loss) -> Refined:
    """Takes a straight line where that is better, then exchanges last tokens.

    For arguments see `refine`.
    """
    schedule, lined = best_line(schedule, measure, limit, loss)
    refined = refine(schedule, measure, limit, loss)
    return dataclasses.replace(refined, moves=(*lined, *refined.moves))


def refine(schedule: Schedule, measure: Measure, limit: float, loss: Loss) -> Refined:
    """Exchanges tokens between two blocks while that lowers the loss.

    In each round every block is tried with one token more and one fewer; the exchanges
    that promise most are then measured, and the best is taken if its gain over all
    images is larger than two standard errors. Before that, where compressing takes time
    of its own, blocks are tried that leave it to others.

    Args:
        schedule: costs at most `limit`.
        measure: what schedules cost.
        limit: cost not to be exceeded.
        loss: of a schedule, for each held-out image.
    """
    now_n = loss(schedule)
    schedule, now_n, rested = rest(schedule, measure, limit, loss, now_n)
    moves = []
    with track(ROUNDS, "last tokens", unit="round") as bar:
        while True:
            gains = gains_of(schedule, measure.geometry, loss, now_n)
            bar.update()
            found = (
                None
                if len(moves) == ROUNDS - 1
                else best_move(schedule, measure, limit, loss, now_n, gains)
            )
            if found is None:
                break
            schedule, now_n, move = found
            moves.append(move)
    return Refined(schedule, float(now_n.mean()), tuple(gains), (*rested, *moves))


def gains_of(
    schedule: Schedule, geometry: Geometry, loss: Loss, now_n: np.ndarray
) -> list[dict[str, Json]]:
    """Returns what one token more or fewer does to the loss, block by block."""

    def change(neighbour: Schedule | None) -> float | None:
        return None if neighbour is None else float((loss(neighbour) - now_n).mean())

    return [
        {
            "block": block,
            "more": change(one_more(schedule, block, geometry)),
            "fewer": change(one_fewer(schedule, block, geometry)),
        }
        for block in np.flatnonzero(geometry.compress).tolist()
    ]


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Tokens given to one block, and taken from another to pay for them.

    Attributes:
        schedule: after it.
        more: block that leaves more tokens, and how many.
        fewer: block that leaves fewer, and how many; None where the budget had room.
    """

    schedule: Schedule
    more: tuple[int, int]
    fewer: tuple[int, int] | None

    def record(self) -> dict[str, Json]:
        """Returns what is recorded of it."""
        return {"more": self.more, "fewer": self.fewer}

    def promise(self, gains: Mapping[int, dict[str, Json]]) -> float:
        """Returns the change of the loss if every token counts as the first one."""
        block, tokens = self.more
        change = tokens * gains[block]["more"]
        if self.fewer is not None:
            block, tokens = self.fewer
            change += tokens * gains[block]["fewer"]
        return change


def best_move(
    schedule: Schedule,
    measure: Measure,
    limit: float,
    loss: Loss,
    now_n: np.ndarray,
    gains: list[dict[str, Json]],
) -> tuple[Schedule, np.ndarray, dict[str, Json]] | None:
    """Returns the best move's schedule, losses and record; None if none pays."""
    by_block = {gain["block"]: gain for gain in gains}
    found = [
        (e.promise(by_block), e) for e in exchanges(schedule, measure, limit, gains)
    ]
    promising = sorted((row for row in found if row[0] < 0), key=lambda row: row[0])
    tried = [(e.schedule, e.record()) for _, e in promising[:TRIED]]
    return best_of(tried, loss, now_n)


def exchanges(
    schedule: Schedule, measure: Measure, limit: float, gains: list[dict[str, Json]]
) -> Iterator[Exchange]:
    """Yields what any two measured blocks can exchange within the budget."""
    least = min(CLOSE * limit, measure(schedule))
    givers = [None, *(g["block"] for g in gains if g["fewer"] is not None)]
    takers = [g["block"] for g in gains if g["more"] is not None]
    for more, fewer in itertools.product(takers, givers):
        if more == fewer:
            continue
        found = exchange(schedule, more, fewer, measure, limit)
        if found is not None and measure(found.schedule) >= least:
            yield found


def exchange(
    schedule: Schedule, more: int, fewer: int | None, measure: Measure, limit: float
) -> Exchange | None:
    """Exchanges one token of the dearer block for what it buys of the cheaper one.

    Args:
        schedule: costs at most `limit`.
        more: block to leave more tokens.
        fewer: block to leave fewer; None: there is room in the budget.
        measure: what schedules cost.
        limit: cost not to be exceeded.

    Returns:
        None if one of the blocks cannot, or too few can be taken.
    """
    fits = lambda s: s is not None and measure(s) <= limit  # noqa: E731
    geometry = measure.geometry
    now, given, taken = one_more(schedule, more, geometry), 1, 0
    while now is not None and fewer is not None and (taken == 0 or not fits(now)):
        now, taken = one_fewer(now, fewer, geometry), taken + 1
    if not fits(now):
        return None
    while taken == 1 and fits(longer := one_more(now, more, geometry)):
        now, given = longer, given + 1
    return Exchange(now, (more, given), None if fewer is None else (fewer, taken))
