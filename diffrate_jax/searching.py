"""A search as a run: schedules into a folder, and how they compare at equal cost."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from diffrate_jax import recipes
from diffrate_jax.baselines import hand_made
from diffrate_jax.batches import Batches
from diffrate_jax.compress import Gathered
from diffrate_jax.compressions import schedule_of
from diffrate_jax.cost import Measure, macs_of
from diffrate_jax.data import Batch, Dataset, steps_per_epoch
from diffrate_jax.data.augment import Colour, normalise
from diffrate_jax.data.held_out import HeldOut
from diffrate_jax.environment import environment
from diffrate_jax.errors import UserError
from diffrate_jax.evaluation import Evaluator, score_row
from diffrate_jax.files import Json, write_json
from diffrate_jax.latency import MILLISECONDS
from diffrate_jax.learning import (
    SearchResult,
    budgets_of,
    learn_schedules,
    searched,
)
from diffrate_jax.learning.objective import CROSS_ENTROPY, MATCH_LOGITS
from diffrate_jax.models import Model, Params, forward
from diffrate_jax.progress import say
from diffrate_jax.rates import candidate_counts
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Array
from diffrate_jax.version import __version__
from diffrate_jax.workdir import claim, has, read

SCHEDULE, PARETO, COMPARISON = "schedule.json", "pareto.json", "comparison.json"


def run_search(config: ConfigDict, workdir: epath.Path) -> list[Schedule]:
    """Learns a schedule for each target into `workdir`, going on where it stopped.

    Raises:
        UserError: anything that does not fit, in one sentence.
    """
    model = recipes.model_of(config)
    targets = recipes.targets_of(config)
    recipe, latency = recipes.search_recipe(config, model), recipes.latency_of(config)
    budgets_of(searched(model, recipe), recipe, targets, latency)
    candidate_counts(model.geometry.num_patches, recipe.granularity)
    params = recipes.params_of(config, model)
    dataset = recipes.dataset_of(config, model)
    check_labels(config, dataset, model)
    batches = stream_of(config, dataset)
    recipe = dataclasses.replace(recipe, refine_images=held_out(config, dataset))
    run = {"program": "search", "weights_sha256": recipes.weights_digest(config)}
    if latency is not None:
        run["latency"] = latency.record()
    claim(workdir, config.to_dict() | run)
    say(recipes.preprocess_of(config, model))
    files = [schedule_file(target, alone=len(targets) == 1) for target in targets]
    if all(has(workdir, file) for file in files):
        return [Schedule.from_record(read(workdir, file), file) for file in files]
    results = learn_schedules(
        model,
        params,
        batches,
        targets,
        recipe=recipe,
        latency=latency,
        workdir=workdir,
        checkpoint_every=config.checkpoint_every,
        log_every=config.log_every,
    )
    schedules = [described(config, dataset, result) for result in results]
    if len(targets) > 1:
        write_json(workdir / PARETO, pareto(targets, schedules))
    for file, schedule in zip(files, schedules, strict=True):
        schedule.save(workdir / file)
    return schedules


def check_labels(config: ConfigDict, dataset: Dataset, model: Model) -> None:
    """Refuses to learn from labels that are not of the model's classes.

    Raises:
        UserError: naming both numbers.
    """
    labelled = config.objective == CROSS_ENTROPY
    if labelled and not fits(dataset, model):
        raise UserError(
            f"the model tells {model.num_classes} classes apart, {dataset.name} has "
            f"{dataset.num_classes}; use a model made for the dataset, or the "
            f"objective {MATCH_LOGITS}, which needs no labels"
        )


def schedule_file(target: str, *, alone: bool) -> str:
    """Returns the name of a target's schedule file."""
    return SCHEDULE if alone else f"schedule_{target}.json"


