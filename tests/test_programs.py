"""The programs as a user meets them: what they write, and what they refuse."""

import dataclasses
import html.parser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import base
from diffrate_jax import (
    benchmark,
    cli,
    evaluate,
    finetune,
    finetuning,
    quickstart,
    report,
    search,
    searching,
    visualize,
)
from diffrate_jax.baselines import hand_made
from diffrate_jax.budget import one_more
from diffrate_jax.cost import cost_macs
from diffrate_jax.files import digest, read_json
from diffrate_jax.latency import BlockTimes, LatencyTable, LatencyTerms
from diffrate_jax.metrics import read_metrics
from diffrate_jax.model_folder import load
from diffrate_jax.models import architecture, create_model
from diffrate_jax.recipe import Recipe
from diffrate_jax.recipes import model_of
from diffrate_jax.schedule import Schedule
from diffrate_jax.version import __version__

ROOT = Path(__file__).parent.parent
PROGRAMS = {
    "benchmark": benchmark,
    "evaluate": evaluate,
    "finetune": finetune,
    "quickstart": quickstart,
    "report": report,
    "search": search,
    "visualize": visualize,
}
CONFIGS = sorted((ROOT / "configs").glob("[a-z]*.py"))
# Two blocks, 65 tokens of width 12, four steps of eight images.
RECIPE = """
from configs import quickstart

def get_config():
    config = quickstart.get_config()
    config.model_fields.update(depth=2, width=12)
    config.dataset = "arrays:{data}"
    config.target, config.refine_images = "92%", 16
    config.steps, config.batch_size, config.eval_batch_size = 4, 8, 8
    config.checkpoint_every, config.log_every, config.cpu_devices = 2, 1, 0
    return config
"""
NUM_TEST = 22  # Divides neither by batches nor by devices.
WEIGHTED = "--config={recipe} --workdir={work} --config.weights={weights}"
SEARCH, FINETUNE = f"search {WEIGHTED}", "finetune --config={recipe} --workdir={work}"
EVALUATE = f"evaluate {WEIGHTED}"
BENCHMARK = "benchmark --recipe={recipe} --rounds=1 --batch=1"


def command(text: str, paths: dict[str, Path]) -> list[str]:
    """Returns the words of a command line, "{name}" replaced by paths."""
    return shlex.split(text.format_map(paths))


def run(text: str, paths: dict[str, Path]) -> int:
    """Runs a program in this process; returns its exit status."""
    program, *flags = command(text, paths)
    return PROGRAMS[program].main([program, *flags])


