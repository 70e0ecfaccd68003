"""An evaluation as a run: it fills one folder, and goes on where it stopped."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from diffrate_jax import recipes
from diffrate_jax.baselines import baselines
from diffrate_jax.compress import Gathered
from diffrate_jax.compressions import Cases, schedule_of
from diffrate_jax.cost import cost_macs, macs_of
from diffrate_jax.environment import environment
from diffrate_jax.errors import UserError
from diffrate_jax.evaluation import score_row
from diffrate_jax.files import Json
from diffrate_jax.model_folder import is_tuned
from diffrate_jax.models import Model, Params, architecture
from diffrate_jax.models.vit import Compression
from diffrate_jax.progress import say
from diffrate_jax.published import published_figures
from diffrate_jax.schedule import Schedule
from diffrate_jax.sources import local_path
from diffrate_jax.workdir import claim

TALLIES = "evaluation"
# By the budget that they were made for, if any.
Groups = Mapping[str | None, Cases]


def with_baselines(model: Model, schedule: Schedule, seed: int) -> Cases:
    """Returns dense, a schedule, and every baseline at the schedule's cost."""
    cases: Cases = {"dense": None, "learned": Gathered(schedule)}
    measure = macs_of(model)
    return cases | baselines(measure, measure(schedule), seed, schedule.rule)


def run_evaluation(
    config: ConfigDict,
    workdir: epath.Path,
    groups: Groups,
    command: str,
) -> dict[str, Json]:
    """Evaluates each case on every example of the split; returns the record.

    Args:
        config: recipe with model, weights, dataset and split.
        workdir: whose folder `evaluation` keeps what is counted, so that the same
            command goes on where it stopped.
        groups: what to evaluate, by name, for each budget that cases share.
        command: that gives these figures.

    Raises:
        UserError: data or weights that do not fit, a loss that is not finite, or a
            work directory that holds another evaluation.
    """
    model = recipes.model_of(config)
    params = recipes.params_of(config, model)
    digest = recipes.weights_digest(config)
    rows = evaluated(config, workdir / TALLIES, groups, params, digest)
    if is_tuned(local_path(config.weights)):
        rows = unpublished(rows)
    return evaluation_record(config, rows, command)


def evaluation_record(
    config: ConfigDict, rows: list[dict[str, Json]], command: str
) -> dict[str, Json]:
    """Returns what an evaluation says.

    Raises:
        UserError: a loss that is not finite.
    """
    model = recipes.model_of(config)
    check_losses(rows)
    return {
        "kind": "evaluation",
        "command": command,
        "environment": environment(),
        "model": config.model,
        "dtype": config.dtype,
        "dataset": config.dataset,
        # Corrupted images are others: nobody is to take them for the split's own.
        "split": ", ".join(filter(None, [config.eval_split, config.corruption])),
        "corruption": config.corruption,
        "preprocess": dataclasses.asdict(recipes.preprocess_of(config, model)),
        "dense_macs": cost_macs(model, None),
        "rows": rows,
    }


def evaluated(
    config: ConfigDict,
    folder: epath.Path,
    groups: Groups,
    params: Params,
    weights_sha256: str,
) -> list[dict[str, Json]]:
    """Returns a row for each case, counted into the files of a folder.

    Args:
        config: see `run_evaluation`; its weights are not read.
        folder: of the counts.
        groups: what to evaluate, by name and budget.
        params: the weights.
        weights_sha256: of the file that holds them.

    Raises:
        UserError: the folder holds another evaluation, or the data have changed since.
    """
    model = recipes.model_of(config)
    dataset = recipes.dataset_of(config, model)
    evaluator = recipes.evaluator_of(config, model, params, dataset)
    size = dataset.size(config.eval_split)
    claim(folder, counted(config, model, groups, size, weights_sha256))
    say(recipes.preprocess_of(config, model))
    rows = []
    for target, name, compression in flat_cases(groups):
        path = folder / f"{len(rows)}.json"
        label = name if len(groups) == 1 or target is None else f"{name} at {target}"
        score = evaluator.score(
            compression, label, path=path, save_every=config.log_every
        )
        row = score_row(name, model, compression, score)
        row |= as_published(config.model, compression, model)
        rows.append(row | {"target": target})
    if len({row["labels"] for row in rows}) > 1:
        raise UserError(
            f"the examples of {config.dataset} are not the same for all of "
            f"{', '.join(row['name'] for row in rows)}: the data changed since they "
            f"were counted; remove the folder {folder} to count again"
        )
    return rows


def flat_cases(
    groups: Groups,
) -> Iterator[tuple[str | None, str, Compression | None]]:
    """Yields budget, name and compression of each case."""
    for target, cases in groups.items():
        for name, compression in cases.items():
            yield target, name, compression


def as_published(
    preset: str, compression: Compression | None, model: Model
) -> dict[str, Json]:
    """Returns what was published of a schedule that was; nothing of others."""
    provenance = schedule_of(compression, model.geometry).provenance
    if "published" not in provenance:
        return {}
    target = provenance["published"]
    return {"published": {"target": target} | published_figures(preset, target)}


def unpublished(rows: list[dict[str, Json]]) -> list[dict[str, Json]]:
    """Returns rows without what was published of other weights than were evaluated."""
    return [{k: v for k, v in row.items() if k != "published"} for row in rows]


def counted(
    config: ConfigDict, model: Model, groups: Groups, size: int, weights_sha256: str
) -> dict[str, Json]:
    """Returns all that an evaluation's counts depend on."""
    schedules, several = {}, len(groups) > 1
    for target, name, compression in flat_cases(groups):
        key = f"{target}: {name}" if several else name
        schedules[key] = schedule_of(compression, model.geometry)
    corruption = {"corruption": config.corruption} if config.corruption else {}
    return corruption | {
        "program": "evaluate",
        "model": architecture(model) | {"dtype": config.dtype},
        "weights_sha256": weights_sha256,
        "dataset": config.dataset,
        "split": config.eval_split,
        "images": size,
        "batch": config.eval_batch_size,
        "preprocess": dataclasses.asdict(recipes.preprocess_of(config, model)),
        "rows": list(schedules),
        "schedules": {
            name: {"rule": found.rule, "prune": found.prune, "merge": found.merge}
            for name, found in schedules.items()
        },
    }


def check_losses(rows: list[dict[str, Json]]) -> None:
    """Refuses figures that mean nothing.

    Raises:
        UserError: naming the first row whose loss is not finite.
    """
    for row in rows:
        if not np.isfinite(row["loss"]):
            raise UserError(
                f"the loss of {row['name']!r} is not finite, so nothing it reaches "
                "means anything; check the weights and the data"
            )
