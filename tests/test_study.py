"""Studies: plans are data, no run is done twice, results name no places."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffrate_jax import cli, evaluate, finetune, study
from diffrate_jax.errors import StoppedError, UserError
from diffrate_jax.files import read_json
from diffrate_jax.plan import MAKES, Plan, Run, without_places

ROOT = Path(__file__).parent.parent
PLANS = sorted((ROOT / "configs/studies").glob("*.json"))
# Flags of programs beside those of the recipe; no plan uses one of search's.
DEFINE = {"evaluate": evaluate.define, "finetune": finetune.define}
SMALL = {
    "flags": ["--config.compilation_cache={dir}/compiled"],
    "parts": {
        "a": {
            "title": "searches",
            "runs": [
                {
                    "name": "seed{seed}",
                    "program": "search",
                    "each": {"seed": [0, 1]},
                    "flags": ["--config=configs/quickstart.py", "--config.seed={seed}"],
                }
            ],
        },
        "b": {
            "title": "others",
            "runs": [
                {"name": "alone", "program": "evaluate", "flags": ["--config=c.py"]},
                {
                    "name": "test",
                    "program": "evaluate",
                    "flags": ["--config=c.py", "--schedule={dir}/a/seed1/s.json"],
                },
            ],
        },
    },
}


@pytest.fixture
def plan(tmp_path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(SMALL))
    return path


@pytest.fixture
def ran(monkeypatch) -> list[list[str]]:
    """The programs that a study runs, in stand-ins that leave what they would make."""
    calls = []

    def execute(words: list[str], name: str) -> None:
        calls.append(words)
        program, *flags = words
        if program == "report":
            return
        folder = Path(flags[0].removeprefix("--workdir="))
        folder.mkdir(parents=True, exist_ok=True)
        record = {"command": " ".join(words), "environment": {}, "rows": []}
        text = json.dumps(record | {"comparisons": [record]})
        for made in (MAKES[program], "schedule_60%.json", "pareto.json"):
            (folder / made).write_text(text)

    monkeypatch.setattr(study, "execute", execute)
    return calls


def run(plan: Path, *flags: str, work: str = "work") -> int:
    workdir = f"--workdir={plan.parent / work}"
    return study.main(["study", f"--plan={plan}", workdir, *flags])


def keys(calls: list[list[str]], plan: Path) -> list[str]:
    """Returns the names of the runs; the report's is "report"."""
    place = f"--workdir={plan.parent / 'work'}/"
    return [words[1].removeprefix(place) for words in calls if words[0] != "report"]


def test_runs_come_in_order_each_with_its_flags(plan, ran, capsys):
    assert run(plan, "--config.weights=W") == 0
    assert keys(ran, plan) == ["a/seed0", "a/seed1", "b/alone", "b/test"]
    work = plan.parent / "work"
    assert ran[1] == [
        "search", f"--workdir={work}/a/seed1",
        f"--config.compilation_cache={work}/compiled", "--config.weights=W",
        "--config=configs/quickstart.py", "--config.seed=1",
    ]  # fmt: skip
    assert ran[-1][0] == "report"
    said = capsys.readouterr().err
    assert "4 runs, 0 done, 0:08:00 to go\n" in said
    assert "== run 2 of 4, a/seed1 (search; searches), about 0:04:00 left" in said


def test_what_is_done_is_not_done_again(plan, ran, capsys):
    assert run(plan) == 0
    times = read_json(plan.parent / "work/study.json")
    assert [row["program"] for row in times.values()] == ["search"] * 2 + [
        "evaluate"
    ] * 2
    ran.clear()
    (plan.parent / "work/b/alone/evaluation.json").unlink()
    assert run(plan) == 0
    assert keys(ran, plan) == ["b/alone"]
    assert "== run 4 of 4, b/alone (evaluate; others), about 0:00:00 left" in (
        capsys.readouterr().err
    )


def test_what_reads_files_of_a_run_that_is_done_again_is_done_again(plan, ran):
    assert run(plan) == 0
    shutil.rmtree(plan.parent / "work/a/seed1")
    ran.clear()
    assert run(plan) == 0
    assert keys(ran, plan) == ["a/seed1", "b/test"]
    ran.clear()
    assert run(plan) == 0
    assert not keys(ran, plan)