def images(**changed: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the entries of a dataset of noise whose colour tells the class."""
    rng = np.random.default_rng(0)
    entries = {"num_classes": np.int64(10)}
    for split, count in {"train": 32, "test": NUM_TEST}.items():
        labels_N = np.arange(count) % 10
        noise = rng.integers(0, 100, (count, 32, 32, 3))
        image_NYXC = (noise + 15 * labels_N[:, None, None, None]).astype(np.uint8)
        entries |= {f"{split}_image": image_NYXC, f"{split}_label": labels_N}
    return entries | changed


@pytest.fixture(scope="module", autouse=True)
def compiles_fast():
    """Compiling takes most of the time here, and nothing has to run fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """Data, weights and a schedule that `finetune` and `search` wrote."""
    folder = tmp_path_factory.mktemp("trained")
    paths = {"recipe": folder / "recipe.py", "data": folder / "data.npz"}
    paths["recipe"].write_text(RECIPE.format_map(paths))
    np.savez(paths["data"], **images())
    paths["weights"] = folder / "train/weights.safetensors"
    paths["schedule"] = folder / "search/schedule.json"
    assert not run(f"finetune --config={{recipe}} --workdir={folder}/train", paths)
    text = "search --config={recipe} --config.weights={weights}"
    assert not run(f"{text} --workdir={folder}/search", paths)
    return paths


@pytest.fixture
def paths(trained, tmp_path) -> dict[str, Path]:
    """Paths that commands name; `work` is a folder of the test's own."""
    return trained | {"work": tmp_path / "work", "tmp": tmp_path}


def logged_and_kept(folder: Path) -> tuple[list[int], list[str]]:
    """Returns the steps in a run's metrics, and those of its checkpoints."""
    steps = [row["step"] for row in read_metrics(folder / "metrics.jsonl")]
    return steps, sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_finetune_writes_weights_metrics_and_checkpoints(trained):
    folder = trained["weights"].parent
    assert logged_and_kept(folder) == ([1, 2, 3, 4], ["2", "4"])


@pytest.mark.slow
def test_images_of_other_classes_are_compared_with_the_dense_model(paths, capsys):
    few = images(num_classes=np.int64(3))
    few |= {f"{split}_label": few[f"{split}_label"] % 3 for split in ("train", "test")}
    np.savez(paths["tmp"] / "few.npz", **few)
    flags = "--config.dataset=arrays:{tmp}/few.npz --config.compare_images=8"
    assert not run(f"{SEARCH} {flags}", paths)
    assert "as dense %" in capsys.readouterr().out
    (record,) = read_json(paths["work"] / "comparison.json")["comparisons"]
    assert record["labels"] == "dense model"
    dense = next(row for row in record["rows"] if row["name"] == "dense")
    assert dense["top1"] == 100
    other = "--config.objective=cross_entropy --workdir={tmp}/other"
    assert run(f"{SEARCH} {flags} {other}", paths) == 2
    assert "tells 10 classes apart" in capsys.readouterr().err


def test_search_writes_a_schedule_within_the_target(trained):
    folder = trained["schedule"].parent
    found = Schedule.load(trained["schedule"])
    assert found.provenance["macs"] <= 0.92 * found.provenance["dense_macs"]
    assert found.provenance["weights"] == "weights.safetensors"
    assert logged_and_kept(folder) == ([1, 2, 3, 4], ["2", "4"])


def test_same_search_again_prints_the_same_at_once(trained, capsys):
    folder = trained["schedule"].parent
    before = trained["schedule"].read_bytes()
    text = f"search --config={{recipe}} --config.weights={{weights}} --workdir={folder}"
    printed = []
    for _ in range(2):
        began = time.monotonic()
        assert run(text, trained) == 0
        printed.append(capsys.readouterr().out)
    assert time.monotonic() - began < 5
    assert printed[0] == printed[1]
    assert re.search(
        r"GMACs, \d\d\.\d% of dense, target 92%; (settled|still moving: .*); "
        r"\d exchanges of last tokens: .*schedule.json\n",
        printed[0],
    )
    assert trained["schedule"].read_bytes() == before


@pytest.mark.slow
def test_a_search_to_milliseconds(paths, capsys, monkeypatch):
    """By a made-up table: the schedule holds its target, and others cost as much."""

    def first(*args) -> dict:
        return {"ToMe": next(iter(hand_made(*args).values()))}

    monkeypatch.setattr(searching, "hand_made", first)
    tokens = (2.0, 40.0, 65.0)
    curves = (0.1, 0.9, 1.9), (0.0, 2.0, 3.0)
    times = BlockTimes((0, 1), tokens, *curves, (0.1, 0.0, 1e-5, 0.0))
    made_up = {"batch_size": 8, "dtype": "float32", "about": {}}
    model = model_of(cli.load_recipe(paths["recipe"]))
    table = LatencyTable(
        architecture(model), "redundancy", terms=LatencyTerms(1.0, (times,)), **made_up
    )
    table.save(paths["tmp"] / "table.json")
    text = f"{SEARCH} --config.latency_table={{tmp}}/table.json --config.target=9ms"
    text += " --config.compare_images=16"
    assert run(text, paths) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\d ms by table, .*, target 9ms; ", printed)
    assert "ms by table\n" in printed
    schedule = Schedule.load(paths["work"] / "schedule.json")
    told, measure = schedule.provenance, table.measure(model, "redundancy")
    assert told["latency_ms"] == measure(schedule) <= 9
    assert told["dense_latency_ms"] == measure(None)
    assert told["macs"] == cost_macs(model, schedule)
    assert told["latency_table"]["batch_size"] == 8
    steps = read_metrics(paths["work"] / "metrics.jsonl")
    assert all(row["target_latency_ms"] == 9 for row in steps)
    (record,) = read_json(paths["work"] / "comparison.json")["comparisons"]
    tome = next(row for row in record["rows"] if row["name"] == "ToMe")
    assert 1 <= tome["latency_ms"] / told["latency_ms"] <= 1.02
    assert not run(f"report --results={paths['work']} --out={{tmp}}/page.html", paths)
    assert not run(f"{text} --dry_run", paths)
    assert "9ms = 9 ms" in capsys.readouterr().out
    # The table is part of what a run is; where it lies is not.
    other = dataclasses.replace(table, terms=LatencyTerms(1.1, (times,)))
    other.save(paths["tmp"] / "table.json")
    assert run(text, paths) == 2
    assert "belongs to a run with latency" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_of_several_targets(paths, capsys, monkeypatch):
    """A schedule for each, the front they make, and how they compare at their cost."""

    def first(*args) -> dict:
        # All others are compiled and compared where baselines are evaluated.
        return {"ToMe": next(iter(hand_made(*args).values()))}

    monkeypatch.setattr(searching, "hand_made", first)
    targets = ["92%", "85%"]
    text = f"{SEARCH} --config.compare_images=16"
    assert run(f"{text} --config.targets=\"('92%','85%')\"", paths) == 0
    folder = paths["work"]
    found = [Schedule.load(folder / f"schedule_{target}.json") for target in targets]
    assert not (folder / "schedule.json").exists()
    front = read_json(folder / "pareto.json")
    assert front["kind"] == "pareto"
    compared = read_json(folder / "comparison.json")["comparisons"]
    cases = zip(targets, found, front["rows"], compared, strict=True)
    for target, schedule, row, record in cases:
        told = schedule.provenance
        share = float(target[:-1]) / 100
        assert told["macs"] / told["dense_macs"] <= share
        if told["macs"] < 0.995 * share * told["dense_macs"]:
            assert not any(fits(schedule, block) for block in (0, 1))
        assert row["fraction"] == told["macs"] / told["dense_macs"]
        named = [row["target"], row["file"], row["rule"]]
        assert named == [target, f"schedule_{target}.json", "redundancy"]
        assert row["prune"] is None
        assert tuple(row["merge"]) == schedule.merge
        assert np.isfinite(row["held_out_loss"])
        check_comparison(record, schedule)
    printed = capsys.readouterr().out
    assert printed.count("\nToMe ") == 2
    for target in targets:
        assert re.search(f"target {target}; .*/schedule_{target}.json\n", printed)
    steps, kept = logged_and_kept(folder)
    assert (steps, kept[-1]) == (list(range(1, 9)), "8")


def fits(schedule: Schedule, block: int) -> bool:
    """Tells whether the target allows one token more after a block."""
    told = schedule.provenance
    model = create_model("vit", **told["model"])
    longer = one_more(schedule, block, model.geometry)
    share = float(told["target"][:-1]) / 100
    return longer is not None and cost_macs(model, longer) <= share * told["dense_macs"]


def check_comparison(record: dict, schedule: Schedule) -> None:
    """Checks that a schedule was compared with hand-made ones at its cost."""
    rows = {row["name"]: row for row in record["rows"]}
    assert list(rows) == ["dense", "learned", "ToMe"]
    assert rows["learned"]["merge"] == list(schedule.merge)
    assert rows.pop("dense")["fraction"] == 1
    for row in rows.values():
        assert row["count"] == len(row["correct"]) == 16
        assert 1 <= row["macs"] / schedule.provenance["macs"] <= 1.02
    assert record["command"].startswith("python -m diffrate_jax.search --config=")
    assert record["split"] == "train, 16 images"


def test_finetune_with_a_schedule_in_place(paths, capsys):
    text = f"{FINETUNE} --schedule=uniform:90% --config.steps=2"
    assert run(f"{text} --config.weights={{weights}}", paths) == 0
    assert capsys.readouterr().out == (
        f"trained 2 steps: {paths['work']}/weights.safetensors\n"
    )
    # The same folder is not silently taken for a run with another schedule.
    assert run(text.replace("90%", "95%"), paths) == 2
    assert "schedule='uniform:90%'" in capsys.readouterr().err


TUNE = f"finetune {WEIGHTED} --schedule={{schedule}} --config.steps=2"
TUNE += " --config.distill=0.5 --config.ema=0.9 --config.layer_decay=0.9"


def test_a_tuned_folder_is_one_that_convert_writes(paths, capsys):
    """Weights, what they are and where they come from, and the schedule."""
    text = f"{TUNE} --config.final_evaluation"
    assert run(text, paths) == 0
    work = paths["work"]
    wanted = model_of(cli.load_recipe(paths["recipe"]))
    assert architecture(load(work)[0]) == architecture(wanted)
    assert Schedule.load(work / "schedule.json") == Schedule.load(paths["schedule"])
    about = read_json(work / "model.json")
    told = about["provenance"]
    assert told["weights_sha256"] == digest(paths["weights"])
    assert (told["recipe"]["steps"], told["recipe"]["distill"]) == (2, 0.5)
    assert told["schedule_counts"]["rule"] == Schedule.load(paths["schedule"]).rule
    check_comparison_of_tuned(paths, capsys.readouterr().out)
    # As the other programs take it.
    other = f"--config.weights={work} --schedule={work}/schedule.json"
    assert run(f"{EVALUATE} --workdir={{tmp}}/eval {other}", paths) == 0
    again = read_json(paths["tmp"] / "eval/evaluation.json")["rows"][0]
    after = {row["name"]: row for row in read_json(work / "evaluation.json")["rows"]}
    assert again["correct"] == after["after"]["correct"]
    timed = f"{BENCHMARK} --weights={work} --schedule={work}/schedule.json"
    assert run(timed, paths) == 0
    assert run(f"report --results={work} --out={{tmp}}/report.html", paths) == 0
    # The same command shows the same, and the same bytes.
    before = {f: (work / f).read_bytes() for f in ("weights.safetensors", "model.json")}
    capsys.readouterr()
    assert run(text, paths) == 0
    assert "top-1 % of test: dense" in capsys.readouterr().out
    assert before == {f: (work / f).read_bytes() for f in before}


def check_comparison_of_tuned(paths: dict[str, Path], printed: str) -> None:
    """Checks given and tuned weights, each with the schedule and without."""
    record = read_json(paths["work"] / "evaluation.json")
    rows = {row["name"]: row for row in record["rows"]}
    assert list(rows) == ["dense", "before", "after", "dense, after"]
    assert all(row["count"] == NUM_TEST for row in rows.values())
    assert rows["dense"]["macs"] == rows["dense, after"]["macs"]
    assert rows["before"]["macs"] == rows["after"]["macs"] < rows["dense"]["macs"]
    assert rows["before"]["loss"] != rows["after"]["loss"]
    assert record["command"].startswith("python -m diffrate_jax.finetune --config=")
    told = ", ".join(f"{name} {row['top1']:.2f}" for name, row in rows.items())
    assert printed.splitlines()[-1].startswith(f"top-1 % of test: {told}")


@pytest.mark.slow
def test_finetune_goes_on_where_it_was_stopped(paths):
    """Teacher, average and optimiser included: the same bytes of weights."""
    text = f"{TUNE} --config.steps=4"
    assert run(text, paths) == 0
    shutil.copytree(paths["work"], paths["tmp"] / "cut")
    shutil.rmtree(paths["tmp"] / "cut/checkpoints/4")
    (paths["tmp"] / "cut/weights.safetensors").unlink()
    assert run(f"{text} --workdir={{tmp}}/cut", paths) == 0
    for name in ("weights.safetensors", "model.json", "schedule.json"):
        whole = (paths["work"] / name).read_bytes()
        assert (paths["tmp"] / "cut" / name).read_bytes() == whole


@pytest.mark.slow
def test_finetune_with_tome_leaves_no_schedule(paths):
    """ToMe strings tokens together in an order of its own: no schedule says that."""
    assert run(f"{TUNE} --schedule=tome:4 --config.steps=1", paths) == 0
    assert not (paths["work"] / "schedule.json").exists()
    told = read_json(paths["work"] / "model.json")["provenance"]
    assert told["schedule"] == "tome:4"


def test_evaluate_at_a_list_of_costs(paths, capsys, monkeypatch):
    """Dense once; at each cost its baselines, and before them what was learned."""

    def some(*args) -> dict:
        # All others are compiled and compared in the next test.
        return {"ToMe": next(iter(hand_made(*args[:2], args[3]).values()))}

    monkeypatch.setattr(evaluate, "baselines", some)
    flags = "--costs=96%,92% --against=mine={schedule},tome:1"
    assert run(f"{EVALUATE} {flags}", paths) == 0
    record = read_json(paths["work"] / "evaluation.json")
    rows = [(row["target"], row["name"]) for row in record["rows"]]
    assert rows == [
        (None, "dense"), (None, "tome:1"), ("96%", "ToMe"), ("92%", "mine"),
        ("92%", "ToMe"),
    ]  # fmt: skip
    for row in record["rows"]:
        assert row["count"] == len(row["correct"]) == NUM_TEST
        if row["name"] == "ToMe":
            assert 1 <= row["fraction"] / float(row["target"][:-1]) * 100 <= 1.02
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.endswith(":")] == [
        "at 96%:", "at 92%:"
    ]  # fmt: skip
    assert printed.count("\nToMe  ") == 2
    flags = f"--results={paths['work']} --out={paths['tmp']}/r.html"
    assert run(f"report {flags}", paths) == 0
    assert "mine" in (paths["tmp"] / "r.html").read_text()


