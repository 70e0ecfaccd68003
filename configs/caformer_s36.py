"""CAFormer-S36 on ImageNet, with the preprocessing of the published figures.

python -m diffrate_jax.evaluate --config=configs/caformer_s36.py --workdir=runs/eval \
    --config.weights=weights/caformer_s36 --schedule=published:5.6
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns two stages of convolution and two of attention, dense 7.97 GMACs."""
    config = base.get_config()
    config.model = "caformer_s36"
    config.preprocess, config.target = "published", "5.6"
    return config
