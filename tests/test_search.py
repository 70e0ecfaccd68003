"""Search: what it learns, on any number of devices, and after any interruption."""

import dataclasses
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
from test_weights import random_params

import diffrate_jax as dr
from diffrate_jax import parallel
from diffrate_jax.batches import prepare
from diffrate_jax.budget import one_more, parse_budget
from diffrate_jax.checkpoint import Checkpoints
from diffrate_jax.data.augment import Augment
from diffrate_jax.learning import (
    SearchResult,
    descent,
    learn_schedule,
    learn_schedules,
    objective,
    refine,
)
from diffrate_jax.learning.descent import SearchState, initial_state, search_step
from diffrate_jax.learning.projected import Motion
from diffrate_jax.metrics import read_metrics
from diffrate_jax.models.vit import ViT
from diffrate_jax.rates import Rates
from diffrate_jax.recipe import Recipe

pytestmark = pytest.mark.usefixtures("cache")
# Collectives of virtual devices deadlock on fewer threads; read when JAX starts.
os.environ.setdefault("NPROC", "16")

BATCH, SIZE, CLASSES, STEPS = 8, 16, 5, 20
TARGET = "75%"
AUGMENT = Augment(
    mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), flip=True, shift=2, label_smoothing=0.1
)
MIXED = dataclasses.replace(AUGMENT, mixup=0.8, cutmix=1.0, erasing=0.25)
SHARED = {"steps": STEPS, "learning_rate": 0.1, "drop_path": 0.2, "augment": AUGMENT}
PUBLISHED = Recipe.published(**SHARED | {"augment": MIXED})
PROJECTED = Recipe(**SHARED, refine_images=2 * BATCH)
RECIPES = {"published": PUBLISHED, "projected": PROJECTED}
OFTEN = ["projected", pytest.param("published", marks=pytest.mark.slow)]
CHILD = (
    "import sys, conftest, test_search; "
    "test_search.child(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
)


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
    options = {"recipe": PUBLISHED, "log_every": 1} | options
    return learn_schedule(model, params or good, batches, TARGET, **options)


@dataclasses.dataclass
class Run:
    """A finished search: its recipe by name, what it found and where."""

    name: str
    result: SearchResult
    workdir: Path

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.name]

    @property
    def held_out(self) -> int:
        """Number of batches that no step sees."""
        return self.recipe.refine_images // BATCH


