"""Search: what it learns, on any number of devices, and after any interruption."""

import functools
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from test_weights import random_params

import diffrate_jax as dr
from diffrate_jax import learning, parallel
from diffrate_jax.batches import prepare
from diffrate_jax.budget import parse_budget
from diffrate_jax.checkpoint import Checkpoints
from diffrate_jax.data.augment import Augment
from diffrate_jax.learning import Recipe, SearchResult, learn_schedule
from diffrate_jax.metrics import read_metrics

# Collectives of virtual devices deadlock on fewer threads; read when JAX starts.
os.environ.setdefault("NPROC", "16")

BATCH, SIZE, CLASSES, STEPS = 8, 16, 5, 20
TARGET = "75%"
AUGMENT = Augment(
    mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), flip=True, shift=2, label_smoothing=0.1
)
RECIPE = Recipe(steps=STEPS, learning_rate=0.1, drop_path=0.2, augment=AUGMENT)
CHILD = (
    "import sys, conftest, test_search; "
    "test_search.child(sys.argv[1], int(sys.argv[2]))"
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Compiles each program once for all tests and processes of a file, and fast."""
    folder = tmp_path_factory.mktemp("compiled")
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@functools.cache
def small():
    """Returns a model of 65 tokens and two blocks that may compress, and weights."""
    model = dr.create_model(
        "vit", image_size=SIZE, patch_size=2, width=8, depth=2, num_heads=2,
        num_classes=CLASSES, compress=(True, True),
    )  # fmt: skip
    return model, random_params(model)


def batch_of(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([7, step])
    image = rng.integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8)
    return {"image": image, "label": rng.integers(0, CLASSES, BATCH)}


def stream(start: int) -> Iterator[dict[str, np.ndarray]]:
    return map(batch_of, itertools.count(start))


def search(batches=stream, params=None, **options) -> SearchResult:
    model, good = small()
    options = {"recipe": RECIPE, "log_every": 1} | options
    return learn_schedule(model, params or good, batches, TARGET, **options)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, Path]:
    """A search that nothing interrupts, and its work directory."""
    workdir = tmp_path_factory.mktemp("unbroken")
    return search(workdir=workdir, checkpoint_every=2), workdir


def assert_same(found: SearchResult, wanted: SearchResult) -> None:
    """Compares rate logits bit for bit, and what was made of them."""
    jax.tree.map(np.testing.assert_array_equal, found.rates, wanted.rates)
    assert found.schedule == wanted.schedule
    assert found.learned == wanted.learned


def logged_steps(workdir: Path) -> list[int]:
    return [row["step"] for row in read_metrics(workdir / "metrics.jsonl")]


def test_cost_approaches_the_target(unbroken):
    result, workdir = unbroken
    model, _ = small()
    rows = read_metrics(workdir / "metrics.jsonl")
    distance = [abs(row["macs"] - row["target_macs"]) for row in rows]
    assert distance[-1] < 0.3 * distance[0]
    target = parse_budget(TARGET, model).macs
    assert rows[-1]["target_macs"] == pytest.approx(target)
    assert 0.995 * target <= result.macs <= target
    assert result.macs == dr.cost_macs(model, result.schedule)
    learned = dr.Masked(result.rates).kept(model.geometry)
    assert result.learned == dr.Schedule.from_kept(learned)
    for row in rows:
        schedule = dr.Schedule(row["prune"], row["merge"])
        assert row["macs"] == pytest.approx(dr.cost_macs(model, schedule), rel=1e-6)


def test_only_rates_move_and_one_program_does_it(monkeypatch):
    _, params = small()
    before = jax.tree.map(np.array, params)
    traced = []

    def counting(*args, **kwargs):
        traced.append(args)
        return dr.forward(*args, **kwargs)

    monkeypatch.setattr(learning, "forward", counting)
    result = search()
    assert len(traced) == 1
    jax.tree.map(np.testing.assert_array_equal, params, before)
    assert result.rates.prune.any()
    assert result.rates.merge.any()


def steps_on(num_devices: int, num_steps: int, *, right_index: bool = True):
    """Yields state and values of the plain step on some devices, waiting for each."""
    model, params = small()
    step = jax.pmap(
        learning.search_step(model, RECIPE, parse_budget(TARGET, model)),
        axis_name=parallel.AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        devices=jax.local_devices()[:num_devices],
    )
    state = jax.device_get(learning.initial_state(model, RECIPE))
    for number in range(num_steps):
        batch = batch_of(number)
        index = np.arange(BATCH, dtype=np.int32)
        batch["index"] = index if right_index else index % (BATCH // num_devices)
        shape = (num_devices, BATCH // num_devices)
        batch = {k: v.reshape(*shape, *v.shape[1:]) for k, v in batch.items()}
        state, values = jax.device_get(step(state, params, batch))
        yield state, values


def first_gradient(state: learning.SearchState) -> np.ndarray:
    """Returns the gradient of the first step, from Adam's first moment after it."""
    leaves = jax.tree.leaves(state.optimiser[0].mu)
    return np.concatenate([leaf.ravel() for leaf in leaves]) / (1 - 0.9)


def test_one_device_does_what_four_do():
    """With flips, shifts, smoothing and dropped paths: they belong to the example."""
    one, four = list(steps_on(1, 10)), list(steps_on(4, 10))
    gradient, wanted = first_gradient(four[0][0]), first_gradient(one[0][0])
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-6 * scale)
    for (_, values), (_, expected) in zip(four, one, strict=True):
        for name in ("prune", "merge", "macs"):
            np.testing.assert_array_equal(values[name], expected[name])
        np.testing.assert_allclose(values["loss"], expected["loss"], rtol=1e-5)
    for name in ("prune", "merge"):
        found, expected = (getattr(run[-1][0].rates, name) for run in (four, one))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    # The test would see it if every device counted its examples from zero.
    wrong = first_gradient(next(steps_on(4, 1, right_index=False))[0])
    assert np.abs(wrong - wanted).max() > 1e-3 * scale


