"""DiffRate's own search on ImageNet (section 4.1), to compare with.

After a colon stands the recipe of a model of the paper; DeiT-S without.

python -m diffrate_jax.search --config=configs/published.py --workdir=runs/published \
    --config.weights=deit_small.safetensors
python -m diffrate_jax.search --config=configs/published.py:mae_huge --dry_run
"""

from ml_collections import ConfigDict

from configs import (
    base,
    caformer_s36,
    deit_base,
    deit_small,
    deit_tiny,
    mae_base,
    mae_huge,
    mae_large,
)

MODELS = {
    "caformer_s36": caformer_s36,
    "deit_base": deit_base,
    "deit_small": deit_small,
    "deit_tiny": deit_tiny,
    "mae_base": mae_base,
    "mae_huge": mae_huge,
    "mae_large": mae_large,
}


def get_config(model: str = "deit_small") -> ConfigDict:
    """Returns 3 epochs of batch 1024, a third of the images thrice in each.

    DeiT's augmentation, drop-path 0.1, granularity 4.
    """
    if model not in MODELS:
        raise ValueError(f"the paper has no {model!r}, but {', '.join(MODELS)}")
    config = base.augment_as_deit(base.publish(MODELS[model].get_config()))
    config.steps, config.batch_size = 3753, 1024
    config.granularity, config.drop_path = 4, 0.1
    return config
