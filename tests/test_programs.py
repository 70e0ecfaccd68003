"""The programs as a user meets them: what they write, and how they go on."""

import dataclasses
import html.parser
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from programs import (
    BENCHMARK,
    EVALUATE,
    FINETUNE,
    NUM_TEST,
    PROGRAMS,
    ROOT,
    SEARCH,
    WEIGHTED,
    images,
    run,
)

from diffrate_jax import (
    benchmark,
    cli,
    evaluate,
    searching,
)
from diffrate_jax.baselines import hand_made
from diffrate_jax.budget import one_more
from diffrate_jax.cost import cost_macs
from diffrate_jax.files import digest, read_json
from diffrate_jax.latency import BlockTimes, LatencyTable, LatencyTerms
from diffrate_jax.metrics import read_metrics
from diffrate_jax.model_folder import load
from diffrate_jax.models import architecture, create_model
from diffrate_jax.recipes import model_of
from diffrate_jax.schedule import Schedule
from diffrate_jax.version import __version__

pytestmark = pytest.mark.usefixtures("compiles_fast")


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
        r"(counts on a line, \w+, were better; )?"
        r"refined in \d steps?: .*schedule.json\n",
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


@pytest.mark.slow
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
    (paths["work"] / "refined.json").unlink()
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


def test_nobody_reads_on():
    """As with `| head`: no traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "diffrate_jax.convert", "--list"]
    done = subprocess.run(words, cwd=ROOT, stdout=writer, stderr=-1, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_program_as_a_process():
    """One real process: the status and the sentence reach the shell."""
    words = [sys.executable, "-m", "diffrate_jax.search", "--config=configs/bsae.py"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: no config file configs/bsae.py; did you mean 'configs/base.py'?\n"
    )
