"""Training a model that averages its tokens on CIFAR-10 from nothing.

python -m diffrate_jax.finetune --config=configs/cifar10_pooled_train.py \
    --workdir=runs/pooled/train
"""

from ml_collections import ConfigDict

from configs import cifar10_pooled


def get_config() -> ConfigDict:
    """Returns 4,500 steps of 100 images: nine epochs."""
    config = cifar10_pooled.get_config()
    config.steps, config.batch_size = 4500, 100
    config.learning_rate, config.final_learning_rate = 1e-3, 1e-5
    config.warmup_steps, config.shift = 300, 2
    return config
