"""What a search would take, without weights, data or a step: memory, arithmetic, time.

The step is compiled for the device at hand and its compiler is asked. On a CPU it is
told to save memory, as compilers for accelerators do by themselves; what they come to
on another device differs by what they fuse.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffrate_jax import parallel, recipes
from diffrate_jax.cost import Unit, cost_macs
from diffrate_jax.descent import initial_state, search_step
from diffrate_jax.errors import UserError
from diffrate_jax.learning import budgets_of, searched
from diffrate_jax.models import Model, init_weights

SAVES_MEMORY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


@dataclasses.dataclass(frozen=True)
class DryRun:
    """What a search would take.

    Attributes:
        model: name of its preset or family.
        dense_macs: cost of the dense model.
        targets: budgets as they were given, and what they cost.
        unit: of these costs.
        steps: of all targets together.
        batch_size: images of a step on all devices.
        devices: over which a step would run.
        params_bytes: weights on every device.
        memory_bytes: of a device at most, weights and batch included.
        flops: of a step on all devices, as its compiler counts them.
        compile_seconds: how long compiling took here.
        compiled_for: platform.
    """

    model: str
    dense_macs: int
    targets: dict[str, float]
    unit: Unit
    steps: int
    batch_size: int
    devices: int
    params_bytes: int
    memory_bytes: int
    flops: float
    compile_seconds: float
    compiled_for: str

    def seconds(self, tflops: float) -> float:
        """Returns the time of all steps at so many TFLOP/s on every device."""
        return self.steps * self.flops / (tflops * 1e12 * self.devices)


def dry_run(config: ConfigDict, devices: int) -> DryRun:
    """Compiles one device's share of a search step and asks what it takes.

    Args:
        config: of the search; its weights and data are not read.
        devices: over which the batch would be split.

    Raises:
        UserError: a batch that so many devices cannot share, or what a search refuses.
    """
    if devices < 1 or config.batch_size % devices:
        raise UserError(
            f"batch_size must be a multiple of the {devices} devices, got "
            f"{config.batch_size}; change it, or --devices"
        )
    model = recipes.model_of(config)
    recipe = recipes.search_recipe(config, model)
    model = searched(model, recipe)
    targets = recipes.targets_of(config)
    budgets = budgets_of(model, recipe, targets, recipes.latency_of(config))
    params = jax.eval_shape(lambda: init_weights(model))
    step = parallel.on_one_device(search_step(model, recipe, budgets))
    began = time.perf_counter()
    batch = batch_of(model, config.batch_size // devices)
    lowered = step.lower(initial_state(model, recipe, budgets), params, batch)
    on_cpu = jax.default_backend() == "cpu"
    compiled = lowered.compile(SAVES_MEMORY if on_cpu else None)
    memory = compiled.memory_analysis()
    return DryRun(
        model=config.model,
        dense_macs=cost_macs(model, None),
        targets={budget.text: budget.limit for budget in budgets},
        unit=budgets[0].measure.unit,
        steps=config.steps * len(budgets),
        batch_size=config.batch_size,
        devices=devices,
        params_bytes=sum(w.size * w.dtype.itemsize for w in jax.tree.leaves(params)),
        memory_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
        flops=compiled.cost_analysis()["flops"] * devices,
        compile_seconds=time.perf_counter() - began,
        compiled_for=jax.default_backend(),
    )


def batch_of(model: Model, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of one device's batch, as `parallel.shard` makes it."""
    size = model.image_size
    number = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    image = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8)
    return {"image": image, "label": number, "index": number}
