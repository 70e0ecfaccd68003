"""The runs that programs are made of: each fills one folder and can be repeated."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from diffrate_jax import cli, recipes
from diffrate_jax.baselines import baselines, parse_compression, schedule_of
from diffrate_jax.compress import Gathered
from diffrate_jax.cost import cost_macs
from diffrate_jax.errors import UserError
from diffrate_jax.evaluation import score_row
from diffrate_jax.files import Json
from diffrate_jax.inference import compile_inference
from diffrate_jax.models import Params
from diffrate_jax.models.vit import Compression, ViT
from diffrate_jax.schedule import Schedule
from diffrate_jax.timing import Timed, time_in_turn
from diffrate_jax.training import train
from diffrate_jax.weights import save_weights
from diffrate_jax.workdir import claim

WEIGHTS = "weights.safetensors"
Cases = dict[str, Compression | None]


def run_training(config: ConfigDict, workdir: Path, schedule: str = "none") -> Params:
    """Trains weights into `workdir`, going on where an earlier run stopped.

    Args:
        config: recipe of the run.
        workdir: its folder.
        schedule: in place while training; see `parse_compression`.
    """
    model = recipes.model_of(config)
    compression = parse_compression(schedule, model, config.model)
    recipe = recipes.train_recipe(config)
    dataset = recipes.dataset_of(config, model)
    batches = recipes.batches_of(config, dataset)
    params = recipes.params_of(config, model, required=False)
    run = {"program": "finetune", "schedule": schedule}
    run |= {"weights_sha256": recipes.weights_digest(config)}
    claim(workdir, config.to_dict() | run)
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
    save_weights(model, params, workdir / WEIGHTS)
    return params


def with_baselines(model: ViT, schedule: Schedule, seed: int) -> Cases:
    """Returns dense, a schedule, and every baseline at the schedule's cost."""
    cases: Cases = {"dense": None, "learned": Gathered(schedule)}
    macs = cost_macs(model, schedule)
    return cases | baselines(model, macs, seed, schedule.rule)


def run_evaluation(
    config: ConfigDict, cases: Cases, command: str, target: str | None = None
) -> dict[str, Json]:
    """Evaluates each case on every example of the split; returns the record.

    Args:
        config: recipe with model, weights, dataset and split.
        cases: what to evaluate, by name.
        command: that gives these figures.
        target: the budget that the cases share, if they do.

    Raises:
        UserError: data or weights that do not fit, or a loss that is not finite.
    """
    model = recipes.model_of(config)
    params = recipes.params_of(config, model)
    evaluator = recipes.evaluator_of(
        config, model, params, recipes.dataset_of(config, model)
    )
    rows = [
        score_row(name, model, compression, evaluator.score(compression, name))
        | {"target": target}
        for name, compression in cases.items()
    ]
    for row in rows:
        if not np.isfinite(row["loss"]):
            raise UserError(
                f"the loss of {row['name']!r} is not finite, so nothing it reaches "
                "means anything; check the weights and the data"
            )
    return {
        "kind": "evaluation",
        "command": command,
        "environment": cli.environment(),
        "model": config.model,
        "dataset": config.dataset,
        "split": config.eval_split,
        "dense_macs": cost_macs(model, None),
        "rows": rows,
    }


@dataclasses.dataclass(frozen=True)
class Speed:
    """How to time programs.

    Attributes:
        batch_size: images to a call.
        dtype: of weights and activations.
        rounds: times that each program runs.
    """

    batch_size: int
    dtype: str
    rounds: int


def run_benchmark(
    model: ViT, name: str, params: Params, cases: Cases, speed: Speed, command: str
) -> dict[str, Json]:
    """Times each case, dense first, alternately in one run; returns the record."""
    timed = [
        Timed(
            case,
            compile_inference(
                model,
                params,
                compression,
                batch_size=speed.batch_size,
                dtype=speed.dtype,
            ),
            cost_of(model, compression),
        )
        for case, compression in cases.items()
    ]
    return {
        "kind": "benchmark",
        "command": command,
        "environment": cli.environment(),
        "model": name,
        "batch_size": speed.batch_size,
        "dtype": speed.dtype,
        "rows": time_in_turn(timed, model.image_size, rounds=speed.rounds),
    }


def cost_of(model: ViT, compression: Compression | None) -> int:
    """Returns the multiply-accumulates of one image with a compression in place."""
    return cost_macs(model, schedule_of(compression, model.geometry))