def test_what_reads_older_files_is_known_in_a_later_study(plan, ran, monkeypatch):
    """One part was asked for, or the study was killed before the run that reads."""
    assert run(plan) == 0
    shutil.rmtree(plan.parent / "work/a/seed1")
    ran.clear()
    assert run(plan, "--parts=a") == 0
    assert keys(ran, plan) == ["a/seed1"]
    ran.clear()
    assert run(plan) == 0
    assert keys(ran, plan) == ["b/test"]
    shutil.rmtree(plan.parent / "work/a/seed1")
    ran.clear()
    stand_in = study.execute

    def stopped(words: list[str], name: str) -> None:
        stand_in(words, name)
        raise StoppedError

    monkeypatch.setattr(study, "execute", stopped)
    assert run(plan) == StoppedError.STATUS
    monkeypatch.setattr(study, "execute", stand_in)
    assert run(plan) == 0
    assert keys(ran, plan) == ["a/seed1", "a/seed1", "b/test"]


def test_what_is_outdated_is_so_through_other_runs():
    needs = {"a": (), "b": ("--x=d/1/a/w",), "c": ("--x=d/1/b/w",), "d": ()}
    runs = tuple(Run("1", name, "finetune", flags) for name, flags in needs.items())
    assert Plan({"1": ""}, (), runs).outdated(["1/a"], "d") == {"1/a", "1/b", "1/c"}


def test_a_part_brings_the_runs_that_it_needs(plan, ran):
    assert run(plan, "--parts=b") == 0
    assert keys(ran, plan) == ["a/seed1", "b/alone", "b/test"]


def test_a_run_of_other_flags_is_not_taken_for_this_one(plan, ran, capsys):
    assert run(plan) == 0
    ran.clear()
    assert run(plan, "--config.weights=other") == 2
    assert not ran
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: a/seed0 was done with other flags, see --config.wei")
    assert "give another --workdir" in said
    assert run(plan, "--config.weights=W", "--config.seed=3", work="other") == 0
    assert run(plan, "--config.flip=true", work="other") == 2
    assert "other flags, see --config.flip=true;" in capsys.readouterr().err
    assert run(plan, work="other") == 2
    assert "other flags, see --config.weights=W;" in capsys.readouterr().err
    assert run(plan, "--config.seed=3", "--config.weights=W", work="other") == 2
    assert "other flags, see the order of its flags;" in capsys.readouterr().err


def test_a_list_runs_nothing(plan, ran, capsys):
    assert run(plan, "--list") == 0
    assert not ran
    shown = capsys.readouterr().out.splitlines()
    assert [line[:11] for line in shown] == [
        "[ ] a/seed0", "[ ] a/seed1", "[ ] b/alone", "[ ] b/test:"
    ]  # fmt: skip


def test_results_name_no_place_of_a_machine(plan, ran):
    out = plan.parent / "kept"
    weights = f"--config.weights={plan.parent}/w.safetensors"
    data = f"--config.dataset=arrays:{plan.parent}/d.npz"
    assert run(plan, weights, data, f"--results={out}") == 0
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*.json"))
    names = []
    for key in ("a/seed0", "a/seed1"):
        names += [f"{key}/comparison.json", f"{key}/schedule_60%.json"]
    for key in ("b/alone", "b/test"):
        names += [f"{key}/evaluation.json", f"{key}/schedule_60%.json"]
    assert files == names
    for text in map(Path.read_text, out.rglob("*.json")):
        assert str(plan.parent) not in text
    told = read_json(out / "b/test/evaluation.json")["command"]
    assert str(plan.parent) not in told
    assert "--workdir=runs/work/b/test" in told
    assert "--config.weights=w.safetensors --config.dataset=arrays:d.npz" in told
    assert "--schedule=runs/work/a/seed1/s.json" in told


def test_only_paths_of_this_machine_lose_their_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/w:2").mkdir(parents=True)
    for value, name in {
        "runs/w:2": "w:2",
        "folder:runs/w:2": "folder:w:2",
        f"{tmp_path}/gone:1/w.npz": "w.npz",
        "folder:/data/imagenet/": "folder:imagenet",
    }.items():
        assert study.without_folder(value) == name
    for other in (
        *("hf-hub:timm/deit_small_patch16_224", "timm/deit", "gs://bucket/data"),
        *(
            "arrays:gs://bucket/d.npz",
            "none:here/d.npz",
            "w.npz",
            "",
            "/",
            ".",
            "a" * 999,
        ),
    ):
        assert study.without_folder(other) == other


