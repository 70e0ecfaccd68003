"""ViT-B of MAE on ImageNet, with the preprocessing of the published figures.

python -m diffrate_jax.evaluate --config=configs/mae_base.py --workdir=runs/eval \
    --config.weights=mae_base.safetensors --schedule=published:11.5
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns 12 blocks of width 768 that average their patches, dense 17.56 GMACs."""
    config = base.get_config()
    config.model = "vit_base_patch16_224.mae_finetuned"
    config.preprocess, config.target = "published", "11.5"
    return config