def test_corrupted_images_are_counted_apart(paths, capsys):
    text = f"{EVALUATE} --schedule=tome:1"
    assert run(f"{text} --config.corruption=noise:1", paths) == 0
    record = read_json(paths["work"] / "evaluation.json")
    assert (record["split"], record["corruption"]) == ("test, noise:1", "noise:1")
    loss = record["rows"][0]["loss"]
    capsys.readouterr()
    # The same folder is not silently taken for the split itself.
    assert run(text, paths) == 2
    assert "belongs to a run with corruption='noise:1'" in capsys.readouterr().err
    other = text.replace("{work}", "{tmp}/other")
    assert run(f"{other} --config.corruption=noise:0", paths) == 0
    clean = read_json(paths["tmp"] / "other/evaluation.json")["rows"][0]["loss"]
    assert clean != loss
    # In batches of another size every image has the same noise.
    other = text.replace("{work}", "{tmp}/batches")
    flags = "--config.corruption=noise:1 --config.eval_batch_size=4"
    assert run(f"{other} {flags}", paths) == 0
    again = read_json(paths["tmp"] / "batches/evaluation.json")["rows"][0]
    assert again["correct"] == record["rows"][0]["correct"]
    np.testing.assert_allclose(again["loss"], loss, rtol=1e-5)