def test_an_iterator_of_floats_and_probabilities():
    """A user's own loader: images normalised, labels mixed."""
    rng = np.random.default_rng(0)
    drawn = []

    def loader():
        while True:
            drawn.append(rng.standard_normal((BATCH, SIZE, SIZE, 3), np.float32))
            yield {"image": drawn[-1], "label": rng.dirichlet([1.0] * CLASSES, BATCH)}

    result = search(loader(), recipe=Recipe(steps=3, learning_rate=0.1))
    assert len(drawn) == 3
    assert result.rates.merge.any()


jitted_prepare = jax.jit(prepare, static_argnums=(2, 3))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_probabilities_are_final(dtype: type):
    label = np.random.default_rng(0).dirichlet([1.0] * CLASSES, BATCH)
    batch = batch_of(0) | {"label": label.astype(np.float32)}
    batch["image"] = batch["image"].astype(dtype)
    batch["index"] = np.arange(BATCH)
    _, found, _ = jitted_prepare(batch, jax.random.key(0), AUGMENT, CLASSES)
    np.testing.assert_array_equal(found, batch["label"])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_integer_labels_are_smoothed(dtype: type):
    batch = batch_of(0) | {"index": np.arange(BATCH)}
    batch["image"] = batch["image"].astype(dtype)
    _, found, _ = jitted_prepare(batch, jax.random.key(0), AUGMENT, CLASSES)
    wanted = 0.9 * np.eye(CLASSES)[batch["label"]] + 0.1 / CLASSES
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image": None}, r"must hold 'image' and 'label', got \['label'\]"),
        ({"label": None}, r"must hold 'image' and 'label', got \['image'\]"),
        ({"image": (8, 8, 8, 3)}, r"images must be \[B, 16, 16, 3\], got \[8, 8, 8, 3"),
        ({"image": (8, 16, 16, 1)}, r"got \[8, 16, 16, 1\]; resize them"),
        ({"image": (8, 3, 16, 16)}, r"got \[8, 3, 16, 16\]"),
        ({"image": np.zeros((8, 16, 16, 3), np.int32)}, "floats, got int32"),
        (
            {"label": np.full(8, 5)},
            r"labels must lie in 0..4, got 5..5; check the data",
        ),
        ({"label": np.arange(8) - 1}, r"labels must lie in 0..4, got -1..6"),
        ({"label": np.zeros(8)}, "labels must be integers .*float64"),
        ({"label": np.zeros(4, int)}, r"for each of 8 images, or 5 .*, got \[4\]"),
        ({"label": np.zeros((8, 3))}, r"or 5 probabilities each, got \[8, 3\]"),
        (
            {"image": (6, 16, 16, 3), "label": np.zeros(6, int)},
            "batch_size must be a positive multiple of the 4 devices, got 6",
        ),
        ({"image": (0, 16, 16, 3), "label": np.zeros(0, int)}, "4 devices, got 0"),
    ],
)
def test_batches_that_do_not_fit(change: dict, sentence: str):
    batch = batch_of(0) | {
        key: np.zeros(value, np.uint8) if isinstance(value, tuple) else value
        for key, value in change.items()
    }
    batch = {key: value for key, value in batch.items() if value is not None}
    with pytest.raises(dr.UserError, match=sentence):
        search(iter([batch]))


@pytest.mark.parametrize("target", ["10%", "99", "nan"])
def test_targets_out_of_reach_cost_no_batch(target: str):
    def never(_: int):
        raise AssertionError

    model, params = small()
    with pytest.raises(dr.UserError, match=f"the target {target} is out of reach"):
        learn_schedule(model, params, never, target)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"penalty_unit": "flops"}, "'relative' or 'gmacs', got 'flops'"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"granularity": 65}, "between 1 and the 64 patches, got 65"),
    ],
)
def test_recipes_that_cannot_be(fields: dict, sentence: str):
    with pytest.raises(dr.UserError, match=sentence):
        search(recipe=Recipe(**fields))


