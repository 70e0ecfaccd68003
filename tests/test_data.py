"""Every dataset obeys the rules of `diffrate_jax.data.Dataset`."""

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from PIL import Image

from diffrate_jax.data import open_dataset
from diffrate_jax.data.held_out import HeldOut
from diffrate_jax.errors import UserError

# Height, width, colours and format of the stored images of `odd_images`.
ODD_SIZES = (48, 40), (40, 57), (40, 40), (24, 30)
ODD_KINDS = "RGB PNG", "L PNG", "RGBA PNG", "RGB JPEG", "L JPEG"
ODD_IMAGES = [(*size, *kind.split()) for size in ODD_SIZES for kind in ODD_KINDS]

# Images that hold their number, and the entries of an `.npz`.
IMAGE = np.repeat(np.arange(23, dtype=np.uint8), 48).reshape(23, 4, 4, 3)
LABEL = np.arange(23) % 5
TEST = {"test_image": IMAGE[:10], "test_label": LABEL[:10]}
ENTRIES = {"train_image": IMAGE, "train_label": LABEL, **TEST}


@pytest.fixture(scope="session")
def arrays(tmp_path_factory):
    path = tmp_path_factory.mktemp("arrays") / "small.npz"
    np.savez(path, **ENTRIES)
    dataset = open_dataset(f"arrays:{path}", image_size=4)
    assert dataset.num_classes == 5
    return dataset


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory) -> str:
    data_dir = str(tmp_path_factory.mktemp("tfds"))
    open_dataset("digits", data_dir=data_dir, image_size=32)
    return data_dir


@pytest.fixture(scope="session")
def digits(digits_dir):
    return open_dataset("digits", data_dir=digits_dir, image_size=32)


@pytest.fixture(scope="session")
def cropped(odd_dir):
    options = {"data_dir": odd_dir, "image_size": 16, "crop": "random_resized"}
    return open_dataset("odd_images", **options)


@pytest.fixture(params=["arrays train 8", "digits train[:50] 16", "cropped train 4"])
def trainable(request):
    """A dataset, a split of a few steps per epoch, and the batch size."""
    kind, split, batch_size = request.param.split()
    return request.getfixturevalue(kind), split, int(batch_size)


def stored(height: int, width: int, mode: str, file_format: str) -> bytes:
    """An encoded picture of soft edges, the same for all formats."""
    noise_YXC = np.random.default_rng(0).integers(50, 206, (12, 12, 4))
    image = Image.fromarray(noise_YXC.astype(np.uint8), "RGBA")
    image = image.resize((width, height)).convert(mode)
    file = io.BytesIO()
    image.save(file, file_format, quality=95)
    return file.getvalue()


@pytest.fixture(scope="session")
def odd_dir(digits_dir) -> str:
    """Adds a dataset of images of all sizes, colours and formats, and one of texts."""
    import tensorflow_datasets as tfds

    # Looking for checksums takes TFDS to a module that it forgets to require.
    tfds.dataset_builders.AdhocBuilder.url_infos = None

    def store(name: str, features: dict, examples: list[dict]) -> None:
        features = tfds.features.FeaturesDict(features)
        splits = {"train": list(enumerate(examples))}
        options = {"data_dir": digits_dir, "disable_shuffling": True}
        write = tfds.dataset_builders.store_as_tfds_dataset
        write(name, "1.0.0", features, splits, **options)

    image, label = tfds.features.Image(), tfds.features.ClassLabel(num_classes=20)
    images = [io.BytesIO(stored(*odd_image)) for odd_image in ODD_IMAGES]
    examples = [{"image": x, "label": number} for number, x in enumerate(images)]
    store("odd_images", {"image": image, "label": label}, examples)
    store("odd_texts", {"text": tfds.features.Text()}, [{"text": "a"}])
    return digits_dir


def take(stream, count: int) -> list[dict]:
    return list(itertools.islice(stream, count))


