"""DiffRate for JAX: learn how many tokens each block needs, then run fewer."""

from diffrate_jax.compress import Gathered, Masked
from diffrate_jax.cost import cost_macs
from diffrate_jax.data.augment import Augment, normalise
from diffrate_jax.errors import UserError
from diffrate_jax.inference import compile_inference
from diffrate_jax.latency import LatencyTable
from diffrate_jax.learning import learn_schedule, learn_schedules
from diffrate_jax.model_folder import load, save_model
from diffrate_jax.models import (
    create_model,
    forward,
    init_rates,
    init_weights,
    unmerge,
)
from diffrate_jax.published import published_schedule
from diffrate_jax.rates import Kept, Located, Rates
from diffrate_jax.recipe import Recipe
from diffrate_jax.schedule import Schedule
from diffrate_jax.tome import ToMe
from diffrate_jax.version import __version__
from diffrate_jax.weights import load_weights, save_weights

__all__ = [
    "Augment",
    "Gathered",
    "Kept",
    "LatencyTable",
    "Located",
    "Masked",
    "Rates",
    "Recipe",
    "Schedule",
    "ToMe",
    "UserError",
    "__version__",
    "compile_inference",
    "cost_macs",
    "create_model",
    "forward",
    "init_rates",
    "init_weights",
    "learn_schedule",
    "learn_schedules",
    "load",
    "load_weights",
    "normalise",
    "published_schedule",
    "save_model",
    "save_weights",
    "unmerge",
]
