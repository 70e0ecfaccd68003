"""Several processes as one run: one result, and none goes on without the others.

The processes are real, on this machine, and started by launch/local_pod.sh.
"""

import dataclasses
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import test_search
from safetensors.numpy import load_file
from test_search import (
    BATCH,
    CLASSES,
    RECIPES,
    SIZE,
    STEPS,
    TARGET,
    batch_of,
    first_gradient,
    logged_steps,
    small,
    steps_on,
)
from test_weights import random_params

from diffrate_jax import parallel, report
from diffrate_jax.budget import parse_budget
from diffrate_jax.cli import load_recipe
from diffrate_jax.data import open_dataset
from diffrate_jax.distributed import (
    COORDINATOR,
    PROCESS,
    PROCESSES,
    coordinator,
    joined,
)
from diffrate_jax.errors import UserError
from diffrate_jax.evaluation import Evaluator
from diffrate_jax.exits import report_errors
from diffrate_jax.files import read_json
from diffrate_jax.learning import learn_schedule
from diffrate_jax.learning.descent import initial_state, search_step
from diffrate_jax.recipes import model_of
from diffrate_jax.weights import save_weights

ROOT = Path(__file__).parent.parent
CHILD = "import sys, conftest, test_pod; sys.exit(test_pod.child(*sys.argv[1:]))"
NUM_IMAGES = 21  # Divides neither by batches, nor by processes, nor by devices.


