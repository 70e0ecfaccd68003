"""Training the quickstart's model on the digits from nothing.

python -m diffrate_jax.finetune --config=configs/quickstart_train.py \
    --workdir=runs/quickstart/train
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    """Returns the training recipe of the quickstart."""
    config = quickstart.get_config()
    config.steps, config.batch_size = 700, 64
    config.learning_rate, config.final_learning_rate = 2e-3, 1e-5
    config.warmup_steps = 100
    return config
