"""DiffRate's own search of DeiT-S on ImageNet (section 4.1), to compare with.

python -m diffrate_jax.search --config=configs/published.py --workdir=runs/published \
    --config.weights=deit_small.safetensors
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns 3 epochs of batch 1024, a third of the images thrice in each.

    DeiT's augmentation, drop-path 0.1, granularity 4.
    """
    config = base.augment_as_deit(base.publish(base.get_config()))
    config.steps, config.batch_size = 3753, 1024
    config.granularity, config.drop_path = 4, 0.1
    return config
