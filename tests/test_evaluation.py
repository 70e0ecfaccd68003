"""Evaluation counts every example once; compiled inference is the forward pass."""

import functools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_weights import random_params

import diffrate_jax as dr
from diffrate_jax import parallel
from diffrate_jax.data import open_dataset, pad_batches
from diffrate_jax.data.augment import normalise
from diffrate_jax.evaluation import Evaluator, eval_step, rank_of_label, score_row
from diffrate_jax.inference import compile_inference

COUNT, BATCH, CLASSES = 53, 8, 7
COLOURS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
RUNS = {
    "dense": None,
    "gathered": dr.Gathered(dr.Schedule((15, 9), (12, 8))),
    "tome": dr.ToMe(4),
}


@functools.cache
def small():
    model = dr.create_model(
        "vit", image_size=8, patch_size=2, width=12, depth=2, num_heads=2,
        num_classes=CLASSES,
    )  # fmt: skip
    return model, random_params(model)


@functools.cache
def examples() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, 8, 8, 3)).astype(np.uint8)
    return images, rng.integers(0, CLASSES, COUNT)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory):
    images, labels = examples()
    path = tmp_path_factory.mktemp("data") / "d.npz"
    np.savez(path, test_image=images, test_label=labels, num_classes=CLASSES)
    return open_dataset(f"arrays:{path}", image_size=8)


def evaluator(dataset, model=None, batch_size: int = BATCH) -> Evaluator:
    own, params = small()
    return Evaluator(
        model or own, params, dataset, "test", batch_size=batch_size, **COLOURS
    )


@functools.cache
def predict(name: str, dtype: str = "float32"):
    model, params = small()
    return compile_inference(model, params, RUNS[name], batch_size=COUNT, dtype=dtype)


@functools.cache
def logits(name: str) -> np.ndarray:
    """Returns what the model says of all 53 images at once."""
    return np.asarray(predict(name)(normalise(examples()[0], *COLOURS.values())))


@pytest.mark.parametrize("name", RUNS)
def test_every_example_counts_once(dataset, name: str):
    """53 examples in batches of 8 on 4 devices, against numpy on all at once."""
    score = evaluator(dataset).score(RUNS[name])
    wanted, label = logits(name), examples()[1]
    right = wanted.argmax(axis=1) == label
    first_five = (-wanted).argsort(axis=1, kind="stable")[:, :5]
    exponent = np.exp(wanted.astype(np.float64))
    chance = exponent[np.arange(COUNT), label] / exponent.sum(axis=1)
    assert score.count == COUNT
    assert score.correct == "".join("01"[int(r)] for r in right)
    assert 0 < right.sum() < COUNT
    assert score.top1 == pytest.approx(100 * right.mean())
    assert score.top5 == pytest.approx(
        100 * (first_five == label[:, None]).any(1).mean()
    )
    assert score.loss == pytest.approx(-np.log(chance).mean(), rel=1e-5)
    model, _ = small()
    row = score_row(name, model, RUNS[name], score)
    assert row["macs"] == dr.cost_macs(model, dr.Schedule(row["prune"], row["merge"]))
    assert (row["fraction"] == 1) == (name == "dense")
    assert row["correct"] == score.correct


def host(path: str, port: str, process: str) -> None:
    """What each process of the next test does: evaluate its share, and print it."""
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    score = evaluator(open_dataset(f"arrays:{path}", image_size=8)).score(None)
    print(score.count, float(score.top1), score.correct)


@pytest.mark.slow
def test_two_processes_count_every_example_once(dataset):
    """Example i belongs to process i modulo 2; sums are over all of them."""
    with socket.create_server(("localhost", 0)) as server:
        port = str(server.getsockname()[1])
    tests = Path(__file__).parent
    code = (
        "import sys, jax\n"
        "jax.config.update('jax_num_cpu_devices', 2)\n"
        "jax.config.update('jax_cpu_collectives_implementation', 'gloo')\n"
        "import test_evaluation\n"
        "test_evaluation.host(*sys.argv[1:])\n"
    )
    path = dataset.name.removeprefix("arrays:")
    environment = os.environ | {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, path, port, str(number)],
            stdout=subprocess.PIPE, text=True, env=environment,
        )
        for number in range(2)
    ]  # fmt: skip
    lines = [process.communicate(timeout=300)[0].split() for process in processes]
    right = logits("dense").argmax(axis=1) == examples()[1]
    for number, line in enumerate(lines):
        count, top1, correct = line[-3:]
        assert int(count) == COUNT
        assert float(top1) == pytest.approx(100 * right.mean())
        assert correct == "".join("01"[int(r)] for r in right[number::2])


@pytest.fixture(scope="module")
def on_devices() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """The dense evaluation step on so many devices."""
    model, params = small()

    @functools.cache
    def step(num_devices: int):
        return jax.pmap(
            eval_step(model, None, *COLOURS.values()),
            axis_name=parallel.AXIS,
            in_axes=(None, None, 0),
            out_axes=None,
            devices=jax.local_devices()[:num_devices],
        )

    def run(num_devices: int, batch: dict) -> tuple[np.ndarray, np.ndarray]:
        split = lambda x: x.reshape(num_devices, -1, *x.shape[1:])  # noqa: E731
        batch = {name: split(value) for name, value in batch.items()}
        return jax.device_get(step(num_devices)((), params, batch))

    return run


