"""A tree of image files is a dataset like all others, whatever the files hold."""

import gc
import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_data import check_epoch, joined, take

from diffrate_jax.data import open_dataset, photo
from diffrate_jax.data.chance import Appearance
from diffrate_jax.data.folder import SUFFIXES
from diffrate_jax.errors import UserError

NUM_TRAIN, NUM_VAL, SIZE = 23, 10, 8
CLASSES = "n01", "n02", "n10"


def picture(number: int, height: int = 12, width: int = 10) -> np.ndarray:
    """Returns noise that differs from number to number, uint8 [Y, X, C]."""
    shape = (height, width, 3)
    return np.random.default_rng(number).integers(0, 256, shape).astype(np.uint8)


def plant(folder: Path, count: int) -> None:
    """Writes images into class folders in turn."""
    for number in range(count):
        path = folder / CLASSES[number % 3] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two splits, and what else lies about in such folders."""
    root = tmp_path_factory.mktemp("imagenet")
    plant(root / "train", NUM_TRAIN)
    plant(root / "val", NUM_VAL)
    (root / "test").mkdir()
    (root / "test" / "0.png").write_bytes(b"no class, so no split")
    (root / "val" / "labels.txt").write_text("beside the classes")
    (root / "val" / ".cache").mkdir()
    (root / "val" / "n01" / ".DS_Store").write_bytes(b"hidden")
    return root


def opened(root: Path, **options):
    return open_dataset(f"folder:{root}", **{"image_size": SIZE} | options)


@pytest.fixture(scope="module")
def plain(root):
    return opened(root)


def expected(count: int) -> dict[str, np.ndarray]:
    """Returns a split as it must come: by class, then by name."""
    numbers = sorted(range(count), key=lambda number: (number % 3, number))
    how = {"resize": SIZE, "image_size": SIZE, "interpolation": "bicubic"}
    images = [photo.central(Image.fromarray(picture(n)), **how) for n in numbers]
    return {"image": np.stack(images), "label": np.array(numbers) % 3}


def test_classes_and_images_come_sorted_by_name(plain):
    assert (plain.num_classes, plain.size("train")) == (3, NUM_TRAIN)
    for split in ("val", "validation"):
        batch = next(plain.epoch(split, batch_size=NUM_VAL))
        wanted = expected(NUM_VAL)
        np.testing.assert_array_equal(batch["image"], wanted["image"])
        np.testing.assert_array_equal(batch["label"], wanted["label"])
        assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)


def test_a_split_folder_is_a_dataset_of_its_own(root, plain):
    alone = opened(root / "val")
    assert (alone.size("val"), alone.size("validation")) == (NUM_VAL, NUM_VAL)
    one, other = (next(d.epoch("val", batch_size=10)) for d in (alone, plain))
    np.testing.assert_equal(one, other)
    with pytest.raises(UserError, match="no split 'train'; known: validation, val"):
        alone.size("train")


def test_a_class_may_be_called_like_a_split(tmp_path):
    for name in ("car", "train"):
        (tmp_path / "vehicles" / name).mkdir(parents=True)
        image = Image.fromarray(picture(0))
        image.save(tmp_path / "vehicles" / name / "0.png")
    dataset = opened(tmp_path / "vehicles")
    assert (dataset.num_classes, dataset.size("vehicles")) == (2, 2)


def test_a_class_missing_from_a_split_moves_no_label(root, tmp_path):
    (tmp_path / "train").symlink_to(root / "train")
    (tmp_path / "val" / "n10").mkdir(parents=True)
    Image.fromarray(picture(0)).save(tmp_path / "val" / "n10" / "0.JPEG")
    dataset = opened(tmp_path)
    assert dataset.num_classes == 3
    assert next(dataset.epoch("val", batch_size=1))["label"] == [2]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, NUM_TRAIN))
def test_evaluation_sees_every_file_once(plain, share: int, hosts: int, size: int):
    images = expected(NUM_TRAIN)["image"][:size]
    check_epoch(plain, f"train[:{size}]", share, hosts, images)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_an_epoch_can_be_entered_at_any_batch(plain, hosts: int):
    """And a batch holds the same examples for any number of hosts."""
    options = {"batch_size": 4, "process_count": hosts}
    whole = list(plain.epoch("train", batch_size=4))
    for start in (0, 2, 5, 6, 7):
        parts = (
            list(plain.epoch("train", **options, start=start, process_index=host))
            for host in range(hosts)
        )
        steps = [joined(shares) for shares in zip(*parts, strict=True)]
        assert len(steps) == max(0, 6 - start)
        for found, wanted in zip(steps, whole[start:], strict=True):
            order = np.argsort(np.arange(4) % hosts, kind="stable")
            for key in found:
                np.testing.assert_array_equal(found[key], wanted[key][order])


@pytest.mark.parametrize("crop", ["none", "random_resized"])
def test_training_is_a_function_of_seed_and_step(root, crop: str):
    dataset = opened(root, crop=crop)
    options = {"batch_size": 8, "seed": 5}
    whole = take(dataset.batches("train", **options), 5)
    for start in (1, 2, 4):
        found = take(dataset.batches("train", **options, start=start), 5 - start)
        np.testing.assert_equal(found, whole[start:])
    hosts = (
        take(dataset.batches("train", **options, process_index=i, process_count=2), 5)
        for i in range(2)
    )
    shares = [joined(parts) for parts in zip(*hosts, strict=True)]
    np.testing.assert_equal(shares, whole)
    other = next(dataset.batches("train", batch_size=8, seed=6))
    assert not np.array_equal(other["image"], whole[0]["image"])


def test_crops_differ_from_epoch_to_epoch_and_from_file_to_file(root):
    dataset = opened(root, crop="random_resized")
    once = take(dataset.batches("train[:1]", batch_size=1, seed=0), 6)
    assert len({batch["image"].tobytes() for batch in once}) == 6
    image = Image.fromarray(picture(0, 64, 48))
    how = {"image_size": SIZE, "interpolation": "bilinear"}
    shown = [Appearance(0, 0, 0, copy) for copy in range(3)]
    shown += [Appearance(0, 0, index) for index in range(1, 6)]
    crops = {photo.random_crop(image, one, **how).tobytes() for one in shown}
    assert len(crops) == 8


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 2**32))
def test_random_boxes_lie_within_the_image(width: int, height: int, seed: int):
    uniform_4A = np.random.default_rng(seed).random((4, 10))
    left, top, right, bottom = photo.random_box(width, height, uniform_4A)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if 30 < width < 1.2 * height < 1.4 * width:
        # Both sides are rounded to pixels.
        wide, high = right - left, bottom - top
        assert 0.07 < wide * high / (width * height) <= 1
        assert 0.65 < wide / high < 1.55


@pytest.mark.parametrize(
    ("numbers", "box"),
    [
        ((1, 0.5, 0, 0), (0, 0, 100, 100)),
        ((0.0, 0.5, 0.5, 0), (36, 0, 64, 28)),
        # No rectangle of all its area fits a strip: the largest in its middle.
        ((1, 0.5, 0, 0), (434, 0, 567, 100)),
    ],
)
def test_random_boxes_at_the_ends_of_their_range(numbers: tuple, box: tuple):
    width = 1001 if box[0] == 434 else 100
    uniform_4A = np.repeat(np.array(numbers, float)[:, None], 10, axis=1)
    assert photo.random_box(width, 100, uniform_4A) == box


def stored_as(folder: Path, kind: str) -> Path:
    """Writes one kind of file that occurs in ImageNet or elsewhere."""
    image = Image.fromarray(picture(1, 20, 30))
    mode, file_format, name = kind.split()
    folder.mkdir(parents=True)
    path = folder / name
    options = {}
    if mode == "P":
        image = image.quantize(16)
        options = {"transparency": bytes(range(16))}
    elif mode == "EXIF":
        options = {"exif": Image.Exif()}
        options["exif"][0x0112] = 6  # Lying on its side, says the tag.
    else:
        image = image.convert(mode)
    image.save(path, file_format, **options)
    return path


KINDS = (
    "RGB JPEG a.JPEG", "L JPEG a.JPG", "CMYK JPEG a.jpeg", "EXIF JPEG a.jpg",
    "RGB PNG a.JPEG", "RGBA PNG a.png", "LA PNG a.png", "P PNG a.png", "1 PNG a.png",
    "RGB GIF a.gif", "RGB WEBP a.webp", "RGB TIFF a.tiff", "RGB BMP a.bmp",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Palette images")  # of the line that is compared
def test_every_kind_of_file_is_what_pillow_converts_to_rgb(tmp_path, kind: str):
    path = stored_as(tmp_path / "photos" / "class", kind)
    with Image.open(path) as image:
        wanted = image.convert("RGB")
    found = photo.read_photo(path)
    assert (found.mode, found.size) == ("RGB", (30, 20))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))
    batch = next(opened(tmp_path / "photos").epoch("photos", batch_size=1))
    how = {"resize": SIZE, "image_size": SIZE, "interpolation": "bicubic"}
    np.testing.assert_array_equal(batch["image"][0], photo.central(wanted, **how))


@pytest.mark.filterwarnings("error")
def test_a_palette_gives_no_warning(tmp_path):
    photo.read_photo(stored_as(tmp_path / "class", "P PNG a.png"))


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_file_is_named(tmp_path, file_format: str, damage: str):
    path = stored_as(tmp_path / "photos" / "a", f"RGB {file_format} b.jpg")
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hi"}[damage]
    )
    with pytest.raises(UserError, match=r"expected an image in .*/a/b\.jpg, cannot"):
        next(opened(tmp_path / "photos").epoch("photos", batch_size=1))


def test_a_stream_left_early_leaves_no_thread_behind(plain):
    before = set(threading.enumerate())
    stream = plain.batches("train", batch_size=8, seed=0)
    next(stream)
    own = set(threading.enumerate()) - before
    assert own
    del stream
    gc.collect()
    # On a busy machine a thread may take its time to end.
    for _ in range(500):
        if not any(thread.is_alive() for thread in own):
            return
        time.sleep(0.02)
    raise AssertionError("threads still run")


def test_a_program_may_end_within_a_stream(root):
    program = f"""from diffrate_jax.data import open_dataset