@pytest.mark.parametrize("name", ["checkpoint_every", "log_every"])
def test_intervals_are_at_least_a_step(name: str):
    with pytest.raises(dr.UserError, match="log_every must be at least 1 step, got"):
        search(**{name: 0})


def test_batches_that_run_out_and_go_on(tmp_path: Path, unbroken):
    """Six steps, an end, a loss that is not finite, and the rest of the twenty."""

    def some(start: int) -> Iterator[dict]:
        return itertools.islice(stream(start), 6 - start)

    options = {"workdir": tmp_path, "checkpoint_every": 3}
    with pytest.raises(dr.UserError, match="batches ended after 6 of 20 steps; give"):
        search(some, **options)

    def broken(start: int) -> Iterator[dict]:
        nothing = np.full((BATCH, SIZE, SIZE, 3), np.nan, np.float32)
        return (batch | {"image": nothing} for batch in stream(start))

    with pytest.raises(dr.UserError, match="loss of step 7 is not finite; the last"):
        search(broken, **options)
    other = jax.tree.map(lambda w: w + 1, small()[1])
    with pytest.raises(dr.UserError, match="belongs to a run with params_sha256="):
        search(params=other, **options)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest == 6
    wanted, _ = unbroken
    assert_same(search(**options), wanted)
    assert logged_steps(tmp_path) == list(range(1, STEPS + 1))

    def never(_: int):
        raise AssertionError

    # A finished search has nothing left to do.
    assert_same(search(never, **options), wanted)


def test_an_iterator_is_taken_up_where_it_was(tmp_path: Path, unbroken):
    """A plain iterator starts from its beginning: what was seen is passed over."""
    options = {"workdir": tmp_path, "checkpoint_every": 5}
    with pytest.raises(dr.UserError, match="batches ended after 9 of 20"):
        search(map(batch_of, range(9)), **options)
    # A list will do as well.
    assert_same(search([*map(batch_of, range(20))], **options), unbroken[0])


def child(workdir: str, steps: int) -> None:
    """What a process of the next test does: search, and write down the result."""

    def announced(start: int) -> Iterator[dict[str, np.ndarray]]:
        for step, batch in enumerate(stream(start), start):
            print(step, flush=True)
            yield batch

    result = in_workdir(announced, Path(workdir), steps)
    leaves = map(np.asarray, jax.tree.leaves(result.rates))
    np.savez(f"{workdir}/result.npz", *leaves)
    result.schedule.save(f"{workdir}/schedule.json")


def in_workdir(batches, workdir: Path, steps: int) -> SearchResult:
    recipe = Recipe(steps=steps, learning_rate=0.1, drop_path=0.2, augment=AUGMENT)
    return search(batches, recipe=recipe, workdir=workdir, checkpoint_every=2)


def run_child(workdir: Path, steps: int, cache: Path, kill: tuple | None) -> int:
    """Runs the search in a process, killed some steps and seconds after its start."""
    tests = Path(__file__).parent
    environment = os.environ | {
        "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    with (workdir / "stderr").open("a") as errors, subprocess.Popen(
        [sys.executable, "-c", CHILD, workdir, str(steps)],
        stdout=subprocess.PIPE, stderr=errors, env=environment, text=True,
    ) as process:  # fmt: skip
        for number, _ in enumerate(process.stdout, 1):
            if kill is not None and number == kill[0]:
                time.sleep(kill[1])
                process.kill()
                break
    return process.returncode


def killed_and_rerun(workdir: Path, cache: Path, *, steps: int, kills: int) -> None:
    """Kills a search again and again, and compares what comes out in the end."""
    rng = np.random.default_rng(kills)
    workdir.mkdir()
    for _ in range(kills):
        kill = (int(rng.integers(1, 7)), rng.uniform(0, 0.05))
        assert run_child(workdir, steps, cache, kill) == -9
    code = run_child(workdir, steps, cache, None)
    assert code == 0, (workdir / "stderr").read_text()[-3000:]


def check_like_unbroken(workdir: Path, wanted: SearchResult, steps: int) -> None:
    with np.load(workdir / "result.npz") as file:
        found = [file[name] for name in file.files]
    for rates, expected in zip(found, jax.tree.leaves(wanted.rates), strict=True):
        np.testing.assert_array_equal(rates, expected)
    assert dr.Schedule.load(workdir / "schedule.json") == wanted.schedule
    assert logged_steps(workdir) == list(range(1, steps + 1))


def test_two_kills_change_nothing(tmp_path: Path, cache: Path, unbroken):
    killed_and_rerun(tmp_path / "run", cache, steps=STEPS, kills=2)
    check_like_unbroken(tmp_path / "run", unbroken[0], STEPS)


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path: Path, cache: Path):
    killed_and_rerun(tmp_path / "run", cache, steps=80, kills=10)
    wanted = in_workdir(stream, tmp_path / "unbroken", 80)
    check_like_unbroken(tmp_path / "run", wanted, 80)
