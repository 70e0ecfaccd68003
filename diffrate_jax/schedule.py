"""Schedules: how many tokens each block keeps, as a few dozen validated integers."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from diffrate_jax.errors import UserError
from diffrate_jax.files import Json, reason, write_json
from diffrate_jax.rates import Kept, refuse_pruning
from diffrate_jax.rules import rule_of
from diffrate_jax.shapes import Geometry

FORMAT = "diffrate_jax.schedule"
# Version 1 knew only the published rule.
VERSION = 2


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Tokens kept after pruning and after merging, class token included, per block.

    A count larger than what is left at that point does nothing, so published
    schedules run as they were written. Hashable, and equal where the counts are.

    Attributes:
        prune: kept after pruning, one per attention block; None if never pruned.
        merge: kept after merging, one per attention block.
        rule: name of the rule that chooses the tokens (`rules`).
        provenance: anything worth saving beside the counts (target, cost, model).

    Raises:
        UserError: counts that are not positive integers, or of unequal length.

    >>> Schedule(prune=(5, 4, 5), merge=(5, 3, 3)).canonical()
    Schedule(prune=(5, 4, 3), merge=(5, 3, 3), rule='diffrate')
    """

    prune: tuple[int, ...] | None
    merge: tuple[int, ...]
    provenance: Mapping[str, Any] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )
    rule: str = "diffrate"

    def __post_init__(self) -> None:
        merge = _counts(self.merge, "merge")
        prune = None if self.prune is None else _counts(self.prune, "prune")
        if prune is not None and len(prune) != len(merge):
            raise UserError(
                "a schedule needs as many prune as merge counts, got "
                f"{len(prune)} and {len(merge)}; give one of each per block"
            )
        if prune is not None and not rule_of(self.rule).prunes:
            raise UserError(
                f"rule {self.rule!r} has one operation, whose counts are 'merge'; "
                "leave the prune counts out"
            )
        object.__setattr__(self, "merge", merge)
        object.__setattr__(self, "prune", prune)

    @property
    def depth(self) -> int:
        """Number of attention blocks."""
        return len(self.merge)

    @classmethod
    def dense(cls, geometry: Geometry) -> "Schedule":
        """Returns the schedule that keeps every token of every block."""
        return cls(prune=None, merge=geometry.dense)

    @classmethod
    def from_kept(cls, kept: Kept, rule: str = "diffrate") -> "Schedule":
        """Returns the counts of a forward pass, rounded to integers, as a schedule."""
        merge = np.rint(np.asarray(kept.merge)).astype(int).tolist()
        if kept.prune is None:
            return cls(prune=None, merge=merge, rule=rule)
        prune = np.rint(np.asarray(kept.prune)).astype(int).tolist()
        return cls(prune, merge, rule=rule)

    def steps(self, tokens: int | Geometry) -> tuple[tuple[int, int, int], ...]:
        """Returns for each block (tokens coming in, after pruning, after merging).

        Args:
            tokens: that enter the first block; or the geometry of a model, needed
                where later stages start anew.
        """
        if not isinstance(tokens, Geometry):
            tokens = Geometry(tokens, 0, (True,) * self.depth)
        rows, left = [], tokens.num_tokens
        for block, kept_merge in enumerate(self.merge):
            coming = tokens.coming(block, left)
            kept_prune = coming if self.prune is None else self.prune[block]
            middle = min(coming, kept_prune)
            left = min(middle, kept_merge)
            rows.append((coming, middle, left))
        return tuple(rows)

    def before_merging(self, geometry: Geometry) -> tuple[int, ...]:
        """Returns the tokens of each block that pruning leaves for merging."""
        return tuple(middle for _, middle, _ in self.steps(geometry))

    def canonical(self, tokens: int | Geometry | None = None) -> "Schedule":
        """Returns the same execution written with counts that really occur.

        Args:
            tokens: as for `steps`; as many as the first count by default.
        """
        first = self.merge if self.prune is None else self.prune
        rows = self.steps(first[0] if tokens is None else tokens)
        prune = None if self.prune is None else tuple(row[1] for row in rows)
        merge = tuple(row[2] for row in rows)
        return dataclasses.replace(self, prune=prune, merge=merge)

    def scaled(
        self,
        num_tokens: int,
        new_tokens: int,
        *,
        depth: int | None = None,
        prefix_tokens: int = 1,
    ) -> "Schedule":
        """Carries the schedule over to another number of tokens or blocks.

        The kept fraction of patches is kept, read off at the same relative depth.

        Args:
            num_tokens: tokens the schedule was made for, prefix tokens included.
            new_tokens: tokens of the new model, prefix tokens included.
            depth: blocks of the new model; as many as now by default.
            prefix_tokens: class token and its like, which are always kept.
        """
        depth = self.depth if depth is None else depth
        patches = new_tokens - prefix_tokens

        def carry(counts: tuple[int, ...]) -> tuple[int, ...]:
            share = (np.array(counts) - prefix_tokens) / (num_tokens - prefix_tokens)
            where = np.linspace(0, len(counts) - 1, depth)
            new = np.interp(where, np.arange(len(counts)), share) * patches
            new = np.clip(np.rint(new), 1, patches).astype(int) + prefix_tokens
            return tuple(new.tolist())

        running = self.canonical(num_tokens)
        prune = None if running.prune is None else carry(running.prune)
        return Schedule(prune, carry(running.merge), self.provenance, self.rule)

    def feasible(self, geometry: Geometry) -> "Schedule":
        """Returns counts that really occur, raised where the rule cannot reach them."""
        rule, left, merge, prune = rule_of(self.rule), geometry.num_tokens, [], []
        for block in range(self.depth):
            coming = geometry.coming(block, left)
            middle = coming if self.prune is None else min(coming, self.prune[block])
            least = rule.fewest(middle, geometry.prefix_tokens)
            left = min(middle, max(self.merge[block], least))
            merge.append(left)
            prune.append(middle)
        prune = None if self.prune is None else tuple(prune)
        return dataclasses.replace(self, prune=prune, merge=tuple(merge))

    def check(self, geometry: Geometry) -> None:
        """Refuses a schedule that does not fit a model.

        Raises:
            UserError: wrong length, a count above the model's tokens, no patch left,
                or a rule or prune counts that the model cannot have.
        """
        if self.depth != geometry.depth:
            raise UserError(
                f"this model has {geometry.depth} attention blocks, the schedule has "
                f"counts for {self.depth}; use one made for it, or Schedule.scaled"
            )
        refuse_pruning(self.prune, geometry)
        least = geometry.prefix_tokens + 1
        for counts in (self.merge, self.prune or self.merge):
            for count, most in zip(counts, geometry.dense, strict=True):
                if not least <= count <= most:
                    raise UserError(
                        f"this model keeps between {least} and {most} tokens in a "
                        f"block, the schedule asks for {count}; use a schedule made "
                        "for it"
                    )
        rule = rule_of(self.rule, geometry)
        for block, (_, middle, last) in enumerate(self.steps(geometry)):
            fewest = rule.fewest(middle, geometry.prefix_tokens)
            if last < fewest:
                raise UserError(
                    f"rule {self.rule!r} cannot leave {last} of {middle} tokens in "
                    f"block {block}, at the fewest {fewest}; keep more there, or use "
                    "another rule"
                )

    def save(self, path: str | os.PathLike) -> None:
        """Writes the schedule as JSON; the file appears whole or not at all."""
        record = {
            "format": FORMAT,
            "version": VERSION,
            "rule": self.rule,
            "prune": self.prune,
            "merge": self.merge,
            "provenance": dict(self.provenance),
        }
        write_json(path, record)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Schedule":
        """Reads a schedule that `save` wrote.

        Raises:
            UserError: no such file, not JSON, not a schedule, or a newer format.
        """
        return cls.from_record(_read(epath.Path(path)), path)

    @classmethod
    def from_record(cls, record: Json, path: str | os.PathLike) -> "Schedule":
        """Returns the schedule that a file holds, once it is read.

        Raises:
            UserError: not a schedule, or a newer format.
        """
        _check_record(record, path)
        prune = record.get("prune")
        provenance = record.get("provenance", {})
        if not isinstance(provenance, dict):
            raise UserError(f"{path}: 'provenance' must be a JSON object")
        rule = record.get("rule", "diffrate")
        if not isinstance(rule, str):
            raise UserError(f"{path}: 'rule' must be the name of a rule, got {rule!r}")
        return cls(prune, record["merge"], provenance, rule)


def _counts(values: Sequence[int], name: str) -> tuple[int, ...]:
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise UserError(
            f"schedule.{name} must be a list of integers, got {values!r}; "
            "give one count per block"
        )
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(
                f"schedule.{name} must hold positive integers, got {value!r}; "
                "give the number of tokens kept, class token included"
            )
    if not values:
        raise UserError(f"schedule.{name} is empty; give one count per block")
    return tuple(values)


def _read(path: epath.Path) -> Json:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"cannot read the schedule {path}: {reason(error)}; give the path of a "
            "file that Schedule.save wrote"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); expected a schedule") from error


def _check_record(record: Json, path: str | os.PathLike) -> None:
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a schedule: expected a JSON object with format "
            f"{FORMAT!r}; give a file that Schedule.save wrote"
        )
    version = record.get("version")
    if version not in range(1, VERSION + 1):
        raise UserError(
            f"{path} has schedule format version {version!r}, this package reads "
            f"versions up to {VERSION}; update the package"
        )
    if "merge" not in record:
        raise UserError(f"{path} has no 'merge' counts; expected one per block")