def test_results_keep_what_is_no_path(plan, ran):
    out = plan.parent / "kept"
    flags = ["--config.weights=hf-hub:timm/deit", "--config.dataset=gs://bucket/data"]
    assert run(plan, *flags, f"--results={out}") == 0
    told = read_json(out / "b/test/evaluation.json")["command"]
    assert " ".join(flags) in told


def test_a_comparison_with_rows_is_not_published(tmp_path):
    path = tmp_path / "comparison.json"
    for rows, kept in {(): True, (1,): False}.items():
        records = [{"rows": []}, {"rows": list(rows)}]
        path.write_text(json.dumps({"comparisons": records}))
        assert study.is_kept(path) is kept
    assert study.is_kept(tmp_path / "evaluation.json")


def test_places_are_replaced_whole():
    places = {"cifar10/": "runs/cifar10/", "arrays:/d/x.npz": "arrays:x.npz"}
    words = "--workdir=cifar10/1/a --config=configs/cifar10/b --dataset=arrays:/d/x.npz"
    told = (
        "--workdir=runs/cifar10/1/a --config=configs/cifar10/b --dataset=arrays:x.npz"
    )
    assert without_places(words, places) == told
    for other in ("arrays:/d/x.npz2", "my-cifar10/a", "arrays:cifar10.npz"):
        assert without_places(other, places) == other


def test_places_are_replaced_longest_first():
    places = {"/x": "runs", "/x/w": "w", 'q"uote': "q"}
    text = json.dumps({"a": "/x/w and /x", 'q"uote': 1})
    assert json.loads(without_places(text, places)) == {"a": "w and runs", "q": 1}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda plan: plan.pop("parts"), "is no plan of a study (KeyError: 'parts')"),
        (lambda plan: plan.update(flags="--a"), "expected a list of flags, got '--a'"),
        (
            lambda plan: plan["parts"]["b"]["runs"][0].update(program="serch"),
            "b/alone names the program 'serch'; did you mean 'search'",
        ),
        (
            lambda plan: plan["parts"]["b"]["runs"][0].update(name="test"),
            "two runs are called b/test; rename one",
        ),
        (
            lambda plan: plan["parts"]["b"]["runs"][0].update(program=["search"]),
            "b/alone names the program ['search']; did you mean 'search'",
        ),
        *(
            (
                lambda plan, name=name: plan["parts"]["b"]["runs"][0].update(name=name),
                f"as folders are, got {name!r} in b/{name}; give a name without slash",
            )
            for name in ("../../a", "..", ".", "", "x/y", "/x")
        ),
        (
            lambda plan: plan["parts"].update({"../b": plan["parts"].pop("b")}),
            "as folders are, got '../b' in ../b/alone; give a name without slashes",
        ),
        (
            lambda plan: plan["parts"]["b"]["runs"][0].update(flags=["{seed}"]),
            "is no plan of a study (KeyError: 'seed')",
        ),
        (
            lambda plan: plan["parts"]["b"]["runs"][0].update(flags=[[]]),
            "is no plan of a study (IndexError: ",
        ),
    ],
)
def test_a_wrong_plan_is_one_sentence(plan, ran, capsys, change, sentence):
    record = json.loads(plan.read_text())
    change(record)
    plan.write_text(json.dumps(record))
    assert run(plan) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert sentence in said
    assert not ran


def test_wrong_flags_are_one_sentence(plan, ran, capsys):
    for flags, sentence in {
        ("--parts=a,c",): "the study has no part 'c'; known: a, b",
        ("--partz=a",): "unrecognized arguments: --partz=a; see --help",
    }.items():
        assert run(plan, *flags) == 2
        assert sentence in capsys.readouterr().err
    for place in ("", "/", "gs://bucket/runs"):
        assert study.main(["study", f"--plan={plan}", f"--workdir={place}"]) == 2
        assert "must be a folder of this machine" in capsys.readouterr().err
    (plan.parent / "work").mkdir()
    row = {"program": "search", "words": ["search"], "seconds": 1.5}
    for damaged in (
        *([], {"a/seed0": []}, {"other": row | {"seconds": "1"}}),
        *({"a/seed0": {"words": [], "seconds": 1}}, {"a/seed0": row | {"words": [1]}}),
        *({"x": row | {"seconds": float("nan")}}, {"x": row | {"seconds": 1e300}}),
        {"x": row | {"program": ["search"]}},
    ):
        (plan.parent / "work/study.json").write_text(json.dumps(damaged))
        assert run(plan) == 2
        assert "study.json is damaged; remove it" in capsys.readouterr().err
    assert study.main(["study", "--plan=none.json", "--workdir=w"]) == 2
    assert "cannot read none.json" in capsys.readouterr().err
    assert not ran