def held_out(config: ConfigDict, dataset: Dataset) -> int:
    """Returns how many images are held out for refining: none of them twice.

    A schedule says of how many images it was learned, these included.
    """
    epoch = steps_per_epoch(dataset, config.train_split, config.batch_size)
    return min(config.refine_images, epoch * config.batch_size // config.repeats)


def held_out_batches(config: ConfigDict, dataset: Dataset) -> int:
    """Returns how many batches the held-out images take."""
    return -(-held_out(config, dataset) // config.batch_size)


def stream_of(config: ConfigDict, dataset: Dataset) -> Batches:
    """Returns a search's stream from any step onward: the held-out images first.

    They are the first of the order of `refine_seed`, so that searches of different
    seeds end by the same images, and what they say of them can be compared. What
    follows is the seed's own. With another seed, and from the second epoch on, a
    descent and the comparison after it see held-out images too: of 50,000 images one
    in twelve.
    """
    own = recipes.batches_of(config, dataset)
    same = recipes.batches_of(config, dataset, config.refine_seed)
    count = held_out_batches(config, dataset)

    def stream(start: int) -> Iterator[Batch]:
        if start < count:
            yield from itertools.islice(same(start), count - start)
        yield from own(max(start, count))

    return stream


def described(config: ConfigDict, dataset: Dataset, result: SearchResult) -> Schedule:
    """Returns a schedule that says where it comes from."""
    provenance = {
        **result.schedule.provenance,
        "weights": Path(config.weights).name,
        "weights_sha256": recipes.weights_digest(config),
        "dataset": config.dataset,
        "split": config.train_split,
        "images": dataset.size(config.train_split),
        "held_out_images": held_out(config, dataset),
        "steps": config.steps,
        "seed": config.seed,
        "version": __version__,
    }
    if MILLISECONDS.name in provenance:
        provenance["latency_table"] = recipes.latency_of(config).summary()
    return dataclasses.replace(result.schedule, provenance=provenance)


def pareto(targets: list[str], schedules: list[Schedule]) -> dict[str, Json]:
    """Returns the front that a run with several targets found, dearest first."""
    names = ("macs", MILLISECONDS.name)
    rows = [
        {
            "target": target,
            "file": schedule_file(target, alone=False),
            **{n: v for n, v in schedule.provenance.items() if n in names},
            "fraction": schedule.provenance["macs"] / schedule.provenance["dense_macs"],
            "held_out_loss": schedule.provenance.get("held_out_loss"),
            "rule": schedule.rule,
            "prune": schedule.prune,
            "merge": schedule.merge,
        }
        for target, schedule in zip(targets, schedules, strict=True)
    ]
    return {"kind": "pareto", "rows": sorted(rows, key=lambda row: -row["macs"])}


def compare(config: ConfigDict, schedule: Schedule, command: str) -> dict[str, Json]:
    """Compares a schedule with the hand-made ones at its cost, on training images.

    The images follow in the training stream on the last that the search saw.

    Args:
        config: of the search.
        schedule: that it found.
        command: that gives these figures.
    """
    model, rows = recipes.model_of(config), []
    dataset = recipes.dataset_of(config, model)
    if config.compare_images:
        cases = {"dense": None, "learned": Gathered(schedule)}
        measure = measure_of(config, model, schedule)
        cases |= hand_made(measure, measure(schedule), schedule.rule)
        evaluator = evaluator_of(config, model, dataset)
        rows = [
            score_row(name, model, case, evaluator.score(case, name))
            | {measure.unit.name: measure(schedule_of(case, model.geometry))}
            for name, case in cases.items()
        ]
    return {
        "kind": "comparison",
        "command": command,
        "environment": environment(),
        "dataset": config.dataset,
        "split": f"{config.train_split}, {config.compare_images} images",
        "labels": "dataset" if fits(dataset, model) else "dense model",
        "rows": rows,
    }


def measure_of(config: ConfigDict, model: Model, schedule: Schedule) -> Measure:
    """Returns what a found schedule's budget was counted in."""
    if MILLISECONDS.name in schedule.provenance:
        return recipes.latency_of(config).measure(model, schedule.rule)
    return macs_of(model)


def fits(dataset: Dataset, model: Model) -> bool:
    """Returns whether the dataset's labels are of the model's classes."""
    return dataset.num_classes == model.num_classes


def evaluator_of(config: ConfigDict, model: Model, dataset: Dataset) -> Evaluator:
    """Returns what evaluates schedules on the next images of the training stream.

    Where the dataset has other classes than the model, what the dense model says of an
    image is taken for its label.
    """
    params = recipes.params_of(config, model)
    preprocess = recipes.preprocess_of(config, model)
    colours = {"mean": preprocess.mean, "std": preprocess.std}
    used = config.steps * len(recipes.targets_of(config))
    used += held_out_batches(config, dataset)
    count = -(-config.compare_images // config.batch_size)
    stream = stream_of(config, dataset)(used)
    taken = list(itertools.islice(stream, count))
    if not fits(dataset, model):
        taken = as_dense(model, params, taken, **colours)
    return Evaluator(
        model,
        params,
        HeldOut(dataset, taken, jax.process_count(), model.num_classes),
        config.train_split,
        batch_size=config.batch_size,
        **colours,
    )


def as_dense(
    model: Model, params: Params, batches: list[Batch], *, mean: Colour, std: Colour
) -> list[Batch]:
    """Returns batches whose labels are the dense model's first guesses."""

    @jax.jit
    def guess(params: Params, images: Array) -> Array:
        return forward(model, params, normalise(images, mean, std)).logits.argmax(-1)

    return [
        batch | {"label": np.asarray(guess(params, batch["image"]), np.int32)}
        for batch in batches
    ]


def warn_if_beaten(rows: list[dict[str, Json]]) -> None:
    """Says on standard error if a plain ToMe schedule does better than the learned."""
    learned = next(row for row in rows if row["name"] == "learned")
    for row in rows:
        better = row["top1"] > learned["top1"] and row["loss"] < learned["loss"]
        if row["name"].startswith("ToMe") and better:
            say(
                f"warning: {row['name']} does better than the learned schedule at its "
                f"cost, {row['top1']:.2f} against {learned['top1']:.2f} % right; "
                "search longer, on more images, or use it instead"
            )