def joined(batches: list[dict]) -> dict:
    return {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}


def contents(images: np.ndarray) -> list[bytes]:
    return sorted(image.tobytes() for image in images)


def test_stream_can_be_entered_at_any_step(trainable):
    dataset, split, batch_size = trainable
    options = {"batch_size": batch_size, "seed": 7}
    whole = take(dataset.batches(split, **options), 9)
    for start in (0, 1, 3, 6):
        found = take(dataset.batches(split, **options, start=start), 9 - start)
        np.testing.assert_equal(found, whole[start:])


def test_seed_and_epoch_change_the_order(trainable):
    dataset, split, size = trainable
    steps = dataset.size(split) // size
    stream = dataset.batches(split, batch_size=size, seed=0)
    other = dataset.batches(split, batch_size=size, seed=1)
    epochs = [joined(take(batches, steps)) for batches in (stream, stream, other)]
    assert len({epoch["image"].tobytes() for epoch in epochs}) == 3


@pytest.mark.parametrize("process_count", [2, 4])
def test_hosts_together_see_the_batch_of_one(trainable, process_count):
    dataset, split, batch_size = trainable
    options = {"batch_size": batch_size, "seed": 3, "start": 1}
    whole = take(dataset.batches(split, **options), 5)
    options["process_count"] = process_count
    ranks = range(process_count)
    hosts = (dataset.batches(split, **options, process_index=i) for i in ranks)
    steps = zip(*(take(host, 5) for host in hosts), strict=True)
    np.testing.assert_equal([joined(shares) for shares in steps], whole)


def test_an_epoch_of_training_repeats_nothing(digits):
    seen = joined(take(digits.batches("train", batch_size=57, seed=0), 21))
    once = joined(list(digits.epoch("train", batch_size=57)))
    assert contents(seen["image"]) == contents(once["image"])


@settings(max_examples=30, deadline=None)
@given(strategies.tuples(*(strategies.integers(1, most) for most in (9, 4, 23))))
def test_evaluation_sees_every_example_once(arrays, numbers):
    share, hosts, size = numbers
    check_epoch(arrays, f"train[:{size}]", share, hosts, IMAGE[:size])


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("kind", ["arrays train", "digits test[:50]"])
def test_evaluation_can_begin_at_any_batch(request, kind, hosts):
    """And a batch holds the same examples for any number of hosts."""
    name, split = kind.split()
    dataset = request.getfixturevalue(name)
    whole = list(dataset.epoch(split, batch_size=8))
    ranks = range(hosts)
    order = np.concatenate([np.arange(8)[i::hosts] for i in ranks])
    for start in (0, 1, len(whole) - 1, len(whole)):
        options = {"batch_size": 8, "start": start, "process_count": hosts}
        parts = [list(dataset.epoch(split, **options, process_index=i)) for i in ranks]
        steps = [joined(list(shares)) for shares in zip(*parts, strict=True)]
        wanted = [{k: v[order] for k, v in b.items()} for b in whole[start:]]
        np.testing.assert_equal(steps, wanted)


def test_held_out_batches_can_begin_at_any_batch(arrays):
    batches = take(arrays.batches("train", batch_size=8, seed=0), 2)
    held_out = HeldOut(arrays, batches, 1, num_classes=7)
    assert held_out.num_classes == 7
    assert held_out.size("train") == 16
    found = list(held_out.epoch("train", batch_size=8, start=1))
    np.testing.assert_equal(found, [batches[1] | {"mask": np.ones(8, np.float32)}])


@pytest.mark.parametrize(("share", "hosts"), [(7, 3), (64, 1), (30, 2)])
def test_evaluation_sees_every_digit_once(digits, share, hosts):
    expected = next(digits.epoch("test[:50]", batch_size=50))["image"]
    assert len(set(contents(expected))) == 50
    check_epoch(digits, "test[:50]", share, hosts, expected)


