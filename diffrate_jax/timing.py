"""Speed: programs timed in turn in one run, so that noise falls on all alike."""

import dataclasses
import time
from collections.abc import Iterator

import jax
import numpy as np

from diffrate_jax.files import Json
from diffrate_jax.inference import Predict
from diffrate_jax.progress import track


@dataclasses.dataclass(frozen=True)
class Timed:
    """One program of a benchmark.

    Attributes:
        name: shown in the tables.
        predict: the compiled program.
        macs: multiply-accumulates of one image.
    """

    name: str
    predict: Predict
    macs: int


def time_in_turn(
    cases: list[Timed], image_size: int, *, rounds: int, warmup: int = 3
) -> list[dict[str, Json]]:
    """Times programs alternately and returns one row for each.

    Every round gives every program a fresh batch of random images, then blocks.

    Args:
        cases: the programs; the first is the dense one that speedups refer to.
        image_size: rows and columns of an image, in pixels.
        rounds: times that each program runs.
        warmup: rounds that are not counted.

    Returns:
        Rows with seconds of each round, the median rate, and, against the first
        program in the median over rounds, speedup and efficiency: speedup over the
        ratio of operations.
    """
    rng = np.random.default_rng(0)
    batch_size = cases[0].predict.batch_sizes[-1]
    shape = (batch_size, image_size, image_size, 3)
    seconds = {case.name: [] for case in cases}
    for round_index in track_rounds(rounds + warmup):
        images = jax.device_put(rng.standard_normal(shape, np.float32))
        for case in cases:
            images.block_until_ready()
            began = time.perf_counter()
            case.predict(images).block_until_ready()
            if round_index >= warmup:
                seconds[case.name].append(time.perf_counter() - began)
    return [timing_row(case, cases[0], seconds, batch_size) for case in cases]


def track_rounds(rounds: int) -> Iterator[int]:
    """Yields round numbers under a progress bar."""
    with track(rounds, "benchmark", unit="round") as bar:
        for index in range(rounds):
            yield index
            bar.update()


def timing_row(
    case: Timed, dense: Timed, seconds: dict[str, list[float]], batch_size: int
) -> dict[str, Json]:
    """Returns one row of a benchmark's JSON."""
    own, base = np.array(seconds[case.name]), np.array(seconds[dense.name])
    speedup = float(np.median(base / own))
    return {
        "name": case.name,
        "macs": case.macs,
        "images_per_second": batch_size / float(np.median(own)),
        "seconds": own.tolist(),
        "compile_seconds": case.predict.compile_seconds,
        "speedup": speedup,
        "efficiency": speedup / (dense.macs / case.macs),
    }
