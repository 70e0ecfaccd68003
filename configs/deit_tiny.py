"""DeiT-Ti on ImageNet, with the preprocessing of the published figures.

python -m diffrate_jax.evaluate --config=configs/deit_tiny.py --workdir=runs/eval \
    --config.weights=deit_tiny.safetensors --schedule=published:0.8
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns 12 blocks of width 192, dense 1.25 GMACs."""
    config = base.get_config()
    config.model = "deit_tiny_patch16_224"
    config.preprocess, config.target = "published", "0.8"
    return config