def check_epoch(dataset, split, share, hosts, expected) -> None:
    """Hosts yield equal shapes, and the masked examples are those expected."""
    options = {"batch_size": share * hosts, "process_count": hosts}
    epochs = [dataset.epoch(split, **options, process_index=i) for i in range(hosts)]
    epochs = [list(epoch) for epoch in epochs]
    assert len({len(epoch) for epoch in epochs}) == 1
    batches = list(itertools.chain(*epochs))
    assert {len(batch[key]) for batch in batches for key in batch} == {share}
    every = joined(batches)
    real = every["mask"] == 1
    assert every["mask"].dtype == np.float32
    assert not every["image"][~real].any()
    assert not every["label"][~real].any()
    assert contents(every["image"][real]) == contents(expected)


@pytest.mark.parametrize(
    ("rows", "first", "size"),
    [(":7", 0, 7), ("5:", 5, 18), ("-4:", 19, 4), ("90%:", 21, 2), ("-12.5%:", 20, 3)],
)
def test_splits_of_arrays_are_sliced_like_those_of_tfds(arrays, rows, first, size):
    assert arrays.size(f"train[{rows}]") == size
    batch = next(arrays.epoch(f"train[{rows}]", batch_size=size))
    np.testing.assert_array_equal(batch["image"], IMAGE[first:][:size])


def test_digits_are_split_by_class(digits):
    assert (digits.size("train"), digits.size("test")) == (1197, 600)
    assert (digits.size("train[90%:]"), digits.size("train+test")) == (120, 1797)
    assert digits.num_classes == 10
    train, test = (next(digits.epoch(s, batch_size=1200)) for s in ("train", "test"))
    assert train["image"].shape == (1200, 32, 32, 3)
    assert (train["image"].dtype, train["label"].dtype) == (np.uint8, np.int32)
    train_V = np.bincount(train["label"], weights=train["mask"])
    test_V = np.bincount(test["label"], weights=test["mask"])
    assert (np.abs(test_V - (train_V + test_V) * 600 / 1797) <= 1).all()


