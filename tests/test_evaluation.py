"""Evaluation counts every example once; compiled inference is the forward pass."""

import dataclasses
import functools
import itertools
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
from PIL import Image
from test_weights import random_params

import diffrate_jax as dr
from diffrate_jax import parallel
from diffrate_jax.data import open_dataset, pad_batches
from diffrate_jax.data.augment import normalise
from diffrate_jax.evaluation import (
    Evaluator,
    Images,
    eval_step,
    rank_of_label,
    score_row,
)
from diffrate_jax.inference import compile_inference
from diffrate_jax.tally import BASE, PRIME, Tally

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


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory):
    """The same 53 images as files, all of the size of the model."""
    root = tmp_path_factory.mktemp("photos") / "test"
    for label in range(CLASSES):
        (root / str(label)).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(*examples(), strict=True)):
        Image.fromarray(image).save(root / str(label) / f"{number:02}.png")
    return open_dataset(f"folder:{root}", image_size=8)


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


def test_labels_tell_the_images_and_their_order(dataset, tmp_path):
    """Whatever the batch and the model; two examples changing places is another."""
    images, labels = examples()
    one, other = 3, 3 + int(np.argmax(labels[3:] != labels[3]))
    swapped = np.arange(COUNT)
    swapped[[one, other]] = other, one
    said = {}
    for name, order in {"same": slice(None), "swapped": swapped}.items():
        data = {"test_image": images[order], "test_label": labels[order]}
        np.savez(tmp_path / f"{name}.npz", **data, num_classes=CLASSES)
        again = open_dataset(f"arrays:{tmp_path}/{name}.npz", image_size=8)
        said[name] = evaluator(again, batch_size=16).score(RUNS["tome"]).labels
    value = functools.reduce(
        lambda value, label: (value * BASE + int(label) + 1) % PRIME, labels, 0
    )
    assert evaluator(dataset).score(None).labels == said["same"] == f"{value:016x}"
    assert said["swapped"] != said["same"]


def host(name: str, folder: str, port: str, process: str) -> None:
    """What each process of the next test does: evaluate its share, and print it.

    It counts twice, the second time from the file of a tally that only the first
    process can read.
    """
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    dataset, own = open_dataset(name, image_size=8), Path(folder) / process
    for path in (None, own / "tally.json"):
        score = evaluator(dataset).score(None, path=path)
        said = score.count, float(score.top1), float(score.loss)
        print(*said, score.correct, score.labels)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["arrays", "folder"])
def test_two_processes_count_every_example_once(kind, dataset, photos, tmp_path):
    """Sums and the order of examples are those of one process."""
    data = {"arrays": dataset, "folder": photos}[kind]
    wanted = evaluator(data).score(None)
    cut_short(data, tmp_path / "0" / "tally.json", batches=3)
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
    environment = os.environ | {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, data.name, tmp_path, port, str(number)],
            stdout=subprocess.PIPE, text=True, env=environment,
        )
        for number in range(2)
    ]  # fmt: skip
    for process in processes:
        lines = process.communicate(timeout=300)[0].splitlines()[-2:]
        for count, top1, loss, *rest in map(str.split, lines):
            assert int(count) == COUNT
            assert float(top1) == wanted.top1
            assert float(loss) == pytest.approx(wanted.loss, rel=1e-6)
            assert rest == [wanted.correct, wanted.labels]
    assert not (tmp_path / "1").exists()


class StoppedError(Exception):
    """What ends an evaluation early."""


def cut_short(dataset, path: Path, batches: int, save_every: int = 1) -> None:
    """Evaluates the first batches and leaves what a killed run leaves."""
    own = evaluator(dataset)
    every = own._batches

    def few(start: int) -> Iterator:
        yield from itertools.islice(every(start), batches)
        raise StoppedError

    own._batches = few
    with pytest.raises(StoppedError):
        own.score(None, path=path, save_every=save_every)


