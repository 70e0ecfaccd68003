"""ViT-H of MAE on ImageNet, with the preprocessing of the published figures.

python -m diffrate_jax.evaluate --config=configs/mae_huge.py --workdir=runs/eval \
    --config.weights=mae_huge.safetensors --schedule=published:103.4
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns 32 blocks of width 1280 that average their patches, dense 167.3 GMACs."""
    config = base.get_config()
    config.model = "vit_huge_patch14_224.mae_finetuned"
    config.preprocess, config.target = "published", "103.4"
    config.eval_batch_size = 64
    return config
