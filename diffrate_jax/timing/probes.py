"""Probes: short models with chosen schedules, from whose speeds a table is made.

What users run is timed, no part of it alone: models of few blocks, compiled as for
inference, under schedules that bring blocks to every number of tokens. What a block
takes follows by least squares (`curves`).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from diffrate_jax.budget import fit_to_budget, smallest_schedule
from diffrate_jax.cost import Measure, macs_of
from diffrate_jax.environment import environment
from diffrate_jax.files import Json
from diffrate_jax.inference import compile_inference
from diffrate_jax.latency import MILLISECONDS, LatencyTable, LatencyTerms
from diffrate_jax.models import Model, architecture, init_weights
from diffrate_jax.models.vit import ViT
from diffrate_jax.progress import track
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Geometry
from diffrate_jax.timing import ours, time_in_turn
from diffrate_jax.timing.curves import Fit, Timing

# Blocks of short models, shares of the tokens they are brought to, and shares of its
# tokens that each block keeps.
LONG, SHORT = 4, 2
SHARES = (1.0, 0.9, 0.8, 0.7, 0.55, 0.4, 0.25, 0.1)
RATIOS = (0.97, 0.92, 0.85, 0.7, 0.5)
# Whole schedules cost between these shares of the dense model's operations.
CHECKED = (0.4, 0.9)
POLISHES = 5


@dataclasses.dataclass(frozen=True)
class Probe:
    """A schedule on the model in question, or on a short form of it.

    Attributes:
        name: unique.
        model: that runs it.
        schedule: that it runs.
        is_whole: whether it is the model in question.
    """

    name: str
    model: Model
    schedule: Schedule
    is_whole: bool

    def timing(self, ms: float) -> Timing:
        """Returns what it took, as a fit wants it."""
        kinds = {b: k for k, bs in enumerate(kinds_of(self.model)) for b in bs}
        steps = self.schedule.steps(self.model.geometry)
        sought = tuple((steps[b][0], steps[b][2]) for b in kinds)
        # Whatever its depth, a plain vision transformer embeds and reads alike.
        base = int(self.is_whole and not isinstance(self.model, ViT))
        return Timing(sought, tuple(kinds.values()), base, ms)


@dataclasses.dataclass(frozen=True)
class How:
    """How a table is measured.

    Attributes:
        rule: by which schedules choose tokens.
        batch_size: images of a batch.
        dtype: of weights and activations.
        rounds: timed runs of each probe.
        checks: random whole schedules whose latency is predicted and measured.
    """

    rule: str
    batch_size: int
    dtype: str
    rounds: int
    checks: int


def kinds_of(model: Model) -> tuple[tuple[int, ...], ...]:
    """Returns the blocks of each kind: those that take alike for the same tokens.

    The last block of a plain vision transformer is a kind of its own, since its head
    reads few of its tokens. What enters a later stage is always as much.
    """
    blocks = tuple(range(model.geometry.first_stage))
    return (blocks[:-1], blocks[-1:]) if isinstance(model, ViT) else (blocks,)


def shortened(model: Model, depth: int) -> Model:
    """Returns the model with so many blocks of the stage that compresses."""
    if isinstance(model, ViT):
        return model.clone(depth=depth, compress=None)
    return model.clone(depths=(1, 1, depth, 1))


def probes_of(model: Model, rule: str) -> list[Probe]:
    """Returns what is timed to make a table; the first is the dense model."""
    found = {}
    for depth in (LONG, SHORT):
        short = shortened(model, depth)
        for merge in chosen(short.geometry, depth):
            schedule = Schedule(None, merge, rule=rule).feasible(short.geometry)
            found.setdefault((depth, schedule.merge), (short, schedule))
    dense = Probe("dense", model, Schedule.dense(model.geometry), is_whole=True)
    return [dense] + [
        Probe(f"probe {number}", *probe, is_whole=False)
        for number, probe in enumerate(found.values())
    ]


def chosen(geometry: Geometry, depth: int) -> list[list[int]]:
    """Returns the counts of short models: what is left after each block.

    The first block brings all others to a share of the tokens; or each keeps a share.
    """
    kept = [[share] * depth for share in SHARES]
    if depth == LONG:
        kept += [[ratio**b for b in range(1, depth + 1)] for ratio in RATIOS]
        kept += [[0.6 * ratio**b for b in range(depth)] for ratio in RATIOS[::2]]
    else:
        # What the last block's compression takes.
        kept += [[1.0] * (depth - 1) + [ratio] for ratio in RATIOS[1::2]]
    least, later = geometry.prefix_tokens + 1, geometry.dense[depth:]
    patches = geometry.num_patches
    return [
        [max(least, round(geometry.prefix_tokens + k * patches)) for k in row]
        + list(later)
        for row in kept
    ]


def checks_of(model: Model, rule: str, count: int, seed: int = 0) -> list[Probe]:
    """Returns random whole schedules, of costs between `CHECKED` of dense."""
    measure, rng = macs_of(model), np.random.default_rng(seed)
    geometry, dense = model.geometry, measure(None)
    least = measure(smallest_schedule(model)) / dense
    low, high = np.maximum(CHECKED, least)
    found = []
    for number in range(count):
        weight_L = rng.exponential(size=geometry.depth) * geometry.compress
        gone_L = np.cumsum(weight_L) / weight_L.sum() * rng.uniform(0.3, 0.95)
        kept_L = np.array(geometry.dense) - np.rint(gone_L * geometry.num_patches)
        kept = np.where(geometry.compress, kept_L, geometry.dense).astype(int)
        drawn = Schedule(None, kept.tolist(), rule=rule)
        limit = dense * rng.uniform(low, high)
        schedule = fit_to_budget(drawn, measure, limit)
        found.append(Probe(f"random {number + 1}", model, schedule, is_whole=True))
    return found


def measure_latency(model: Model, name: str, how: How, command: str) -> LatencyTable:
    """Measures a model's latency table on this device.

    Args:
        model: any weights: none of its speed depends on them.
        name: of its preset.
        how: batch and precision.
        command: that gives this table.
    """
    probes = probes_of(model, how.rule)
    checks = checks_of(model, how.rule, how.checks)
    ms = timed(probes + checks, how)
    terms = terms_of(model, [probe.timing(ms[probe.name]) for probe in probes])
    predict = Measure(model.geometry, terms, MILLISECONDS)
    about = {
        "name": name,
        "command": command,
        "environment": environment(),
        "rounds": how.rounds,
        "probes": [described(probe, ms) for probe in probes],
        "checks": [
            described(check, ms) | {"predicted_ms": predict(check.schedule)}
            for check in checks
        ],
    }
    fields = architecture(model)
    return LatencyTable(fields, how.rule, how.batch_size, how.dtype, terms, about)


def timed(probes: Sequence[Probe], how: How) -> dict[str, float]:
    """Compiles probes and times them in turn; returns milliseconds by name."""
    params, cases = {}, []
    with track(len(probes), "compile", unit="program") as bar:
        for probe in probes:
            key = probe.model.geometry.depth
            params.setdefault(key, init_weights(probe.model))
            predict = compile_inference(
                probe.model,
                params[key],
                probe.schedule,
                batch_size=how.batch_size,
                dtype=how.dtype,
            )
            cost = macs_of(probe.model)(probe.schedule)
            cases.append(ours(probe.name, predict, cost, dense=True))
            bar.update()
    # What comes first in a round finds a cold cache: it runs once more, uncounted.
    cases = [dataclasses.replace(cases[-1], name="first"), *cases]
    size = probes[0].model.image_size
    rows = time_in_turn(cases, size, how.batch_size, rounds=how.rounds)[1:]
    ms = 1e3 * steady(np.array([row["seconds"] for row in rows]))
    return {row["name"]: float(time) for row, time in zip(rows, ms, strict=True)}


def steady(seconds: np.ndarray) -> np.ndarray:
    """Returns the median time of each program, rounds brought to one pace.

    A machine that others use too is now slow and now fast. If it changes halfway, plain
    medians fall to either side. So time is taken to be a program's own times its
    round's pace (median polish; Tukey 1977, chapter 11).

    Args:
        seconds: of each program in each round [programs, rounds].
    """
    pace = np.ones(seconds.shape[1])
    for _ in range(POLISHES):
        own = np.median(seconds / pace, axis=1)
        pace = np.median(seconds / own[:, None], axis=0)
    return own * np.median(pace)


def terms_of(model: Model, timings: Sequence[Timing]) -> LatencyTerms:
    """Returns what the model's blocks take, fitted to what was measured."""
    geometry, kinds = model.geometry, kinds_of(model)
    shares = geometry.prefix_tokens + np.array(SHARES[::-1]) * geometry.num_patches
    knots = np.unique([geometry.prefix_tokens + 1, *np.rint(shares)])
    linear_in, quadratic_in, linear_out = model.macs.of_block(0)
    middle = (knots[1:] + knots[:-1]) / 2
    mlp_share = linear_out / (linear_out + linear_in + 2 * quadratic_in * middle)
    fit = Fit(timings, knots, mlp_share, len(kinds))
    rows = [fit.times(kind, blocks) for kind, blocks in enumerate(kinds) if blocks]
    return LatencyTerms(fit.base(timings[0].base), tuple(rows))


def described(probe: Probe, ms: dict[str, float]) -> dict[str, Json]:
    """Returns a probe and its time for the table's record."""
    depth, left = probe.schedule.depth, list(probe.schedule.merge)
    return {"depth": depth, "left": left, "ms": ms[probe.name]}
