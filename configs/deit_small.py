"""DeiT-S on ImageNet, with the preprocessing of the published figures.

python -m diffrate_jax.evaluate --config=configs/deit_small.py --workdir=runs/eval \
    --config.weights=deit_small.safetensors --schedule=published:2.9
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns 12 blocks of width 384, dense 4.60 GMACs."""
    config = base.get_config()
    config.model = "deit_small_patch16_224"
    config.preprocess, config.target = "published", "2.9"
    return config