def test_evaluate_counts_every_image_and_compares_at_equal_cost(paths, capsys):
    flags = "--schedule={schedule} --baselines --draws=2"
    assert run(f"{EVALUATE} {flags}", paths) == 0
    record = read_json(paths["work"] / "evaluation.json")
    rows = {row["name"]: row for row in record["rows"]}
    learned = rows.pop("learned")
    assert learned["macs"] == Schedule.load(paths["schedule"]).provenance["macs"]
    drawn = [f"random {number}" for number in (1, 2)]
    tome = ["ToMe constant", "ToMe decreasing", "ToMe increasing"]
    alike = ["prune only", "merge only", "redundancy constant", "uniform", "EViT"]
    assert list(rows) == ["dense", *tome, *alike, *drawn]
    for row in record["rows"]:
        assert row["count"] == len(row["correct"]) == NUM_TEST
        assert row["top1"] == pytest.approx(100 * row["correct"].count("1") / NUM_TEST)
    assert rows.pop("dense")["fraction"] == 1
    for row in rows.values():
        assert 1 <= row["macs"] / learned["macs"] <= 1.02
    assert record["command"].startswith("python -m diffrate_jax.evaluate --config=")
    printed = capsys.readouterr().out
    assert all(name in printed for name in ["dense", *tome, *alike, "random, 2 draws"])


def test_benchmark_of_a_recipe(paths, capsys):
    text = "benchmark --recipe={recipe} --schedule=uniform:90% --against=tome:4"
    assert run(f"{text} --batch=2 --rounds=2 --out={{work}}", paths) == 0
    record = read_json(paths["work"] / "vit_float32_b2.json")
    assert [row["name"] for row in record["rows"]] == ["dense", "uniform:90%", "tome:4"]
    assert record["rows"][0]["speedup"] == 1
    assert all(len(row["seconds"]) == 2 for row in record["rows"])
    assert capsys.readouterr().out.startswith("vit, batch 2, float32\n")
    dense, *others = record["rows"]
    assert dense["best_dense"] == "dense"
    for row in others:
        assert row["low"] <= row["images_per_second"] <= row["high"]
        saved = dense["macs"] / row["macs"]
        assert row["efficiency"] == pytest.approx(row["speedup"] / saved)
        assert row["memory_bytes"] > 0
        assert row["of_peak"] == pytest.approx(
            2 * row["macs"] * row["images_per_second"] / record["peak_flops"]
        )


@pytest.mark.slow
def test_benchmark_of_a_preset(paths, capsys):
    text = "benchmark --model=deit_tiny_patch16_224 --schedule=published:0.8"
    assert run(f"{text} --batch=1 --rounds=1 --dtype=bfloat16", paths) == 0
    assert "deit_tiny_patch16_224, batch 1, bfloat16" in capsys.readouterr().out


def test_benchmark_of_a_preset_times_that_model(paths, monkeypatch, capsys):
    seen, record = [], {"kind": "no benchmark"}
    monkeypatch.setattr(benchmark, "init_weights", lambda model: None)
    monkeypatch.setattr(
        benchmark, "run_benchmark", lambda *args: seen.append(args) or record
    )
    text = "benchmark --model=deit_small_patch16_224 --schedule=published:2.9"
    assert run(f"{text} --against=tome:8,dense --batch=1,8", paths) == 0
    assert [args[1] for args in seen] == ["deit_small_patch16_224"] * 2
    assert [list(args[3]) for args in seen] == [
        ["dense", "published:2.9", "tome:8"]
    ] * 2
    assert [args[4].batch_size for args in seen] == [1, 8]


