"""What a run would take, without weights, data or a step: memory, arithmetic, time.

The step is compiled for the device at hand and its compiler is asked. On a CPU it is
told to plan as compilers for accelerators do by themselves; what they come to on
another device differs by what they fuse.
"""

import dataclasses
import datetime
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from diffrate_jax import parallel, recipes
from diffrate_jax.compressions import cost_of
from diffrate_jax.cost import Unit, cost_macs, macs_of
from diffrate_jax.errors import UserError
from diffrate_jax.files import write_json
from diffrate_jax.finetuning import in_place
from diffrate_jax.learning import budgets_of, searched
from diffrate_jax.learning.descent import initial_state, search_step
from diffrate_jax.learning.refine import FEW
from diffrate_jax.models import Model, init_weights
from diffrate_jax.training import train_step

# For the products that it leaves to a library XLA spreads every bias to its product's
# shape, and does so early: of ViT-H's search that was 13 GiB of 40.
LIKE_ACCELERATORS = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_cpu_experimental_ynn_fusion_type": "",
}


@dataclasses.dataclass(frozen=True)
class DryRun:
    """What a run would take.

    Attributes:
        model: name of its preset or family.
        dense_macs: cost of the dense model.
        targets: budgets as they were given, or the schedule in place, and what they
            cost.
        unit: of these costs.
        steps: of all targets together.
        batch_size: images of a step on all devices.
        devices: over which a step would run.
        params_bytes: weights on every device.
        memory_bytes: of a device at most, weights and batch included.
        flops: of a step on all devices, as its compiler counts them.
        compile_seconds: how long compiling took here.
        compiled_for: platform.
        besides: what is not in these figures.
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
    besides: str

    def seconds(self, tflops: float) -> float:
        """Returns the time of all steps at so many TFLOP/s on every device."""
        return self.steps * self.flops / (tflops * 1e12 * self.devices)


def define_dry_run(values: flags.FlagValues) -> None:
    """Adds the flags of programs that can be asked what they would take."""
    flags.DEFINE_bool(
        "dry_run", default=False, help="Only say what it takes.", flag_values=values
    )
    flags.DEFINE_integer(
        "devices", 0, "Accelerators; 0: those here.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_float(
        "tflops", 50.0, "Of an accelerator.", lower_bound=1e-6, flag_values=values
    )


def dry_run(config: ConfigDict, devices: int) -> DryRun:
    """Compiles one device's share of a search step and asks what it takes.

    Args:
        config: of the search; its weights and data are not read.
        devices: over which the batch would be split.

    Raises:
        UserError: a batch that so many devices cannot share, or what a search refuses.
    """
    check_devices(config, devices)
    model = recipes.model_of(config)
    recipe = recipes.search_recipe(config, model)
    model = searched(model, recipe)
    targets = recipes.targets_of(config)
    budgets = budgets_of(model, recipe, targets, recipes.latency_of(config))
    params = jax.eval_shape(lambda: init_weights(model))
    return compiled(
        config,
        model,
        devices,
        search_step(model, recipe, budgets),
        (initial_state(model, recipe, budgets), params),
        targets={budget.text: budget.limit for budget in budgets},
        unit=budgets[0].measure.unit,
        steps=config.steps * len(budgets),
        besides=after_learning(model, config, len(budgets)),
    )


def after_learning(model: Model, config: ConfigDict, targets: int) -> str:
    """Returns what a search does after its steps, in words.

    To refine, all blocks that may compress are tried both ways, by few images and by
    all, and again after each step.
    """
    images = sum({config.refine_images, min(FEW, config.refine_images)})
    passes = targets * images * (2 * sum(model.geometry.compress) + 1)
    refining = f"refining, {passes:,} images forward or several times as many, and "
    return f"{refining if images else ''}the comparison"


def dry_run_training(config: ConfigDict, schedule: str, devices: int) -> DryRun:
    """Compiles one device's share of a training step and asks what it takes.

    Args:
        config: of the run; its weights and data are not read.
        schedule: in place; see `parse_compression`.
        devices: over which the batch would be split.

    Raises:
        UserError: a batch that so many devices cannot share, or what training refuses.
    """
    check_devices(config, devices)
    model = recipes.model_of(config)
    compression = in_place(schedule, model, config)
    recipe = recipes.train_recipe(config, model)
    params = jax.eval_shape(lambda: init_weights(model))
    return compiled(
        config,
        model,
        devices,
        train_step(model, recipe, compression),
        (jax.eval_shape(recipe.start, params), params if recipe.distill else ()),
        targets={schedule: cost_of(model, compression)},
        unit=macs_of(model).unit,
        steps=config.steps,
        besides="reading the images, and evaluation",
    )


def tell(found: DryRun, workdir: epath.Path, values: flags.FlagValues) -> None:
    """Prints what a run would take, and writes it where a folder was given."""
    print(dry_run_table(found, values.tflops))
    if values.workdir:
        write_json(workdir / "dry_run.json", dataclasses.asdict(found))


def dry_run_table(found: DryRun, tflops: float) -> str:
    """Returns what a run would take, at so many TFLOP/s on every device."""
    span = datetime.timedelta(seconds=round(found.seconds(tflops)))
    rate = found.steps * found.batch_size / found.seconds(tflops)
    targets = [
        f"{text} = {found.unit.show(cost)}" for text, cost in found.targets.items()
    ]
    rows = [
        ["model", f"{found.model}, dense {found.dense_macs / 1e9:.4g} GMACs"],
        ["targets", ", ".join(targets)],
        ["steps", f"{found.steps} of {found.batch_size} images"],
        [
            "a device's batch",
            f"{found.batch_size // found.devices} images, on {found.devices} devices",
        ],
        ["weights", f"{found.params_bytes / 2**20:.0f} MiB on every device"],
        [
            "memory",
            f"{found.memory_bytes / 2**30:.2f} GiB of a device, as compiled for "
            f"{found.compiled_for} in {found.compile_seconds:.0f} s",
        ],
        ["arithmetic", f"{found.flops / 1e12:.3g} TFLOP to a step, on all devices"],
        ["time", f"{span} at {tflops:g} TFLOP/s a device: {rate:.0f} images/s"],
    ]
    lines = [f"{name:<18}{text}" for name, text in rows]
    return "\n".join([*lines, f"besides: {found.besides}"])


def check_devices(config: ConfigDict, devices: int) -> None:
    """Refuses a batch that so many devices cannot share.

    Raises:
        UserError: naming both numbers.
    """
    if devices < 1 or config.batch_size % devices:
        raise UserError(
            f"batch_size must be a multiple of the {devices} devices, got "
            f"{config.batch_size}; change it, or --devices"
        )


def compiled(
    config: ConfigDict,
    model: Model,
    devices: int,
    step: Callable,
    arguments: tuple[Any, Any],
    **about: Any,
) -> DryRun:
    """Compiles a step on one device's share of a batch and asks what it takes.

    Args:
        config: of the run.
        model: that it runs.
        devices: over which the batch would be split.
        step: plain function of one step.
        arguments: state and constants, or their shapes.
        about: fields of `DryRun` that the compiler does not know.
    """
    began = time.perf_counter()
    batch = batch_of(model, config.batch_size // devices)
    lowered = parallel.on_one_device(step).lower(*arguments, batch)
    on_cpu = jax.default_backend() == "cpu"
    program = lowered.compile(known(LIKE_ACCELERATORS) if on_cpu else None)
    memory = program.memory_analysis()
    weights = jax.tree.leaves(jax.eval_shape(lambda: init_weights(model)))
    return DryRun(
        model=config.model,
        dense_macs=cost_macs(model, None),
        batch_size=config.batch_size,
        devices=devices,
        params_bytes=sum(w.size * w.dtype.itemsize for w in weights),
        memory_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
        flops=program.cost_analysis()["flops"] * devices,
        compile_seconds=time.perf_counter() - began,
        compiled_for=jax.default_backend(),
        **about,
    )


def known(options: dict[str, str]) -> dict[str, str]:
    """Returns those of the options that this release of XLA knows."""
    smallest = jax.jit(jnp.negative).lower(0.0)

    def is_known(name: str) -> bool:
        try:
            smallest.compile({name: options[name]})
        except jax.errors.JaxRuntimeError as error:
            if "No such compile option" not in str(error):
                raise
            return False
        return True

    return {name: options[name] for name in options if is_known(name)}


def batch_of(model: Model, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of one device's batch, as `parallel.shard` makes it."""
    size = model.image_size
    number = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    image = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8)
    return {"image": image, "label": number, "index": number}
