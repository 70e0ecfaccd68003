"""What a search would take, said without weights, data or a step."""

import json
from pathlib import Path

import pytest

import diffrate_jax as dr
from diffrate_jax import finetune, search
from diffrate_jax.dry_run import LIKE_ACCELERATORS, known
from diffrate_jax.schedule import Schedule

CONFIGS = Path(__file__).parent.parent / "configs"
SCHEDULES = CONFIGS / "schedules"
RECIPES = {
    "deit_tiny": 1.254,
    "deit_small": 4.599,
    "deit_base": 17.564,
    "mae_base": 17.564,
    "mae_large": 61.555,
    "mae_huge": 167.296,
    "caformer_s36": 7.972,
}


def run(*flags: str) -> int:
    """Runs the program."""
    # These tests have their devices already.
    return search.main(["search", "--dry_run", *flags, "--config.cpu_devices=0"])


def test_it_needs_no_weights_no_data_and_no_folder(tmp_path: Path, capsys):
    recipe = f"--config={CONFIGS / 'quickstart.py'}"
    assert run(recipe, "--devices=4", "--tflops=2", f"--workdir={tmp_path}") == 0
    table = capsys.readouterr().out
    record = json.loads((tmp_path / "dry_run.json").read_text())
    assert record["batch_size"] == 4 * (record["batch_size"] // 4)
    assert f"{record['batch_size'] // 4} images, on 4 devices" in table
    model = dr.create_model("vit", **quickstart_fields())
    assert record["dense_macs"] == dr.cost_macs(model, None)
    # A dense pass, a masked one, and the gradient of the latter: no less than thrice
    # two operations to a multiply-accumulate, and a toy's masks are dear.
    passes = record["flops"] / (2 * record["dense_macs"] * record["batch_size"])
    assert 3 < passes < 12
    assert record["params_bytes"] < record["memory_bytes"]
    # 256 images, and 6 blocks both ways.
    assert "besides: refining, 3,328 images forward or several times" in table
    seconds = record["steps"] * record["flops"] / (2e12 * 4)
    assert f"{record['steps'] * record['batch_size'] / seconds:.0f} images/s" in table


def test_only_options_that_the_compiler_knows_are_set():
    """All of ours, today; in another release of XLA they may have other names."""
    assert known(LIKE_ACCELERATORS) == LIKE_ACCELERATORS
    assert known({"xla_cpu_no_such_option": "1"}) == {}


@pytest.mark.slow
def test_a_teacher_costs_arithmetic_and_no_memory(tmp_path: Path):
    """Its pass leaves logits behind and nothing else.

    The plan says so only if the compiler optimises, as for users.
    """
    found = []
    for objective in ("cross_entropy", "match_logits"):
        recipe = f"--config={CONFIGS / 'quickstart.py'}"
        wanted = f"--config.objective={objective}"
        assert run(recipe, wanted, "--devices=1", f"--workdir={tmp_path}") == 0
        found.append(json.loads((tmp_path / "dry_run.json").read_text()))
    alone, taught = found
    assert taught["flops"] > 1.1 * alone["flops"]
    assert taught["memory_bytes"] < 1.05 * alone["memory_bytes"]


@pytest.mark.slow
def test_what_training_would_take(tmp_path: Path, capsys):
    """A teacher is a dense pass more; the average is in memory, not in time."""
    common = ["--dry_run", f"--config={CONFIGS / 'quickstart.py'}", "--devices=4"]
    common += ["--config.cpu_devices=0", "--config.model_fields.depth=2"]
    common.append("--schedule=uniform:80%")
    found = []
    for flags in ([], ["--config.distill=0.5", "--config.ema=0.9"]):
        folder = f"--workdir={tmp_path}"
        assert finetune.main(["finetune", *common, *flags, folder]) == 0
        found.append(json.loads((tmp_path / "dry_run.json").read_text()))
    assert "uniform:80% = " in capsys.readouterr().out
    plain, tuned = found
    (macs,), images = plain["targets"].values(), plain["batch_size"]
    assert 0.75 < macs / plain["dense_macs"] <= 0.8
    # Forward, and twice that for the gradient; besides, ranking and matching.
    assert 3 < plain["flops"] / (2 * macs * images) < 12
    more = (tuned["flops"] - plain["flops"]) / images
    assert 1 < more / (2 * plain["dense_macs"]) < 4
    more = tuned["memory_bytes"] - plain["memory_bytes"]
    assert more >= 1.9 * plain["params_bytes"]


def quickstart_fields() -> dict:
    """Returns the fields of the quickstart's model."""
    return search.cli.load_recipe(CONFIGS / "quickstart.py").model_fields.to_dict()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--devices=7",), "batch_size must be a multiple of the 7 devices, got"),
        (("--devices=-1",), "devices"),
        (("--tflops=0",), "tflops"),
        (("--config.target=1%",), "the target 1% is out of reach"),
        (("--config.dtype=float15",), "unknown config.dtype 'float15'; did you mean"),
    ],
)
def test_bad_flags_end_in_one_sentence(flags: tuple[str, ...], sentence: str, capsys):
    assert run(f"--config={CONFIGS / 'quickstart.py'}", *flags) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", RECIPES)
def test_the_published_search_of_every_model(name: str):
    config = search.cli.load_recipe(Path(f"{CONFIGS / 'published.py'}:{name}"))
    own = search.cli.load_recipe(CONFIGS / f"{name}.py")
    assert (config.model, config.target) == (own.model, own.target)
    assert (config.rule, config.method, config.repeats) == ("diffrate", "penalised", 3)
    assert config.rand_augment_magnitude == 9


@pytest.mark.parametrize("name", RECIPES)
def test_the_fine_tuning_of_every_model(name: str):
    config = search.cli.load_recipe(Path(f"{CONFIGS / 'finetune.py'}:{name}"))
    own = search.cli.load_recipe(CONFIGS / f"{name}.py")
    assert (config.model, config.preprocess) == (own.model, own.preprocess)
    assert (config.learning_rate, config.final_learning_rate) == (2e-5, 1e-6)
    assert config.drop_path == (0.2 if name in ("mae_large", "mae_huge") else 0.1)
    assert config.steps * config.batch_size == pytest.approx(30 * 1281167, rel=1e-3)


@pytest.mark.parametrize("recipe", ["published", "finetune"])
def test_a_recipe_that_the_paper_lacks(recipe: str, capsys):
    assert run(f"--config={CONFIGS / recipe}.py:mae_giant") == 2
    assert "no 'mae_giant', but caformer_s36, deit_base" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("search_of", "name"),
    [
        *(("", name) for name in RECIPES),
        *(("published.py:", name) for name in ("deit_tiny", "caformer_s36")),
    ],
)
def test_recipes_of_the_paper(search_of: str, name: str, tmp_path: Path, capsys):
    # One block's worth of memory with remat keeps ViT-H within a small machine.
    flags = ("--devices=128", "--config.batch_size=256", "--config.remat=True")
    file = f"{search_of}{name}" if search_of else f"{name}.py"
    recipe = f"--config={CONFIGS / file}"
    assert run(recipe, *flags, f"--workdir={tmp_path}") == 0
    record = json.loads((tmp_path / "dry_run.json").read_text())
    assert record["dense_macs"] / 1e9 == pytest.approx(RECIPES[name], abs=6e-4)
    model = dr.create_model(record["model"])
    (target,) = record["targets"]
    published = dr.published_schedule(record["model"], target)
    assert isinstance(published, Schedule)
    assert dr.cost_macs(model, published) == pytest.approx(
        record["targets"][target], rel=0.02
    )
    assert "images/s" in capsys.readouterr().out