def test_report_of_what_the_programs_wrote(paths, capsys):
    assert run(f"{EVALUATE} --schedule={{schedule}}", paths) == 0
    shutil.copytree(paths["schedule"].parent, paths["work"] / "search")
    shutil.copytree(paths["weights"].parent, paths["work"] / "train")
    text = "report --results={work} --out={tmp}/report.html --pictures={tmp}/pictures"
    assert run(text, paths) == 0
    assert f"wrote {paths['tmp']}/report.html, " in capsys.readouterr().out
    html.parser.HTMLParser().feed((paths["tmp"] / "report.html").read_text())
    assert len(list((paths["tmp"] / "pictures").glob("*.svg"))) >= 3


def test_search_goes_on_where_it_was_stopped(paths, capsys):
    """A run cut in two learns bit for bit what the whole run learned."""
    whole = paths["schedule"].parent
    shutil.copytree(whole, paths["work"])
    shutil.rmtree(paths["work"] / "checkpoints/4")
    (paths["work"] / "schedule.json").unlink()
    assert run(SEARCH, paths) == 0
    assert (paths["work"] / "schedule.json").read_bytes() == (
        paths["schedule"].read_bytes()
    )
    metrics = [read_metrics(f / "metrics.jsonl") for f in (whole, paths["work"])]
    for row in metrics[0] + metrics[1]:
        row.pop("images_per_second"), row.pop("input_wait")
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_shows_an_example(name, capsys):
    try:
        status = PROGRAMS[name].main([name, "--help"])
    except SystemExit as left:
        status = left.code
    assert status in (0, None)
    printed = capsys.readouterr()
    assert f"python -m diffrate_jax.{name} --" in printed.out
    assert not printed.err


@pytest.mark.parametrize("name", sorted(PROGRAMS.keys()))
def test_version(name, capsys):
    try:
        status = PROGRAMS[name].main([name, "--version"])
    except SystemExit as left:
        status = left.code
    assert status in (0, None)
    assert capsys.readouterr().out == f"diffrate_jax {__version__}\n"


def test_a_stopped_program_says_how_to_go_on(capsys):
    def stopped() -> None:
        raise KeyboardInterrupt

    assert cli.report_errors(stopped) == 130
    assert capsys.readouterr().err == "stopped; run the same command to go on\n"


