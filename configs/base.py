"""The published rates, penalty, batch and length (DiffRate, section 4.1).

All other recipes override it. RandAugment, mixup, cutmix, erasing and repeated
augmentation are not here yet: training images are cropped and flipped.

One field of each: what is not here no program reads. Costs are targets in GMACs
("2.9") or shares of the dense cost ("60%").
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns DeiT-S on ImageNet: 3 epochs of batch 1024, AdamW 0.01 to 0.001."""
    config = ConfigDict()

    # What: a preset, or "vit" with fields of its own.
    config.model = "deit_small_patch16_224"
    config.model_fields = ConfigDict()
    config.weights = ""  # a .safetensors file; "" starts from random weights

    # On what.
    config.dataset = "imagenet2012"
    config.data_dir = ""  # "" is the dataset library's default
    config.train_split = "train"
    config.eval_split = "validation"
    config.resize = 256  # evaluation: shorter side, before the central crop
    config.crop = "random_resized"  # training: or "none"
    config.mean = (0.485, 0.456, 0.406)
    config.std = (0.229, 0.224, 0.225)
    config.flip = True
    config.shift = 0  # pixels
    config.label_smoothing = 0.1

    # Search.
    config.target = "2.9"
    config.granularity = 4
    config.penalty = 5.0
    config.penalty_unit = "gmacs"  # or "relative": dense counts as 4.6
    config.reference = False

    # Optimiser, of rates in search, of weights in finetune.
    config.steps = 3753
    config.batch_size = 1024
    config.learning_rate = 0.01
    config.final_learning_rate = 0.001
    config.warmup_steps = 0  # finetune only, as are the next two
    config.weight_decay = 0.05
    config.clip_norm = 1.0
    config.drop_path = 0.1
    config.seed = 0

    # The run.
    config.eval_batch_size = 256
    config.checkpoint_every = 100
    config.log_every = 10
    config.cpu_devices = 0  # virtual devices, where there is no accelerator
    config.compilation_cache = ""  # folder; "" for none
    return config