def test_one_device_counts_what_four_do(dataset, on_devices):
    for batch in dataset.epoch("test", batch_size=BATCH):
        sums, right = on_devices(1, batch)
        other_sums, other_right = on_devices(4, batch)
        np.testing.assert_allclose(sums, other_sums, rtol=1e-5)
        np.testing.assert_array_equal(right, other_right)


def test_padding_is_never_counted(on_devices):
    """Not even padding that the model would get right."""
    images, _ = examples()
    label = logits("dense")[:BATCH].argmax(axis=1).astype(np.int32)
    batch = {"image": images[:BATCH], "label": label}
    ones = np.ones(BATCH, np.float32)
    np.testing.assert_allclose(on_devices(4, batch | {"mask": ones})[0][:3], BATCH)
    assert on_devices(4, batch | {"mask": 0 * ones})[0].tolist() == [0, 0, 0, 0]
    some = np.array([1, 0, 0, 1, 0, 1, 0, 0], np.float32)
    assert on_devices(4, batch | {"mask": some})[0][:3].tolist() == [3, 3, 3]


class Damaged:
    """A dataset that yields fewer examples than it promises."""

    name, num_classes, image_size = "damaged", CLASSES, 8

    def size(self, _: str) -> int:
        return COUNT + 1

    def epoch(self, _: str, *, batch_size: int, **__: int) -> Iterator:
        images, label = examples()
        one = iter([{"image": images[:5], "label": label[:5]}])
        return pad_batches(one, count=2, batch_size=batch_size, image_size=8)


def test_a_count_that_is_not_the_split_is_refused():
    sentence = "each of the 54 examples of 'test' once, counted 5; the dataset is empty"
    with pytest.raises(dr.UserError, match=sentence):
        evaluator(Damaged()).score(None)


def test_a_model_made_for_another_dataset(dataset):
    other = small()[0].clone(num_classes=10)
    with pytest.raises(dr.UserError, match="tells 10 classes apart, arrays:.* has 7; "):
        evaluator(dataset, other)


@pytest.mark.parametrize("batch_size", [0, 6, -4])
def test_batches_that_devices_cannot_share(dataset, batch_size: int):
    sentence = f"positive multiple of the 4 devices, got {batch_size}; change it"
    with pytest.raises(dr.UserError, match=sentence):
        evaluator(dataset, batch_size=batch_size)


@settings(max_examples=30, deadline=None)
@given(
    scores=hnp.arrays(np.float32, (4, 6), elements=st.sampled_from([0.0, 1.0, 2.0])),
    label=hnp.arrays(np.int32, 4, elements=st.integers(0, 5)),
)
def test_rank_of_label_is_the_place_in_a_stable_sort(scores, label):
    order = np.argsort(-scores, axis=1, kind="stable")
    wanted = [list(row).index(one) for row, one in zip(order, label, strict=True)]
    assert jitted_rank(scores, label).tolist() == wanted


jitted_rank = jax.jit(rank_of_label)


@pytest.mark.parametrize("name", ["dense", "gathered"])
def test_compiled_inference_is_the_forward_pass(name: str):
    """For as many images as it was compiled for, and for fewer."""
    model, params = small()
    images = normalise(examples()[0], *COLOURS.values())
    forward = dr.forward(model, params, images, RUNS[name]).logits
    for count in (COUNT, 17, 1, 0):
        found = predict(name)(images[:count])
        assert found.shape == (count, CLASSES)
        np.testing.assert_allclose(found, forward[:count], atol=2e-5)
    assert predict(name).compile_seconds > 0


def test_half_precision_agrees_where_the_margin_is_clear():
    images = normalise(examples()[0], *COLOURS.values())
    found, wanted = np.asarray(predict("dense", "bfloat16")(images)), logits("dense")
    assert found.dtype == np.float32
    error = np.abs(found - wanted).max()
    assert 0 < error < 0.05 * np.abs(wanted).max()
    two_best = np.sort(wanted, axis=1)[:, -2:]
    clear = two_best[:, 1] - two_best[:, 0] > 2 * error
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(found.argmax(1)[clear], wanted.argmax(1)[clear])


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (np.zeros((COUNT + 1, 8, 8, 3)), "at most 53 images, got 54; compile it with"),
        (np.zeros((2, 9, 9, 3)), r"images must be \[B, 8, 8, 3\], got \[2, 9, 9, 3\]"),
        (np.zeros((8, 8, 3)), r"got \[8, 8, 3\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), "must be floats, .* got uint8"),
    ],
)
def test_images_that_do_not_fit(images: np.ndarray, sentence: str):
    with pytest.raises(dr.UserError, match=sentence):
        predict("dense")(images)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dtype": "float16"}, "dtype must be 'float32' or 'bfloat16', got 'float16'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"schedule": dr.Schedule(None, (9,))}, "2 attention blocks, .* counts for 1"),
        ({"schedule": dr.ToMe((1, 2, 3))}, "one r for each of 2 blocks, got 3"),
    ],
)
def test_programs_that_cannot_be(options: dict, sentence: str):
    options = {"schedule": None} | options
    with pytest.raises(dr.UserError, match=sentence):
        compile_inference(*small(), **options)
