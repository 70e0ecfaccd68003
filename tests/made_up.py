"""Results that nobody measured, for tests of what is made of results."""

import json
from pathlib import Path

import numpy as np

from diffrate_jax.schedule import Schedule

NAMES = ("dense", "learned", "ToMe constant", "tome:<b>8</b>", "random 1", "random 2")
SCHEDULE = Schedule(
    (9, 7, 4), (9, 5, 3), {"target": "60%", "macs": 6, "dense_macs": 10}
)
STEP = {
    **{"step": 10, "loss": 2.0, "objective": 1.5, "macs": 9e6, "target_macs": 6e6},
    "merge": [9, 5, 3],
}
COUNT = 40


def correct(seed: int, right: float = 0.9) -> str:
    """Returns a 1 for about as many images as are right."""
    return "".join(
        np.random.default_rng(seed).choice(["0", "1"], COUNT, p=[1 - right, right])
    )


def evaluation(
    seed: int = 0, names: tuple[str, ...] = NAMES, target: str | None = None
) -> dict:
    """Returns the record of an evaluation; its dense row is the same for all seeds."""
    rows = []
    for number, name in enumerate(names):
        right = correct(0 if name == "dense" else 100 * seed + number + 1)
        macs = 10_000_000 if name == "dense" else 6_000_000 - number
        rows.append(
            {
                "name": name,
                "rule": "diffrate",
                "prune": None,
                "merge": [9, 5, 3],
                "macs": macs,
                "fraction": macs / 10_000_000,
                "count": COUNT,
                "top1": 100 * right.count("1") / COUNT,
                "top5": 99.0,
                "loss": 0.5,
                "images_per_second": 1000.0 + number,
                "correct": right,
                "target": target,
            }
        )
    command = f"python -m diffrate_jax.evaluate --workdir=runs/seed{seed}"
    return {
        "kind": "evaluation",
        "command": f"{command} --note='<script>'",
        "environment": {"device": "<i>cpu</i>", "jax": "0.10.2"},
        "model": "tiny",
        "dataset": "digits",
        "split": "test",
        "dense_macs": 10_000_000,
        "rows": rows,
    }


def benchmark(batch_size: int = 16) -> dict:
    """Returns the record of a benchmark of the same model."""
    row = {
        "name": "dense",
        "macs": 10_000_000,
        "images_per_second": 100.0,
        "seconds": [0.15, 0.16, 0.2],
        "compile_seconds": 1.2,
        "speedup": 1.0,
        "efficiency": 1.0,
        "of_peak": 0.5,
        "memory_bytes": 2**21,
    }
    fast = {"name": "learned", "macs": 5_999_999, "speedup": 1.5, "efficiency": 0.9}
    return {
        "kind": "benchmark",
        "command": "python -m diffrate_jax.benchmark",
        "environment": {"device": "cpu"},
        "model": "tiny",
        "batch_size": batch_size,
        "dtype": "float32",
        "peak_flops": 1e12,
        "rows": [row, row | fast | {"images_per_second": 150.0}],
    }


def latency() -> dict:
    """Returns the record of a latency table."""
    times = {
        "blocks": [0, 1],
        "tokens": [1.0, 5.0, 9.0],
        "attention": [0.1, 0.2, 0.5],
        "mlp": [0.1, 0.4, 0.7],
        "compression": [0.01, 0.0, 0.0, 0.0],
    }
    checks = [{"ms": 10.0, "predicted_ms": 11.0}, {"ms": 20.0, "predicted_ms": 20.0}]
    return {
        "format": "diffrate_jax.latency",
        "version": 1,
        "model": {},
        "rule": "redundancy",
        "batch_size": 8,
        "dtype": "float32",
        "terms": {"fixed": 0.5, "times": [times]},
        "about": {
            "name": "tiny",
            "command": "python -m diffrate_jax.benchmark --latency_table=t.json",
            "environment": {"device": "cpu"},
            "checks": checks,
        },
    }


MISFIT = {
    **{"kind": "no benchmark", "model": "huge", "schedule": "published:103.4"},
    **{"batch_size": 256, "dtype": "bfloat16", "reason": "RESOURCE_EXHAUSTED"},
}


def write(path: Path, record: object) -> None:
    """Writes JSON where there may be no folder yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def write_lines(folder: Path, lines: list[str]) -> None:
    """Writes the metrics of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("\n".join(lines))


def write_everything(folder: Path) -> None:
    """Fills a folder with one result of each kind, and two files that are none."""
    SCHEDULE.save(folder / "search" / "schedule.json")
    steps = [STEP | {"step": step, "macs": 9e6 - step} for step in (0, 10, 20)]
    write_lines(
        folder / "search", [json.dumps(s) for s in steps] + ['{"step": 30, "lo']
    )
    origin = {"command": "python -m diffrate_jax.search", "environment": {"jax": "1"}}
    write(folder / "search" / "comparison.json", {"comparisons": [origin]})
    write_lines(
        folder / "train", ['{"step": 1, "loss": 2.3}', '{"step": 2, "loss": 1}']
    )
    write(folder / "evaluation.json", evaluation())
    write(folder / "benchmark.json", benchmark())
    write(folder / "benchmark_64.json", benchmark(64))
    write(folder / "misfit.json", MISFIT)
    write(folder / "table.json", latency())
    write(folder / "unknown.json", {"kind": "something else"})
    write(folder / "list.json", [1, 2])
