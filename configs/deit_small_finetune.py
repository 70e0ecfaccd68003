"""Fine-tuning DeiT-S on ImageNet with a schedule in place; see `finetune.py`.

python -m diffrate_jax.finetune --config=configs/deit_small_finetune.py \
    --workdir=runs/tuned --config.weights=weights/deit_s --schedule=published:2.9
"""

from ml_collections import ConfigDict

from configs import finetune


def get_config() -> ConfigDict:
    """Returns 30 epochs of batch 1024."""
    return finetune.get_config("deit_small")
