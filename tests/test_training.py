"""Training weights: it learns, on any number of devices, and after an interruption."""

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from test_weights import random_params

import diffrate_jax as dr
from diffrate_jax import parallel
from diffrate_jax.data.augment import Augment
from diffrate_jax.metrics import read_metrics
from diffrate_jax.training import TrainRecipe, TrainState, train, train_step

pytestmark = pytest.mark.usefixtures("cache")
BATCH, STEPS, CLASSES = 16, 30, 4
AUGMENT = Augment(mean=(0.5,) * 3, std=(0.25,) * 3, shift=1, label_smoothing=0.1)
RECIPE = TrainRecipe(
    steps=STEPS,
    learning_rate=0.01,
    final_learning_rate=0.001,
    warmup_steps=3,
    weight_decay=0.05,
    clip_norm=1.0,
    drop_path=0.1,
    augment=AUGMENT,
)
SCHEDULED = dr.Gathered(dr.Schedule((14, 9), (12, 8)))


@functools.cache
def small():
    model = dr.create_model(
        "vit", image_size=8, patch_size=2, width=16, depth=2, num_heads=2,
        num_classes=CLASSES, compress=(True, True),
    )  # fmt: skip
    return model, random_params(model, spread=0.2)


def batch_of(step: int) -> dict[str, np.ndarray]:
    """A toy that can be learned: the class is the colour that is brighter, if any."""
    rng = np.random.default_rng([3, step])
    label = rng.integers(0, CLASSES, BATCH)
    image = rng.integers(0, 156, (BATCH, 8, 8, 3))
    image += 100 * np.eye(CLASSES, dtype=int)[label, None, None, :3]
    return {"image": image.astype(np.uint8), "label": label}


def stream(start: int) -> Iterator[dict[str, np.ndarray]]:
    return map(batch_of, itertools.count(start))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    """Weights trained with a schedule in place, and the losses on the way."""
    model, params = small()
    workdir = tmp_path_factory.mktemp("trained")
    options = {"compression": SCHEDULED, "workdir": workdir, "log_every": 1}
    found = train(model, params, stream, RECIPE, **options)
    return found, [row["loss"] for row in read_metrics(workdir / "metrics.jsonl")]


def test_a_toy_is_learned_with_a_schedule_in_place(trained):
    """From guessing, log 4 = 1.39, to well below; smoothing leaves 0.35 at the best."""
    _, losses = trained
    assert len(losses) == STEPS
    assert np.mean(losses[:3]) > 1.2
    assert np.mean(losses[-3:]) < 0.7


def test_training_changes_every_weight(trained):
    """All but the keys' biases, which softmax does not feel."""
    found, _ = trained
    changed = jax.tree.map(lambda new, old: (new != old).all(), found, small()[1])
    for block in ("blocks_0", "blocks_1"):
        del changed[block]["attn"]["qkv"]["bias"]
    assert all(jax.tree.leaves(changed))


def test_an_interruption_changes_nothing(tmp_path: Path, trained):
    """A run that stops after ten steps and goes on ends in the same bits."""
    wanted, losses = trained
    model, params = small()
    before = jax.tree.map(np.array, params)

    def some(start: int) -> Iterator[dict]:
        return itertools.islice(stream(start), 10 - start)

    options = {"workdir": tmp_path, "checkpoint_every": 4, "log_every": 1}
    options |= {"compression": SCHEDULED}
    with pytest.raises(dr.UserError, match="batches ended after 10 of 30 steps"):
        train(model, params, some, RECIPE, **options)
    found = train(model, params, stream, RECIPE, **options)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in rows] == losses
    jax.tree.map(np.testing.assert_array_equal, params, before)


def first_step(num_devices: int) -> TrainState:
    """Returns the state after the first step of a warm start on some devices."""
    model, params = small()
    recipe = TrainRecipe(
        **{**vars(RECIPE), "warmup_steps": 0, "drop_path": 0.3, "clip_norm": 1e9}
    )
    step = jax.pmap(
        train_step(model, recipe, None),
        axis_name=parallel.AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        devices=jax.local_devices()[:num_devices],
    )
    batch = batch_of(0) | {"index": np.arange(BATCH, dtype=np.int32)}
    split = (num_devices, BATCH // num_devices)
    batch = {k: v.reshape(*split, *v.shape[1:]) for k, v in batch.items()}
    start = TrainState(params, recipe.optimiser().init(params), np.zeros((), np.int32))
    return jax.device_get(step(start, (), batch)[0])


@pytest.mark.slow
def test_one_device_does_what_four_do():
    one, four = first_step(1), first_step(4)
    moment = lambda state: np.concatenate(  # noqa: E731
        [leaf.ravel() for leaf in jax.tree.leaves(state.optimiser[1][0].mu)]
    )
    scale = np.abs(moment(one)).max()
    np.testing.assert_allclose(moment(four), moment(one), rtol=0, atol=1e-6 * scale)
    # Adam's first update is the gradient's sign: compare where that is sure.
    sure = np.abs(moment(one)) > 1e-4 * scale
    assert sure.mean() > 0.8
    leaves = zip(*(jax.tree.leaves(s.params) for s in (one, four)), strict=True)
    gap = np.concatenate([np.abs(a - b).ravel() for a, b in leaves])
    assert gap[sure].max() < 1e-5


@pytest.mark.parametrize("warmup", [-1, STEPS, STEPS + 1])
def test_warm_up_is_shorter_than_the_run(warmup: int):
    with pytest.raises(dr.UserError, match=f"fewer than the 30 steps, got {warmup}"):
        TrainRecipe(**{**vars(RECIPE), "warmup_steps": warmup})


def test_only_matrices_decay():
    """Without a gradient, decay alone shows what it touches."""
    _, params = small()
    recipe = TrainRecipe(**{**vars(RECIPE), "warmup_steps": 0})
    optimiser = recipe.optimiser()
    zero = jax.tree.map(np.zeros_like, params)
    updates, _ = jax.jit(optimiser.update)(zero, optimiser.init(params), params)

    def check(weight: np.ndarray, update: np.ndarray) -> None:
        decay = 0.01 * 0.05 if weight.ndim == 2 else 0.0
        np.testing.assert_allclose(update, -decay * weight, rtol=1e-5)

    jax.tree.map(check, params, updates)