def share(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns this process's part of a global batch."""
    count = BATCH // jax.process_count()
    start = jax.process_index() * count
    return {name: array[start : start + count] for name, array in batch.items()}


def child(name: str, folder: str, pause: str) -> int:
    """What every process of these tests does; the first writes what it found.

    Args:
        name: of the recipe.
        folder: for the work directory and the results.
        pause: seconds before each batch.
    """

    def stream(start: int) -> Iterator[dict[str, np.ndarray]]:
        for step in itertools.count(start):
            time.sleep(float(pause))
            yield share(batch_of(step))

    def work() -> None:
        with joined():
            # As libraries print: past Python. None of it is shown.
            os.write(1, b"[Gloo] Rank 0 is \n\n")
            found = everything(name, Path(folder), stream)
            print("done")
            if jax.process_index() == 0:
                np.savez(f"{folder}/result.npz", **found)

    return report_errors(work)


def everything(name: str, folder: Path, stream) -> dict[str, np.ndarray]:
    """Returns the first gradient, what a search learns, what an evaluation counts."""
    model, params = small()
    recipe = dataclasses.replace(RECIPES[name], refine_images=0)
    budgets = [parse_budget(TARGET, model)]
    step = parallel.pmap_step(search_step(model, recipe, budgets))
    state = parallel.replicate(initial_state(model, recipe, budgets))
    state, _ = step(
        state, parallel.replicate(params), parallel.shard(share(batch_of(0)))
    )
    result = learn_schedule(
        model, params, stream, TARGET, recipe=recipe, workdir=folder / "run",
        checkpoint_every=2, log_every=1,
    )  # fmt: skip
    rates = np.concatenate([np.ravel(x) for x in jax.tree.leaves(result.rates)])
    sums = evaluation(folder)
    merge = np.array(result.learned.merge)
    more = refined(folder / "refined", stream) if name == "projected" else {}
    return more | {
        "gradient": first_gradient(jax.device_get(state)), "rates": rates,
        "merge": merge, "sums": sums[:3], "loss": sums[3], "correct": sums[4],
    }  # fmt: skip


def refined(workdir: Path, stream) -> dict[str, np.ndarray]:
    """Returns what held-out images, a share of them on each process, say of counts."""
    model, params = small()
    recipe = dataclasses.replace(RECIPES["projected"], steps=2)
    options = {"recipe": recipe, "workdir": workdir}
    for _ in range(2):  # The second time by what the first one kept.
        result = learn_schedule(model, params, stream, TARGET, **options)
    gains = [
        [np.nan if gain[side] is None else gain[side] for side in ("more", "fewer")]
        for gain in result.refined.gains
    ]
    return {
        "refined": np.array(result.schedule.merge),
        "gains": np.array(gains),
        "held_out_loss": result.refined.loss,
    }


def evaluation(folder: Path) -> tuple:
    """Returns count, hits, hits among five, loss and what is told of 21 images."""
    model, params = small()
    dataset = open_dataset(f"arrays:{folder}/data.npz", image_size=SIZE)
    colours = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    score = Evaluator(model, params, dataset, "test", batch_size=8, **colours).score(
        None
    )
    rest = score.loss, score.correct + score.labels
    return score.count, score.top1, score.top5, *rest


@dataclasses.dataclass
class Pod:
    """A run of two processes of two devices each, in a folder of its own."""

    folder: Path
    cache: Path
    name: str = "published"

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (NUM_IMAGES, SIZE, SIZE, 3)).astype(np.uint8)
        label = rng.integers(0, CLASSES, NUM_IMAGES)
        data = {"test_image": image, "test_label": label, "num_classes": CLASSES}
        np.savez(self.folder / "data.npz", **data)

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.cache)

    def command(self, pause: float) -> list[str]:
        return [sys.executable, "-c", CHILD, self.name, str(self.folder), str(pause)]

    def start(self, pause: float = 0.0) -> subprocess.Popen:
        """Starts both processes by the launcher."""
        launcher = ["bash", "launch/local_pod.sh", "--processes=2", "--devices=2", "--"]
        return subprocess.Popen(
            launcher + self.command(pause), cwd=ROOT, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def wait_for_step(self, step: int) -> None:
        """Returns once the metrics tell of a step."""
        wait_until(lambda: [s for s in logged_steps(self.folder / "run") if s >= step])

    def finish(self) -> dict[str, np.ndarray]:
        """Runs to the end and returns what was found."""
        with self.start() as pod:
            out, err = pod.communicate(timeout=300)
        assert pod.returncode == 0, err
        assert out == "done\n"
        assert logged_steps(self.folder / "run") == list(range(1, STEPS + 1))
        with np.load(self.folder / "result.npz") as file:
            return dict(file)


def environment(cache: Path) -> dict[str, str]:
    """Returns the environment of a process that tests as this one does."""
    tests = str(ROOT / "tests")
    return os.environ | {
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{tests}",
        "JAX_PLATFORMS": "cpu",
        "TEST_DEVICES": "2",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


def wait_until(condition, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def processes_of(launcher: subprocess.Popen) -> dict[int, int]:
    """Returns the processes of a pod: their ids by their numbers."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
    found = {}
    for pid in map(int, children.split()):
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        for entry in entries:
            if entry.startswith(f"{PROCESS}=".encode()):
                found[int(entry.partition(b"=")[2])] = pid
    return found


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, cache) -> dict[str, np.ndarray]:
    """What two processes find when nothing interrupts them."""
    return Pod(tmp_path_factory.mktemp("unbroken"), cache).finish()


def check_like_one_device(found: dict[str, np.ndarray], name: str, folder: Path):
    recipe = dataclasses.replace(RECIPES[name], refine_images=0)
    states = list(steps_on(recipe, 1, STEPS))
    wanted = first_gradient(states[0][0])
    scale = np.abs(wanted).max()
    # A divergence is a small difference of numbers around 1, in float32.
    close = {"published": 1e-6, "projected": 1e-5}[name]
    np.testing.assert_allclose(found["gradient"], wanted, rtol=0, atol=close * scale)
    last = jax.tree.leaves(states[-1][0].learned)
    rates = np.concatenate([np.ravel(x) for x in last])
    np.testing.assert_allclose(found["rates"], rates, rtol=0, atol=1e-4)
    sums = evaluation(folder)
    np.testing.assert_array_equal(found["sums"], sums[:3])
    np.testing.assert_allclose(found["loss"], sums[3], rtol=1e-6)
    assert str(found["correct"]) == sums[4]
    assert found["sums"][0] == NUM_IMAGES


def counts_of(workdir: Path) -> list:
    rows = test_search.read_metrics(workdir / "metrics.jsonl")
    return [(row["prune"], row["merge"]) for row in rows]


def assert_same_bits(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]):
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


def test_two_processes_of_two_devices_do_what_one_device_does(
    tmp_path,
    cache,
    unbroken,
):
    """With flips, shifts, smoothing and dropped paths: they belong to the example."""
    Pod(tmp_path, cache)
    check_like_one_device(unbroken, "published", tmp_path)


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_and_loses_nothing(
    tmp_path,
    cache,
    unbroken,
):
    pod = Pod(tmp_path, cache)
    with pod.start(pause=0.3) as launcher:
        pod.wait_for_step(2)
        os.kill(processes_of(launcher)[1], signal.SIGTERM)
        out, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 75, err
    assert not out
    assert err.count("stopped; run the same command to go on\n") == 1
    assert "launch: all is saved; go on with: bash launch/local_pod.sh" in err
    steps = [int(path.name) for path in (tmp_path / "run/checkpoints").iterdir()]
    assert 2 <= max(steps) == logged_steps(tmp_path / "run")[-1] < STEPS
    assert_same_bits(pod.finish(), unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [(0,), (1,), (0, 1)])
def test_sigkill_ends_all_and_loses_nothing(tmp_path, cache, unbroken, killed):
    pod = Pod(tmp_path, cache)
    with pod.start(pause=0.3) as launcher:
        pod.wait_for_step(3)
        processes = processes_of(launcher)
        began = time.monotonic()
        for number in killed:
            os.kill(processes[number], signal.SIGKILL)
        _, err = launcher.communicate(timeout=120)
    print(f"the run ended {time.monotonic() - began:.1f} s after the kill")
    assert launcher.returncode == 137, err
    # A progress bar that was killed did not end its line.
    last = err.splitlines()[-1]
    assert f"launch: process {killed[0]} ended with status 137 and the others" in last
    assert "go on with: bash launch/local_pod.sh --processes=2" in last
    assert_same_bits(pod.finish(), unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_by_itself_ends_within_two_minutes_of_another(
    tmp_path,
    cache,
    unbroken,
    killed,
):
    """No launcher, as on hosts of which one burns down."""
    pod = Pod(tmp_path, cache)
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    place = {COORDINATOR: f"localhost:{port}", PROCESSES: "2"}
    both = [
        subprocess.Popen(
            pod.command(0.3), cwd=ROOT, env=pod.environment | place | {PROCESS: str(n)}
        )
        for n in range(2)
    ]
    pod.wait_for_step(3)
    both[killed].kill()
    began = time.monotonic()
    status = both[1 - killed].wait(timeout=120)
    print(f"the other ended {time.monotonic() - began:.1f} s after the kill: {status}")
    # 69 after a sentence, or JAX's own abort.
    assert status in (69, -signal.SIGABRT)
    both[killed].wait()
    assert_same_bits(pod.finish(), unbroken)


RECIPE = """
from configs import quickstart

def get_config():
    config = quickstart.get_config()
    config.model_fields.update(depth=2, width=12)
    config.dataset, config.drop_path = "arrays:{data}", 0.2
    config.target, config.refine_images, config.compare_images = "90%", 0, 8
    config.steps, config.batch_size, config.eval_batch_size = 20, 8, 8
    config.cpu_devices = 1
    return config
"""


TUNED = ["--schedule=uniform:95%", "--config.distill=0.5", "--config.ema=0.9"]
TUNED += ["--config.layer_decay=0.9", "--config.final_evaluation"]


@pytest.fixture
def task(tmp_path) -> list[str]:
    """Returns the flags of a small run on noise, from random weights."""
    rng = np.random.default_rng(0)
    data = {"num_classes": 10}
    for split, count in {"train": 64, "test": NUM_IMAGES}.items():
        data[f"{split}_image"] = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        data[f"{split}_label"] = rng.integers(0, 10, count)
    np.savez(tmp_path / "data.npz", **data)
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(data=tmp_path / "data.npz"))
    model = model_of(load_recipe(recipe))
    save_weights(model, random_params(model), tmp_path / "w.safetensors")
    return [f"--config={recipe}", f"--config.weights={tmp_path / 'w.safetensors'}"]


@pytest.mark.slow
def test_programs_on_two_processes(tmp_path, cache, task):
    """As a user meets them: files and tables of one process, its figures too."""
    pod = ["bash", "launch/local_pod.sh", "--processes=2", "--devices=2", "--"]
    for program, (left, flags, told) in {
        "search": ("schedule.json", [], 1),
        "evaluate": ("evaluation.json", [], 1),
        "finetune": ("evaluation.json", TUNED, 3),
    }.items():
        found = {}
        for name, launcher in {"one": [], "pod": pod}.items():
            words = [sys.executable, "-m", f"diffrate_jax.{program}", *task, *flags]
            workdir = tmp_path / name / program
            done = subprocess.run(
                [*launcher, *words, f"--workdir={workdir}"], cwd=ROOT,
                env=environment(cache), capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert done.stderr.count("preprocessing (recipe): ") == told
            found[name] = read_json(workdir / left), done.stdout.replace("pod", "one")
        check_alike(program, *found["one"], *found["pod"])
    check_tuned_alike(tmp_path / "one/finetune", tmp_path / "pod/finetune")


def check_alike(program: str, one: dict, one_said: str, pod: dict, pod_said: str):
    if program == "search":
        assert pod == one
        assert pod_said.split("images/s")[0] == one_said.split("images/s")[0]
        return
    for row, own in zip(one["rows"], pod["rows"], strict=True):
        assert own["count"] == NUM_IMAGES
        # Trained weights differ by the order of sums.
        exact = ("count", "macs", "labels")
        if program == "evaluate":
            exact += ("top1", "top5", "correct")
        for name in exact:
            assert own[name] == row[name]
        close = 1e-6 if program == "evaluate" else 1e-3
        assert own["loss"] == pytest.approx(row["loss"], rel=close)


def check_tuned_alike(one: Path, pod: Path):
    """Checks what training logs, and where it ends."""
    rows = [test_search.read_metrics(path / "metrics.jsonl") for path in (one, pod)]
    for row, own in zip(*rows, strict=True):
        for name in ("step", "loss", "cross_entropy", "distillation", "gradient_norm"):
            assert own[name] == pytest.approx(row[name], rel=1e-3), (row["step"], name)
    assert rows[0][-1]["step"] == 20
    gap = []
    tensors = [load_file(path / "weights.safetensors") for path in (one, pod)]
    for name, wanted in tensors[0].items():
        gap.append(np.abs(tensors[1][name] - wanted).ravel())
    # Adam moves a weight by its rate even where a gradient is but noise.
    assert np.quantile(np.concatenate(gap), 0.9) < 1e-4
    assert (one / "schedule.json").read_text() == (pod / "schedule.json").read_text()


@pytest.mark.slow
def test_fine_tuning_survives_kill_9(tmp_path, cache, task):
    """Killed twice at any moment it ends in the bytes of a run that nobody killed."""
    flags = [*TUNED, "--config.steps=200", "--config.checkpoint_every=7"]
    flags += ["--config.log_every=1"]
    words = [sys.executable, "-m", "diffrate_jax.finetune", *task, *flags]

    def start(workdir: str) -> subprocess.Popen:
        command = [*words, f"--workdir={tmp_path / workdir}"]
        return subprocess.Popen(command, cwd=ROOT, env=environment(cache))

    assert start("whole").wait(timeout=300) == 0
    for step in (5, 25):
        with start("cut") as process:
            wait_until(lambda s=step: [
                logged for logged in logged_steps(tmp_path / "cut") if logged >= s
            ])  # fmt: skip
            process.kill()
        assert not (tmp_path / "cut/weights.safetensors").exists()
    assert start("cut").wait(timeout=300) == 0
    for name in ("weights.safetensors", "model.json", "schedule.json"):
        whole, cut = (tmp_path / folder / name for folder in ("whole", "cut"))
        assert cut.read_bytes() == whole.read_bytes()
    assert logged_steps(tmp_path / "cut") == list(range(1, 201))


@pytest.mark.slow
def test_the_default_search_on_two_processes(tmp_path, cache):
    found = Pod(tmp_path, cache, "projected").finish()
    check_like_one_device(found, "projected", tmp_path)
    wanted = refined(
        tmp_path / "one", lambda start: map(batch_of, itertools.count(start))
    )
    np.testing.assert_array_equal(found["refined"], wanted["refined"])
    np.testing.assert_allclose(found["gains"], wanted["gains"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["held_out_loss"], wanted["held_out_loss"], 1e-5)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, None),
        ({COORDINATOR: "auto"}, {}),
        (
            {COORDINATOR: "host:1", PROCESSES: "4", PROCESS: "3"},
            {"coordinator_address": "host:1", "num_processes": 4, "process_id": 3},
        ),
    ],
)
def test_what_a_launcher_sets(monkeypatch, given: dict, wanted: dict | None):
    set_only(monkeypatch, given)
    assert coordinator() == wanted


@pytest.mark.parametrize(
    "given",
    [
        {PROCESS: "0"},
        {COORDINATOR: "host:1"},
        {COORDINATOR: "host:1", PROCESSES: "two", PROCESS: "0"},
        {COORDINATOR: "auto", PROCESSES: "2"},
    ],
)
def test_half_of_what_a_launcher_sets(monkeypatch, given: dict):
    set_only(monkeypatch, given)
    with pytest.raises(UserError, match="expected DIFFRATE_COORDINATOR=HOST:PORT"):
        coordinator()


def test_programs_of_one_process_refuse_to_be_many(monkeypatch, capsys, tmp_path):
    set_only(monkeypatch, {COORDINATOR: "auto"})
    assert report.main(["report", f"--results={tmp_path}", "--out=r.html"]) == 2
    sentence = "report is one process; run it without a launcher\n"
    assert capsys.readouterr().err.endswith(sentence)


def set_only(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name in (COORDINATOR, PROCESSES, PROCESS):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
