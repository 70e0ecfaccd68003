"""Fine-tuning on CIFAR-10 with a schedule in place.

python -m diffrate_jax.finetune --config=configs/cifar10_finetune.py \
    --workdir=runs/cifar10/tuned_30 --config.weights=vit_cifar10.safetensors \
    --config.dataset=arrays:cifar10.npz \
    --schedule=results/cifar10_study/1/seed0/schedule_30%.json
"""

from ml_collections import ConfigDict

from configs import cifar10


def get_config() -> ConfigDict:
    """Returns 6,000 steps of 32 images, shifted and flipped: not quite four epochs."""
    config = cifar10.get_config()
    config.steps, config.batch_size, config.warmup_steps = 6000, 32, 100
    config.learning_rate, config.final_learning_rate = 5e-4, 1e-6
    config.shift, config.label_smoothing = 2, 0.1
    config.distill, config.ema = 0.5, 0.998
    config.final_evaluation = True
    return config
