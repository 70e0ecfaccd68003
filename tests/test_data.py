"""Every dataset obeys the rules of `diffrate_jax.data.Dataset`."""

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffrate_jax.data import open_dataset
from diffrate_jax.errors import UserError

SIZES = {"train": 23, "test": 10}
# Height and width, mode and format of the stored images of `odd_images`.
ODD_IMAGES = [
    (48, 40, "RGB", "PNG"),
    (40, 57, "RGB", "PNG"),
    (40, 40, "L", "PNG"),
    (41, 43, "RGBA", "PNG"),
    (24, 30, "RGB", "PNG"),
    (48, 64, "RGB", "JPEG"),
    (50, 40, "L", "JPEG"),
]


def entries(sizes: dict[str, int] = SIZES, image_size: int = 4) -> dict:
    """Entries of an `.npz`, each image filled with its number and its split."""
    found = {}
    for number, (split, count) in enumerate(sizes.items()):
        images_NYXC = np.full((count, image_size, image_size, 3), number, np.uint8)
        images_NYXC[:, 0, 0, 0] = np.arange(count)
        found[f"{split}_image"] = images_NYXC
        found[f"{split}_label"] = np.arange(count) % 5
    return found


@pytest.fixture(scope="session")
def arrays(tmp_path_factory):
    path = tmp_path_factory.mktemp("arrays") / "small.npz"
    np.savez(path, **entries())
    return open_dataset(f"arrays:{path}", image_size=4)


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
    return open_dataset(
        "odd_images", data_dir=odd_dir, image_size=16, crop="random_resized"
    )


@pytest.fixture(params=["arrays", "digits", "cropped"])
def trainable(request):
    """A dataset, a split with 2 to 4 steps per epoch, and that batch size."""
    split, batch_size = {
        "arrays": ("train", 8),
        "digits": ("train[:50]", 16),
        "cropped": ("train", 2),
    }[request.param]
    return request.getfixturevalue(request.param), split, batch_size


