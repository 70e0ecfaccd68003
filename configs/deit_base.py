"""DeiT-B on ImageNet, with the preprocessing of the published figures.

python -m diffrate_jax.evaluate --config=configs/deit_base.py --workdir=runs/eval \
    --config.weights=deit_base.safetensors --schedule=published:11.5
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns 12 blocks of width 768, dense 17.56 GMACs."""
    config = base.get_config()
    config.model = "deit_base_patch16_224"
    config.preprocess, config.target = "published", "11.5"
    return config