def test_a_run_that_fails_ends_the_study_with_its_reason(tmp_path, capfd):
    words = ["report", f"--results={tmp_path / 'none'}", f"--out={tmp_path / 'r.html'}"]
    with pytest.raises(UserError, match="b/test ended with status 2, for the reason a"):
        study.execute(words, "b/test")
    assert "error: expected a folder of results" in capfd.readouterr().err


# Stands for Python: says that it runs, and saves when it is asked to stop.
PATIENT = f"""#!/usr/bin/env bash
trap 'kill $!; echo saved >>"$LOG"; exit {StoppedError.STATUS}' TERM
echo "$3" >>"$LOG"
sleep 60 & wait
"""


def test_a_study_asked_to_stop_stops_its_run_and_goes_on_later(plan):
    script, log = plan.parent / "python", plan.parent / "log"
    script.write_text(PATIENT)
    script.chmod(0o755)
    code = (
        "import sys; from diffrate_jax import study; "
        f"sys.executable = {str(script)!r}; sys.exit(study.main(sys.argv))"
    )
    flags = [f"--plan={plan}", f"--workdir={plan.parent / 'work'}"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *flags],
        cwd=ROOT,
        env=os.environ | {"LOG": str(log)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for _ in range(600):
            if log.exists() and log.read_text():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == StoppedError.STATUS
    assert said.endswith("stopped; run the same command to go on\n")
    began = plan.parent / "work" / "a" / "seed0"
    assert log.read_text() == f"--workdir={began}\nsaved\n"
    assert not (plan.parent / "work/study.json").exists()


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_the_flags_of_every_shipped_run_are_known(path):
    """Recipes, fields and flags of programs exist, and no run needs a later one."""
    plan = Plan.load(path, "runs/x")
    assert set(plan.titles) == {run.part for run in plan.runs}
    for number, run in enumerate(plan.runs):
        words = [run.program, *plan.flags, *run.flags, "--workdir=w"]
        later = {other.key for other in plan.runs[number:]}
        assert not [key for key in later if f"runs/x/{key}/" in " ".join(run.flags)]
        values = cli.parse_flags(words, DEFINE.get(run.program, lambda values: None))
        assert values.workdir == "w"
        # Of a flag that comes twice the last one counts.
        for word in run.flags:
            name, _, value = word.partition("=")
            if name == "--config.weights":
                assert values.config.weights == value


@pytest.mark.slow
def test_the_small_study_from_nothing(tmp_path, capfd):
    """Trains, searches, evaluates, corrupts, prunes, tunes: on the digits, for real."""
    command = [sys.executable, "-m", "diffrate_jax.study"]
    command += ["--plan=configs/studies/small.json", f"--workdir={tmp_path / 'work'}"]
    command += [f"--results={tmp_path / 'kept'}"]
    environment = os.environ | {"NPROC": "16", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, capfd.readouterr().err[-2000:]
    kept = tmp_path / "kept"
    table = read_json(kept / "1/test/evaluation.json")["rows"]
    rows = {(row["target"], row["name"]): row for row in table}
    assert rows[None, "dense"]["top1"] > 60
    for name in ("ToMe constant", "uniform", "EViT", "prune only", "random 1"):
        assert 1 <= rows["80%", name]["fraction"] / 0.8 <= 1.02
    assert rows["80%", "learned"]["fraction"] <= 0.8
    assert read_json(kept / "2/noise/evaluation.json")["split"] == "test, noise:0.3"
    schedule = read_json(kept / "5/images_100/schedule.json")["provenance"]
    assert (schedule["images"], schedule["held_out_images"]) == (100, 96)
    for path in kept.rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path
    report = (tmp_path / "work/report.html").read_text()
    assert "digits test, noise:0.3" in report
    before = (tmp_path / "work/study.json").read_bytes()
    capfd.readouterr()
    again = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    assert again.returncode == 0
    assert "9 runs, 9 done, 0:00:00 to go" in capfd.readouterr().err
    assert (tmp_path / "work/study.json").read_bytes() == before
