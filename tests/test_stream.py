"""With everything on, a training stream is a function of seed and step all the same."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_data import joined, take

from diffrate_jax.data import open_dataset
from diffrate_jax.data.order import images_of_round, training_rows
from diffrate_jax.data.rand_augment import RandAugment
from diffrate_jax.errors import UserError

READERS = ("tfds", "folder", "arrays")
NUM, SIZE, BATCH, REPEATS = 29, 16, 12, 3


def picture(number: int) -> np.ndarray:
    """Returns noise that differs from number to number, uint8 [Y, X, C]."""
    shape = (SIZE, SIZE, 3)
    return np.random.default_rng(number).integers(0, 256, shape).astype(np.uint8)


def encoded(number: int) -> io.BytesIO:
    """Returns the picture as a file that loses nothing."""
    file = io.BytesIO()
    Image.fromarray(picture(number)).save(file, "PNG")
    file.seek(0)
    return file


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """The same images for every reader, as the name of a dataset and a folder."""
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("streams")
    images = np.stack([picture(number) for number in range(NUM)])
    labels = np.arange(NUM) % 5
    np.savez(root / "all.npz", train_image=images, train_label=labels)
    for number in range(NUM):
        path = root / "photos" / "train" / f"{number % 5}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number).getvalue())
    # Looking for checksums takes TFDS to a module that it forgets to require.
    tfds.dataset_builders.AdhocBuilder.url_infos = None
    features = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(num_classes=5),
    }
    stored = [(n, {"image": encoded(n), "label": n % 5}) for n in range(NUM)]
    tfds.dataset_builders.store_as_tfds_dataset(
        "pictures",
        "1.0.0",
        tfds.features.FeaturesDict(features),
        {"train": stored},
        data_dir=str(root),
        disable_shuffling=True,
    )
    names = {"arrays": f"arrays:{root}/all.npz", "folder": f"folder:{root}/photos"}
    return names | {"tfds": "pictures", "data_dir": str(root)}


def opened(places: dict[str, str], reader: str, **options):
    where = {"data_dir": places["data_dir"], "image_size": SIZE}
    return open_dataset(places[reader], **where, **options)


@pytest.fixture(params=READERS)
def everything(request, places):
    """A reader of all that the published recipe does before the device."""
    options = {"rand_augment": RandAugment(), "repeats": REPEATS}
    if request.param != "arrays":
        options["crop"] = "random_resized"
    return opened(places, request.param, **options)


@pytest.fixture(params=READERS)
def repeated(request, places):
    """Images as they are, three times each."""
    return opened(places, request.param, repeats=REPEATS)


def test_a_stream_resumed_anywhere_is_the_unbroken_one(everything):
    """Two steps are an epoch: the third begins another."""
    options = {"batch_size": BATCH, "seed": 7}
    whole = take(everything.batches("train", **options), 5)
    for start in (1, 3):
        found = take(everything.batches("train", **options, start=start), 5 - start)
        np.testing.assert_equal(found, whole[start:])
    other = next(everything.batches("train", batch_size=BATCH, seed=8))
    assert not np.array_equal(other["image"], whole[0]["image"])


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_see_the_batch_of_one(everything, hosts):
    options = {"batch_size": BATCH, "seed": 3, "start": 1}
    whole = take(everything.batches("train", **options), 2)
    options["process_count"] = hosts
    streams = (
        take(everything.batches("train", **options, process_index=i), 2)
        for i in range(hosts)
    )
    steps = [joined(shares) for shares in zip(*streams, strict=True)]
    np.testing.assert_equal(steps, whole)


def test_repetitions_differ_and_so_do_epochs(everything):
    seen = joined(take(everything.batches("train", batch_size=BATCH, seed=0), 4))
    different = len({image.tobytes() for image in seen["image"]})
    # Without a crop, two in a hundred repetitions come out alike by chance.
    assert different > 0.8 * len(seen["image"])


def test_every_image_of_an_epoch_comes_three_times(repeated):
    """In rounds, so that no image has itself for a neighbour."""
    known = {picture(number).tobytes(): number for number in range(NUM)}
    stream = repeated.batches("train", batch_size=BATCH, seed=0)
    epochs = [joined(take(stream, 2)) for _ in range(2)]
    numbers = [[known[x.tobytes()] for x in epoch["image"]] for epoch in epochs]
    for epoch, found in zip(epochs, numbers, strict=True):
        np.testing.assert_array_equal(np.array(found) % 5, epoch["label"])
        # Rounds of three images, 24 in an epoch: two rounds of nine, and six more.
        rounds = [found[0:9], found[9:18], found[18:24]]
        for part in rounds:
            assert part[:3] * (len(part) // 3) == part
        assert len(set(found)) == 9
        pairs = np.reshape(found, (-1, 2))
        assert (pairs[:, 0] != pairs[:, 1]).all()
    assert set(numbers[0]) != set(numbers[1])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(0, 40), st.integers(0, 100), st.integers(0, 9))
def test_rounds_repeat_as_they_should(repeats, more, rest, start):
    batch_size = 3 * repeats + more
    size = batch_size + rest
    steps = size // batch_size
    options = {"batch_size": batch_size, "seed": 0, "repeats": repeats}
    whole = training_rows(size, **options, start=0, first=0, share=batch_size)
    shares = take(whole, steps)
    rows = np.concatenate([share.rows_B for share in shares])
    copies = np.concatenate([share.copies_B for share in shares])
    assert len({*zip(rows.tolist(), copies.tolist(), strict=True)}) == len(rows)
    assert copies.max() == repeats - 1
    times = np.unique(rows, return_counts=True)[1]
    assert times.max() == repeats
    # All but the last round are whole.
    assert (times < repeats).sum() <= images_of_round(batch_size, repeats)
    if repeats > 1:
        assert (rows[1:] != rows[:-1]).all()
    half = {"first": batch_size // 2, "share": batch_size - batch_size // 2}
    later = take(training_rows(size, **options, start=start, **half), 1)[0]
    everyone = take(
        training_rows(size, **options, start=start, first=0, share=batch_size), 1
    )[0]
    assert later.epoch == everyone.epoch == start // steps
    np.testing.assert_array_equal(later.rows_B, everyone.rows_B[half["first"] :])
    np.testing.assert_array_equal(later.copies_B, everyone.copies_B[half["first"] :])


def test_batches_too_small_to_repeat_in_are_refused_in_a_sentence(repeated):
    with pytest.raises(UserError, match="batch_size must be at least 9, three times "):
        repeated.batches("train", batch_size=8, seed=0)


def test_no_repetition_at_all_is_refused_in_a_sentence(places):
    dataset = opened(places, "arrays", repeats=0)
    with pytest.raises(UserError, match="repeats must be at least 1, found 0; raise"):
        dataset.batches("train", batch_size=8, seed=0)


@pytest.mark.parametrize("reader", ["folder", "arrays"])
def test_randaugment_comes_after_the_crop(places, reader):
    """The same stream without it differs in about three images of four."""
    how = {"batch_size": 28, "seed": 0}
    plain = next(opened(places, reader).batches("train", **how))
    dataset = opened(places, reader, rand_augment=RandAugment())
    found = next(dataset.batches("train", **how))
    np.testing.assert_array_equal(found["label"], plain["label"])
    same = [
        np.array_equal(*x) for x in zip(found["image"], plain["image"], strict=True)
    ]
    assert 1 <= sum(same) <= 16


def test_evaluation_knows_nothing_of_it(everything, places):
    found = next(everything.epoch("train", batch_size=NUM))
    wanted = sorted(picture(number).tobytes() for number in range(NUM))
    assert sorted(image.tobytes() for image in found["image"]) == wanted


def test_streams_of_folders_need_no_tensorflow_for_all_that(places):
    program = f"""import sys; from diffrate_jax.data import open_dataset
from diffrate_jax.data.rand_augment import RandAugment
options = dict(image_size={SIZE}, rand_augment=RandAugment(), repeats=3)
for name in ("{places["folder"]}", "{places["arrays"]}"):
    next(open_dataset(name, **options).batches("train", batch_size=9, seed=0))
sys.exit(any(name.startswith("tensorflow") for name in sys.modules))"""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, cwd=root, check=False).returncode == 0
