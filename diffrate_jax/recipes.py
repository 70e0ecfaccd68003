"""From a config file to typed values: nothing beyond this file sees a ConfigDict."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffrate_jax import parallel
from diffrate_jax.batches import Batches
from diffrate_jax.compressions import parse_compression, schedule_of
from diffrate_jax.data import Batch, Dataset, open_dataset, steps_per_epoch
from diffrate_jax.data.augment import Augment
from diffrate_jax.data.corrupt import Corruption
from diffrate_jax.data.mix import check_pairs
from diffrate_jax.data.rand_augment import RandAugment
from diffrate_jax.distributed import first_process_first
from diffrate_jax.errors import UserError, did_you_mean
from diffrate_jax.evaluation import Evaluator, check_classes
from diffrate_jax.files import digest
from diffrate_jax.latency import LatencyTable
from diffrate_jax.model_folder import load_params
from diffrate_jax.models import Model, Params, create_model, init_weights
from diffrate_jax.preprocess import Preprocess, of_preset, published
from diffrate_jax.recipe import Recipe
from diffrate_jax.sources import local_path
from diffrate_jax.training import TrainRecipe

DTYPES = ("float32", "bfloat16")


def model_of(config: ConfigDict) -> Model:
    """Returns the config's model.

    Raises:
        UserError: an unknown type of activations, or what `create_model` refuses.
    """
    if config.dtype not in DTYPES:
        hint = did_you_mean(config.dtype, DTYPES)
        raise UserError(f"unknown config.dtype {config.dtype!r}; {hint}")
    model = create_model(config.model, **config.model_fields.to_dict())
    return model.clone(dtype=jnp.dtype(config.dtype))


def params_of(config: ConfigDict, model: Model, *, required: bool = True) -> Params:
    """Returns the config's weights; random ones if none are required or given.

    Raises:
        UserError: no weights where they are required, or they do not fit.
    """
    if config.weights:
        return load_params(model, config.weights)
    if required:
        raise UserError("trained weights are needed: give --config.weights=FILE")
    return init_weights(model, config.seed)


def weights_digest(config: ConfigDict) -> str:
    """Returns the SHA-256 of the config's weights; of nothing where it has none."""
    return digest(local_path(config.weights) if config.weights else "")


def preprocess_of(config: ConfigDict, model: Model) -> Preprocess:
    """Returns what images go through before the model evaluates them.

    Raises:
        UserError: an unknown `preprocess`, or a model without one of its own.
    """
    if config.preprocess == "published":
        return published(model.image_size)
    if config.preprocess == "timm":
        return of_preset(config.model, model.image_size)
    if config.preprocess:
        hint = did_you_mean(config.preprocess, ["published", "timm"])
        raise UserError(f"unknown config.preprocess {config.preprocess!r}; {hint}")
    return Preprocess(
        "recipe",
        config.resize,
        model.image_size,
        config.interpolation,
        tuple(config.mean),
        tuple(config.std),
    )


def dataset_of(config: ConfigDict, model: Model) -> Dataset:
    """Returns the config's dataset, brought to the model's image size.

    Whether its classes have to be the model's is for those to say who use its labels.

    Raises:
        UserError: it cannot be opened.
    """
    preprocess = preprocess_of(config, model)
    try:
        # What is made on first use is made once, where processes share a disk.
        with first_process_first(config.dataset):
            return open_dataset(
                config.dataset,
                image_size=model.image_size,
                data_dir=config.data_dir or None,
                crop=config.crop,
                resize=preprocess.resize,
                interpolation=preprocess.interpolation,
                rand_augment=rand_augment_of(config, preprocess),
                repeats=config.repeats,
            )
    except OSError as error:
        raise UserError(
            f"cannot open the dataset {config.dataset!r}: {error}; "
            "check config.data_dir"
        ) from error


