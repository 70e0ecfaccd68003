"""What fine-tuning adds to training: a teacher, decay by layer, an average."""

import functools
import itertools
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import RECIPE, SCHEDULED, batch_of, small, stream
from test_weights import random_params

import diffrate_jax as dr
from diffrate_jax import parallel
from diffrate_jax.finetuning import outcome
from diffrate_jax.metrics import read_metrics
from diffrate_jax.training import TrainRecipe, train, train_step
from diffrate_jax.training.average import averaged
from diffrate_jax.training.distillation import distillation
from diffrate_jax.training.layer_decay import layers, scale_by_layer, scales

pytestmark = pytest.mark.usefixtures("cache")
VIT = {"image_size": 16, "patch_size": 4, "width": 16, "num_heads": 2,
       "num_classes": 5, "depth": 2}  # fmt: skip
CAFORMER = {"depths": (1, 2, 3, 1), "widths": (32,) * 4, "num_classes": 5,
            "image_size": 64}  # fmt: skip
KINDS = {
    "class token": ("vit", VIT),
    "average": ("vit", VIT | {"pool": "avg", "prefix_tokens": 0}),
    "distilled": (
        "vit",
        VIT | {"prefix_tokens": 4, "distilled": True, "layer_scale": 0.1},
    ),
    "caformer": ("caformer", CAFORMER),
}
SCHEDULES = {
    "class token": {
        "diffrate": dr.Schedule((15, 9), (12, 6)),
        "redundancy": dr.Schedule(None, (12, 6), rule="redundancy"),
        "tome": dr.Schedule(None, (12, 8), rule="tome"),
    },
    "average": {"redundancy": dr.Schedule(None, (11, 5), rule="redundancy")},
    "caformer": {
        "diffrate": dr.Schedule(None, (16, 9, 9, 4)),
        "redundancy": dr.Schedule(None, (13, 8, 5, 4), rule="redundancy"),
    },
}
OFTEN = [("class token", "redundancy")]
RARELY = [
    *[("class token", "diffrate"), ("class token", "tome"), ("average", "redundancy")],
    *[("caformer", "diffrate"), ("caformer", "redundancy")],
]
CASES = OFTEN + [pytest.param(*case, marks=pytest.mark.slow) for case in RARELY]


def recipe_of(**changes) -> TrainRecipe:
    return TrainRecipe(**{**vars(RECIPE), "warmup_steps": 0, **changes})


@functools.cache
def made(kind: str):
    family, fields = KINDS[kind]
    model = dr.create_model(family, **fields)
    return model, random_params(model, spread=0.15)