def test_digits_made_meanwhile_elsewhere_are_used(tmp_path, monkeypatch, capfd):
    from diffrate_jax.data.digits import Digits

    def too_late(builder, prepare=Digits.download_and_prepare):
        prepare(builder)
        raise OSError("Directory not empty")

    monkeypatch.setattr(Digits, "download_and_prepare", too_late)
    dataset = open_dataset("digits", data_dir=str(tmp_path), image_size=32)
    assert dataset.size("train") == 1197
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(("resize", "image_size"), [(None, 40), (32, 24), (60, 56)])
def test_evaluation_is_pillows_resize_and_central_crop(odd_dir, resize, image_size):
    options = {"image_size": image_size, "resize": resize}
    dataset = open_dataset("odd_images", data_dir=odd_dir, **options)
    batch = next(dataset.epoch("train", batch_size=len(ODD_IMAGES)))
    assert batch["image"].shape[1:] == (image_size, image_size, 3)
    for image_YXC, odd_image in zip(batch["image"], ODD_IMAGES, strict=True):
        image = Image.open(io.BytesIO(stored(*odd_image))).convert("RGB")
        shorter = resize or image_size
        shape = [side * shorter // min(image.size) for side in image.size]
        left, top = (round((side - image_size) / 2) for side in shape)
        expected_YXC = np.asarray(image.resize(shape, Image.Resampling.BICUBIC))
        expected_YXC = expected_YXC[top:, left:][:image_size, :image_size]
        assert np.abs(image_YXC - expected_YXC.astype(float)).mean() <= 0.25, odd_image


def test_random_crops_of_an_image_differ(cropped):
    batches = take(cropped.batches("train[:1]", batch_size=1, seed=0), 8)
    assert len({batch["image"].tobytes() for batch in batches}) == 8
    assert min(batch["image"].std() for batch in batches) > 5


def test_arrays_need_no_tensorflow(tmp_path):
    np.savez(tmp_path / "small.npz", **ENTRIES)
    program = f"""import sys; from diffrate_jax.data import open_dataset
dataset = open_dataset("arrays:{tmp_path}/small.npz", image_size=4)
next(dataset.batches("train", batch_size=4, seed=0))
sys.exit(any(name.startswith("tensorflow") for name in sys.modules))"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train_image": IMAGE / 255}, "must be uint8 .* found float64 .23, 4, 4, 3."),
        ({"train_image": IMAGE[:, :3]}, "must be 4 x 4 pixels, found 3 x 4"),
        ({"train_image": IMAGE[:9]}, r"must be 9 integers.* found int64 \[23\]"),
        ({"train_label": LABEL / 2}, "must be 23 integers.* found float64"),
        ({"train_label": LABEL - 1}, "must be 0 to 4, found -1 to 4"),
        ({"num_classes": 3}, "must be 0 to 2, found 0 to 4"),
        ({"num_classes": [3, 4]}, "num_classes in .* must be one integer"),
        ({"train_images": IMAGE}, "expected pairs of entries .*rename or add them"),
        ({"train_image": IMAGE[:0], "train_label": LABEL[:0]}, "have examples, found"),
        ({"train_label": np.array([{}])}, "expected an .npz file of plain arrays"),
    ],
)
def test_bad_arrays_are_refused_in_a_sentence(tmp_path, changes, sentence):
    path = tmp_path / "bad.npz"
    np.savez(path, **{**ENTRIES, **changes})
    with pytest.raises(UserError, match=sentence):
        open_dataset(f"arrays:{path}", image_size=4)


@pytest.mark.parametrize("content", [b"", b"no arrays", b"\x93NUMPY\1\0"])
def test_files_that_are_no_npz_are_refused_in_a_sentence(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(UserError, match="file of plain arrays"):
        open_dataset(f"arrays:{tmp_path}/bad.npz", image_size=4)


@pytest.mark.parametrize("kind", ["arrays", "digits"])
def test_bad_requests_are_refused_in_a_sentence(request, kind):
    dataset = request.getfixturevalue(kind)
    with pytest.raises(UserError, match=r"split 'trian'; did you mean 'train'\?"):
        dataset.size("trian")
    for split in ("train[5:5]", "train[:9999]", "train[x:]", "train["):
        with pytest.raises(UserError, match="train"):
            dataset.size(split)
    with pytest.raises(UserError, match="found 5000; lower it"):
        dataset.batches("train", batch_size=5000, seed=0)
    for batch_size in (0, 7):
        with pytest.raises(UserError, match="positive multiple of the 2 process"):
            dataset.epoch("train", batch_size=batch_size, process_count=2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "digit"}, "unknown dataset 'digit'; did you mean 'digits'"),
        ({"name": "cifar-10"}, "unknown dataset 'cifar-10'; did you mean 'cifar10'"),
        ({"name": "qqqqqqqq"}, "unknown dataset 'qqqqqqqq'; known: digits, cifar10"),
        ({"name": "odd_texts"}, "must pair an image with a class, found features text"),
        ({"name": "cifar10"}, "found nothing; run 'tfds build cifar10 --data_dir="),
        ({"crop": "random"}, "unknown crop 'random'; did you mean 'random_resized'"),
        ({"resize": 16}, "resize must be at least image_size, 32, found 16"),
        ({"name": "arrays:a.npz"}, r"expected a readable \.npz file at a\.npz, found"),
        ({"name": "arrays:a.npz", "resize": 36}, "set crop=none and resize=32"),
    ],
)
def test_bad_names_and_options_are_refused_in_a_sentence(odd_dir, options, sentence):
    options = {"name": "digits", **options}
    with pytest.raises(UserError, match=sentence):
        open_dataset(options.pop("name"), data_dir=odd_dir, image_size=32, **options)
