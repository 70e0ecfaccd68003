"""Benchmarks: fair turns, efficiency against the best, tables that go on."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import diffrate_jax as dr
from diffrate_jax import benchmark
from diffrate_jax.timing import Timed, matrix_peak, peers, time_in_turn
from diffrate_jax.timing.cells import Cell, read_cells, run_cells

ROOT = Path(__file__).parent.parent
GPU = ROOT / "configs/benchmarks/gpu.json"
# The program where some packages cannot be imported, its models but a block.
WITHOUT = """
import sys
sys.modules |= dict.fromkeys(["ml_collections", "tensorflow", "tensorflow_datasets"])
from diffrate_jax import benchmark, convert, create_model, export, report, visualize
fields = {"image_size": 8, "patch_size": 2, "width": 8, "num_heads": 2, "depth": 1}
benchmark.create_model = lambda _: create_model("vit", **fields, num_classes=3)
sys.exit(benchmark.main(["benchmark", *sys.argv[1:]]))
"""
TABLE = {
    "dtype": "float32",
    "rounds": 1,
    "batch_sizes": [2, 1],
    "models": [{"model": "deit_tiny_patch16_224", "schedule": "tome:8"}],
}


def sleeper(name: str, seconds: float, macs: int, seen: list, *, dense: bool) -> Timed:
    """Returns a program that only takes its time, and notes what it is given."""
    return Timed(
        name, macs, dense=dense, load=np.copy, compile_seconds=0.0,
        run=lambda images: (seen.append((name, images.copy())), time.sleep(seconds)),
    )  # fmt: skip


def test_efficiency_is_against_the_fastest_dense_model():
    seen = []
    cases = [
        sleeper("dense", 0.04, 100, seen, dense=True),
        sleeper("half", 0.02, 50, seen, dense=False),
        sleeper("peer", 0.03, 100, seen, dense=True),
    ]
    rows = time_in_turn(cases, 4, 2, rounds=5, warmup=1)
    dense, half, peer = rows
    assert {row["best_dense"] for row in rows} == {"peer"}
    assert half["speedup"] == pytest.approx(2, rel=0.15)
    assert half["efficiency"] == pytest.approx(0.75, rel=0.15)
    assert peer["efficiency"] == pytest.approx(1, rel=0.05)
    assert dense["efficiency"] == pytest.approx(0.75, rel=0.15)
    # In turn, each round fresh, and in a round the same for all.
    assert [name for name, _ in seen] == ["dense", "half", "peer"] * 6
    images = np.stack([images for _, images in seen]).reshape(6, 3, -1)
    np.testing.assert_array_equal(images, np.repeat(images[:, :1], 3, axis=1))
    assert len({round_.tobytes() for round_ in images[:, 0]}) == 6
    assert np.abs(images).min(axis=2).max() > 0


def test_the_peak_is_that_of_a_product():
    assert 1e8 < matrix_peak("float32", rounds=1) < 1e15


def test_the_gpu_table_is_most_important_first():
    cells = read_cells(GPU)
    assert len(cells) == 16
    assert [(cell.model.split("_")[1], cell.batch_size) for cell in cells[:5]] == [
        *(("base", 256), ("large", 256), ("small", 256), ("huge", 256), ("base", 64))
    ]
    for cell in cells[:4]:
        model = dr.create_model(cell.model)
        target = cell.schedule.removeprefix("published:")
        assert dr.cost_macs(model, dr.published_schedule(cell.model, target)) > 0


def test_cells_are_run_once_and_in_time(tmp_path: Path):
    cells = [Cell("m", "none", size, "float32", 1) for size in (1, 2, 3, 4)]
    ran = []

    def measure(cell: Cell) -> dict:
        ran.append(cell.batch_size)
        if cell.batch_size == 2:
            time.sleep(0.2)
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nand more")
        time.sleep(0.3)
        return {"kind": "benchmark", "batch_size": cell.batch_size}

    # The first two are over after half a second; the third would end too late.
    records = list(run_cells(cells, tmp_path, measure, minutes=0.7 / 60))
    assert [record["kind"] for record in records] == ["benchmark", "no benchmark"]
    assert records[1]["reason"] == "RESOURCE_EXHAUSTED: Out of memory"
    rest = list(run_cells(cells, tmp_path, measure, minutes=1))
    assert [record["batch_size"] for record in rest] == [3, 4]
    assert ran == [1, 2, 3, 4]
    assert not list(run_cells(cells, tmp_path, measure, minutes=1))
    assert len(list(tmp_path.glob("*.json"))) == 4


def test_other_errors_of_a_cell_are_not_hidden(tmp_path: Path):
    def measure(_: Cell) -> dict:
        raise RuntimeError("something else")

    cell = Cell("m", "none", 1, "float32", 1)
    with pytest.raises(RuntimeError, match="something else"):
        list(run_cells([cell], tmp_path, measure, minutes=1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"models": 3}, {"rounds": "x"}, {"dtype": None}])
def test_a_table_that_is_none(tmp_path: Path, change: dict):
    table = {key: value for key, value in (TABLE | change).items() if value is not None}
    (tmp_path / "t.json").write_text(json.dumps(table))
    with pytest.raises(dr.UserError, match="is no table of benchmarks"):
        read_cells(tmp_path / "t.json")


@pytest.mark.slow
def test_a_table_of_real_models(tmp_path: Path, capsys):
    """What would run on a GPU, at small sizes, in two slices."""
    (tmp_path / "t.json").write_text(json.dumps(TABLE))
    words = [f"--cells={tmp_path}/t.json", f"--out={tmp_path}/out"]
    for minutes, count in (("1e-9", 1), ("60", 2)):
        assert benchmark.main(["benchmark", *words, f"--minutes={minutes}"]) == 0
        assert len(list((tmp_path / "out").glob("*.json"))) == count
    assert "deit_tiny_patch16_224, batch 1, float32" in capsys.readouterr().out
    record = json.loads(next((tmp_path / "out").glob("*_b2.json")).read_text())
    assert [row["name"] for row in record["rows"]] == ["dense", "tome:8"]


def test_neither_tensorflow_nor_ml_collections_is_needed(tmp_path: Path):
    (tmp_path / "t.json").write_text(json.dumps(TABLE | {"batch_sizes": [1]}))
    words = [sys.executable, "-c", WITHOUT, f"--cells={tmp_path}/t.json"]
    words.append(f"--out={tmp_path}/out")
    printed = subprocess.check_output(words, cwd=ROOT, text=True)
    assert printed.startswith("deit_tiny_patch16_224, batch 1, float32\n")


def test_unknown_and_missing_peers():
    model = dr.create_model("deit_tiny_patch16_224")
    with pytest.raises(dr.UserError, match="unknown peer 'tim'; did you mean 'timm'"):
        peers.timed("tim", "deit_tiny_patch16_224", model, 1, "float32")
    if importlib.util.find_spec("timm") is None:
        with pytest.raises(dr.UserError, match="timm, and .* is not installed"):
            peers.timed("timm", "deit_tiny_patch16_224", model, 1, "float32")
