"""Search on CIFAR-10 at its own size: 65 tokens, width 128, 8 blocks, 111 MMACs.

python -m diffrate_jax.search --config=configs/cifar10.py --workdir=runs/cifar10 \
    --config.weights=vit_cifar10.safetensors
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns a search of 300 steps of 32 images, horizontal flips only."""
    config = base.get_config()
    config.model = "vit"
    fields = {"image_size": 32, "patch_size": 4, "width": 128, "depth": 8}
    config.model_fields = ConfigDict(fields | {"num_heads": 4, "num_classes": 10})
    config.dataset, config.eval_split = "cifar10", "test"
    config.resize, config.crop = 32, "none"
    config.target = "50%"
    config.steps, config.batch_size = 300, 32
    return config
