"""The steps lower for a TPU from a CPU, and their masked form suits one."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

import diffrate_jax as dr
from diffrate_jax import parallel
from diffrate_jax.budget import parse_budget
from diffrate_jax.cost import macs_of
from diffrate_jax.dry_run import batch_of
from diffrate_jax.evaluation import Images, eval_step
from diffrate_jax.learning.descent import (
    initial_state,
    method_of,
    search_step,
    start_of,
)
from diffrate_jax.recipe import Recipe

VIT = {"image_size": 16, "patch_size": 4, "width": 24, "depth": 3, "num_heads": 2}
# In each family a share of the dense cost that its schedules can reach.
FAMILIES = {
    "cls": ("vit", VIT | {"num_classes": 5}, "70%"),
    "avg": ("vit", VIT | {"num_classes": 5, "pool": "avg"}, "70%"),
    "distilled": ("vit", VIT | {"num_classes": 5, "distilled": True} |
                  {"prefix_tokens": 2}, "70%"),
    "caformer": ("caformer", {"depths": (1, 1, 3, 1), "widths": (32, 32, 64, 64),
                              "num_classes": 7, "image_size": 64}, "93%"),
}  # fmt: skip
# Slow on a TPU, where each is many small steps; products and comparisons are not.
SLOW = re.compile(r"stablehlo\.(sort|gather|dynamic_gather|scatter)\b")
# The others take as long again for the same operations.
OFTEN = {("cls", "redundancy"), ("avg", "tome"), ("caformer", "redundancy")}
CASES = [
    pytest.param(
        *(family, rule, method),
        marks=() if (family, rule) in OFTEN else pytest.mark.slow,
    )
    for family in FAMILIES
    for rule in ("redundancy", "tome", "diffrate")
    for method in ("projected", "penalised")
]


@functools.cache
def made(family: str):
    """Returns a model, the shapes of its weights, and a target."""
    kind, fields, target = FAMILIES[family]
    model = dr.create_model(kind, **fields)
    return model, jax.eval_shape(lambda: dr.init_weights(model)), target


def for_tpu(function, *arguments) -> str:
    """Returns what a jitted function is lowered to for a TPU."""
    exported = jax.export.export(function, platforms=["tpu"])(*arguments)
    return exported.mlir_module()


@pytest.mark.parametrize(("family", "rule", "method"), CASES)
def test_the_masked_form_needs_neither_sort_nor_gather(family, rule, method):
    model, params, target = made(family)
    recipe = Recipe(rule=rule, method=method)
    how = method_of(macs_of(model), recipe)
    learned = how.start(start_of(model, recipe, [parse_budget(target, model)]))

    def loss(learned, params, images):
        out = dr.forward(model, params, images, how.masked(learned, jnp.ones(())))
        return out.logits.sum() + dr.cost_macs(model, out.kept)

    size = model.image_size
    images = jax.ShapeDtypeStruct((4, size, size, 3), jnp.float32)
    text = for_tpu(jax.jit(jax.value_and_grad(loss)), learned, params, images)
    assert SLOW.findall(text) == []
    # And the expression would have found one.
    ranks = for_tpu(jax.jit(jnp.argsort), jax.ShapeDtypeStruct((8,), jnp.float32))
    assert SLOW.findall(ranks)


@pytest.mark.parametrize(("family", "rule", "method"), CASES[::5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_whole_steps_lower_for_a_tpu(family, rule, method, dtype):
    model, params, target = made(family)
    model = model.clone(dtype=jnp.dtype(dtype))
    recipe, batch = Recipe(rule=rule, method=method, remat=True), batch_of(model, 4)
    budgets = [parse_budget(target, model)]
    step = parallel.on_one_device(search_step(model, recipe, budgets))
    text = for_tpu(step, initial_state(model, recipe, budgets), params, batch)
    assert "stablehlo.dot_general" in text
    masked = dr.Masked(dr.Schedule.dense(model.geometry))
    mask_B = jax.ShapeDtypeStruct((4,), jnp.float32)
    evaluate = parallel.on_one_device(
        eval_step(model, masked, Images((0.5,) * 3, (0.5,) * 3))
    )
    assert "stablehlo.dot_general" in for_tpu(
        evaluate, (), params, batch | {"mask": mask_B}
    )