stream = open_dataset("folder:{root}", image_size=8).batches(
    "train", batch_size=8, seed=0)
next(stream)
print("left")"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


@pytest.mark.parametrize(
    ("rows", "first", "size"), [("[:7]", 0, 7), ("[-4:]", 19, 4), ("[90%:]", 21, 2)]
)
def test_splits_are_sliced_as_elsewhere(plain, rows: str, first: int, size: int):
    assert plain.size(f"train{rows}") == size
    batch = next(plain.epoch(f"train{rows}", batch_size=size))
    wanted = expected(NUM_TRAIN)["image"][first:][:size]
    np.testing.assert_array_equal(batch["image"], wanted)


def test_bad_requests_are_refused_in_a_sentence(plain):
    with pytest.raises(UserError, match=r"split 'trian'; did you mean 'train'\?"):
        plain.size("trian")
    for split in ("train[5:5]", "train[:9999]", "train[x:]", "train[", "test"):
        with pytest.raises(UserError, match=r"train|known"):
            plain.size(split)
    with pytest.raises(UserError, match="found 5000; lower it"):
        plain.batches("train", batch_size=5000, seed=0)
    with pytest.raises(UserError, match="positive multiple of the 2 process"):
        plain.epoch("train", batch_size=7, process_count=2)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], "expected folders of images in .*, one to a class, found none; move each"),
        (["a.jpg"], "one to a class, found none; move each image into the folder"),
        (["val/a.jpg"], "one to a class, found none; move each image"),
        (["a/b.txt"], f"must hold images alone, found .*/a/b.txt, .* {SUFFIXES[-1]};"),
        (["a/images/b.jpg"], "must hold images alone, found .*/a/images, whose name"),
        (["a/.b.jpg"], "images in the class folders of .*/photos, found none; add"),
    ],
)
def test_trees_of_another_form_are_refused(tmp_path, files: list, sentence: str):
    root = tmp_path / "photos"
    root.mkdir()
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    with pytest.raises(UserError, match=sentence):
        opened(root).size("photos")


def test_no_folder_at_all(tmp_path):
    with pytest.raises(UserError, match="expected a folder of images at .*/none, foun"):
        opened(tmp_path / "none")


def test_an_unknown_interpolation(root):
    sentence = "unknown interpolation 'bicubik'; did you mean 'bicubic'"
    with pytest.raises(UserError, match=sentence):
        opened(root, interpolation="bicubik")


def test_folders_need_no_tensorflow(root):
    program = f"""import sys; from diffrate_jax.data import open_dataset
next(open_dataset("folder:{root}", image_size=4).epoch("val", batch_size=4))
sys.exit(any(name.startswith("tensorflow") for name in sys.modules))"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_images_differ():
    """What the tests above take for granted."""
    pictures = [picture(number) for number in range(NUM_TRAIN)]
    pairs = itertools.combinations(pictures, 2)
    assert not any(np.array_equal(*pair) for pair in pairs)