@pytest.fixture(scope="module", params=OFTEN)
def unbroken(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A search by each recipe that nothing interrupts."""
    name, workdir = request.param, tmp_path_factory.mktemp("unbroken")
    result = search(recipe=RECIPES[name], workdir=workdir, checkpoint_every=2)
    return Run(name, result, workdir)


def assert_same(found: SearchResult, wanted: SearchResult) -> None:
    """Compares what was learned bit for bit, and what was made of it."""
    jax.tree.map(np.testing.assert_array_equal, found.rates, wanted.rates)
    assert found.schedule == wanted.schedule
    assert found.learned == wanted.learned
    assert found.refined == wanted.refined
    assert found.settled == wanted.settled


def logged_steps(workdir: Path) -> list[int]:
    return [row["step"] for row in read_metrics(workdir / "metrics.jsonl")]


def test_cost_approaches_the_target(unbroken: Run):
    result, (model, _) = unbroken.result, small()
    rows = read_metrics(unbroken.workdir / "metrics.jsonl")
    target = parse_budget(TARGET, model).limit
    assert rows[-1]["target_macs"] == pytest.approx(target)
    distance = [abs(row["macs"] - row["target_macs"]) for row in rows]
    if unbroken.name == "published":
        assert distance[-1] < 0.3 * distance[0]
    else:
        # From a start at the target the cost stays there, up to rounded counts.
        assert max(distance) < half_a_token_everywhere(model)
    assert 0.995 * target <= result.macs <= target
    assert result.macs == dr.cost_macs(model, result.schedule)
    assert result.learned == dr.Schedule.from_kept(counts(result), unbroken.recipe.rule)
    assert result.schedule.rule == result.learned.rule == unbroken.recipe.rule
    assert (result.schedule.prune is None) == (unbroken.name == "projected")
    for row in rows:
        prune = row["prune"] if unbroken.name == "published" else None
        assert prune or row["prune"] == row["merge"]
        schedule = dr.Schedule(prune, row["merge"], rule=unbroken.recipe.rule)
        assert row["macs"] == pytest.approx(dr.cost_macs(model, schedule), rel=1e-6)
        assert row["objective"] <= row["loss"]
    assert (result.refined is None) == (unbroken.recipe.refine_images == 0)


def counts(result: SearchResult) -> dr.Kept:
    """Returns the counts that rates stand for: where they end, rounded up."""
    geometry = small()[0].geometry
    if isinstance(result.rates, Rates):
        return dr.Masked(result.rates).kept(geometry)
    return dr.Kept(None, np.ceil(result.rates) + geometry.prefix_tokens)


def half_a_token_everywhere(model: ViT) -> float:
    """Returns what half a token in every block costs, where it costs most."""
    tokens = model.geometry.num_tokens
    fewer = dr.Schedule(None, (tokens - 1,) * model.depth)
    return (dr.cost_macs(model, None) - dr.cost_macs(model, fewer)) / 2


# How often each forward pass is traced: of the step, of the dense model that it should
# match (once in the step, once for the held-out images), and of refining.
TRACED = {
    "published": {descent: 1, objective: 0, refine: 0},
    "projected": {descent: 1, objective: 2, refine: 1},
}


def count_traces(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Returns a dict of how often each module has traced a forward pass so far."""
    traced = dict.fromkeys(TRACED["published"], 0)

    def counting(module, *args, **kwargs):
        traced[module] += 1
        return dr.forward(*args, **kwargs)

    for module in traced:
        monkeypatch.setattr(module, "forward", functools.partial(counting, module))
    return traced


def test_only_rates_move_and_one_program_does_it(monkeypatch, unbroken: Run):
    model, params = small()
    before = jax.tree.map(np.array, params)
    traced = count_traces(monkeypatch)
    result = search(recipe=unbroken.recipe)
    assert traced == TRACED[unbroken.name]
    jax.tree.map(np.testing.assert_array_equal, params, before)
    budgets = [parse_budget(TARGET, model)]
    start = initial_state(model, unbroken.recipe, budgets).learned
    leaves = [jax.tree.leaves(rates) for rates in (result.rates, start)]
    assert all((found != first).any() for found, first in zip(*leaves, strict=True))
    assert len(leaves[0]) == {"published": 2, "projected": 1}[unbroken.name]


def steps_on(recipe: Recipe, num_devices: int, num_steps: int, *, right_index=True):
    """Yields state and values of the plain step on some devices, waiting for each."""
    model, params = small()
    budgets = [parse_budget(TARGET, model)]
    step = jax.pmap(
        search_step(model, recipe, budgets),
        axis_name=parallel.AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        devices=jax.local_devices()[:num_devices],
    )
    state = jax.device_get(initial_state(model, recipe, budgets))
    for number in range(num_steps):
        batch = batch_of(number)
        index = np.arange(BATCH, dtype=np.int32)
        batch["index"] = index if right_index else index % (BATCH // num_devices)
        shape = (num_devices, BATCH // num_devices)
        batch = {k: v.reshape(*shape, *v.shape[1:]) for k, v in batch.items()}
        state, values = jax.device_get(step(state, params, batch))
        yield state, values


def first_gradient(state: SearchState) -> np.ndarray:
    """Returns the gradient of the first step, from the first moment after it."""
    if isinstance(state.optimiser, Motion):
        moment = state.optimiser.gradient
    else:
        moment = state.optimiser.inner_state[0].mu
    leaves = jax.tree.leaves(moment)
    return np.concatenate([leaf.ravel() for leaf in leaves]) / (1 - 0.9)


@pytest.mark.slow
@pytest.mark.parametrize("name", OFTEN)
def test_one_device_does_what_four_do(name: str):
    """With flips, shifts, smoothing and dropped paths: they belong to the example."""
    recipe = RECIPES[name]
    one, four = list(steps_on(recipe, 1, 10)), list(steps_on(recipe, 4, 10))
    gradient, wanted = first_gradient(four[0][0]), first_gradient(one[0][0])
    scale = np.abs(wanted).max()
    # A divergence is a small difference of numbers around 1, in float32.
    close, rounding = {"published": (1e-6, 0), "projected": (1e-5, 1e-7)}[name]
    np.testing.assert_allclose(gradient, wanted, rtol=0, atol=close * scale)
    for (_, values), (_, expected) in zip(four, one, strict=True):
        for key in ("prune", "merge", "macs"):
            np.testing.assert_array_equal(values[key], expected[key])
        losses = values["loss"], expected["loss"]
        np.testing.assert_allclose(*losses, rtol=1e-5, atol=rounding)
    found, expected = (jax.tree.leaves(run[-1][0].learned) for run in (four, one))
    for rates, others in zip(found, expected, strict=True):
        np.testing.assert_allclose(rates, others, rtol=0, atol=1e-4)
    # The test would see it if every device counted its examples from zero.
    wrong = first_gradient(next(steps_on(recipe, 4, 1, right_index=False))[0])
    assert np.abs(wrong - wanted).max() > 1e-3 * scale


def test_an_iterator_of_floats_and_probabilities():
    """A user's own loader: images normalised, labels mixed."""
    rng = np.random.default_rng(0)
    drawn = []

    def loader():
        while True:
            drawn.append(rng.standard_normal((BATCH, SIZE, SIZE, 3), np.float32))
            yield {"image": drawn[-1], "label": rng.dirichlet([1.0] * CLASSES, BATCH)}

    result = search(loader(), recipe=Recipe.published(steps=3, learning_rate=0.1))
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
        (
            {"penalty_unit": "flops"},
            "penalty_unit cannot be 'flops'; .*relative",
        ),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"granularity": 65}, "between 1 and the 64 patches, got 65"),
    ],
)
def test_recipes_that_cannot_be(fields: dict, sentence: str):
    with pytest.raises(dr.UserError, match=sentence):
        search(recipe=Recipe.published(**fields))


