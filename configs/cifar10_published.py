"""DiffRate's own search on CIFAR-10, to compare with `cifar10.py`.

python -m diffrate_jax.search --config=configs/cifar10_published.py \
    --workdir=runs/cifar10_published --config.weights=vit_cifar10.safetensors
"""

from ml_collections import ConfigDict

from configs import base, cifar10


def get_config() -> ConfigDict:
    """Returns 1,500 steps of 32 images with the published rules, dense as 4.6."""
    config = base.publish(cifar10.get_config())
    config.penalty_unit, config.reference = "relative", True
    config.steps = 1500
    return config
