"""What runs leave behind, as dataclasses; `reader` makes them of files."""

import contextlib
import dataclasses
import re
import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from diffrate_jax.errors import UserError
from diffrate_jax.latency import LatencyTable
from diffrate_jax.models import create_model
from diffrate_jax.reporting.records import Percent, Positive, PositiveFloat
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Geometry
from diffrate_jax.sources import WEIGHTS

Counts = tuple[Positive, ...]
SEED = r"(seed[ _=-]?)\d+"


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to run a model, and how well it did.

    Attributes:
        correct: 0 or 1 for each image.
        labels: a hash of the images' labels; older files have none.
    """

    name: str
    macs: Positive
    fraction: float
    count: Positive
    top1: Percent
    top5: Percent
    loss: float
    images_per_second: float
    correct: str
    labels: str | None = None
    target: str | None = None
    rule: str | None = None
    prune: Counts | None = None
    merge: Counts | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Accuracy of several rows on the same images."""

    path: str
    command: str
    environment: dict[str, Any]
    model: str
    dataset: str
    split: str
    dense_macs: Positive
    rows: tuple[Row, ...]
    dtype: str = "float32"

    @property
    def weights(self) -> str | None:
        """Name of the weights that the command gives, None where it gives none.

        Folders above do not matter, nor does a seed's number: a hash would tell apart
        models that several seeds trained, which are to be taken together.
        """
        words = "\0".join(words_of(self.command))
        given = re.findall(r"--config\.weights[=\0]([^\0]*)", words)
        # Of equal flags the last counts.
        path = PurePosixPath(given[-1] if given else "")
        # A folder and the file in it are the same weights.
        name = path.parent.name if path.name == WEIGHTS else path.name
        return re.sub(SEED, r"\1*", name or path.name) or None

    @property
    def commit(self) -> str:
        """Version of the code, as far as it is known."""
        return str(self.environment.get("commit"))

    @property
    def is_of_tuning(self) -> bool:
        """Whether this compares weights before and after they were fine-tuned."""
        return "diffrate_jax.finetune" in words_of(self.command)


@dataclasses.dataclass(frozen=True)
class BenchmarkRow:
    """Speed of one row.

    Speed-up is over the first row, which is dense. Efficiency is speed-up over the
    fastest dense row, a peer's too (`best_dense`), times the row's share of dense MACs.
    Memory is in bytes, `of_peak` a share of what the device does in a large product.
    """

    name: str
    macs: Positive
    images_per_second: PositiveFloat
    seconds: tuple[PositiveFloat, ...]
    compile_seconds: float
    speedup: PositiveFloat
    efficiency: PositiveFloat
    of_peak: float | None = None
    memory_bytes: int | None = None
    attention: str | None = None
    best_dense: str | None = None
    rule: str | None = None
    prune: Counts | None = None
    merge: Counts | None = None


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Speed of several rows on one device."""

    path: str
    command: str
    environment: dict[str, Any]
    model: str
    batch_size: Positive
    dtype: str
    rows: tuple[BenchmarkRow, ...]
    peak_flops: float | None = None


@dataclasses.dataclass(frozen=True)
class Misfit:
    """A benchmark that did not fit the device, and why."""

    path: str
    model: str
    batch_size: Positive
    dtype: str
    schedule: str
    reason: str


@dataclasses.dataclass(frozen=True)
class SearchStep:
    """What search logged at one step; the target is in MACs or in milliseconds."""

    step: int
    loss: float
    macs: float
    target_macs: float | None = None
    latency_ms: float | None = None
    target_latency_ms: float | None = None
    prune: Counts | None = None
    merge: Counts | None = None


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """What training logged at one step."""

    step: int
    loss: float


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a search comes from: what its comparison.json says of it."""

    path: str
    command: str
    environment: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything found in a folder, by path relative to it, in path order.

    Attributes:
        problems: one sentence for each file that could not be read.
        ignored: number of JSON files that are no results.
    """

    schedules: Mapping[str, Schedule]
    searches: Mapping[str, tuple[SearchStep, ...]]
    trainings: Mapping[str, tuple[TrainStep, ...]]
    evaluations: tuple[Evaluation, ...]
    benchmarks: tuple[Benchmark, ...]
    misfits: tuple[Misfit, ...] = ()
    latencies: Mapping[str, LatencyTable] = dataclasses.field(default_factory=dict)
    origins: tuple[Origin, ...] = ()
    problems: tuple[str, ...] = ()
    ignored: int = 0

    def is_empty(self) -> bool:
        """Returns whether there is nothing to show."""
        return not any(
            (
                *(self.schedules, self.searches, self.trainings, self.evaluations),
                *(self.benchmarks, self.misfits, self.latencies),
            )
        )


def words_of(command: str) -> list[str]:
    """Returns the words of a command, as a shell takes them where it would."""
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def without_seed(run: Evaluation) -> str:
    r"""Returns the command of a run with a sign for its seeds and for its target.

    >>> re.sub(SEED, r"\1*", "evaluate --config.seed=3 --workdir=runs/seed12/60")
    'evaluate --config.seed=* --workdir=runs/seed*/60'
    """
    command = re.sub(SEED, r"\1*", run.command)
    for target in {row.target for row in run.rows if row.target}:
        number = re.escape(target.rstrip("%ms "))
        command = re.sub(rf"(?<!\d)(?<!\d\.){number}(?!\.?\d)", "#", command)
    return command


def geometry_of(schedule: Schedule) -> Geometry:
    """Returns the token counts of the model that a schedule is for.

    The model says it, where the schedule was saved with one. Otherwise the first count
    does: published searches leave the first block alone (DiffRate, section 4.1).
    """
    fields = schedule.provenance.get("model")
    if isinstance(fields, dict):
        family = "caformer" if "depths" in fields else "vit"
        with contextlib.suppress(UserError):
            geometry = create_model(family, **fields).geometry
            if geometry.depth == schedule.depth:
                return geometry
    first = (schedule.prune or schedule.merge)[0]
    return Geometry(first, 0, (True,) * schedule.depth)