def rand_augment_of(config: ConfigDict, preprocess: Preprocess) -> RandAugment | None:
    """Returns what the config does to cropped training images, None for nothing."""
    if not config.rand_augment_magnitude:
        return None
    return RandAugment(
        magnitude=config.rand_augment_magnitude,
        std=config.rand_augment_std,
        layers=config.rand_augment_layers,
        # As in timm: what comes into view is of the mean colour.
        fill=tuple(round(255 * channel) for channel in preprocess.mean),
    )


def batches_of(
    config: ConfigDict, dataset: Dataset, seed: int | None = None
) -> Batches:
    """Returns this host's training stream from any step onward.

    Args:
        config: of the run.
        dataset: that it asks for.
        seed: of another stream than the config's.

    Raises:
        UserError: no such split, or a batch that it or the devices do not allow.
    """
    parallel.check_batch_size(config.batch_size)
    if config.mixup or config.cutmix:
        check_pairs(config.batch_size // jax.device_count())
    steps_per_epoch(dataset, config.train_split, config.batch_size)

    def stream(start: int) -> Iterator[Batch]:
        return dataset.batches(
            config.train_split,
            batch_size=config.batch_size,
            seed=config.seed if seed is None else seed,
            start=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    return stream


def augment_of(config: ConfigDict, model: Model) -> Augment:
    """Returns what the config does to training images and labels."""
    preprocess = preprocess_of(config, model)
    return Augment(
        mean=preprocess.mean,
        std=preprocess.std,
        flip=config.flip,
        shift=config.shift,
        label_smoothing=config.label_smoothing,
        mixup=config.mixup,
        cutmix=config.cutmix,
        erasing=config.erasing,
    )


def search_recipe(config: ConfigDict, model: Model) -> Recipe:
    """Returns how the config searches.

    Raises:
        UserError: a value that no search can use, or a start that does not fit.
    """
    own = {"start", "augment"}
    names = {field.name for field in dataclasses.fields(Recipe)} - own
    start = config.start
    if start not in ("uniform", "dense"):
        compression = parse_compression(start, model, config.model)
        start = schedule_of(compression, model.geometry)
    fields = {name: config[name] for name in names}
    return Recipe(start=start, augment=augment_of(config, model), **fields)


def targets_of(config: ConfigDict) -> list[str]:
    """Returns the budgets of a search: `targets`, or else the one `target`."""
    return [str(target) for target in config.targets or (config.target,)]


def latency_of(config: ConfigDict) -> LatencyTable | None:
    """Returns the config's latency table, None where it names none.

    Raises:
        UserError: it cannot be read.
    """
    path = config.latency_table
    return LatencyTable.load(path) if path else None


def train_recipe(config: ConfigDict, model: Model) -> TrainRecipe:
    """Returns how the config trains weights."""
    return TrainRecipe(
        steps=config.steps,
        learning_rate=config.learning_rate,
        final_learning_rate=config.final_learning_rate,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        drop_path=config.drop_path,
        remat=config.remat,
        augment=augment_of(config, model),
        distill=config.distill,
        temperature=config.temperature,
        layer_decay=config.layer_decay,
        ema=config.ema,
        seed=config.seed,
    )


def check_evaluation(config: ConfigDict, model: Model, dataset: Dataset) -> None:
    """Refuses an evaluation at once that would fail after hours of training.

    Raises:
        UserError: as `Evaluator` does, or there is no such split.
    """
    parallel.check_batch_size(config.eval_batch_size)
    check_classes(model, dataset)
    Corruption.parse(config.corruption)
    dataset.size(config.eval_split)


def evaluator_of(
    config: ConfigDict, model: Model, params: Params, dataset: Dataset
) -> Evaluator:
    """Returns what evaluates schedules on the config's evaluation split."""
    preprocess = preprocess_of(config, model)
    return Evaluator(
        model,
        params,
        dataset,
        config.eval_split,
        batch_size=config.eval_batch_size,
        mean=preprocess.mean,
        std=preprocess.std,
        corruption=Corruption.parse(config.corruption),
    )