@pytest.mark.parametrize("name", ["checkpoint_every", "log_every"])
def test_intervals_are_at_least_a_step(name: str):
    with pytest.raises(dr.UserError, match="log_every must be at least 1 step, got"):
        search(**{name: 0})


@pytest.mark.parametrize("unbroken", ["projected"], indirect=True)
def test_labels_are_needed_by_cross_entropy_alone(unbroken: Run):
    """Matching the dense model does not even look at them."""

    def unlabelled(start: int) -> Iterator[dict]:
        for step, batch in enumerate(stream(start), start):
            image = {"image": batch["image"]}
            yield image | {"label": "none"} if step % 2 else image

    assert_same(search(unlabelled, recipe=PROJECTED), unbroken.result)
    labelled = dataclasses.replace(PROJECTED, objective="cross_entropy")
    for recipe in (PUBLISHED, labelled):
        with pytest.raises(dr.UserError, match=r"hold 'image' and 'label', got \['ima"):
            search(unlabelled, recipe=recipe)


def test_batches_that_end_while_images_are_held_out():
    sentence = "ended after 8 images, 16 are held out for .* or lower refine_images$"
    for batches in (iter([batch_of(0)]), lambda start: iter([batch_of(start)])):
        with pytest.raises(dr.UserError, match=sentence):
            search(batches, recipe=PROJECTED)


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("published", dr.Schedule((50, 30), (41, 20))),
        ("projected", dr.Schedule((50, 30), (41, 20))),
    ],
)
def test_a_search_starts_from_a_schedule(tmp_path: Path, name: str, start: dr.Schedule):
    """Its counts are the first in the log; where nothing is pruned, what is left."""
    recipe = dataclasses.replace(RECIPES[name], start=start, steps=1, refine_images=0)
    search(recipe=recipe, workdir=tmp_path)
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert tuple(row["merge"]) == start.merge
    prune = start.prune if name == "published" else start.merge
    assert tuple(row["prune"]) == prune


@pytest.mark.slow
def test_a_sweep_finds_every_target_with_one_program(tmp_path: Path, monkeypatch):
    """From the dense model down; results in the order in which targets were given."""
    model, params = small()
    recipe = dataclasses.replace(PROJECTED, steps=8, start="dense")
    targets = ["80%", "90%", "70%"]
    traced = count_traces(monkeypatch)
    options = {"recipe": recipe, "workdir": tmp_path, "log_every": 1}
    results = learn_schedules(model, params, stream, targets, **options)
    assert traced == TRACED["projected"]
    for target, result in zip(targets, results, strict=True):
        macs = parse_budget(target, model).limit
        assert result.macs == dr.cost_macs(model, result.schedule) <= macs
        blocks = range(model.depth)
        longer = [one_more(result.schedule, b, model.geometry) for b in blocks]
        fits = [s for s in longer if s and dr.cost_macs(model, s) <= macs]
        assert result.macs >= 0.995 * macs or not fits
        assert result.macs >= 0.99 * macs
        assert result.schedule.provenance["target"] == target
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 25))
    dense = dr.cost_macs(model, None)
    assert rows[0]["macs"] == pytest.approx(dense)
    for number, share in enumerate([0.9, 0.8, 0.7]):
        own = rows[8 * number : 8 * number + 8]
        wanted = pytest.approx([share * dense] * 8)
        assert [row["target_macs"] for row in own] == wanted
        # A quarter of the steps lead there, and a row tells the counts before its step.
        distance = [abs(row["macs"] - row["target_macs"]) for row in own]
        assert max(distance[2:]) < half_a_token_everywhere(model) < distance[0]


def test_batches_that_run_out_and_go_on(tmp_path: Path, unbroken: Run):
    """Six steps, an end, a loss that is not finite, and the rest of the twenty."""

    def some(start: int) -> Iterator[dict]:
        return itertools.islice(stream(start), 6 + unbroken.held_out - start)

    options = {"recipe": unbroken.recipe, "workdir": tmp_path, "checkpoint_every": 3}
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
    wanted = unbroken.result
    assert_same(search(**options), wanted)
    assert logged_steps(tmp_path) == list(range(1, STEPS + 1))

    def held_out(start: int) -> Iterator[dict]:
        assert start == 0
        return map(batch_of, range(unbroken.held_out))

    # A finished search draws no batch but those that refining takes.
    (tmp_path / "refined.json").unlink(missing_ok=True)
    assert_same(search(held_out, **options), wanted)


