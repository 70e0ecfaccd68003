"""Speed: programs timed in turn in one run, so that noise falls on all alike."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffrate_jax.files import Json
from diffrate_jax.inference import Predict
from diffrate_jax.progress import track

# Rows and columns of the product that tells what a device can do.
PEAK_SIZE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}


@dataclasses.dataclass(frozen=True)
class Timed:
    """One program of a benchmark.

    Attributes:
        name: shown in the tables.
        macs: multiply-accumulates of one image, by the papers' formula.
        dense: whether it is a dense model, ours or another's.
        load: puts a batch of images [B, Y, X, 3] where the program wants it, and waits.
        run: runs what `load` returned, and waits for the end.
        compile_seconds: how long compiling took.
        flops: of a call as its compiler counts them; None if that is not known.
        memory_bytes: of weights, batch and all between, by the compiler; None likewise.
        attention: form of attention in it, if it is ours.
    """

    name: str
    macs: int
    dense: bool
    load: Callable[[np.ndarray], Any]
    run: Callable[[Any], Any]
    compile_seconds: float
    flops: float | None = None
    memory_bytes: int | None = None
    attention: str | None = None


def ours(name: str, predict: Predict, macs: int, *, dense: bool) -> Timed:
    """Returns a program of this package, of one batch size."""
    (compiled,) = predict.programs.values()
    memory = compiled.memory_analysis()
    return Timed(
        name,
        macs,
        dense,
        load=lambda images: jax.block_until_ready(predict.put(images)),
        run=lambda images: jax.block_until_ready(predict(images)),
        compile_seconds=predict.compile_seconds,
        flops=compiled.cost_analysis().get("flops"),
        memory_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes,
        attention=predict.attention,
    )


def time_in_turn(
    cases: list[Timed],
    image_size: int,
    batch_size: int,
    *,
    rounds: int,
    warmup: int = 3,
) -> list[dict[str, Json]]:
    """Times programs alternately and returns one row for each.

    Every round gives every program the same fresh batch of random images.

    Args:
        cases: the programs; the first is the dense one that speed-ups refer to.
        image_size: rows and columns of an image, in pixels.
        batch_size: images to a call.
        rounds: times that each program runs.
        warmup: rounds that are not counted.

    Returns:
        Rows with seconds of each round, the median rate, speed-up over the first
        program in the median over rounds, and efficiency: speed-up over the fastest
        dense program of this run, whose ever it is, over the ratio of operations.
    """
    rng = np.random.default_rng(0)
    shape = (batch_size, image_size, image_size, 3)
    seconds = {case.name: [] for case in cases}
    for round_index in track_rounds(rounds + warmup):
        images = rng.standard_normal(shape, np.float32)
        for case in cases:
            loaded = case.load(images)
            began = time.perf_counter()
            case.run(loaded)
            if round_index >= warmup:
                seconds[case.name].append(time.perf_counter() - began)
    times = {name: np.array(found) for name, found in seconds.items()}
    dense = [case for case in cases if case.dense]
    best = min(dense, key=lambda case: np.median(times[case.name]))
    return [timing_row(case, cases[0], best, times, batch_size) for case in cases]


def track_rounds(rounds: int) -> Iterator[int]:
    """Yields round numbers under a progress bar."""
    with track(rounds, "benchmark", unit="round") as bar:
        for index in range(rounds):
            yield index
            bar.update()


def timing_row(
    case: Timed,
    first: Timed,
    best: Timed,
    times: dict[str, np.ndarray],
    batch_size: int,
) -> dict[str, Json]:
    """Returns one row of a benchmark's JSON."""
    own, median = times[case.name], float(np.median(times[case.name]))
    over_best = float(np.median(times[best.name] / own))
    low, high = np.percentile(batch_size / own, [10, 90])
    return {
        "name": case.name,
        "macs": case.macs,
        "images_per_second": batch_size / median,
        "low": float(low),
        "high": float(high),
        "seconds": own.tolist(),
        "compile_seconds": case.compile_seconds,
        "flops": case.flops,
        "memory_bytes": case.memory_bytes,
        "attention": case.attention,
        "speedup": float(np.median(times[first.name] / own)),
        "efficiency": over_best / (best.macs / case.macs),
        "best_dense": best.name,
    }


def matrix_peak(dtype: str, *, rounds: int = 5) -> float:
    """Returns the FLOP/s of the first device in a large product of matrices."""
    size = PEAK_SIZE.get(jax.default_backend(), 2048)
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    product = jax.jit(lambda x: x @ x)
    seconds = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds[1:])