def gradient(kind: str, compression) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a loss, its gradient by all weights, and how many tokens are left.

    Paths are dropped as in training.
    """
    model, params = made(kind)
    size, rng = model.image_size, np.random.default_rng(1)
    images = rng.standard_normal((4, size, size, 3)).astype(np.float32)
    labels_BV = jax.nn.one_hot(np.arange(4), 5)

    def loss(params):
        how = {"drop_path": 0.3, "rng": jax.random.key(2)}
        out = dr.forward(model, params, images, compression, **how)
        value = optax.softmax_cross_entropy(out.logits, labels_BV).mean()
        return value, out.tokens.alive.sum(1)

    (value, left), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)]), left


@pytest.mark.parametrize(("kind", "rule"), CASES)
def test_both_forms_of_a_schedule_teach_the_weights_the_same(kind: str, rule: str):
    """Training runs the gathered form; the masked form does without gathers."""
    schedule = SCHEDULES[kind][rule]
    value, wanted, left = gradient(kind, dr.Masked(schedule))
    found_value, found, found_left = gradient(kind, dr.Gathered(schedule))
    last = -2 if kind == "caformer" else -1
    for count in (left, found_left):
        np.testing.assert_array_equal(count, schedule.merge[last])
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(found_value, value, rtol=1e-6)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_numbered_from_the_image_to_the_head(kind: str):
    _, params = made(kind)
    number = layers(reversed(params))
    assert number.keys() == params.keys()
    blocks = {name: n for name, n in number.items() if name.startswith(("b", "s"))}
    in_order = sorted(blocks, key=lambda name: [int(x) for x in name.split("_")[1:]])
    assert [blocks[name] for name in in_order] == list(range(1, len(blocks) + 1))
    head = {n for name, n in number.items() if "head" in name or "norm" in name}
    assert head == {len(blocks) + 1}
    first = {"patch_embed", "pos_embed", "cls_token", "dist_token", "reg_token"}
    first = first & params.keys() or {"downsample_layers_0"}
    assert {number[name] for name in first} == {0}
    if kind == "caformer":
        assert number["downsample_layers_2"] == number["stages_2_0"] == 4


def test_a_module_that_belongs_nowhere_is_refused():
    with pytest.raises(ValueError, match="neck is neither embedding, nor block"):
        layers(["blocks_0", "neck"])


@settings(deadline=None)
@given(decay=st.floats(0.1, 1.0), depth=st.integers(1, 30))
def test_rates_grow_towards_the_head(decay: float, depth: int):
    params = {f"blocks_{i}": {"kernel": 0} for i in range(depth)}
    found = scales(params | {"pos_embed": 0, "head": {"bias": 0}}, decay)
    line = [found[f"blocks_{i}"]["kernel"] for i in range(depth)]
    line = [found["pos_embed"], *line, found["head"]["bias"]]
    assert line[-1] == 1
    assert line == sorted(line)
    ratios = [a / b for a, b in itertools.pairwise(line)]
    np.testing.assert_allclose(ratios, decay)


def test_the_optimiser_moves_early_layers_less():
    """Decay of the weights included, as with a rate for each group of weights."""
    _, params = small()
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda w: rng.standard_normal(w.shape, np.float32), params)

    def first_update(**changes):
        optimiser = recipe_of(**changes).optimiser()
        return jax.jit(optimiser.update)(grads, optimiser.init(params), params)[0]

    whole, less = first_update(), first_update(layer_decay=0.5)
    scale = {"head": 1, "norm": 1, "blocks_1": 0.5, "blocks_0": 0.25}
    for name in params:
        wanted = jax.tree.map(lambda u, n=name: u * scale.get(n, 0.125), whole[name])
        # Two programs: what one fuses, the other may round twice (1.5 ulp seen).
        alike = partial(np.testing.assert_allclose, rtol=4e-7)
        jax.tree.map(alike, less[name], wanted)


def test_scales_need_no_weights():
    updates = {"blocks_0": jnp.ones(2), "head": jnp.ones(2)}
    found, _ = scale_by_layer(0.5).update(updates, optax.EmptyState())
    np.testing.assert_array_equal(found["blocks_0"], 0.5)


NUMBERS = st.floats(-100, 100, width=32)


@settings(deadline=None)
@given(old=NUMBERS, new=NUMBERS, decay=st.floats(0, 0.9999), step=st.integers(0, 10**6))
def test_an_average_lies_between(old, new, decay, step):
    one = lambda decay: averaged(  # noqa: E731
        {"w": jnp.float32(old)}, {"w": jnp.float32(new)}, decay, jnp.int32(step)
    )["w"]
    assert one(0.0) == np.float32(new)
    slack = 1e-5 * max(abs(old), abs(new))
    assert min(old, new) - slack <= one(decay) <= max(old, new) + slack
    # Never slower than it was asked to be, nor than the run is old.
    kept = min(decay, (1 + step) / (10 + step))
    assert one(decay) == pytest.approx(kept * old + (1 - kept) * new, abs=1e-3)


@settings(deadline=None)
@given(
    logits=st.lists(NUMBERS, min_size=3, max_size=3),
    taught=st.lists(NUMBERS, min_size=3, max_size=3),
    temperature=st.floats(0.5, 20),
)
def test_divergence_from_the_teacher(logits, taught, temperature):
    student, teacher = jnp.array([logits]), jnp.array([taught])
    found = distillation(student, teacher, temperature)
    assert found.shape == (1,)
    wanted = temperature**2 * optax.kl_divergence(
        jax.nn.log_softmax(student / temperature),
        jax.nn.softmax(teacher / temperature),
    )
    size = temperature**2 * (1 + jnp.abs(wanted) + jnp.abs(student - teacher).max())
    np.testing.assert_allclose(found, wanted, atol=1e-5 * size.max())
    assert (found >= -1e-5 * size).all()
    same = distillation(teacher, teacher, temperature)
    np.testing.assert_allclose(same, 0, atol=1e-5 * temperature**2)


def one_step(recipe: TrainRecipe, compression, batch):
    """Returns values and state of a step on all devices, from the small model."""
    model, params = small()
    step = parallel.pmap_step(train_step(model, recipe, compression))
    state, teacher = recipe.start(params), params if recipe.distill else ()
    state, teacher = parallel.replicate(state), parallel.replicate(teacher)
    return jax.device_get(step(state, teacher, parallel.shard(batch)))


def test_with_nothing_but_the_teacher_labels_do_not_matter():
    recipe = recipe_of(distill=1.0, ema=0.5)
    others = batch_of(0) | {"label": (batch_of(0)["label"] + 1) % 4}
    one = one_step(recipe, SCHEDULED, batch_of(0))
    two = one_step(recipe, SCHEDULED, others)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert "cross_entropy" not in one[1]
    # And the average is that of the first two weights, a tenth of it the start's.
    state, start = one[0], small()[1]
    mean = jax.tree.map(lambda a, w: 0.1 * a + 0.9 * w, start, state.params)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), state.best, mean)


def test_the_dense_model_has_nothing_to_learn_from_itself():
    recipe = recipe_of(distill=1.0, drop_path=0.0, weight_decay=0.0)
    _, values = one_step(recipe, None, batch_of(0))
    assert abs(values["loss"]) < 1e-6
    assert values["gradient_norm"] < 1e-5


@pytest.mark.slow
def test_a_step_tells_what_its_loss_is_made_of():
    others = batch_of(0) | {"label": (batch_of(0)["label"] + 1) % 4}
    values, changed = (
        one_step(recipe_of(distill=0.25), SCHEDULED, batch)[1]
        for batch in (batch_of(0), others)
    )
    wanted = 0.75 * values["cross_entropy"] + 0.25 * values["distillation"]
    assert values["loss"] == pytest.approx(wanted)
    assert values["distillation"] > 0
    assert values["learning_rate"] == pytest.approx(RECIPE.learning_rate)
    assert values["gradient_norm"] > 0
    assert changed["cross_entropy"] != values["cross_entropy"]
    assert changed["distillation"] == values["distillation"]


TUNED = recipe_of(
    steps=9, distill=0.5, temperature=2.0, layer_decay=0.8, ema=0.9, warmup_steps=1
)


@pytest.mark.slow
def test_teacher_and_average_survive_an_interruption(tmp_path: Path):
    """A run cut off after five steps ends in the bits of the whole one."""
    model, params = small()
    options = {"compression": SCHEDULED, "log_every": 1, "checkpoint_every": 2}
    whole = train(model, params, stream, TUNED, workdir=tmp_path / "whole", **options)
    cut = lambda start: itertools.islice(stream(start), 5 - start)  # noqa: E731
    with pytest.raises(dr.UserError, match="ended after 5 of 9 steps"):
        train(model, params, cut, TUNED, workdir=tmp_path / "cut", **options)
    found = train(model, params, stream, TUNED, workdir=tmp_path / "cut", **options)
    jax.tree.map(np.testing.assert_array_equal, found, whole)
    rows = [read_metrics(tmp_path / n / "metrics.jsonl") for n in ("whole", "cut")]
    named = ("loss", "cross_entropy", "distillation", "gradient_norm")
    told = [[[row[name] for name in named] for row in run] for run in rows]
    assert told[0] == told[1]


TOLD = {
    (90.0, 80.0, 86.0, 91.0): "+6.00 points with the schedule in place, +1.00 without "
    "it; 60% of what the schedule lost is back",
    (90.0, 80.0, 90.0, 90.0): "+10.00 points with the schedule in place, +0.00 without "
    "it; 100% of what the schedule lost is back",
    # A short run, one that does more than make good, and a schedule that lost nothing.
    (90.0, 89.0, 87.0, 80.0): "-2.00 points with the schedule in place, -10.00 without "
    "it",
    (90.0, 80.0, 95.0, 96.0): "+15.00 points with the schedule in place, +6.00 without "
    "it",
    (90.0, 90.0, 91.0, 89.999): "+1.00 points with the schedule in place, +0.00 "
    "without it",
}


@pytest.mark.parametrize("top1", TOLD, ids=str)
def test_what_training_changed_is_one_sentence(top1):
    rows = zip(("dense", "before", "after", "dense, after"), top1, strict=True)
    record = {"split": "test", "rows": [{"name": n, "top1": v} for n, v in rows]}
    said = outcome(record)
    assert said.startswith(
        f"top-1 % of test: dense {top1[0]:.2f}, before {top1[1]:.2f}"
    )
    assert said.split("; ", 1)[1] == TOLD[top1]


def test_without_a_schedule_nothing_was_lost():
    rows = [{"name": "dense", "top1": 10.0}, {"name": "after", "top1": 20.0}]
    said = "top-1 % of test: dense 10.00, after 20.00"
    assert outcome({"split": "test", "rows": rows}) == said
    # From nothing, with a schedule in place.
    rows = [{"name": "after", "top1": 1.0}, {"name": "dense, after", "top1": 2.0}]
    said = "top-1 % of test: after 1.00, dense, after 2.00"
    assert outcome({"split": "test", "rows": rows}) == said


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("distill", 1.5, "distill must be from 0 to 1, got 1.5"),
        ("temperature", 0.0, "temperature must be above 0, got 0.0"),
        ("layer_decay", 0.0, "layer_decay must be above 0 and at most 1, got 0.0"),
        ("ema", 1.0, "ema must be at least 0 and below 1, got 1.0"),
    ],
)
def test_values_that_no_training_can_use(field: str, value: float, sentence: str):
    with pytest.raises(dr.UserError, match=sentence):
        recipe_of(**{field: value})
