"""The program `evaluate` on photos: killed and resumed, damaged files, figures."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import ROOT
from test_weights import random_params

from diffrate_jax import evaluate
from diffrate_jax.files import read_json, write_json
from diffrate_jax.model_folder import save_model
from diffrate_jax.models import create_model
from diffrate_jax.tables import published_table
from diffrate_jax.weights import save_weights

pytestmark = pytest.mark.usefixtures("compiles_fast")

# Two blocks and 17 tokens; 53 photos of several sizes, some lying, some standing.
RECIPE = """
from configs import quickstart

def get_config():
    config = quickstart.get_config()
    config.model_fields.update(depth=2, width=12, image_size=16)
    config.dataset, config.eval_split = "folder:{root}", "val"
    config.weights, config.preprocess = "{weights}", "published"
    config.eval_batch_size, config.log_every, config.cpu_devices = 8, 2, 0
    return config
"""
COUNT = 53
FIELDS = {
    **{"image_size": 16, "patch_size": 4, "width": 12, "depth": 2},
    **{"num_heads": 3, "num_classes": 10},
}
# Ends the process as a power cut does, once so many batches of a row are written.
KILLED = """
import os, signal, sys
import conftest, jax
from diffrate_jax import evaluate, tally

# Compiled as in the tests: another compilation gives other last bits.
jax.config.update("jax_disable_most_optimizations", True)
save = tally.Tally.save

def save_and_die(self, path):
    save(self, path)
    if (path.name, self.batches) == ("1.json", 4):
        os.kill(os.getpid(), signal.SIGKILL)

