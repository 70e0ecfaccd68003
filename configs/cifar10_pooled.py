"""Search on CIFAR-10 in a model that averages its tokens and has no class token.

python -m diffrate_jax.search --config=configs/cifar10_pooled.py --workdir=runs/pooled \
    --config.weights=runs/pooled/train/weights.safetensors
"""

from ml_collections import ConfigDict

from configs import cifar10


def get_config() -> ConfigDict:
    """Returns the search of `cifar10`; nothing of it is tuned for this model."""
    config = cifar10.get_config()
    fields = {"width": 96, "depth": 6, "num_heads": 3, "pool": "avg"}
    config.model_fields.update(fields | {"prefix_tokens": 0})
    return config
