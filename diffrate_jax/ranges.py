"""Ranges of the numbers in a recipe: what cannot end well never begins."""

from math import inf

from ml_collections import ConfigDict

from diffrate_jax.data.rand_augment import MOST
from diffrate_jax.errors import UserError
from diffrate_jax.workdir import flat

# Smallest and largest value of the fields that no type protects.
RANGES = {
    "steps": (1, inf),
    "batch_size": (1, inf),
    "eval_batch_size": (1, inf),
    "checkpoint_every": (1, inf),
    "log_every": (1, inf),
    "cpu_devices": (0, inf),
    "seed": (0, 2**32 - 1),
    "learning_rate": (1e-12, inf),
    "final_learning_rate": (0, inf),
    "weight_decay": (0, inf),
    "clip_norm": (1e-12, inf),
    "drop_path": (0, 0.99),
    "distill": (0, 1),
    "temperature": (1e-3, inf),
    "layer_decay": (1e-3, 1),
    "ema": (0, 0.999999),
    "label_smoothing": (0, 0.99),
    "shift": (0, inf),
    "mixup": (0, inf),
    "cutmix": (0, inf),
    "erasing": (0, 1),
    "rand_augment_magnitude": (0, MOST),
    "rand_augment_std": (0, MOST),
    "rand_augment_layers": (1, inf),
    "repeats": (1, inf),
    "penalty": (0, inf),
    "granularity": (1, inf),
    "refine_images": (0, inf),
    "refine_seed": (0, 2**32 - 1),
    "compare_images": (0, inf),
    "tighten": (0, 0.99),
    "spread": (1e-6, inf),
    "final_spread": (1e-6, inf),
    "model_fields.image_size": (1, inf),
    "model_fields.patch_size": (1, inf),
    "model_fields.width": (1, inf),
    "model_fields.depth": (1, inf),
    "model_fields.num_heads": (1, inf),
    "model_fields.num_classes": (1, inf),
}


def check_ranges(config: ConfigDict) -> None:
    """Refuses values that no run can use.

    Raises:
        UserError: naming the first field that is out of its range.
    """
    fields = flat(config.to_dict())
    for name in RANGES.keys() & fields.keys():
        (low, high), value = RANGES[name], fields[name]
        if not isinstance(value, int | float) or not low <= value <= high:
            least = f"at least {low}" if high == inf else f"from {low} to {high}"
            raise UserError(f"config.{name} must be {least}, got {value!r}")
    for name in ("mean", "std"):
        colour = fields[name]
        if len(colour) != 3 or not all(isinstance(x, float | int) for x in colour):
            raise UserError(
                f"config.{name} must be three numbers such as (0.5, 0.5, 0.5), "
                f"got {colour}"
            )