tally.Tally.save = save_and_die
sys.exit(evaluate.main(["evaluate", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    """Photos, weights, and a recipe that names both."""
    folder = tmp_path_factory.mktemp("evaluate")
    found = {name: folder / name for name in ("root", "recipe.py")}
    found["weights"] = folder / "weights.safetensors"
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        path = found["root"] / "val" / f"n{number % 10:02}" / f"{number:02}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 256, (*rng.integers(12, 40, 2), 3)).astype(np.uint8)
        Image.fromarray(noise).save(path, quality=90)
    model = create_model("vit", **FIELDS)
    save_weights(model, random_params(model), found["weights"])
    found["recipe.py"].write_text(RECIPE.format_map(found))
    return found


def words(paths: dict[str, Path], work: Path, flags: str = "") -> list[str]:
    """Returns the flags of a run."""
    return [
        f"--config={paths['recipe.py']}",
        f"--workdir={work}",
        *shlex.split(flags or "--schedule=tome:2 --against=none"),
    ]


def run(paths: dict[str, Path], work: Path, flags: str = "") -> int:
    return evaluate.main(["evaluate", *words(paths, work, flags)])


def without_times(path: Path) -> dict:
    """Returns an evaluation but for its rates, and for the folder in its command."""
    record = read_json(path / "evaluation.json")
    record.pop("command")
    assert all(row.pop("images_per_second") >= 0 for row in record["rows"])
    return record


def test_every_photo_counts_once_and_the_preprocessing_is_told(paths, tmp_path, capsys):
    assert run(paths, tmp_path) == 0
    printed = capsys.readouterr()
    assert [row["count"] for row in without_times(tmp_path)["rows"]] == [COUNT] * 2
    assert all(len(row["correct"]) == COUNT for row in without_times(tmp_path)["rows"])
    line = "preprocessing (published): shorter side to 18, bicubic; central 16 x 16; "
    assert printed.err.count(line) == 1
    assert "tome:2" in printed.out
    assert without_times(tmp_path)["preprocess"]["resize"] == 18


@pytest.mark.slow
def test_an_evaluation_killed_goes_on_and_ends_as_if_it_had_not_been(paths, tmp_path):
    """By signal 9, in the middle of the second of three rows."""
    flags = "--schedule=tome:2 --against=none,uniform:80%"
    command = [sys.executable, "-c", KILLED, *words(paths, tmp_path / "cut", flags)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    killed = subprocess.run(command, env=environment, cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "cut" / "evaluation.json").exists()
    tallies = tmp_path / "cut" / "evaluation"
    assert sorted(path.name for path in tallies.iterdir()) == [
        "0.json", "1.json", "config.json"
    ]  # fmt: skip
    assert [read_json(tallies / f"{i}.json")["batches"] for i in (0, 1)] == [7, 4]
    assert run(paths, tmp_path / "cut", flags) == 0
    assert run(paths, tmp_path / "whole", flags) == 0
    assert without_times(tmp_path / "cut") == without_times(tmp_path / "whole")


def test_the_same_command_again_counts_nothing_again(paths, tmp_path, monkeypatch):
    assert run(paths, tmp_path) == 0
    before = (tmp_path / "evaluation.json").read_bytes()
    monkeypatch.setattr("diffrate_jax.data.photo.read_photo", None)
    assert run(paths, tmp_path) == 0
    assert (tmp_path / "evaluation.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ("--schedule=tome:3", "rows=['tome:2', 'none']"),
        ("--schedule=tome:2 --against=none --config.preprocess=", "preprocess.mean="),
        ("--schedule=tome:2 --against=none --config.eval_batch_size=4", "batch=8"),
    ],
)
def test_a_folder_of_another_evaluation(paths, tmp_path, capsys, flags, field):
    (tmp_path / "evaluation").mkdir()
    assert run(paths, tmp_path) == 0
    capsys.readouterr()
    assert run(paths, tmp_path, flags) == 2
    printed = capsys.readouterr().err
    assert f"/evaluation belongs to a run with {field}" in printed
    assert "give another --workdir or the same config" in printed


def test_rows_of_changed_data_are_not_compared(paths, tmp_path, capsys):
    """The second row is counted again, after the data changed under its name."""
    assert run(paths, tmp_path) == 0
    folder = tmp_path / "evaluation"
    tally = read_json(folder / "1.json")
    write_json(folder / "1.json", tally | {"labels": tally["labels"] + 1})
    (tmp_path / "evaluation.json").unlink()
    capsys.readouterr()
    assert run(paths, tmp_path) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: the examples of folder:")
    assert last.endswith(f"remove the folder {folder} to count again")
    assert not (tmp_path / "evaluation.json").exists()


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"no image"])
def test_a_damaged_photo_is_named(paths, tmp_path, capsys, content):
    broken = paths["root"] / "val" / "n03" / "23.JPEG"
    whole = broken.read_bytes()
    broken.write_bytes(content or whole[:-200])
    assert run(paths, tmp_path, "--schedule=none") == 2
    broken.write_bytes(whole)
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith(
        f"error: expected an image in {broken}, cannot decode it ("
    )
    assert printed.out == ""
    # Put right, it goes on.
    assert run(paths, tmp_path, "--schedule=none") == 0


def test_a_missing_folder_or_split_is_one_sentence(paths, tmp_path, capsys):
    for flags, sentence in {
        "--config.dataset=folder:nowhere": "expected a folder of images at nowhere",
        "--config.eval_split=train": "has no split 'train'; known: validation, val",
        "--config.eval_split=val[60:]": "must lie within its 53 examples",
        "--config.preprocess=timm": "and 'vit' is none; set preprocess to",
        "--config.interpolation=lanczos --config.preprocess=": "known: bicubic",
    }.items():
        assert run(paths, tmp_path, f"--schedule=none {flags}") == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ")
        assert sentence in printed.err


ROW = {"top1": 79.5, "top5": 94.75, "loss": 0.9031, "macs": 2905_312_345}
FIGURES = {"target": "2.9", "top1": 79.538, "top5": 94.828, "loss": 0.902}
PUBLISHED = """\
                              top-1 %  top-5 %   loss  GMACs
published:2.9, measured here   79.500   94.750  0.903  2.905
published:2.9, as published    79.538   94.828  0.902  2.905"""


def test_published_figures_stand_beside_those_measured():
    row = ROW | {"name": "published:2.9", "published": FIGURES | {"gmacs": 2.905}}
    others = [ROW | {"name": "dense"}, row]
    assert published_table({"rows": others}) == PUBLISHED
    assert published_table({"rows": others[:1]}) == ""
    alone = published_table({"rows": [row | {"published": {"target": "2.5"}}]})
    assert alone == PUBLISHED.rsplit("\n", 1)[0]


def test_a_published_schedule_is_told_with_its_figures(
    paths, tmp_path, capsys, monkeypatch
):
    """The model is small, its schedule and figures are released elsewhere."""
    release = {"prune": None, "merge": [17, 9], "published": FIGURES | {"gmacs": 3.0}}
    record = {"schedules": {"2.9": release, "2.5": {"prune": None, "merge": [9, 9]}}}
    (tmp_path / "vit.json").write_text(json.dumps(record))
    monkeypatch.setattr("diffrate_jax.published.PUBLISHED", tmp_path)
    flags = "--schedule=published:2.9 --against=published:2.5"
    assert run(paths, tmp_path / "work", flags) == 0
    first, second = read_json(tmp_path / "work" / "evaluation.json")["rows"]
    assert first["published"] == FIGURES | {"gmacs": 3.0}
    assert second["published"] == {"target": "2.5"}
    printed = capsys.readouterr().out
    assert "published:2.9, as published    79.538   94.828  0.902  3.000" in printed
    assert "published:2.5, measured here" in printed
    assert "published:2.5, as published" not in printed
    # Of weights that were tuned since, nothing is published.
    tuned = tmp_path / "tuned"
    model = create_model("vit", **FIELDS)
    provenance = {"program": "finetune"}
    save_model(tuned, model, random_params(model), provenance=provenance)
    flags = f"--schedule=published:2.9 --config.weights={tuned}"
    assert run(paths, tmp_path / "other", flags) == 0
    (row,) = read_json(tmp_path / "other" / "evaluation.json")["rows"]
    assert "published" not in row
