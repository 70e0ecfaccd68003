"""Exact evaluation: every example of a split counted once, on any number of devices."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffrate_jax import parallel
from diffrate_jax.compressions import schedule_of
from diffrate_jax.cost import cost_macs
from diffrate_jax.data import Batch, Dataset
from diffrate_jax.data.augment import Colour, normalise
from diffrate_jax.data.corrupt import Corruption
from diffrate_jax.distributed import stop_signal
from diffrate_jax.errors import StoppedError, UserError
from diffrate_jax.files import Json
from diffrate_jax.models import Model, Params, forward
from diffrate_jax.models.vit import Compression
from diffrate_jax.progress import track
from diffrate_jax.shapes import Array
from diffrate_jax.tally import Tally


@dataclasses.dataclass(frozen=True)
class Score:
    """What a model reaches on a split.

    Attributes:
        count: examples counted; the size of the split.
        top1: share whose first guess is right, in percent.
        top5: share with the label among the first five, in percent.
        loss: mean cross entropy.
        images_per_second: of the median batch, input included, without the first batch.
        correct: "1" or "0" for each example, in the order of the split.
        labels: a hash of the labels in that order. Where two differ, so did the images
            or their order; equal ones do not prove equal images.
    """

    count: int
    top1: float
    top5: float
    loss: float
    images_per_second: float
    correct: str
    labels: str


class Evaluator:
    """Evaluates schedules of one model on one split, in batches over all devices."""

    def __init__(
        self,
        model: Model,
        params: Params,
        dataset: Dataset,
        split: str,
        *,
        batch_size: int,
        mean: Colour,
        std: Colour,
        corruption: Corruption | None = None,
    ) -> None:
        parallel.check_batch_size(batch_size)
        check_classes(model, dataset)
        self._model, self._images = model, Images(mean, std, corruption)
        self._params = parallel.replicate(params)
        self._dataset, self._split, self._batch_size = dataset, split, batch_size

    def score(
        self,
        compression: Compression | None,
        name: str = "evaluate",
        *,
        path: Path | None = None,
        save_every: int = 1,
    ) -> Score:
        """Returns what the model reaches with a compression in place.

        Args:
            compression: None for the dense model.
            name: for the progress bar.
            path: of a file that keeps what is counted; one that an earlier run left
                is gone on with.
            save_every: number of batches after which it is written.

        Raises:
            UserError: the split is empty, or not every example was counted once.
            StoppedError: SIGTERM asked for it; what is counted is kept.
        """
        tally, size = Tally.load(path), self._dataset.size(self._split)
        step = parallel.pmap_step(
            eval_step(self._model, compression, self._images), donate_state=False
        )
        clock, start = Clock(), min(size, tally.batches * self._batch_size)
        bar = track(size, name, start=start, unit="image")
        with bar, stop_signal() as asked:
            for batch in self._batches(tally.batches):
                sums, verdict = step((), self._params, parallel.shard(batch))
                tally.add(np.asarray(sums), np.asarray(verdict))
                clock.count(int(np.asarray(sums)[0]))
                tally.images_per_second = clock.rate() or tally.images_per_second
                if tally.batches % save_every == 0 or tally.sums[0] == size:
                    tally.save(path)
                bar.update(min(self._batch_size, size - bar.n))
                if asked():
                    tally.save(path)
                    raise StoppedError
        return self._score(tally, size)

    def _batches(self, start: int) -> Iterator[Batch]:
        """Yields batches with each example's `number` in the split.

        Raises:
            UserError: an example has no label.
        """
        host, hosts = jax.process_index(), jax.process_count()
        batches = self._dataset.epoch(
            self._split,
            batch_size=self._batch_size,
            start=start,
            process_index=host,
            process_count=hosts,
        )
        for place, batch in enumerate(batches, start):
            check_labelled(batch, self._dataset.name, self._split)
            row_B = np.arange(len(batch["label"]), dtype=np.int32)
            first = place * self._batch_size + host
            yield batch | {"number": first + row_B * hosts}

    def _score(self, tally: Tally, size: int) -> Score:
        count = round(tally.sums[0])
        if count != size or not size:
            raise UserError(
                f"expected to count each of the {size} examples of {self._split!r} "
                f"once, counted {count}; the dataset is empty or damaged: prepare it "
                "again"
            )
        top1, top5, loss = (total / count for total in tally.sums[1:])
        said = tally.images_per_second, tally.correct, f"{tally.labels:016x}"
        return Score(count, 100 * top1, 100 * top5, loss, *said)


def check_classes(model: Model, dataset: Dataset) -> None:
    """Refuses labels that are not of the model's classes.

    Raises:
        UserError: naming both numbers.
    """
    if dataset.num_classes != model.num_classes:
        raise UserError(
            f"the model tells {model.num_classes} classes apart, {dataset.name} "
            f"has {dataset.num_classes}; use a model made for the dataset"
        )


def check_labelled(batch: Batch, name: str, split: str) -> None:
    """Refuses examples without labels, which TFDS marks by -1.

    Raises:
        UserError: naming the split.
    """
    if batch["label"].min() < 0:
        raise UserError(
            f"{split!r} of {name} has examples without labels, so nothing can be right "
            "or wrong; evaluate on another split, with --config.eval_split"
        )


@dataclasses.dataclass(frozen=True)
class Images:
    """What becomes of the bytes of images before a model sees them.

    Attributes:
        mean: subtracted from each channel, of values in 0..1.
        std: divides each channel afterwards.
        corruption: comes first.
    """

    mean: Colour
    std: Colour
    corruption: Corruption | None = None

    def __call__(self, batch: dict[str, Array]) -> Array:
        """Returns normalised images [B, Y, X, 3]."""
        images_BYXC = batch["image"]
        if self.corruption is not None:
            images_BYXC = self.corruption(images_BYXC, batch["number"])
        return normalise(images_BYXC, self.mean, self.std)


class Clock:
    """Images per second by the median batch, without the first: it compiles.

    The median, because on a small split one hiccup of the machine is the whole mean.
    """

    def __init__(self) -> None:
        self._last, self._rates = None, []

    def count(self, images: int) -> None:
        """Takes note that so many images are done."""
        now = time.perf_counter()
        if self._last is not None:
            self._rates.append(images / (now - self._last))
        self._last = now

    def rate(self) -> float:
        """Returns images per second; 0 if there was only one batch."""
        return float(np.median(self._rates)) if self._rates else 0.0


def eval_step(
    model: Model, compression: Compression | None, images: Images
) -> Callable[[tuple, Params, dict[str, Array]], tuple[Array, Array]]:
    """Returns the plain function of one evaluation step.

    It returns (count, top-1, top-5, loss) summed over all devices, and for each
    example of all hosts a verdict: twice its label, and 1 more if the first guess was
    right; -1 for padding.
    """

    def step(_: tuple, params: Params, batch: dict[str, Array]) -> tuple[Array, Array]:
        logits_BV = forward(model, params, images(batch), compression).logits
        label_B, mask_B = batch["label"], batch["mask"]
        loss_B = optax.softmax_cross_entropy_with_integer_labels(logits_BV, label_B)
        rank_B = rank_of_label(logits_BV, label_B)
        right_B = (rank_B < 1).astype(jnp.float32)
        rows = (
            jnp.ones_like(mask_B),
            right_B,
            (rank_B < 5).astype(jnp.float32),
            loss_B,
        )
        sums = jnp.stack([jnp.sum(row * mask_B) for row in rows])
        verdict_B = 2 * label_B.astype(jnp.int32) + right_B.astype(jnp.int32)
        verdict_B = jnp.where(mask_B > 0, verdict_B, -1)
        return parallel.total(sums), parallel.all_examples(verdict_B)

    return step


def rank_of_label(logits_BV: Array, label_B: Array) -> Array:
    """Returns how many classes come before the label [B]; ties to the lower class."""
    own_B1 = jnp.take_along_axis(logits_BV, label_B[:, None], axis=1)
    lower_BV = jnp.arange(logits_BV.shape[1]) < label_B[:, None]
    before_BV = (logits_BV > own_B1) | ((logits_BV == own_B1) & lower_BV)
    return jnp.sum(before_BV, axis=1)


def score_row(
    name: str, model: Model, compression: Compression | None, score: Score
) -> dict[str, Json]:
    """Returns one row of an evaluation's JSON: what ran, its cost, what it reaches."""
    schedule = schedule_of(compression, model.geometry)
    macs = cost_macs(model, schedule)
    return {
        "name": name,
        "rule": schedule.rule,
        "prune": None if schedule.prune is None else list(schedule.prune),
        "merge": list(schedule.merge),
        "macs": macs,
        "fraction": macs / cost_macs(model, None),
        **dataclasses.asdict(score),
    }
