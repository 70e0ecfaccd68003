"""Benchmarks: fair turns, efficiency against the best, tables that go on."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from math import inf
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest

import diffrate_jax as dr
from diffrate_jax import benchmark
from diffrate_jax.timing import Timed, matrix_peak, peers, time_in_turn
from diffrate_jax.timing.cells import Cell, read_cells, run_cells
from diffrate_jax.timing.places import record_path, schedule_in
from diffrate_jax.timing.speed import Speed, run_benchmark

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
        return {"kind": "benchmark", **dataclasses.asdict(cell)}

    # The first two are over after half a second; the third might end too late.
    records = list(run_cells(cells, tmp_path, measure, time.monotonic() + 1))
    assert [record["kind"] for record in records] == ["benchmark", "no benchmark"]
    assert records[1]["reason"] == "RESOURCE_EXHAUSTED: Out of memory"
    rest = list(run_cells(cells, tmp_path, measure, inf))
    assert [record["batch_size"] for record in rest] == [3, 4]
    assert ran == [1, 2, 3, 4]
    assert not list(run_cells(cells, tmp_path, measure, inf))
    assert len(list(tmp_path.glob("*.json"))) == 4


def test_a_cell_that_fails_costs_no_other_and_is_tried_again_last(
    tmp_path: Path, capfd
):
    cells = [Cell("m", "none", size, "float32", 1) for size in (1, 2, 3)]
    ran, bad = [], {1}

    def measure(cell: Cell) -> dict:
        ran.append(cell.batch_size)
        if cell.batch_size in bad:
            raise ZeroDivisionError("by nothing")
        return {"kind": "benchmark", "schedule": cell.schedule}

    with pytest.raises(dr.UserError, match="1 cells failed .* m_float32_b1.json; the"):
        list(run_cells(cells[:2], tmp_path, measure, inf))
    assert "m_float32_b1.json: ZeroDivisionError: by nothing" in capfd.readouterr().err
    bad.clear()
    list(run_cells(cells, tmp_path, measure, inf))
    assert ran == [1, 2, 3, 1]
    kinds = {json.loads(path.read_text())["kind"] for path in tmp_path.iterdir()}
    assert kinds == {"benchmark"}
    assert not list(run_cells(cells, tmp_path, measure, inf))


def test_schedules_of_one_model_have_a_file_each(tmp_path: Path):
    cells = [Cell("m", text, 1, "float32", 1) for text in ("tome:8", "a/b.json", "c")]

    def measure(cell: Cell) -> dict:
        return {
            "kind": "benchmark",
            "rows": [{"name": "dense"}, {"name": cell.schedule}],
        }

    for cell in cells:  # One after another, as --schedule= would; again changes none.
        list(run_cells([cell], tmp_path, measure, inf))
    assert not list(run_cells(cells[::-1], tmp_path, measure, inf))
    stem = "m_float32_b1"
    assert {path.name: schedule_in(path) for path in tmp_path.iterdir()} == {
        f"{stem}.json": "tome:8", f"{stem}_a_b.json.json": "a/b.json",
        f"{stem}_c.json": "c",
    }  # fmt: skip


def test_old_records_say_their_schedule():
    path = ROOT / "results/cpu/deit_small/deit_small_patch16_224_float32_b1.json"
    what = "deit_small_patch16_224", "float32", 1
    assert record_path(path.parent, *what, schedule_in(path)) == path
    assert record_path(path.parent, *what, "tome:9") != path


@pytest.mark.parametrize(
    "change",
    [
        *({"models": 3}, {"rounds": "x"}, {"rounds": 0}, {"dtype": None}),
        *({"dtype": "int8"}, {"batch_sizes": [2, 0]}),
    ],
)
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--peers=timm,tim", "unknown peer 'tim'; did you mean 'timm'"),
        ("--peers=timm,timm", "takes each peer once, got timm,timm"),
        ("--batch=8 --rounds=2", "--cells brings .* leave --batch and --rounds out"),
        ("--dtype=float32", "leave --dtype out"),
        ("--out=", "--out: expected the name of a folder, got ''"),
        ("--latency_table=.", "--latency_table: expected the name of a file, got '.'"),
    ],
)
def test_flags_are_checked_before_anything_else(
    tmp_path: Path, capfd, words: str, said: str
):
    """Of the table, which is none, nobody gets to hear."""
    cells = [f"--cells={tmp_path}/none.json", f"--out={tmp_path}/out"]
    assert benchmark.main(["benchmark", *cells, *words.split()]) == 2
    assert re.search(said, capfd.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_missing_packages_of_peers(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(dr.UserError, match="needs PyTorch and timm, and timm is not"):
        peers.prepare(["timm"])


def test_peers_leave_each_other_memory_and_are_of_presets(monkeypatch):
    for name in ("torch", "timm"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    variable = "XLA_PYTHON_CLIENT_PREALLOCATE"
    for given, found in (("true", "true"), (None, "false")):
        monkeypatch.setenv(variable, given or "")
        if given is None:
            monkeypatch.delenv(variable)
        peers.prepare(["timm", "timm_compiled"])
        assert os.environ[variable] == found
    name = "deit_tiny_patch16_224"
    peers.check_model(name, dr.create_model(name, image_size=32))
    for other, model in (
        ("vit", dr.create_model(name)),
        (name, dr.create_model(name, num_classes=10)),
    ):
        with pytest.raises(dr.UserError, match=f"this '{other}' is no preset as it is"):
            peers.check_model(other, model)


def test_peers_are_compiled_for_one_batch_size(monkeypatch):
    """PyTorch would remember other sizes and compile for any from then on."""
    torch = MagicMock()
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "timm", MagicMock())
    name = "deit_tiny_patch16_224"
    peers.timed("timm_compiled", name, dr.create_model(name), 2, "float32")
    names = [call[0] for call in torch.mock_calls]
    assert names.index("compiler.reset") < names.index("compile")
    assert torch.compile.call_args.kwargs == {"dynamic": False}


def test_a_peer_that_fails_costs_only_its_own_row(monkeypatch):
    """One of them when it is built, the other in the last round."""
    seen, runs = [], iter(range(8))

    def peer(name: str, *_: object) -> Timed:
        if name == "timm":
            raise peers.PeerError(name, ImportError("no\nmore"))
        own = sleeper(name, 0, 3, seen, dense=True)

        def run(images: np.ndarray) -> None:
            own.run(images)
            if next(runs) == 4:
                raise peers.PeerError(name, ValueError("broken"))

        return dataclasses.replace(own, run=run)

    monkeypatch.setattr(peers, "timed", peer)
    monkeypatch.setattr("diffrate_jax.timing.speed.matrix_peak", lambda _: 1e12)
    fields = {"image_size": 8, "patch_size": 2, "width": 8, "num_heads": 2, "depth": 1}
    model = dr.create_model("vit", **fields, num_classes=3)
    speed = Speed(1, "float32", 2, peers=peers.PEERS)
    cases = {"dense": None, "tome:4": dr.ToMe(4)}
    params = dr.init_weights(model)
    record = run_benchmark(model, "vit", params, cases, speed, "benchmark")
    assert [row["name"] for row in record["rows"]] == ["dense", "tome:4"]
    assert {row["best_dense"] for row in record["rows"]} == {"dense"}
    assert record["failed_peers"] == {
        "timm": "timm failed, ImportError: no",
        "timm_compiled": "timm_compiled failed, ValueError: broken",
    }
    assert len(seen) == 5