def test_program_as_a_process():
    """One real process: the status and the sentence reach the shell."""
    words = [sys.executable, "-m", "diffrate_jax.search", "--config=configs/bsae.py"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: no config file configs/bsae.py; did you mean 'configs/base.py'?\n"
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_loads_and_is_locked(path):
    config = cli.load_recipe(path)
    assert config.is_locked
    with pytest.raises(AttributeError, match="target"):
        config.tarject = "50%"
    assert set(config) == set(base.get_config())


def test_every_field_of_the_configs_is_read_and_every_field_read_exists():
    sources = "".join(p.read_text() for p in (ROOT / "diffrate_jax").glob("*.py"))
    sources = sources.replace("jax.config.", "")
    read = set(re.findall(r"\bconfig\.([a-z]\w+)\b(?!\()", sources))
    # Where a search gets all that its recipe holds, by name.
    assert "{name: config[name] for name in names}" in sources
    read |= {field.name for field in dataclasses.fields(Recipe)} - {"augment"}
    assert read - {"json", "name", "value", "key", "field"} == set(base.get_config())


# What each command must say; every one ends in one sentence and status 2.
REFUSED = {
    # Flags and configs.
    "search": "give --config=configs/quickstart.py",
    "search --config={recipe}": "give --workdir=DIR",
    "search --config= --workdir={work}": "give --config=",
    "search --config={tmp}/none.py --workdir={work}": "no config file none.py",
    "search --config={tmp} --workdir={work}": "no config file",
    "search --config={wrong}/syntax.py --workdir={work}": "syntax.py SyntaxError",
    "search --config={wrong}/raises.py --workdir={work}": "raises.py KeyError 'x'",
    "search --config={wrong}/nothing.py --workdir={work}": "ConfigDict, got None",
    "search --config={wrong}/empty.py --workdir={work}": "get_config",
    "search --config={wrong}/typo.py --workdir={work}": "'tarject' mean 'target'?",
    "search --config={wrong}/bare.py --workdir={work}": "not set base.get_config()",
    "search --config={wrong}/type.py --workdir={work}": "steps to 'ten' 1000",
    "search --config={wrong}/depth.py --workdir={work}": "depth at least 1, got 'two'",
    "search --config --config": "no config file",
    f"{SEARCH} --config.tarject=50%": "'config.tarject' did you mean 'config.target'?",
    f"{SEARCH} --config.model_fields.deph=2": "mean 'config.model_fields.depth'?",
    f"{SEARCH} --wrokdir=x": "--wrokdir did you mean 'workdir'?",
    f"{SEARCH} --workdir": "Missing value --workdir",
    f"{SEARCH} extra": "'extra'",
    f"{SEARCH} --config.steps=abc": "config.steps must be a whole number, got 'abc'",
    f"{SEARCH} --config.steps=1.5": "config.steps must be a whole number, got '1.5'",
    f"{SEARCH} --config.flip=maybe": "config.flip true or false, got 'maybe'",
    f"{SEARCH} --config.learning_rate=fast": "config.learning_rate a number 'fast'",
    f"{SEARCH} --config.learning_rate=nan": "config.learning_rate nan",
    f"{SEARCH} --config.model_fields=3": "config.model_fields",
    f"{SEARCH} --config.mean=grey": "config.mean three numbers 'grey'",
    f"{SEARCH} --config.std=0": "std",
    f"{SEARCH} --config.steps=0": "config.steps must be at least 1, got 0",
    f"{SEARCH} --config.log_every=0": "config.log_every at least 1",
    f"{SEARCH} --config.checkpoint_every=0": "config.checkpoint_every at least 1",
    f"{SEARCH} --config.method=penalised --config.granularity=0": "granularity 1 0",
    f"{SEARCH} --config.granularity=65": "granularity 1 64 65",
    f"{SEARCH} --config.drop_path=1": "config.drop_path 0 1",
    f"{SEARCH} --config.seed=-1": "config.seed -1",
    f"{SEARCH} --config.penalty_unit=flops": "relative gmacs 'flops'",
    f"{SEARCH} --config.rule=nonsense": "unknown rule 'nonsense' redundancy tome",
    f"{SEARCH} --config.rule=redundency": "'redundency' did you mean 'redundancy'?",
    f"{SEARCH} --config.method=nonsense": "method 'nonsense' projected penalised",
    f"{SEARCH} --config.objective=nonsense": "objective 'nonsense' match_dense",
    f"{SEARCH} --config.blocks=nonsense": "blocks 'nonsense' all model",
    f"{SEARCH} --config.start=nonsense": "uniform:60% file that exists 'nonsense'",
    f"{SEARCH} --config.start={{wrong}}/short.json": "2 attention blocks for 1",
    f"{SEARCH} --config.tighten=1": "config.tighten 0 1",
    f"{SEARCH} --config.spread=0": "config.spread 0",
    f"{SEARCH} --config.refine_images=-1": "config.refine_images at least 0, got -1",
    f"{SEARCH} --config.compare_images=-1": "config.compare_images at least 0, got -1",
    f"{SEARCH} --config.label_smoothing=1": "label_smoothing 1.0",
    f"{SEARCH} --config.crop=centre": "unknown crop 'centre'",
    f"{FINETUNE} --config.warmup_steps=4": "warmup_steps fewer than the 4 steps",
    f"{FINETUNE} --config.distill=1.5": "config.distill must be from 0 to 1, got 1.5",
    f"{FINETUNE} --config.temperature=0": "config.temperature at least 0.001",
    f"{FINETUNE} --config.layer_decay=2": "config.layer_decay from 0.001 to 1, got 2",
    f"{FINETUNE} --config.ema=1": "config.ema from 0 to 0.999999, got 1",
    f"{FINETUNE} --config.distill=0.5": "teacher --config.weights=FILE distill=0",
    f"{FINETUNE} --config.model_fields.num_classes=12": "12 classes has 10 distill=1",
    f"{FINETUNE} --config.model_fields.num_classes=0": "0",
    # Models and weights.
    f"{SEARCH} --config.model=deit_smal_patch16_224": "'deit_small_patch16_224'?",
    f"{SEARCH} --config.model_fields.num_heads=5": "width multiple of num_heads 5",
    f"{SEARCH} --config.model_fields.patch_size=0": "patch_size at least 1",
    "search --config={recipe} --workdir={work}": "give --config.weights=FILE",
    f"{SEARCH} --config.weights=none.safetensors": "none.safetensors no such file",
    f"{SEARCH} --config.weights=w.pth": "no such file w.pth .safetensors",
    f"{SEARCH} --config.weights={{wrong}}/cut.safetensors": "cut.safetensors",
    f"{SEARCH} --config.model_fields.depth=3": "missing blocks.2.attn.qkv.weight",
    f"{SEARCH} --config.model_fields.width=24": "shape (12,), expected (24,)",
    # Targets and schedules.
    f"{SEARCH} --config.target=5%": "5% is out of reach between GMACs 100%",
    f"{SEARCH} --config.target=9": "9 is out of reach between GMACs",
    f"{SEARCH} --config.target=half": "'2.9' '60%' 'half'",
    f"{SEARCH} --config.targets=\"('92%','5%')\"": "5% is out of reach between GMACs",
    f"{EVALUATE} --schedule=uniform:half": "'60%' 'half'",
    f"{EVALUATE} --schedule=tome:many": "'many'",
    f"{EVALUATE} --schedule=tome:-1": "-1",
    f"{EVALUATE} --schedule=published:2.9": "no schedule was published 'vit'",
    f"{EVALUATE} --schedule=none.json": "a file that exists 'none.json'",
    f"{EVALUATE} --schedule={{wrong}}": "cannot read the schedule Is a directory",
    f"{EVALUATE} --schedule={{wrong}}/short.json": "2 attention blocks for 1",
    f"{EVALUATE} --schedule={{wrong}}/zero.json": "positive integers, got 0",
    f"{EVALUATE} --schedule={{wrong}}/negative.json": "positive integers, got -3",
    f"{EVALUATE} --schedule={{wrong}}/half.json": "positive integers, got 9.5",
    f"{EVALUATE} --schedule={{wrong}}/large.json": "2 and 65 tokens 66",
    f"{EVALUATE} --schedule={{wrong}}/text.json": "text.json is not JSON",
    f"{EVALUATE} --schedule={{wrong}}/other.json": "other.json is not a schedule",
    f"{EVALUATE} --schedule={{wrong}}/newer.json": "version 3 reads versions 2 update",
    f"{EVALUATE} --baselines=3": "baselines",
    f"{EVALUATE} --baselines --costs=92%": "--baselines --costs give one of them",
    f"{EVALUATE} --costs=92%,92%": "--costs has 92% twice leave one out",
    f"{EVALUATE} --costs=5%": "5% is out of reach between GMACs 100%",
    f"{EVALUATE} --costs=9ms": "9ms needs a latency table",
    f"{EVALUATE} --draws=-1": "draws",
    f"{EVALUATE} --config.corruption=nois:1": "unknown corruption 'nois' 'noise'",
    f"{EVALUATE} --config.corruption=noise": "noise:0.1 blur:1.0 got 'noise'",
    f"{FINETUNE} --schedule={{wrong}}/zero.json": "positive integers, got 0",
    f"{BENCHMARK} --schedule={{wrong}}/zero.json": "positive integers, got 0",
    # Data.
    f"{SEARCH} --config.dataset=arrays:none.npz": "none.npz",
    f"{SEARCH} --config.dataset=arrays:{{wrong}}/text.npz": "text.npz numpy.savez",
    f"{SEARCH} --config.dataset=arrays:{{wrong}}/small.npz": "32 x 32 16 x 16",
    f"{SEARCH} --config.dataset=arrays:{{wrong}}/grey.npz": "uint8 [N, Y, X, 3] 1]",
    f"{SEARCH} --config.dataset=arrays:{{wrong}}/float.npz": "uint8 float32",
    f"{SEARCH} --config.dataset=arrays:{{wrong}}/classes.npz": "labels 0 to 9 11",
    f"{SEARCH} --config.dataset=arrays:{{wrong}}/more.npz": "has 12 classes 10 apart",
    f"{EVALUATE} --config.dataset=arrays:{{wrong}}/more.npz": "has 12 classes 10 apart",
    f"{SEARCH} --config.dataset=arrays:{{wrong}}/none.npz": "must have examples",
    f"{SEARCH} --config.train_split=trian": "no split 'trian' did you mean 'train'?",
    f"{SEARCH} --config.train_split=train[5:5]": "'train[5:5]' hold at least one",
    f"{EVALUATE} --config.eval_split=validation": "no split 'validation' test",
    f"{SEARCH} --config.batch_size=10": "multiple of the 4 devices, got 10",
    f"{SEARCH} --config.batch_size=0": "config.batch_size at least 1",
    f"{SEARCH} --config.batch_size=64": "at most the 32 examples 64",
    f"{EVALUATE} --config.eval_batch_size=10": "multiple of the 4 devices, got 10",
    # Folders.
    f"{SEARCH} --workdir={{data}}/below": "cannot write data.npz/below Not a directory",
    f"{FINETUNE} --workdir={{data}}/below": "cannot write Not a directory",
    f"{EVALUATE} --workdir={{data}}/below": "cannot write Not a directory",
    f"{EVALUATE} --workdir={{data}}": "cannot write File exists",
    f"{SEARCH} --workdir={{wrong}}/claimed": "claimed target='50%' this one has '92%'",
    f"{SEARCH} --workdir={{wrong}}/damaged": "config.json is not JSON",
    f"{BENCHMARK} --schedule=tome:4 --out={{data}}/below": "cannot write",
    "quickstart --workdir={data}/below": "cannot write Not a directory",
    # Programs without a config.
    "benchmark": "give --schedule=SCHEDULE to time, or --latency_table=FILE",
    "benchmark --cells={tmp}/no.json": "--cells needs a folder for its records",
    "benchmark --cells=a --out={tmp} --schedule=none": "--cells brings models and sch",
    "benchmark --cells={tmp}/no.json --out={tmp}": "cannot read",
    f"{SEARCH} --config.target=9ms": "9ms needs a latency table",
    f"{SEARCH} --config.latency_table={{data}}": "data.npz",
    f"{SEARCH} --config.latency_table={{tmp}}/none.json": "none.json",
    f"{BENCHMARK} --schedule=uniform:9ms": "9ms needs a latency table",
    "benchmark --schedule=tome:4": "either --model=NAME or --recipe=FILE",
    f"{BENCHMARK} --schedule=tome:4 --model=vit": "either --model=NAME or --recipe",
    "benchmark --model=deit_smal --schedule=tome:4": "unknown model 'deit_smal'",
    "benchmark --recipe={tmp}/no.py --schedule=tome:4": "no config file",
    "benchmark --recipe={wrong}/raises.py --schedule=tome:4": "raises.py KeyError",
    f"{BENCHMARK} --schedule=tome:4 --batch=0": "1,8,64 '0'",
    f"{BENCHMARK} --schedule=tome:4 --batch=2,x": "1,8,64 '2,x'",
    f"{BENCHMARK} --schedule=tome:4 --dtype=int8": "dtype float32 bfloat16 'int8'",
    f"{BENCHMARK} --schedule=tome:4 --rounds=0": "--rounds at least 1",
    f"{BENCHMARK} --schedule=tome:4 --rounds=few": "--rounds 'few'",
    f"{BENCHMARK} --schedule=tome:4 --weights=none.safetensors": "none.safetensors",
    f"{BENCHMARK} --schedule=tome:4 --wieghts=x": "--wieghts=x",
    "quickstart --worker=3": "--worker=3",
    "report --results={tmp}/none --out={tmp}/report.html": "none",
    "report --results={data} --out={tmp}/report.html": "data.npz",
}


@pytest.fixture(scope="module")
def wrong(trained, tmp_path_factory) -> Path:
    """A folder of files that no program may accept."""
    folder = tmp_path_factory.mktemp("wrong")
    write_configs(folder)
    write_schedules(folder)
    write_data(folder)
    whole = trained["weights"].read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    shutil.copytree(trained["schedule"].parent, folder / "claimed")
    claimed = folder / "claimed/config.json"
    claimed.write_text(claimed.read_text().replace("92%", "50%"))
    (folder / "damaged").mkdir()
    (folder / "damaged/config.json").write_text("{")
    return folder


def write_configs(folder: Path) -> None:
    """Writes config files that do not run, or make no config."""
    (folder / "syntax.py").write_text("def get_config(:\n")
    (folder / "raises.py").write_text("def get_config():\n    return {}['x']\n")
    (folder / "nothing.py").write_text("def get_config():\n    pass\n")
    (folder / "empty.py").write_text("")
    changes = {
        "typo": "config.tarject = '50%'",
        "bare": "config = type(config)()",
        "type": "del config.steps; config.steps = 'ten'",
        "depth": "config.model_fields = type(config)({'depth': 'two'})",
    }
    for name, change in changes.items():
        (folder / f"{name}.py").write_text(
            "from configs import base\n\ndef get_config():\n"
            f"    config = base.get_config()\n    {change}\n    return config\n"
        )


def write_schedules(folder: Path) -> None:
    """Writes schedule files that are wrong for two blocks of 65 tokens."""
    good = {"format": "diffrate_jax.schedule", "version": 1, "prune": None}
    merges = {
        "short": [65],
        "zero": [65, 0],
        "negative": [65, -3],
        "half": [65, 9.5],
        "large": [66, 5],
    }
    changes = {name: {"merge": merge} for name, merge in merges.items()}
    changes["newer"] = {"merge": [65, 5], "version": 3}
    changes["other"] = {"merge": [65, 5], "format": "other"}
    for name, change in changes.items():
        (folder / f"{name}.json").write_text(json.dumps(good | change))
    (folder / "text.json").write_text("prune: 9")


def write_data(folder: Path) -> None:
    """Writes datasets that are wrong for images of 32 x 32 in ten classes."""
    right = images()
    image, label = right["train_image"], right["train_label"]
    many = {"train_label": np.arange(32) % 12, "test_label": np.arange(NUM_TEST) % 12}
    changes = {
        "small": {"train_image": image[:, :16, :16]},
        "grey": {"train_image": image[..., :1]},
        "float": {"train_image": image.astype(np.float32)},
        "classes": many,
        "more": many | {"num_classes": np.int64(12)},
        "none": {"train_image": image[:0], "train_label": label[:0]},
    }
    for name, change in changes.items():
        np.savez(folder / f"{name}.npz", **images(**change))
    (folder / "text.npz").write_text("images")


def brief(text: str) -> str:
    """Returns a command without what all commands have."""
    common = "--config={recipe} ", "--workdir={work} ", "--config.weights={weights} "
    for part in common:
        text = text.replace(part, "")
    return text


@pytest.mark.parametrize("text", REFUSED, ids=brief)
def test_bad_input_is_one_sentence(text, paths, wrong, capfd):
    before = {p: p.stat().st_mtime_ns for p in wrong.rglob("*")}
    assert run(text, paths | {"wrong": wrong}) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"error: .*\n", printed.err), printed.err
    missing = [word for word in REFUSED[text].split() if word not in printed.err]
    assert not missing, printed.err
    assert before == {p: p.stat().st_mtime_ns for p in wrong.rglob("*")}
    assert not [p for p in paths["tmp"].rglob("*") if p.is_file()]