@pytest.mark.parametrize(
    ("kind", "batches", "save_every", "kept"),
    [
        ("photos", 3, 2, 2),
        ("dataset", 6, 1, 6),
        ("dataset", 1, 2, 0),
        ("dataset", 7, 4, 7),
    ],
)
def test_a_stopped_evaluation_goes_on(
    request, tmp_path, kind: str, batches: int, save_every: int, kept: int
):
    """To the bit: the same batches, the same sums, in the same order."""
    data = request.getfixturevalue(kind)
    path = tmp_path / "tally.json"
    cut_short(data, path, batches, save_every)
    assert Tally.load(path).batches == kept
    read = []
    counting = evaluator(data)
    every = counting._batches
    counting._batches = lambda start: read.append(start) or every(start)
    score = counting.score(None, path=path)
    whole = evaluator(data).score(None)
    assert read == [kept]
    assert without_rate(score) == without_rate(whole)
    again = evaluator(data).score(None, path=path)
    assert again == dataclasses.replace(
        whole, images_per_second=again.images_per_second
    )
    assert again.images_per_second == score.images_per_second or kept == 7


def without_rate(score) -> dict:
    """Returns all of a score but its time."""
    return dataclasses.asdict(dataclasses.replace(score, images_per_second=0))


@pytest.mark.parametrize(
    "text",
    ["[]", '{"batches": 1, "sum": 3}', '{"batches": 1, "sums": [1, 1, 1, 1]}', "{"],
)
def test_a_damaged_tally_is_refused(dataset, tmp_path, text: str):
    path = tmp_path / "tally.json"
    path.write_text(text)
    with pytest.raises(dr.UserError, match="remove the folder|write it again"):
        evaluator(dataset).score(None, path=path)


def test_examples_without_labels_are_refused(tmp_path):
    """TFDS marks those of a test split by -1."""
    images, labels = examples()
    data = {"test_image": images, "test_label": labels, "num_classes": CLASSES}
    np.savez(tmp_path / "d.npz", **data)
    dataset = open_dataset(f"arrays:{tmp_path}/d.npz", image_size=8)
    every = dataset.epoch
    dataset.epoch = lambda *args, **kwargs: (
        batch | {"label": batch["label"] - 1} for batch in every(*args, **kwargs)
    )
    with pytest.raises(dr.UserError, match="examples without labels.*another split"):
        evaluator(dataset).score(None)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_a_tally_puts_examples_in_the_order_of_the_split(hosts, monkeypatch):
    """Host p has the examples p, p + hosts, and so on."""
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    right = np.arange(BATCH) % 3 == 0
    label = np.array([4, 0, 2, 4, 1, 3, 0, 0])
    verdict = np.where(np.arange(BATCH) < 6, 2 * label + right, -1)
    tally = Tally()
    tally.add(np.array([6.0, 2, 2, 0.5]), np.concatenate(
        [verdict[host::hosts] for host in range(hosts)]
    ))  # fmt: skip
    assert tally.correct == "100100"
    digits = enumerate(reversed(label[:6].tolist()))
    assert tally.labels == sum((n + 1) * BASE**i for i, n in digits) % PRIME
    assert (tally.batches, tally.sums) == (1, [6, 2, 2, 0.5])


@pytest.fixture(scope="module")
def on_devices() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """The dense evaluation step on so many devices."""
    model, params = small()

    @functools.cache
    def step(num_devices: int):
        return jax.pmap(
            eval_step(model, None, Images(**COLOURS)),
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


@pytest.mark.parametrize("num_devices", [2, 4])
@pytest.mark.parametrize("kind", ["dataset", "photos"])
def test_one_device_counts_what_several_do(request, kind, num_devices, on_devices):
    count = 0
    data = request.getfixturevalue(kind)
    for batch in data.epoch("test", batch_size=BATCH):
        sums, verdict = on_devices(1, batch)
        other_sums, other_verdict = on_devices(num_devices, batch)
        np.testing.assert_allclose(sums, other_sums, rtol=1e-5)
        np.testing.assert_array_equal(verdict, other_verdict)
        count += int(other_sums[0])
        assert (verdict >= 0).sum() == sums[0]
    assert count == COUNT


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
        ({"batch_size": 0}, "batch_size must be a positive multiple"),
        ({"schedule": dr.Schedule(None, (9,))}, "2 attention blocks, .* counts for 1"),
        ({"schedule": dr.ToMe((1, 2, 3))}, "one r for each of 2 blocks, got 3"),
    ],
)
def test_programs_that_cannot_be(options: dict, sentence: str):
    options = {"schedule": None} | options
    with pytest.raises(dr.UserError, match=sentence):
        compile_inference(*small(), **options)
