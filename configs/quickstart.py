"""Search on the digits for 60 % of the dense cost: 65 tokens, width 48, 6 blocks.

python -m diffrate_jax.search --config=configs/quickstart.py --workdir=runs/search \
    --config.weights=runs/quickstart/train/weights.safetensors
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the search recipe of the quickstart."""
    config = base.get_config()
    config.model = "vit"
    fields = {"image_size": 32, "patch_size": 4, "width": 48, "depth": 6}
    config.model_fields = ConfigDict(fields | {"num_heads": 3, "num_classes": 10})
    config.dataset, config.eval_split = "digits", "test"
    config.resize, config.crop = 32, "none"
    config.mean = config.std = (0.5, 0.5, 0.5)
    config.flip, config.shift = False, 1
    config.target, config.refine_images, config.compare_images = "60%", 256, 0
    config.steps, config.batch_size, config.eval_batch_size = 400, 64, 100
    config.cpu_devices = 2
    return config