def test_evaluation_without_a_finite_loss_is_refused(paths, capfd):
    tensors = load_file(paths["weights"])
    tensors["head.weight"] = np.full_like(tensors["head.weight"], 3e38)
    save_file(tensors, paths["tmp"] / "huge.safetensors")
    text = f"{EVALUATE} --config.weights={{tmp}}/huge.safetensors"
    assert run(text, paths) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error: the loss of 'dense' is not finite")
    assert not (paths["work"] / "evaluation.json").exists()


def test_loss_that_is_not_finite_names_its_step_every_time(paths, capfd):
    text = f"{FINETUNE} --config.model_fields.depth=1 --config.checkpoint_every=1"
    text += " --config.learning_rate=1e30"
    for _ in range(2):
        assert run(text, paths) == 2
        last = capfd.readouterr().err.splitlines()[-1]
        assert re.match(r"error: the loss of step 2 is not finite; .* kept", last)
        folder = paths["work"] / "checkpoints"
        assert [p.name for p in folder.iterdir()] == ["1"]
    assert not (paths["work"] / "weights.safetensors").exists()


def test_weights_that_are_not_finite_are_not_saved(paths, capfd, monkeypatch):
    monkeypatch.setattr(
        finetuning, "train", lambda *_, **__: {"head": np.full(3, np.nan)}
    )
    assert run(FINETUNE, paths) == 2
    assert "\nerror: the trained weights are not finite; " in capfd.readouterr().err
    assert not (paths["work"] / "weights.safetensors").exists()


