"""The input of a recipe: from fields to values, and how fast it comes."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from diffrate_jax import cli, recipes, searching
from diffrate_jax.data.__main__ import main
from diffrate_jax.data.augment import IMAGENET, Augment
from diffrate_jax.data.rand_augment import RandAugment
from diffrate_jax.data.stages import in_series, rates
from diffrate_jax.errors import UserError

ROOT = Path(__file__).parent.parent
RECIPE = str(ROOT / "configs" / "quickstart.py")


def config_of(name: str, **changes):
    config = cli.load_recipe(ROOT / "configs" / f"{name}.py")
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def arrays(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("input") / "small.npz"
    image = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3)).astype(np.uint8)
    np.savez(path, train_image=image, train_label=np.arange(40) % 10)
    return f"arrays:{path}"


def run(*words: str) -> int:
    return main(["data", f"--config={RECIPE}", "--config.cpu_devices=0", *words])


def test_the_published_recipe_augments_as_deit_does():
    config = config_of("published")
    model = recipes.model_of(config)
    assert recipes.augment_of(config, model) == Augment(
        **IMAGENET, flip=True, label_smoothing=0.1, mixup=0.8, cutmix=1.0, erasing=0.25
    )
    found = recipes.rand_augment_of(config, recipes.preprocess_of(config, model))
    assert found == RandAugment(magnitude=9, std=0.5, layers=2, fill=(124, 116, 104))
    assert (config.repeats, config.drop_path, config.crop) == (3, 0.1, "random_resized")
    assert (config.steps, config.batch_size) == (3 * 1251, 1024)


@pytest.mark.parametrize("name", ["base", "quickstart", "deit_small", "cifar10"])
def test_other_recipes_do_not(name):
    config = config_of(name)
    model = recipes.model_of(config)
    assert not recipes.augment_of(config, model).mixes
    assert not config.erasing
    assert config.repeats == 1
    preprocess = recipes.preprocess_of(config, model)
    assert recipes.rand_augment_of(config, preprocess) is None


@pytest.mark.parametrize("field", ["mixup", "cutmix"])
def test_devices_that_hold_half_a_pair_are_refused(arrays, field):
    devices = jax.device_count()
    config = config_of("quickstart", dataset=arrays, batch_size=3 * devices)
    dataset = recipes.dataset_of(config, recipes.model_of(config))
    recipes.batches_of(config, dataset)
    config[field] = 0.5
    with pytest.raises(UserError, match="an even number of them, got 3 per device"):
        recipes.batches_of(config, dataset)


def test_searches_of_every_seed_are_refined_by_the_same_images(arrays):
    """And go on with their own, from any step onward."""
    config = config_of("quickstart", dataset=arrays, batch_size=8, refine_images=20)
    dataset = recipes.dataset_of(config, recipes.model_of(config))

    def batches(seed: int, start: int) -> list[dict]:
        config.seed = seed
        stream = searching.stream_of(config, dataset)(start)
        return list(itertools.islice(stream, 6))

    first, other = batches(seed=0, start=0), batches(seed=1, start=0)
    np.testing.assert_equal(other[:3], first[:3])
    for mine, theirs in zip(first[3:], other[3:], strict=True):
        assert not np.array_equal(mine["image"], theirs["image"])
    for start in range(6):
        later = batches(seed=1, start=start)
        np.testing.assert_equal(later[: 6 - start], other[start:])
    own = recipes.batches_of(config, dataset)(0)
    np.testing.assert_equal(list(itertools.islice(own, 3, 6)), other[3:])
    config.refine_seed = 1
    own = recipes.batches_of(config, dataset)(0)
    np.testing.assert_equal(list(itertools.islice(own, 6)), batches(seed=1, start=0))


@pytest.mark.parametrize("everything", [True, False])
def test_the_program_measures_stages_and_stream_in_turn(
    arrays, tmp_path, capsys, everything
):
    out = tmp_path / "new" / "input.json"
    words = [f"--config.dataset={arrays}", "--config.batch_size=8", "--stages"]
    if everything:
        words += ["--config.rand_augment_magnitude=9", "--config.repeats=2"]
    assert run(*words, "--steps=2", "--rounds=3", f"--out={out}") == 0
    record = json.loads(out.read_text())
    rows = {row["name"]: row for row in record["rows"]}
    names = ["read, decode, crop", "RandAugment", "batch", "whole stream", "in series"]
    assert list(rows) == [n for n in names if everything or n != "RandAugment"]
    assert all(len(row["rounds"]) == 3 for row in rows.values())
    assert all(
        row["images_per_second"] == np.median(row["rounds"]) for row in rows.values()
    )
    ratio = np.divide(rows["whole stream"]["rounds"], rows["in series"]["rounds"])
    assert record["whole_over_series"] == np.median(ratio)
    assert record["command"].startswith("python -m diffrate_jax.data --config=")
    shown = capsys.readouterr()
    assert all(name in shown.out for name in rows)
    assert f"comes at {record['whole_over_series']:.1%} of what" in shown.out
    assert "input" in shown.err


def test_without_stages_the_stream_alone_is_measured(arrays, capsys):
    words = [f"--config.dataset={arrays}", "--config.batch_size=8"]
    assert run(*words, "--steps=1", "--rounds=1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["", "whole stream"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--rounds=0"], "--rounds must be at least 1, got 0"),
        (["--steps=-1"], "--steps must be at least 1, got -1"),
        (["--config.repeats=0"], "config.repeats must be at least 1, got 0"),
        (["--config.repeats=3", "--config.batch_size=8"], "must be at least 9, three"),
        (["--config.erasing=2"], "config.erasing must be from 0 to 1, got 2.0"),
        (["--config.mixup=-1"], "config.mixup must be at least 0, got -1.0"),
        (["--config.rand_augment_magnitude=11"], "must be from 0 to 10.0, got 11.0"),
        (["--config.rand_augment_layers=0"], "must be at least 1, got 0"),
        (["--config.batch_size=400"], "at most the 40 examples of 'train'"),
        (["--stage"], "unknown flag --stage; did you mean 'stages'"),
    ],
)
def test_bad_input_ends_in_a_sentence(arrays, capsys, words, sentence):
    assert run(f"--config.dataset={arrays}", *words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert sentence in lines[-1]


def test_help_shows_examples():
    command = [sys.executable, "-m", "diffrate_jax.data", "--help"]
    found = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "Examples:" in found.stdout
    assert "--stages" in found.stdout
    assert found.stderr == ""


def test_rates_take_turns_and_leave_the_warmup_out(monkeypatch):
    began, clock = [], [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def stage(name: str, seconds: float):
        def run():
            began.append(name)
            for turn in range(99):
                # The first batches come at once, from what was made before.
                clock[0] += 0 if turn < 2 else seconds
                yield 4

        return run

    stages = {"read, decode, crop": stage("a", 1), "RandAugment": stage("b", 2)}
    found = rates(stages, images=8, warmup=8, rounds=2)
    assert began == ["a", "b", "a", "b"]
    assert found == {"read, decode, crop": [4.0, 4.0], "RandAugment": [2.0, 2.0]}
    assert in_series(found) == pytest.approx([4 / 3, 4 / 3])
    del found["RandAugment"]
    assert in_series(found) == [4.0, 4.0]


@pytest.mark.slow
def test_the_whole_stream_comes_nearly_as_fast_as_its_stages_allow(tmp_path, capsys):
    """JPEGs of the size of ImageNet's, the published recipe: measured 90 % and more."""
    import tensorflow_datasets as tfds

    store_photos(tmp_path, tfds)
    words = ["data", f"--config={ROOT}/configs/published.py", "--stages"]
    words += ["--config.dataset=photos", f"--config.data_dir={tmp_path}"]
    words += ["--config.batch_size=64", f"--out={tmp_path}/input.json"]
    assert main(words) == 0
    record = json.loads((tmp_path / "input.json").read_text())
    print(capsys.readouterr().out)
    assert record["whole_over_series"] > 0.85


def store_photos(folder: Path, tfds) -> None:
    """Writes a TFDS dataset of JPEGs of 500 x 375 pixels, about 100 kB each."""
    from PIL import Image

    rng, photos = np.random.default_rng(0), []
    for number in range(40):
        coarse = rng.integers(0, 256, (94, 125, 3)).astype(np.uint8)
        image = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        path = folder / f"{number}.jpg"
        image.save(path, quality=93)
        photos.append(str(path))
    # Looking for checksums takes TFDS to a module that it forgets to require.
    tfds.dataset_builders.AdhocBuilder.url_infos = None
    image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
    features = {"image": image, "label": tfds.features.ClassLabel(num_classes=1000)}
    tfds.dataset_builders.store_as_tfds_dataset(
        "photos",
        "1.0.0",
        tfds.features.FeaturesDict(features),
        {"train": [(i, {"image": photos[i % 40], "label": 0}) for i in range(2000)]},
        data_dir=str(folder),
        disable_shuffling=True,
    )
