"""How fast a training stream comes, and each of its stages alone.

A stage is a function that begins it anew and returns an endless iterator, which yields
how many images it has done since it yielded last.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from diffrate_jax.data.chance import Appearance
from diffrate_jax.data.rand_augment import RandAugment
from diffrate_jax.progress import track

Stage = Callable[[], Iterator[int]]

READ, RAND_AUGMENT, BATCH = "read, decode, crop", "RandAugment", "batch"


def stages_of_arrays(
    read: Callable[[], Iterator[Sequence[np.ndarray]]], how: RandAugment | None
) -> dict[str, Stage]:
    """Returns the stages of a stream that is made with numpy.

    Args:
        read: Begins the first stage, which yields lists of images, uint8 [Y, X, C].
        how: The second stage, if there is one.
    """
    # Only now: Pillow takes a while to load.
    from diffrate_jax.data.rand_augment_pil import rand_augment_array
    from diffrate_jax.data.threads import made_in_threads

    sample = next(read())
    work = [(x, how, Appearance(0, 0, i)) for i, x in enumerate(sample)], ()

    def randomised() -> Iterator[int]:
        steps = made_in_threads(rand_augment_array, itertools.repeat(work))
        return (len(images) for images, _ in steps)

    def stacked() -> Iterator[int]:
        return (len(np.stack(images)) for images in itertools.repeat(sample))

    stages = {READ: lambda: map(len, read()), RAND_AUGMENT: randomised, BATCH: stacked}
    if how is None:
        del stages[RAND_AUGMENT]
    return stages


def rates(
    stages: dict[str, Stage], *, images: int, warmup: int, rounds: int
) -> dict[str, list[float]]:
    """Returns images per second of each stage in each round.

    Stages take turns in every round, so that noise falls on all alike.

    Args:
        stages: By name.
        images: Timed in a turn, at least.
        warmup: Images before them, enough to use up what was made before.
        rounds: Turns of each stage.
    """
    found = {name: [] for name in stages}
    with track(rounds * len(stages), "input", unit="turn") as bar:
        for _, (name, stage) in itertools.product(range(rounds), stages.items()):
            found[name].append(rate(stage, images=images, warmup=warmup))
            bar.set_postfix_str(f"{name}: {found[name][-1]:.0f} images/s")
            bar.update()
    return found


def rate(stage: Stage, *, images: int, warmup: int) -> float:
    """Returns images per second of one turn; see `rates`."""
    counts = stage()
    _run(counts, warmup)
    began = time.perf_counter()
    done = _run(counts, images)
    return done / (time.perf_counter() - began)


def in_series(found: dict[str, list[float]]) -> list[float]:
    """Returns what reading and RandAugment allow one after the other, by round."""
    names = [name for name in (READ, RAND_AUGMENT) if name in found]
    return [
        1 / sum(1 / found[n][turn] for n in names) for turn in range(len(found[READ]))
    ]


def _run(counts: Iterator[int], least: int) -> int:
    done = 0
    while done < least:
        done += next(counts)
    return done
