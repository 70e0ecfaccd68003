"""Curves of a latency table, from the speeds of whole models by least squares.

What a model takes is linear in what is sought: a constant, the values of both curves at
the knots, and four factors of compression. None is negative and no curve falls
(non-negative least squares, Lawson and Hanson 1974). Where the speeds leave a choice,
curves are straight, attention and MLP share as their operations do, and the last block
is like the others.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.linalg import block_diag
from scipy.optimize import nnls

from diffrate_jax.latency import BlockTimes

# What may be wrong by as much as a share of 1 of what was measured: a curve's bend, how
# attention and MLP share, how far the last block differs, what compression takes.
BEND, SHARE, OTHER, COMPRESS = 0.01, 0.02, 0.02, 0.003
# No token is for nothing: prices tell a search where to go.
LEAST_SLOPE = 1e-3


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one model took under one schedule.

    Attributes:
        steps: (tokens coming in, tokens left) of each block that is sought.
        kinds: number of the kind of each of them.
        base: number of the constant that its model has.
        ms: median milliseconds of a batch.
    """

    steps: tuple[tuple[int, int], ...]
    kinds: tuple[int, ...]
    base: int
    ms: float


class Fit:
    """Curves of each kind of block.

    The unknowns of a kind are, in their order: attention at the first knot, what it
    rises by from knot to knot, what the MLP rises by, the factors of compression.

    Args:
        timings: what was measured; first of all the dense model.
        knots: at which the curves are sought, rising.
        mlp_share: from knot to knot, the MLP's share of a token's operations.
        num_kinds: of blocks.
    """

    def __init__(
        self,
        timings: Sequence[Timing],
        knots: np.ndarray,
        mlp_share: np.ndarray,
        num_kinds: int,
    ) -> None:
        self._knots, self._num_kinds = knots, num_kinds
        self._num_bases = 1 + max(timing.base for timing in timings)
        # The scale of all that is known before.
        self._block_ms = timings[0].ms / len(timings[0].steps)
        data = np.array([self._row(timing) / timing.ms for timing in timings])
        prior = self._prior(mlp_share)
        wanted = np.concatenate([np.ones(len(data)), np.zeros(len(prior))])
        self._found, _ = nnls(np.concatenate([data, prior]), wanted)

    @property
    def _per_kind(self) -> int:
        return 2 * len(self._knots) + 3

    def _row(self, timing: Timing) -> np.ndarray:
        """Returns what each unknown is multiplied by in one timing."""
        row = np.zeros((self._num_kinds, self._per_kind))
        for (coming, left), kind in zip(timing.steps, timing.kinds, strict=True):
            row[kind] += self._block(coming, left)
        base = np.eye(self._num_bases)[timing.base]
        return np.concatenate([row.reshape(-1), base])

    def _block(self, coming: int, left: int) -> np.ndarray:
        rises = np.diff(self._knots)
        passed = lambda n: np.clip((n - self._knots[:-1]) / rises, 0, 1)  # noqa: E731
        folds = (coming - left) * left
        compress = np.array([1, coming, coming**2, folds]) * (left < coming)
        return np.concatenate([[1], passed(coming), passed(left), compress])

    def _prior(self, mlp_share: np.ndarray) -> np.ndarray:
        """Returns equations whose right side is 0, in shares of a dense block."""
        rises, most = np.diff(self._knots), self._knots[-1]
        slope = np.diag(most / rises)
        none, bend = np.zeros((len(rises) - 1, len(rises))), np.diff(slope, axis=0)
        own = mlp_share[:, None] * slope, (mlp_share[:, None] - 1) * slope
        curves = np.block(
            [
                [BEND * bend, none],
                [none, BEND * bend],
                [SHARE * own[0], SHARE * own[1]],
            ]
        )
        factors = np.array([1, most, most**2, most**2 / 4])
        compress = COMPRESS * np.diag(factors)
        each = block_diag(curves, compress)
        each = np.pad(each, ((0, 0), (1, 0)))  # Of the constant nothing is known.
        scale = np.concatenate([[1], most / rises, most / rises, factors])
        alike = np.kron(
            np.diff(np.eye(self._num_kinds), axis=0), OTHER * np.diag(scale)
        )
        rows = np.concatenate([np.kron(np.eye(self._num_kinds), each), alike])
        return np.pad(rows / self._block_ms, ((0, 0), (0, self._num_bases)))

    def times(self, kind: int, blocks: Sequence[int]) -> BlockTimes:
        """Returns the curves of a kind, for the blocks that are of it."""
        count = len(self._knots) - 1
        first, *rest = np.split(
            self._found[kind * self._per_kind :][: self._per_kind],
            np.cumsum([1, count, count]),
        )
        attention, mlp, compression = rest
        least = LEAST_SLOPE * self._block_ms * np.diff(self._knots) / self._knots[-1]
        mlp = np.maximum(mlp, least)
        return BlockTimes(
            tuple(blocks),
            tuple(self._knots.tolist()),
            tuple(np.cumsum([*first, *attention]).tolist()),
            tuple(np.cumsum([0, *mlp]).tolist()),
            tuple(compression.tolist()),
        )

    def base(self, number: int) -> float:
        """Returns a constant."""
        return float(self._found[self._num_kinds * self._per_kind + number])
