"""ViT-L of MAE on ImageNet, with the preprocessing of the published figures.

python -m diffrate_jax.evaluate --config=configs/mae_large.py --workdir=runs/eval \
    --config.weights=mae_large.safetensors --schedule=published:42.3
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns 24 blocks of width 1024 that average their patches, dense 61.56 GMACs."""
    config = base.get_config()
    config.model = "vit_large_patch16_224.mae_finetuned"
    config.preprocess, config.target = "published", "42.3"
    config.eval_batch_size = 128
    return config