def test_an_iterator_is_taken_up_where_it_was(tmp_path: Path, unbroken: Run):
    """A plain iterator starts from its beginning: what was seen is passed over."""
    options = {"recipe": unbroken.recipe, "workdir": tmp_path, "checkpoint_every": 5}
    with pytest.raises(dr.UserError, match="batches ended after 9 of 20"):
        search(map(batch_of, range(unbroken.held_out + 9)), **options)
    # A list will do as well.
    batches = [*map(batch_of, range(unbroken.held_out + 20))]
    assert_same(search(batches, **options), unbroken.result)


def child(workdir: str, name: str, steps: int) -> None:
    """What a process of the next test does: search, and write down the result."""

    def announced(start: int) -> Iterator[dict[str, np.ndarray]]:
        for step, batch in enumerate(stream(start), start):
            print(step, flush=True)
            yield batch

    result = in_workdir(announced, Path(workdir), name, steps)
    leaves = map(np.asarray, jax.tree.leaves(result.rates))
    np.savez(f"{workdir}/result.npz", *leaves)
    result.schedule.save(f"{workdir}/schedule.json")


def in_workdir(batches, workdir: Path, name: str, steps: int) -> SearchResult:
    recipe = dataclasses.replace(RECIPES[name], steps=steps)
    return search(batches, recipe=recipe, workdir=workdir, checkpoint_every=2)


def run_child(
    workdir: Path, name: str, steps: int, cache: Path, kill: tuple | None
) -> int:
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
        [sys.executable, "-c", CHILD, workdir, name, str(steps)],
        stdout=subprocess.PIPE, stderr=errors, env=environment, text=True,
    ) as process:  # fmt: skip
        for number, _ in enumerate(process.stdout, 1):
            if kill is not None and number == kill[0]:
                time.sleep(kill[1])
                process.kill()
                break
    return process.returncode


def killed_and_rerun(
    workdir: Path, cache: Path, name: str, *, steps: int, kills: int
) -> int:
    """Kills a search again and again, and lets it end.

    No checkpoint is lost: each start goes on at least from where the last one did.

    Returns:
        How many kills fell inside a save.
    """
    rng = np.random.default_rng(kills)
    workdir.mkdir()
    before, in_a_save = 0, 0
    for number in range(kills):
        held_out = RECIPES[name].refine_images // BATCH
        # All over the run, yet so early that each start has some steps to do.
        left = steps - before
        most = min(left - 4, 2 * left // (kills - number + 1))
        kill = (held_out + int(rng.integers(1, most + 1)), rng.uniform(0, 0.05))
        assert run_child(workdir, name, steps, cache, kill) == -9
        folders = [path.name for path in (workdir / "checkpoints").iterdir()]
        saved = [int(folder) for folder in folders if folder.isdecimal()]
        in_a_save += len(saved) < len(folders)
        assert before <= max(saved, default=0) < steps
        before = max(saved, default=0)
    code = run_child(workdir, name, steps, cache, None)
    assert code == 0, (workdir / "stderr").read_text()[-3000:]
    print(f"{in_a_save} of {kills} kills fell inside a save")
    return in_a_save


def check_like_unbroken(workdir: Path, wanted: SearchResult, steps: int) -> None:
    with np.load(workdir / "result.npz") as file:
        found = [file[name] for name in file.files]
    for rates, expected in zip(found, jax.tree.leaves(wanted.rates), strict=True):
        np.testing.assert_array_equal(rates, expected)
    assert dr.Schedule.load(workdir / "schedule.json") == wanted.schedule
    assert logged_steps(workdir) == list(range(1, steps + 1))


def test_kills_change_nothing(tmp_path: Path, cache: Path, unbroken: Run):
    # Five in all; fifty are in --slow.
    kills = {"published": 2, "projected": 3}[unbroken.name]
    killed_and_rerun(tmp_path / "run", cache, unbroken.name, steps=STEPS, kills=kills)
    check_like_unbroken(tmp_path / "run", unbroken.result, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_many_kills_change_nothing(tmp_path: Path, cache: Path, name: str):
    steps, kills = 100, 25
    inside = killed_and_rerun(tmp_path / "run", cache, name, steps=steps, kills=kills)
    assert inside
    wanted = in_workdir(stream, tmp_path / "unbroken", name, steps)
    check_like_unbroken(tmp_path / "run", wanted, steps)
