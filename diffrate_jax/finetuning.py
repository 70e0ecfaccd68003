"""Training as a run: weights and schedule into one folder, and what that changes."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from diffrate_jax import parallel, recipes
from diffrate_jax.compress import Gathered
from diffrate_jax.compressions import Cases, parse_compression, schedule_of
from diffrate_jax.data import Dataset
from diffrate_jax.distributed import is_first
from diffrate_jax.errors import UserError
from diffrate_jax.files import Json, digest, write_json
from diffrate_jax.model_folder import save_model
from diffrate_jax.models import Model, Params
from diffrate_jax.models.vit import Compression
from diffrate_jax.progress import say
from diffrate_jax.runs import TALLIES, evaluated, evaluation_record, unpublished
from diffrate_jax.sources import ABOUT, WEIGHTS
from diffrate_jax.training import TrainRecipe, train
from diffrate_jax.workdir import CONFIG, claim, has, read

SCHEDULE, EVALUATION = "schedule.json", "evaluation.json"
# Names of the rows: given weights without and with the schedule, then trained ones.
DENSE, BEFORE, AFTER, DENSE_AFTER = "dense", "before", "after", "dense, after"


def run_training(
    config: ConfigDict, workdir: epath.Path, schedule: str = "none"
) -> Params:
    """Trains weights into `workdir`, going on where an earlier run stopped.

    The folder ends as one that `convert` writes, with `schedule.json` beside.

    Args:
        config: recipe of the run.
        workdir: its folder.
        schedule: in place while training; see `parse_compression`.

    Raises:
        UserError: anything that does not fit, in one sentence.
    """
    model = recipes.model_of(config)
    compression = in_place(schedule, model, config)
    recipe = recipes.train_recipe(config, model)
    dataset = recipes.dataset_of(config, model)
    check_wanted(config, recipe, model, dataset)
    if config.final_evaluation:
        recipes.check_evaluation(config, model, dataset)
    check_empty(workdir)
    batches = recipes.batches_of(config, dataset)
    params = recipes.params_of(config, model, required=False)
    run = {"program": "finetune", "schedule": schedule}
    run |= {"schedule_counts": counts(compression, model)}
    run |= {"weights_sha256": recipes.weights_digest(config)}
    claim(workdir, config.to_dict() | run)
    say(recipes.preprocess_of(config, model))
    params = train(
        model,
        params,
        batches,
        recipe,
        compression=compression,
        workdir=workdir,
        checkpoint_every=config.checkpoint_every,
        log_every=config.log_every,
    )
    if not all(np.isfinite(array).all() for array in jax.tree.leaves(params)):
        raise UserError(
            "the trained weights are not finite; lower the learning rate or check "
            "weights and data, then train into another --workdir"
        )
    if is_first():
        write(config, workdir, model, params, schedule, compression)
    return params


def in_place(text: str, model: Model, config: ConfigDict) -> Compression | None:
    """Returns what `--schedule` names, as the schedule that is saved will run."""
    compression = parse_compression(text, model, config.model)
    if isinstance(compression, Gathered):
        return Gathered(compression.schedule)
    return compression


def counts(compression: Compression | None, model: Model) -> Mapping[str, Json]:
    """Returns what a compression keeps, as JSON."""
    found = schedule_of(compression, model.geometry)
    return {"rule": found.rule, "prune": found.prune, "merge": found.merge}


def check_wanted(
    config: ConfigDict, recipe: TrainRecipe, model: Model, dataset: Dataset
) -> None:
    """Refuses to train towards outputs that nothing gives.

    Raises:
        UserError: a model without classes, labels of other classes, or distillation
            without a teacher.
    """
    if not model.num_classes:
        raise UserError(
            "training needs class probabilities, and this model has no classes; give "
            "it a head (convert --num_classes)"
        )
    if recipe.distill < 1 and dataset.num_classes != model.num_classes:
        raise UserError(
            f"the model tells {model.num_classes} classes apart, {dataset.name} has "
            f"{dataset.num_classes}; use a model made for the dataset, or "
            "config.distill=1, which needs no labels"
        )
    if recipe.distill and not config.weights:
        raise UserError(
            "distillation needs a trained teacher, the weights that a run starts from; "
            "give --config.weights=FILE, or config.distill=0"
        )


def check_empty(workdir: epath.Path) -> None:
    """Refuses to train over what another program left.

    Raises:
        UserError: the folder holds a model or an evaluation, and no training.
    """
    if is_first() and not (workdir / CONFIG).exists():
        for name in (ABOUT, WEIGHTS, EVALUATION):
            if (workdir / name).exists():
                raise UserError(
                    f"{workdir} holds {name} of another run; give another --workdir"
                )


def write(
    config: ConfigDict,
    workdir: epath.Path,
    model: Model,
    params: Params,
    schedule: str,
    compression: Compression | None,
) -> None:
    """Writes the folder that a run ends in; the model's description comes last."""
    if isinstance(compression, Gathered):
        compression.schedule.save(workdir / SCHEDULE)
    recipe = dataclasses.asdict(recipes.train_recipe(config, model))
    provenance = {
        "program": "finetune",
        "weights": Path(config.weights).name,
        "weights_sha256": recipes.weights_digest(config),
        "schedule": schedule,
        "schedule_counts": counts(compression, model),
        "dataset": config.dataset,
        "split": config.train_split,
        "batch_size": config.batch_size,
        "recipe": recipe,
    }
    save_model(workdir, model, params, name=config.model, provenance=provenance)


