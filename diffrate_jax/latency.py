"""Latency tables: milliseconds of a model's blocks by their tokens, on one device.

A block takes what attention takes for the tokens that come in, what its MLP takes for
those that are left, and what it takes to compress the ones to the others. The first two
are curves through measured points (`timing.probes`), joined by straight lines, so that
they have gradients: a token's price where it is spent. Latency as a differentiable cost
of a search is ProxylessNAS's idea (Cai et al., arXiv 1812.00332, section 3.3).
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffrate_jax.cost import Counts, Measure, Unit
from diffrate_jax.errors import UserError
from diffrate_jax.files import Json, read_json, write_json
from diffrate_jax.models import Model, architecture
from diffrate_jax.shapes import Array

FORMAT, VERSION = "diffrate_jax.latency", 1
MILLISECONDS = Unit("latency_ms", "ms", 1)
LISTS = ("blocks", "tokens", "attention", "mlp", "compression")


@dataclasses.dataclass(frozen=True)
class BlockTimes:
    """Milliseconds of blocks that take alike.

    Attributes:
        blocks: their numbers.
        tokens: at which the curves are known, rising.
        attention: milliseconds of attention by the tokens that come in.
        mlp: milliseconds of the MLP by the tokens that are left.
        compression: milliseconds that a block which compresses takes besides: once,
            per token that comes in, per pair of these, and per pair of a token that
            goes with one that stays.

    Raises:
        UserError: no blocks, other lengths than these, or curves that fall or never
            rise.
    """

    blocks: tuple[int, ...]
    tokens: tuple[float, ...]
    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    compression: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        for name in LISTS:
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not all(map(is_number, values)):
                raise UserError(f"{name!r} must be a list of numbers, got {values!r}")
            object.__setattr__(self, name, tuple(values))
        if not self.blocks:
            raise UserError("'blocks' must have at least one, got none")
        lengths = len(self.tokens), len(self.attention), len(self.mlp)
        if len(set(lengths)) > 1 or lengths[0] < 2 or len(self.compression) != 4:
            raise UserError(
                "'tokens', 'attention' and 'mlp' must be as long as each other, at "
                f"least 2, and 'compression' 4, got {(*lengths, len(self.compression))}"
            )
        both = np.add(self.attention, self.mlp)
        rising = (np.diff(self.tokens) > 0).all() and (np.diff(both) > 0).all()
        falls = min(np.diff(self.attention).min(), np.diff(self.mlp).min()) < 0
        if falls or not rising or min(self.compression) < 0:
            raise UserError(
                "'tokens' and the sum of 'attention' and 'mlp' must rise, neither of "
                "these may fall, and no 'compression' may be negative"
            )

    def total(self, coming_L: Array, left_L: Array) -> Array:
        """Returns the milliseconds of all these blocks.

        Args:
            coming_L: tokens that enter each of them.
            left_L: tokens after its compression.
        """
        # That a block compresses at all is a step: it counts and has no gradient.
        compress_L = (left_L < coming_L) * self.merging(coming_L, left_L)
        block_L = along(self.tokens, self.attention, coming_L) + compress_L
        return (block_L + along(self.tokens, self.mlp, left_L)).sum()

    def merging(self, coming: Array | float, left: Array | float) -> Array | float:
        """Returns the milliseconds that compressing so many tokens takes."""
        once, per_token, per_pair, per_fold = self.compression
        every = once + per_token * coming + per_pair * coming * coming
        return every + per_fold * (coming - left) * left


def along(knots: tuple[float, ...], values: tuple[float, ...], at_L: Array) -> Array:
    """Returns the straight lines through points [L], at both ends continued.

    A sum of hinges: no search and no gather on a device. At a knot the gradient is that
    of the line to the right.

    >>> along((1.0, 3.0, 5.0), (10.0, 20.0, 80.0), np.array([2.0, 4.0])).tolist()
    [15.0, 50.0]
    """
    slopes = np.diff(values) / np.diff(knots)
    line_L = values[0] + slopes[0] * (at_L - knots[0])
    for knot, bend in zip(knots[1:-1], np.diff(slopes), strict=True):
        line_L = line_L + bend * (at_L >= knot) * (at_L - knot)
    return line_L


@dataclasses.dataclass(frozen=True)
class LatencyTerms:
    """What a batch takes, by the tokens of its blocks; see `cost.Terms`.

    Attributes:
        fixed: milliseconds that do not depend on compression.
        times: of the blocks; one that is in none of them is in `fixed`.
    """

    fixed: float
    times: tuple[BlockTimes, ...]

    def total(self, coming: Counts, left: Counts) -> float | Array:
        """Returns the milliseconds of a batch."""
        traced = any(isinstance(tokens, Array) for tokens in left)
        array = (lambda x: jnp.array(x, jnp.float32)) if traced else np.array
        total = self.fixed
        for times in self.times:
            rows = [[row[block] for block in times.blocks] for row in (coming, left)]
            total += times.total(*map(array, rows))
        return total if traced else float(total)


@dataclasses.dataclass(frozen=True)
class LatencyTable:
    """A table as it is saved.

    Attributes:
        model: architecture that was measured.
        rule: by which its schedules choose tokens.
        batch_size: images of a batch.
        dtype: of weights and activations.
        terms: milliseconds of a batch.
        about: what else is worth saving: device, versions, command, what was measured.
    """

    model: Mapping[str, Json]
    rule: str
    batch_size: int
    dtype: str
    terms: LatencyTerms
    about: Mapping[str, Json]

    def measure(self, model: Model, rule: str) -> Measure:
        """Returns what schedules of a model cost in milliseconds of a batch.

        Raises:
            UserError: the table is of another model or rule.
        """
        mine = comparable(architecture(model))
        theirs = comparable(self.model)
        other = [f for f in mine.keys() | theirs if mine.get(f) != theirs.get(f)]
        if other:
            field = min(other)
            raise UserError(
                f"the latency table is of a model with {field}={theirs.get(field)!r}, "
                f"this one has {mine.get(field)!r}; measure this one with benchmark "
                "--latency_table=FILE"
            )
        if rule != self.rule:
            raise UserError(
                f"the latency table is of the rule {self.rule!r}, the search has "
                f"{rule!r}; measure it with benchmark --latency_table=FILE "
                f"--rule={rule}"
            )
        blocks = sorted(block for row in self.terms.times for block in row.blocks)
        # What enters the blocks of later stages is fixed, and so is what they take.
        wanted = range(model.geometry.first_stage)
        if blocks != list(wanted):
            raise UserError(
                f"the latency table must tell of every block once, from 0 to "
                f"{wanted[-1]}, got {blocks}; measure again"
            )
        return Measure(model.geometry, self.terms, MILLISECONDS)

    def summary(self) -> dict[str, Json]:
        """Returns what a figure by this table depends on."""
        device = self.about.get("environment")
        settings = {"batch_size": self.batch_size, "dtype": self.dtype}
        return settings | {"rule": self.rule, "environment": device}

    def record(self) -> dict[str, Json]:
        """Returns what is saved."""
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}

    def save(self, path: str | os.PathLike) -> None:
        """Writes the table as JSON; the file appears whole or not at all."""
        write_json(path, self.record())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "LatencyTable":
        """Reads a table that `save` wrote.

        Raises:
            UserError: no such file, not JSON, not a table, a newer format, or values
                that no table has.
        """
        record = read_json(path)
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise UserError(
                f"{path} is not a latency table: expected a JSON object with format "
                f"{FORMAT!r}; write one with benchmark --latency_table=FILE"
            )
        if record.get("version") != VERSION:
            raise UserError(
                f"{path} has latency table version {record.get('version')!r}, this "
                f"package reads version {VERSION}; measure again, or use its package"
            )
        try:
            return cls(terms=terms_of(record), **fields_of(record))
        except UserError as error:
            raise UserError(
                f"{path} is damaged: {error}; measure again with benchmark "
                "--latency_table=FILE"
            ) from error


def fields_of(record: dict[str, Json]) -> dict[str, Any]:
    """Returns a record's fields but for the times.

    Raises:
        UserError: one is missing or of another type.
    """
    kinds = {"model": dict, "rule": str, "batch_size": int, "dtype": str, "about": dict}
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind):
            raise UserError(f"{name!r} must be a {kind.__name__}")
    return {name: record[name] for name in kinds}


def terms_of(record: dict[str, Json]) -> LatencyTerms:
    """Returns a record's times.

    Raises:
        UserError: none, or values that no table has.
    """
    terms = record.get("terms")
    if not isinstance(terms, dict) or not is_number(terms.get("fixed")):
        raise UserError("'terms' must hold the number 'fixed' and the list 'times'")
    rows = terms.get("times")
    names = {field.name for field in dataclasses.fields(BlockTimes)}
    if not isinstance(rows, list) or not rows:
        raise UserError("'times' must be a list of at least one kind of block")
    for row in rows:
        if not isinstance(row, dict) or row.keys() != names:
            raise UserError(f"each of 'times' must have {', '.join(LISTS)}")
    return LatencyTerms(terms["fixed"], tuple(BlockTimes(**row) for row in rows))


def is_number(value: Json) -> bool:
    """Returns whether a value is a finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def comparable(fields: Mapping[str, Any]) -> dict[str, Json]:
    """Returns what the speed of an architecture depends on, as JSON knows it.

    Which blocks a search may compress is left out: it changes no block's speed.
    """
    return json.loads(json.dumps({n: v for n, v in fields.items() if n != "compress"}))
