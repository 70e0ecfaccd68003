"""The recipe that all others override: a search on ImageNet with the defaults.

Training images are cropped and flipped: the default search matches the dense model's
outputs, for which that is enough. `augment_as_deit` adds what DeiT was trained with and
what DiffRate's own search has (`published.py`).

One field of each: what is not here no program reads. Costs are targets in GMACs
("2.9"), shares of the dense cost ("60%"), or milliseconds of a batch ("6.5ms").
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns DeiT-S on ImageNet, 1,000 steps of 256 images."""
    config = ConfigDict()

    # What: a preset, or "vit" with fields of its own.
    config.model = "deit_small_patch16_224"
    config.model_fields = ConfigDict()
    config.dtype = "float32"  # of activations: or "bfloat16"
    config.remat = False  # compute blocks again for their gradient: slower, smaller
    config.weights = ""  # a .safetensors file; "" starts from random weights

    # On what.
    config.dataset = "imagenet2012"  # any of TFDS, or folder:PATH, or arrays:PATH.npz
    config.data_dir = ""  # "" is the dataset library's default
    config.train_split = "train"
    config.eval_split = "validation"
    config.corruption = ""  # evaluation: or "noise:0.1", "blur:1.0", "contrast:0.5"
    config.crop = "random_resized"  # training: or "none"
    # "published" or "timm" (the preset's own) take the place of the next four.
    config.preprocess = ""
    config.resize = 256  # evaluation: shorter side, before the central crop
    config.interpolation = "bicubic"  # or "bilinear"
    config.mean = (0.485, 0.456, 0.406)
    config.std = (0.229, 0.224, 0.225)
    config.flip = True
    config.shift = 0  # pixels
    config.label_smoothing = 0.1  # of the labels that training and cross entropy use

    # Optimiser, of rates in search, of weights in finetune.
    config.steps = 1000  # for each target
    config.batch_size = 256
    config.learning_rate = 0.02
    config.final_learning_rate = 0.0
    config.drop_path = 0.0
    config.seed = 0

    # The run.
    config.eval_batch_size = 256
    config.checkpoint_every = 100
    config.log_every = 10  # steps; in evaluation batches, after which it is kept
    config.cpu_devices = 0  # virtual devices, where there is no accelerator
    config.compilation_cache = ""  # folder; "" for none
    return search_fields(finetune_fields(augment_fields(config)))


def augment_fields(config: ConfigDict) -> ConfigDict:
    """Returns the config with the augmentation that is off; in brackets DeiT's."""
    config.rand_augment_magnitude = 0.0  # (9) at most 10; after the crop
    config.rand_augment_std = 0.5  # of the magnitude, from operation to operation
    config.rand_augment_layers = 2  # operations, each applied with probability 1/2
    config.mixup = 0.0  # (0.8) parameter of the beta distribution, as in the next
    config.cutmix = 0.0  # (1)
    config.erasing = 0.0  # (0.25) share of the images
    config.repeats = 1  # (3) times that an image of an epoch comes in it
    return config


def finetune_fields(config: ConfigDict) -> ConfigDict:
    """Returns the config with what finetune alone reads; see diffrate_jax/training."""
    config.warmup_steps = 0
    config.weight_decay = 0.05
    config.clip_norm = 1.0
    config.distill = 0.0  # share of the dense model in the loss, the rest is labels
    config.temperature = 1.0  # of what the dense model says
    config.layer_decay = 1.0  # of the learning rate, from layer to layer
    config.ema = 0.0  # decay of the weights' moving average; 0 for none
    config.final_evaluation = False  # on eval_split, before and after
    return config


def search_fields(config: ConfigDict) -> ConfigDict:
    """Returns the config with what a search reads; diffrate_jax/recipe.py tells all."""
    config.target = "2.9"  # or "60%", or "6.5ms" with the next
    config.latency_table = ""  # that benchmark --latency_table=FILE wrote
    config.targets = ()  # several, such as ('60%', '50%'): one run finds them all
    # Or "tome", "evit", "diffrate"; of this "prune_only" or "merge_only" too.
    config.rule = "redundancy"
    config.method = "projected"  # or "penalised"
    config.objective = "match_logits"  # or "match_dense"; with labels "cross_entropy"
    config.start = "uniform"  # or "dense", or anything that --schedule takes
    config.blocks = "all"  # may compress; or "model": all but the first
    config.tighten = 0.25  # projected, as are the next two
    config.spread = 2.0  # tokens
    config.final_spread = 0.5
    config.granularity = 1  # penalised, as are the next three
    config.penalty = 5.0
    config.penalty_unit = "relative"  # dense counts as 4.6; or "gmacs"
    config.reference = False
    config.refine_images = 4096  # held out for refining the counts; 0 for none
    config.refine_seed = 0  # of their order: the same images whatever the seed
    config.compare_images = 1024  # with hand-made schedules at the end; 0 for none
    return config


def publish(config: ConfigDict) -> ConfigDict:
    """Returns the config with DiffRate's search (section 4.1), penalty in GMACs."""
    config.rule, config.method, config.blocks = "diffrate", "penalised", "model"
    config.objective, config.penalty_unit = "cross_entropy", "gmacs"
    config.refine_images = 0
    config.learning_rate, config.final_learning_rate = 0.01, 0.001
    return config


def augment_as_deit(config: ConfigDict) -> ConfigDict:
    """Returns the config with DeiT's augmentation: timm's rand-m9-mstd0.5-inc1 etc."""
    config.crop, config.flip, config.label_smoothing = "random_resized", True, 0.1
    config.rand_augment_magnitude, config.rand_augment_std = 9.0, 0.5
    config.rand_augment_layers = 2
    config.mixup, config.cutmix, config.erasing = 0.8, 1.0, 0.25
    config.repeats = 3
    return config