def run_comparison(
    config: ConfigDict,
    workdir: epath.Path,
    schedule: str,
    params: Params,
    command: str,
) -> dict[str, Json]:
    """Evaluates given and trained weights with the schedule and without it.

    That the trained weights run densely too is the control: a schedule's loss is only
    made good by as much as it gains on the dense model.

    Args:
        config: of the run.
        workdir: its folder, where the record is kept; a second call reads it.
        schedule: that was in place.
        params: the weights that were trained.
        command: that gives these figures.
    """
    if has(workdir, EVALUATION):
        return read(workdir, EVALUATION)
    model = recipes.model_of(config)
    compression = in_place(schedule, model, config)
    tuned = digest(workdir / WEIGHTS) if is_first() else ""
    sha = parallel.of_first_host(tuned)
    after: Cases = {AFTER: compression}
    target = schedule_of(compression, model.geometry).provenance.get("target")
    rows = []
    if compression is not None:
        after[DENSE_AFTER] = None
    if config.weights:
        given: Cases = {DENSE: None}
        if compression is not None:
            given[BEFORE] = compression
        old = recipes.params_of(config, model), recipes.weights_digest(config)
        place = workdir / TALLIES / "given"
        rows += evaluated(config, place, {target: given}, *old)
    place = workdir / TALLIES / "trained"
    rows += unpublished(evaluated(config, place, {target: after}, params, sha))
    record = evaluation_record(config, rows, command)
    write_json(workdir / EVALUATION, record)
    return record


def outcome(record: dict[str, Json]) -> str:
    """Returns as one sentence what training changed."""
    top1 = {row["name"]: row["top1"] for row in record["rows"]}
    told = [f"{name} {value:.2f}" for name, value in top1.items()]
    sentence = f"top-1 % of {record['split']}: {', '.join(told)}"
    if BEFORE in top1:
        sentence += f"; {gain(top1, BEFORE, AFTER)} points with the schedule in place"
        # The control: what training alone does to the dense model.
        sentence += f", {gain(top1, DENSE, DENSE_AFTER)} without it"
        won, lost = top1[AFTER] - top1[BEFORE], top1[DENSE] - top1[BEFORE]
        # Below nothing or above all of it, a share of the loss says nothing.
        if lost > 0 and 0 <= won <= lost:
            sentence += f"; {won / lost:.0%} of what the schedule lost is back"
    return sentence


def gain(top1: Mapping[str, float], before: str, after: str) -> str:
    """Returns by how many points a row is above another, with its sign."""
    # Never "-0.00": what rounds to nothing is above it.
    return f"{round(top1[after] - top1[before], 2) + 0.0:+.2f}"