def smooth_image(height: int, width: int, mode: str) -> Image.Image:
    """A picture with edges, gradients and a little noise."""
    y, x = np.mgrid[:height, :width] / 7
    noise = np.random.default_rng(0).uniform(-20, 20, (height, width, 4))
    waves = [np.sin(x + k) * np.cos(y * (k + 1)) + np.sign(x - 3) for k in range(4)]
    values = np.clip(128 + 60 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(values, "RGBA").convert(mode)


def stored(height: int, width: int, mode: str, file_format: str) -> bytes:
    file = io.BytesIO()
    smooth_image(height, width, mode).save(file, file_format, quality=95)
    return file.getvalue()


@pytest.fixture(scope="session")
def odd_dir(tmp_path_factory) -> str:
    """A dataset of images of all sizes, colours and formats."""
    import tensorflow_datasets as tfds

    class OddImages(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = None

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, image in enumerate(ODD_IMAGES):
                yield number, {"image": io.BytesIO(stored(*image)), "label": number}

    data_dir = str(tmp_path_factory.mktemp("odd"))
    OddImages(data_dir=data_dir).download_and_prepare()
    return data_dir


def take(stream, count: int) -> list[dict]:
    return list(itertools.islice(stream, count))


def assert_same(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype
            np.testing.assert_array_equal(one[key], other[key])


def joined(batches: list[dict]) -> dict:
    return {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}


def test_stream_can_be_entered_at_any_step(trainable):
    dataset, split, batch_size = trainable
    options = {"batch_size": batch_size, "seed": 7}
    whole = take(dataset.batches(split, **options), 9)
    for start in (0, 1, 3, 6):
        found = take(dataset.batches(split, **options, start=start), 9 - start)
        assert_same(found, whole[start:])


def test_seed_and_epoch_change_the_order(trainable):
    dataset, split, batch_size = trainable
    steps = dataset.size(split) // batch_size
    stream = dataset.batches(split, batch_size=batch_size, seed=0)
    first, second = joined(take(stream, steps)), joined(take(stream, steps))
    other = joined(take(dataset.batches(split, batch_size=batch_size, seed=1), steps))
    assert not np.array_equal(first["image"], second["image"])
    assert not np.array_equal(first["image"], other["image"])


@pytest.mark.parametrize("process_count", [2, 4])
def test_hosts_together_see_the_batch_of_one(trainable, process_count):
    dataset, split, batch_size = trainable
    if batch_size % process_count:
        pytest.skip("a batch of two has no quarters")
    options = {"batch_size": batch_size, "seed": 3, "start": 1}
    whole = take(dataset.batches(split, **options), 5)
    hosts = [
        take(
            dataset.batches(
                split, **options, process_index=index, process_count=process_count
            ),
            5,
        )
        for index in range(process_count)
    ]
    assert_same([joined(list(shares)) for shares in zip(*hosts)], whole)


def test_an_epoch_of_training_repeats_nothing(arrays, digits):
    batches = take(arrays.batches("train", batch_size=5, seed=0), 4)
    assert len(set(joined(batches)["image"][:, 0, 0, 0])) == 20
    seen = joined(take(digits.batches("train", batch_size=57, seed=0), 21))
    stored_once = joined(take(digits.epoch("train", batch_size=57), 21))
    assert sorted(i.tobytes() for i in seen["image"]) == sorted(
        i.tobytes() for i in stored_once["image"]
    )


@settings(max_examples=30, deadline=None)
@given(share=st.integers(1, 9), hosts=st.integers(1, 4), size=st.integers(1, 23))
def test_evaluation_sees_every_example_once(arrays, share, hosts, size):
    check_epoch(arrays, f"train[:{size}]", share, hosts, np.arange(size))


@pytest.mark.parametrize(("share", "hosts"), [(7, 3), (64, 1), (30, 2)])
def test_evaluation_sees_every_digit_once(digits, share, hosts):
    expected = joined(list(digits.epoch("test[:50]", batch_size=50)))["image"]
    assert len({image.tobytes() for image in expected}) == 50
    check_epoch(digits, "test[:50]", share, hosts, expected)


def check_epoch(dataset, split, share, hosts, expected) -> None:
    """Hosts yield equal shapes, and the masked examples are those expected."""
    epochs = [
        list(
            dataset.epoch(
                split,
                batch_size=share * hosts,
                process_index=index,
                process_count=hosts,
            )
        )
        for index in range(hosts)
    ]
    assert len({len(epoch) for epoch in epochs}) == 1
    batches = [batch for epoch in epochs for batch in epoch]
    assert {len(batch[key]) for batch in batches for key in batch} == {share}
    every = joined(batches)
    assert every["mask"].dtype == np.float32
    assert not every["image"][every["mask"] == 0].any()
    assert not every["label"][every["mask"] == 0].any()
    images = every["image"][every["mask"] == 1]
    if expected.ndim == 1:
        images = images[:, 0, 0, 0]
    assert sorted(i.tobytes() for i in images) == sorted(
        i.tobytes() for i in expected.astype(np.uint8)
    )


@pytest.mark.parametrize(
    ("split", "first", "size"),
    [
        ("train", 0, 23),
        ("train[:7]", 0, 7),
        ("train[5:]", 5, 18),
        ("train[-4:]", 19, 4),
        ("train[90%:]", 21, 2),
        ("train[:50%]", 0, 12),
        ("train[-12.5%:]", 20, 3),
    ],
)
def test_splits_of_arrays_are_sliced_like_those_of_tfds(arrays, split, first, size):
    assert arrays.size(split) == size
    batch = next(arrays.epoch(split, batch_size=size))
    np.testing.assert_array_equal(
        batch["image"][:, 0, 0, 0], np.arange(first, first + size)
    )


def test_tfds_slices(digits):
    assert digits.size("train[:2%]") == 24
    assert digits.size("train[90%:]") == 120
    assert digits.size("train+test") == 1797


def test_digits_are_split_by_class(digits):
    assert (digits.size("train"), digits.size("test")) == (1197, 600)
    assert digits.num_classes == 10
    counts = {}
    for split in ("train", "test"):
        batch = next(digits.epoch(split, batch_size=digits.size(split)))
        assert batch["image"].shape == (digits.size(split), 32, 32, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32
        counts[split] = np.bincount(batch["label"], minlength=10)
    share_V = (counts["train"] + counts["test"]) * 600 / 1797
    assert (np.abs(counts["test"] - share_V) <= 1).all()


def test_digits_made_meanwhile_by_another_process_are_used(tmp_path, monkeypatch):
    from diffrate_jax.data.digits import Digits

    prepare = Digits.download_and_prepare

    def too_late(builder):
        prepare(builder)
        raise OSError("Directory not empty")

    monkeypatch.setattr(Digits, "download_and_prepare", too_late)
    dataset = open_dataset("digits", data_dir=str(tmp_path), image_size=32)
    assert dataset.size("train") == 1197


def test_digits_are_made_without_noise(tmp_path, capfd):
    open_dataset("digits", data_dir=str(tmp_path), image_size=32)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(("resize", "image_size"), [(None, 24), (28, 24), (40, 32)])
def test_evaluation_is_pillows_resize_and_central_crop(odd_dir, resize, image_size):
    dataset = open_dataset(
        "odd_images", data_dir=odd_dir, image_size=image_size, resize=resize
    )
    batch = next(dataset.epoch("train", batch_size=len(ODD_IMAGES)))
    assert batch["image"].shape[1:] == (image_size, image_size, 3)
    for image_YXC, odd_image in zip(batch["image"], ODD_IMAGES):
        expected = by_pillow(stored(*odd_image), resize or image_size, image_size)
        difference = np.abs(image_YXC.astype(float) - expected)
        assert difference.mean() <= 0.25, odd_image


def by_pillow(encoded: bytes, resize: int, image_size: int) -> np.ndarray:
    # Converting from RGBA drops the alpha channel.
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    shorter = min(image.size)
    size = [side * resize // shorter for side in image.size]
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (round((side - image_size) / 2) for side in size)
    return np.asarray(image.crop((left, top, left + image_size, top + image_size)))


def test_right_size_is_left_untouched(odd_dir):
    dataset = open_dataset("odd_images", data_dir=odd_dir, image_size=40)
    image_YXC = next(dataset.epoch("train", batch_size=7))["image"][2]
    expected = smooth_image(40, 40, "L").convert("RGB")
    np.testing.assert_array_equal(image_YXC, np.asarray(expected))


def test_random_crops_differ_between_steps_and_fill_the_image(cropped):
    batches = take(cropped.batches("train[:1]", batch_size=1, seed=0), 8)
    images = joined(batches)["image"]
    assert images.shape == (8, 16, 16, 3)
    assert len({image.tobytes() for image in images}) == 8
    assert images.reshape(8, -1).std(axis=1).min() > 5


def test_arrays_need_no_tensorflow(tmp_path):
    path = tmp_path / "small.npz"
    np.savez(path, **entries())
    program = f"""
import sys
from diffrate_jax.data import open_dataset
dataset = open_dataset("arrays:{path}", image_size=4)
next(dataset.batches("train", batch_size=4, seed=0))
next(dataset.epoch("test", batch_size=4))
sys.exit(any(name.startswith("tensorflow") for name in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


IMAGE, LABEL = entries()["train_image"], entries()["train_label"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train_image": IMAGE / 255}, "must be uint8 .* found float64 .23, 4, 4, 3."),
        ({"train_image": IMAGE[..., 0]}, r"must be uint8 \[N, Y, X, 3\], found"),
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
    np.savez(path, **{**entries(), **changes})
    with pytest.raises(UserError, match=sentence):
        open_dataset(f"arrays:{path}", image_size=4)


def test_declared_classes_count(tmp_path):
    path = tmp_path / "ten.npz"
    np.savez(path, **entries(), num_classes=10)
    assert open_dataset(f"arrays:{path}", image_size=4).num_classes == 10


def test_files_that_are_no_npz_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="expected a readable .npz file"):
        open_dataset(f"arrays:{tmp_path / 'none.npz'}", image_size=4)
    (tmp_path / "text.npz").write_text("no arrays")
    (tmp_path / "empty.npz").write_text("")
    np.save(tmp_path / "single.npy", np.zeros(3))
    for name in ("text.npz", "empty.npz", "single.npy"):
        with pytest.raises(UserError, match="expected an .npz file of plain arrays"):
            open_dataset(f"arrays:{tmp_path / name}", image_size=4)


@pytest.mark.parametrize("kind", ["arrays", "digits"])
def test_bad_requests_are_refused_in_a_sentence(request, kind):
    dataset = request.getfixturevalue(kind)
    with pytest.raises(UserError, match=r"split 'trian'; did you mean 'train'\?"):
        dataset.size("trian")
    for split in ("train[5:5]", "train[:9999]", "train[x:]", "train["):
        with pytest.raises(UserError, match="train"):
            dataset.size(split)
    with pytest.raises(UserError, match="must be at most the .* found 5000; lower it"):
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
        ({"name": "cifar10:9.9.9"}, "unknown dataset 'cifar10:9.9.9'; did you mean"),
        ({"name": "cifar10"}, "found nothing; run 'tfds build cifar10 --data_dir="),
        ({"crop": "random"}, "unknown crop 'random'; did you mean 'random_resized'"),
        ({"resize": 16}, "resize must be at least image_size, 32, found 16"),
        ({"name": "arrays:a.npz", "resize": 36}, "use crop 'none' and no resize"),
    ],
)
def test_bad_names_and_options_are_refused_in_a_sentence(digits_dir, options, sentence):
    options = {"name": "digits", **options}
    with pytest.raises(UserError, match=sentence):
        open_dataset(options.pop("name"), data_dir=digits_dir, image_size=32, **options)


def test_datasets_without_classes_are_refused_in_a_sentence(tmp_path):
    import tensorflow_datasets as tfds

    class NoClasses(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = None

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {"text": "hello"}

    NoClasses(data_dir=str(tmp_path)).download_and_prepare()
    with pytest.raises(UserError, match="must pair an image with a class"):
        open_dataset("no_classes", data_dir=str(tmp_path), image_size=32)