def test_a_folder_is_one_program_s(paths, capfd):
    text = WEIGHTED.replace("{work}", str(paths["schedule"].parent))
    before = paths["schedule"].read_bytes()
    assert run(f"finetune {text}", paths) == 2
    assert "program='search'" in capfd.readouterr().err
    assert paths["schedule"].read_bytes() == before


@pytest.mark.slow
def test_quickstart(tmp_path):
    """From nothing to the report in ten minutes; the second time at once."""
    words = [sys.executable, "-m", "diffrate_jax.quickstart", f"--workdir={tmp_path}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": "16"}
    printed, seconds = [], []
    for _ in range(2):
        began = time.monotonic()
        done = subprocess.run(
            words,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds.append(time.monotonic() - began)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert seconds[0] < 600
    assert seconds[1] < 60
    assert printed[0] == printed[1]
    check_quickstart(tmp_path)


def check_quickstart(folder: Path) -> None:
    """Checks what the quickstart leaves behind."""
    files = ("schedule.json", "metrics.jsonl", "train/metrics.jsonl", "benchmark.json")
    assert all((folder / name).stat().st_size for name in (*files, "report.html"))
    assert list((folder / "pictures").glob("*.svg"))
    rows = {row["name"]: row for row in read_json(folder / "evaluation.json")["rows"]}
    assert {row["count"] for row in rows.values()} == {600}
    assert rows.pop("dense")["top1"] >= 97
    learned = rows.pop("learned")
    assert learned["fraction"] <= 0.6
    assert len(rows) == 11
    for row in rows.values():
        assert 1 <= row["macs"] / learned["macs"] <= 1.02
