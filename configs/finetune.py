"""Fine-tuning on ImageNet with a schedule in place.

After a colon stands a model of the paper; DeiT-S without.

python -m diffrate_jax.finetune --config=configs/finetune.py:deit_base \
    --workdir=runs/tuned --config.weights=weights/deit_b --schedule=published:11.5

What is published of it: 30 epochs, rates from 2e-5 as they are used, scaled by no
batch, to 1e-6, drop-path 0.1 and for MAE's larger models 0.2 (DiffRate's repository,
issue 5; there is no code). The batch of 1024 and DeiT's augmentation are those of its
search, here without repetition. Teacher, average and warm-up are ours. No ImageNet was
at hand: what this reaches there is unmeasured.
"""

from ml_collections import ConfigDict

from configs import base, published

DROP_PATH = {"mae_large": 0.2, "mae_huge": 0.2}


def get_config(model: str = "deit_small") -> ConfigDict:
    """Returns 30 epochs of 1,251 steps, one of them to warm up."""
    if model not in published.MODELS:
        raise ValueError(
            f"the paper has no {model!r}, but {', '.join(published.MODELS)}"
        )
    config = base.augment_as_deit(published.MODELS[model].get_config())
    config.repeats = 1
    config.steps, config.batch_size, config.warmup_steps = 37530, 1024, 1251
    config.learning_rate, config.final_learning_rate = 2e-5, 1e-6
    config.drop_path = DROP_PATH.get(model, 0.1)
    config.distill, config.ema = 0.5, 0.9999
    config.checkpoint_every, config.log_every = 1251, 50
    config.final_evaluation = True
    return config
